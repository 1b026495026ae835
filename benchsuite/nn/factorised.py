"""Convolutions whose kernel is a sum of rank-one components, in banks that grow from task to task."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conditional import TaskConditional


def break_even_rank(out_channels: int, columns: int) -> int:
    """floor(O I k^2 / (O + I k^2)): the rank at which factors cost no more than the dense kernel (CACL section 2.3)."""
    return out_channels * columns // (out_channels + columns)


class SVDConv2d(TaskConditional):
    """A convolution with kernel reshape(N diag|sigma| C) (CACL section 2, channel decomposition), no bias.

    The bank holds the components of finished tasks: N (O, K), sigma (K,), C (K, I k^2), as buffers, so that no optimiser
    can move them; ranks[t] = K_t says how many of them task t uses. While a task is learnt, `residual_N`, `residual_sigma`
    and `residual_C` are its trainable components. The kernel is summed task by task: M_t = M_{t-1} + (components of t), so
    that training starts from exactly the kernel that the earlier tasks left, and M_i is the same bits for ever.
    """

    N: Tensor
    sigma: Tensor
    C: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.groups != 1 or conv.padding_mode != "zeros":
            raise ValueError("a factorised convolution needs groups=1 and zero padding")
        self.shape = tuple(conv.weight.shape)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        rows, columns = self.rows, self.columns = self.shape[0], math.prod(self.shape[1:])
        device = conv.weight.device
        self.register_buffer("N", torch.empty(rows, 0, device=device))
        self.register_buffer("sigma", torch.empty(0, device=device))
        self.register_buffer("C", torch.empty(0, columns, device=device))
        self.ranks: list[int] = []
        for name in ("residual_N", "residual_sigma", "residual_C"):
            self.register_parameter(name, None)
        self._task = -1
        self.register_buffer("_kernel", torch.empty(0, device=device), persistent=False)  # of the task told last

    @property
    def pool(self) -> int:
        """Number of residual components."""
        return 0 if self.residual_sigma is None else len(self.residual_sigma)

    def draw_residual(self, count: int, source: torch.Generator) -> None:
        """`count` fresh components: N ~ N(0, 2/count), C ~ N(0, 2/(I k^2)), sigma ~ N(0, 1) (CACL sections 2.4 and 5.7)."""

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).normal_(0, std, generator=source).to(self.sigma))

        self.residual_N = normal(self.rows, count, std=math.sqrt(2 / max(count, 1)))
        self.residual_sigma = normal(count, std=1.0)
        self.residual_C = normal(count, self.columns, std=math.sqrt(2 / self.columns))
        self._task = -1

    @torch.no_grad()
    def consolidate(self, keep: Tensor) -> None:
        """Append the residual components `keep` (indices, in order) to the bank and drop the rest."""
        self.N = torch.cat([self.N, self.residual_N[:, keep]], 1)
        self.sigma = torch.cat([self.sigma, self.residual_sigma[keep]])
        self.C = torch.cat([self.C, self.residual_C[keep]])
        self.ranks.append(len(self.sigma))
        self.residual_N = self.residual_sigma = self.residual_C = None
        self._task = -1

    @torch.no_grad()
    def prefix(self, task: int) -> Tensor:
        """The kernel of a finished task, (O, I k^2); task -1 has none, which is 0.

        Each addend is computed from tensors of its own, so that neither the length of the bank nor its place in memory can
        change how the product is rounded."""
        kernel, start = torch.zeros(self.rows, self.columns, device=self.sigma.device, dtype=self.sigma.dtype), 0
        with torch.autocast(self.sigma.device.type, enabled=False):
            for end in self.ranks[: task + 1]:
                if end > start:
                    left = self.N[:, start:end].contiguous() * self.sigma[start:end].abs()
                    kernel += left @ self.C[start:end].clone()
                start = end
        return kernel

    def set_task(self, task: int) -> None:
        if task != self._task:
            self._task, self._kernel = task, self.prefix(min(task, len(self.ranks) - 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self._kernel
        if self._task >= len(self.ranks) and self.residual_sigma is not None:
            with torch.autocast(x.device.type, enabled=False):
                kernel = torch.addmm(kernel, self.residual_N * self.residual_sigma.abs(), self.residual_C)
        return F.conv2d(x, kernel.view(self.shape), None, self.stride, self.padding, self.dilation)

    def get_extra_state(self) -> dict[str, list[int]]:
        return {"ranks": self.ranks}

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.ranks, self._task = list(state["ranks"]), -1


class KernelBank(TaskConditional):
    """The same convolution served from recomposed kernels (D, O, I, k, k); index[t] is the kernel of task t."""

    def __init__(self, conv: nn.Conv2d, kernels: Tensor, index: list[int]) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.register_buffer("kernels", kernels)
        self.index, self._task = index, 0

    def set_task(self, task: int) -> None:
        self._task = task

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernels[self.index[self._task]], None, self.stride, self.padding, self.dilation)
