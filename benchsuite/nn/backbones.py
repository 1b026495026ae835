"""Backbones by name. They map images (B, C, H, W) to features (B, features)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ..randomness import derive, generator
from .conditional import outermost

Law = Literal["default", "he"]  # `Recipe.init`


class Dropout(nn.Module):
    """Dropout with its own generator (`reseed`). It never uses the global one.

    Each element is dropped if its 16 random bits fall below p, so p is exact to within 1/131072. Four elements share one
    64-bit draw: on a CPU this is about three times as fast as one draw per element.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.generator = p, torch.Generator()

    def reseed(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        dropped = round(self.p * 65536)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(
            -(2**63), None, generator=self.generator
        )
        keep = bits.view(torch.int16)[: x.numel()].ge(dropped - 32768)
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            b, c, h, w = x.shape
            keep = keep.view(b, h, w, c).permute(0, 3, 1, 2)
        else:
            keep = keep.view(x.shape)
        return (x * keep).mul_(65536 / (65536 - dropped))


def reseed_dropout(model: nn.Module, seed: int, *purpose: object, prefix: str = "") -> None:
    """Give every dropout layer a new generator, derived from `seed`, `purpose` and `prefix` + the layer's name."""
    device = next(model.parameters()).device
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.reseed(derive(seed, "dropout", *purpose, prefix + name), device)


@contextmanager
def rerun(network: nn.Module, states: list[Tensor], task: int) -> Iterator[None]:
    """Context in which the network computes for `task` and dropout draws again from `states`. At the end this and all changes of
    running statistics are undone."""
    dropouts = [module for module in network.modules() if isinstance(module, Dropout)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    now = [module.generator.get_state() for module in dropouts]
    kept = [(buffer, buffer.clone()) for module in norms for buffer in module.buffers()]
    told: int = getattr(network, "told_task", -1)  # set by MultiHead; another pass may have changed it
    for module, state in zip(dropouts, states, strict=True):
        module.generator.set_state(state)
    for conditional in outermost(network) if task != told else ():
        conditional.set_task(task)
    try:
        yield
    finally:
        for conditional in outermost(network) if task != told else ():
            conditional.set_task(told)
        for module, state in zip(dropouts, now, strict=True):
            module.generator.set_state(state)
        for buffer, value in kept:
            buffer.data.copy_(value)  # in place, as normalisation writes: another pass's graph may use the buffer


def in_segments(network: nn.Module, steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor, segments: int) -> Tensor:
    """Run the steps of a network one after the other. In training with segments > 1 the steps are grouped into that many parts;
    all but the last keep only their input and are computed again in the backward pass, with the same result."""

    def run(part: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for step in part:
            x = step(x)
        return x

    def contexts() -> tuple[Any, Any]:
        states = [module.generator.get_state() for module in network.modules() if isinstance(module, Dropout)]
        return nullcontext(), rerun(network, states, getattr(network, "told_task", -1))

    if segments > 1 and network.training and torch.is_grad_enabled():
        size = -(-len(steps) // segments)
        while len(steps) > size:
            part, steps = steps[:size], steps[size:]
            x = checkpoint(run, part, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return run(steps, x)


class Units(nn.Identity):
    """The output of a layer's units (channels). The identity; a method may replace it by a gate."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count


class ConvNet(nn.Sequential):
    """A plain stack of valid convolutions, stride 1, each followed by ReLU; `features` is the width of its flat output.

    wiring: {layer with weights: (name of the `Units` it reads, of the `Units` it writes)}, None for the image. The features
    come from the `Units` called `last_units`; each unit gives features / count adjacent features.
    plan: (width, kernel) for a convolution, "max" or "avg" for 2x2 pooling with stride 2, "drop" for dropout.
    ReLU follows max pooling if the two are adjacent: max and ReLU commute exactly, in value and in gradient, and only a
    quarter of the elements remains to be rectified.
    """

    def __init__(self, image: Sequence[int], plan: Sequence[tuple[int, int] | str], dropout: float) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, height, width = image
        convolutions = 0
        wiring: dict[str, tuple[str | None, str]] = {}
        for i, item in enumerate(plan):
            if isinstance(item, tuple):
                if convolutions:
                    layers[f"units{convolutions}"] = Units(channels)
                convolutions += 1
                reads = f"units{convolutions - 1}" if convolutions > 1 else None
                wiring[f"conv{convolutions}"] = (reads, f"units{convolutions}")
                layers[f"conv{convolutions}"] = nn.Conv2d(channels, item[0], item[1])
                channels, height, width = item[0], height - item[1] + 1, width - item[1] + 1
                if plan[i + 1 : i + 2] != ["max"]:
                    layers[f"relu{convolutions}"] = nn.ReLU(inplace=True)
            elif item == "drop":
                layers[f"drop{convolutions}"] = Dropout(dropout)
            else:
                layers[f"pool{convolutions}"] = nn.MaxPool2d(2) if item == "max" else nn.AvgPool2d(2)
                height, width = height // 2, width // 2
                if item == "max":
                    layers[f"relu{convolutions}"] = nn.ReLU(inplace=True)
        if min(height, width) < 1:
            raise ValueError(f"an image of {image[1]} x {image[2]} is too small for this network")
        layers[f"units{convolutions}"] = Units(channels)
        layers["flatten"] = nn.Flatten()
        super().__init__(layers)
        self.features = channels * height * width
        self.wiring, self.last_units = wiring, f"units{convolutions}"
        self.segments = 1  # see `in_segments`

    def forward(self, x: Tensor) -> Tensor:
        if self.segments == 1:
            return super().forward(x)
        steps: list[list[nn.Module]] = []
        for name, module in self.named_children():
            if name.startswith("conv"):
                steps.append([])
            steps[-1].append(module)
        return in_segments(self, [nn.Sequential(*step) for step in steps], x, self.segments)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a skip connection. The units of the stream are gated after the sum.

    In the shortcut the stride is applied before the 1x1 convolution, which is equivalent: oneDNN's strided 1x1 convolution writes
    out of bounds with fewer than 8 input channels (oneDNN issue 6035).
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.units = Units(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.units(F.relu(self.bn1(self.conv1(x))))
        skipped = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(skipped))


class ResNet(nn.Module):
    """A residual network for small images: a 3x3 stem without pooling, four stages of `blocks` blocks with once, twice, four and
    eight times `width` channels, global average pooling. The stem has stride 2 above 32 pixels.

    All layers that write to the stream of a stage share its units. `wiring`, `last_units`: as in ConvNet.
    """

    def __init__(self, image: Sequence[int], width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv1 = nn.Conv2d(image[0], width, 3, 1 if min(image[1:]) <= 32 else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.wiring: dict[str, tuple[str | None, str]] = {"conv1": (None, "stream1"), "bn1": ("stream1", "stream1")}
        channels = width
        for stage in range(1, 5):
            out, before, stream = width * 2 ** (stage - 1), f"stream{max(stage - 1, 1)}", f"stream{stage}"
            self.add_module(stream, Units(out))
            for i in range(blocks):
                name = f"stage{stage}_{i + 1}"
                block = Block(channels, out, 2 if stage > 1 and i == 0 else 1)
                self.add_module(name, block)
                reads, inner = before if i == 0 else stream, f"{name}.units"
                self.wiring |= {
                    f"{name}.conv1": (reads, inner),
                    f"{name}.bn1": (inner, inner),
                    f"{name}.conv2": (inner, stream),
                    f"{name}.bn2": (stream, stream),
                }
                if isinstance(block.shortcut, nn.Sequential):
                    self.wiring |= {f"{name}.shortcut.0": (reads, stream), f"{name}.shortcut.1": (stream, stream)}
                channels = out
        self.features, self.last_units = channels, "stream4"
        self.segments = 1  # see `in_segments`

    def forward(self, x: Tensor) -> Tensor:
        def stem(x: Tensor) -> Tensor:
            return self.stream1(F.relu(self.bn1(self.conv1(x))))

        def block(stage: int, i: int, x: Tensor) -> Tensor:
            return self.get_submodule(f"stream{stage}")(self.get_submodule(f"stage{stage}_{i}")(x))

        places = [(stage, i) for stage in range(1, 5) for i in range(1, self.blocks + 1)]
        steps: list[Callable[[Tensor], Tensor]] = [stem, *(partial(block, *place) for place in places)]
        return in_segments(self, steps, x, self.segments).mean((2, 3))


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def cacl_net(image: Sequence[int], dropout: float, width: float = 1.0) -> nn.Module:
    """The five-convolution network of CACL's benchmarks (arXiv 2009.01956, official code `customnet_SVD.Net_SVD`) in dense form
    with biases: 390,848 weights and 640 biases; 1,024 features at 32x32, 16,384 at 84x84."""
    a, b, c = (scaled(channels, width) for channels in (64, 128, 256))
    return ConvNet(image, [(a, 3), (a, 3), "max", "drop", (b, 3), (b, 3), "max", "drop", (c, 2), "avg"], dropout)


def digits_net(image: Sequence[int], dropout: float, width: float = 1.0) -> nn.Module:
    """The same architecture scaled down to 8x8 images: 13,312 weights and 112 biases, 64 features."""
    a, b, c = (scaled(channels, width) for channels in (16, 32, 64))
    return ConvNet(image, [(a, 3), (b, 3), "max", "drop", (c, 2)], dropout)


def resnet18(image: Sequence[int], dropout: float, width: float = 1.0) -> nn.Module:
    """ResNet-18 of reduced width, as in the comparisons of GPM and WSN: two blocks in each stage, 20, 40, 80 and 160 channels,
    1.1 M weights, 160 features; with batch normalisation, without dropout."""
    return ResNet(image, scaled(20, width), 2)


def resnet10(image: Sequence[int], dropout: float, width: float = 1.0) -> nn.Module:
    """`resnet18` with one block in each stage."""
    return ResNet(image, scaled(20, width), 1)


# By name: function of (image, dropout, width); width multiplies the channels of every layer
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "cacl": cacl_net,
    "digits": digits_net,
    "resnet10": resnet10,
    "resnet18": resnet18,
}


def has_batchnorm(name: str) -> bool:
    """Whether the named backbone has batch normalisation."""
    return _normalises(BACKBONES[name])


@cache  # asked for each time that settings are resolved or a network is built
def _normalises(backbone: Callable[..., nn.Module]) -> bool:
    with torch.device("meta"):
        return any(isinstance(module, nn.BatchNorm2d) for module in backbone((3, 32, 32), 0.0).modules())


def least_normalised(name: str, image: Sequence[int], width: float = 1.0) -> float:
    """The fewest pixels of one image, (C, H, W), over which a batch normalisation of the named backbone averages; infinity if it
    has none."""
    seen: list[float] = [math.inf]
    with torch.device("meta"):
        network = BACKBONES[name](image, 0.0, width).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, 0].numel()))
        network(torch.zeros(1, *image))
    return min(seen)


def build_backbone(
    name: str, image: Sequence[int], dropout: float, seed: int, width: float = 1.0, init: Law = "default"
) -> nn.Module:
    """The named network. Every layer is initialised by its own generator, derived from (seed, layer name)."""
    with Undrawn():
        network = BACKBONES[name](image, dropout, width)
    for layer_name, module in network.named_modules():
        initialise(module, seed, layer_name, law=init)
    return network


class Undrawn(TorchFunctionMode):
    """Context in which layers are made without initial values: they get them from `initialise`, or from a file. So nothing is
    drawn from the global generator. Several times as fast as making them on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" and func not in (nn.init.zeros_, nn.init.ones_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def initialise(module: nn.Module, seed: int, *purpose: object, law: Law = "default") -> None:
    """Initialise a layer, determined by (seed, purpose) and the law alone. Normalisation layers start at the identity.

    law="default": PyTorch's default, U(-b, b) with b = 1/sqrt(fan_in): variance 1 / (3 fan_in).
    law="he": weights of convolutions from U(-b, b) with b = sqrt(6 / fan_in): variance 2 / fan_in (He et al., ICCV 2015).
    Biases and linear layers (heads) follow PyTorch's default under both laws. Uniform draws are bit-identical on every processor.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        source = generator(seed, "init", *purpose)
        bound = 1 / math.sqrt(module.weight[0].numel())
        gain = math.sqrt(6) if law == "he" and isinstance(module, nn.Conv2d) else 1.0
        for tensor, limit in ((module.weight, gain * bound), (module.bias, bound)):
            if tensor is not None:
                tensor.uniform_(-limit, limit, generator=source)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
