"""Serving a gated network: each task by the small dense network of the units in its mask."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .multihead import MultiHead
from .normalisation import FirstTaskBatchNorm, PerTaskBatchNorm


class SlicedNetwork(nn.Module):
    """model(x, task): a separate backbone and head for each task, without the units that the task does not use."""

    def __init__(self, backbones: Mapping[int, nn.Module], heads: Mapping[int, nn.Linear]) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict({str(t): backbone for t, backbone in backbones.items()})
        self.heads = nn.ModuleDict({str(t): head for t, head in heads.items()})

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[str(task)](self.backbones[str(task)](x))


@torch.no_grad()
def slice_network(model: MultiHead, masks: Mapping[int, Mapping[str, Tensor]]) -> SlicedNetwork:
    """masks: for each task and each `Units` of the backbone, the units that it uses, bool (n,). model: dense, in eval mode."""
    backbones, heads = {}, {}
    for task, used in masks.items():
        backbone = copy.deepcopy(model.backbone)
        for name, (reads, writes) in model.backbone.wiring.items():
            parent, _, leaf = name.rpartition(".")
            layer = backbone.get_submodule(name)
            rows = used[writes]
            small = _convolution(layer, None if reads is None else used[reads], rows) if isinstance(layer, nn.Conv2d) else None
            setattr(backbone.get_submodule(parent), leaf, small or _normalisation(layer, task, rows))
        last = used[model.backbone.last_units]
        columns = last.repeat_interleave(model.features // len(last))  # positions of a channel are adjacent in flat features
        head = model.heads[str(task)]
        small_head = nn.Linear(int(columns.sum()), head.out_features)
        small_head.weight, small_head.bias = nn.Parameter(head.weight[:, columns]), head.bias
        backbones[task], heads[task] = backbone, small_head
    return SlicedNetwork(backbones, heads).eval()


def _convolution(conv: nn.Conv2d, columns: Tensor | None, rows: Tensor) -> nn.Conv2d:
    weight = conv.weight[rows] if columns is None else conv.weight[rows][:, columns]
    small = nn.Conv2d(
        weight.shape[1], weight.shape[0], conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=conv.bias is not None
    )
    small.weight = nn.Parameter(weight)
    if conv.bias is not None:
        small.bias = nn.Parameter(conv.bias[rows])
    return small


def _normalisation(layer: nn.Module, task: int, rows: Tensor) -> nn.BatchNorm2d:
    if isinstance(layer, PerTaskBatchNorm):
        layer = layer.norms[str(task)]
    elif isinstance(layer, FirstTaskBatchNorm):
        layer = layer.norm
    assert isinstance(layer, nn.BatchNorm2d)
    small = nn.BatchNorm2d(int(rows.sum()), eps=layer.eps, track_running_stats=layer.track_running_stats)
    small.weight, small.bias = nn.Parameter(layer.weight[rows]), nn.Parameter(layer.bias[rows])
    if layer.track_running_stats:
        small.running_mean, small.running_var = layer.running_mean[rows], layer.running_var[rows]
    return small
