"""Modifiers: under any method, less is kept for the backward pass. `cacl+hosvd` names CACL with HOSVD-compressed maps.

A modifier looks at every convolution, linear layer, ReLU and pooling while the network that a method prepared is run, however
deep inside a module the call is made, and puts in its place one that keeps less (`benchsuite.nn.compressed`). The names of
weights and what is stored to serve stay the same. Only training passes are touched: evaluation, consolidation (EWC's Fisher,
say) and teachers run as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, make_dataclass
from dataclasses import field as dataclass_field
from functools import partial
from typing import Any, Literal, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .errors import UserError
from .method import Method
from .nn import compressed
from .nn.compressed import Decomposed, Filtered, Geometry, Kept, Probed
from .nn.conditional import evaluating
from .nn.multihead import MultiHead
from .randomness import generator
from .registry import suggest


@dataclass
class Modifier:
    """Base of the modifiers. Fields become settings of the method that is modified."""

    compressed = "last:0"  # see Maps
    relu = "plain"
    by_input = True  # what is kept depends on the input alone, so that layers which read the same one share it
    seed = 0

    def begin_task(self, model: nn.Module, task: int) -> None:
        """Before the first step of a task, on the network that is about to learn it."""

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        """What is kept of the input of a layer (counted from 0) for its weight's gradient; None: the input itself.

        geometry: stride, padding, dilation and groups of a convolution, None for a linear layer."""
        return None


@dataclass
class Maps(Modifier):
    """What keeps activation maps in another form.

    compressed: "all" convolutions and linear layers, or "last:N" of them in the order in which a forward pass comes to them;
    heads that read the same features count as one. Of them, one whose weight does not learn keeps nothing.
    relu: "mask" keeps one bit for each element at a ReLU, two bits for each output of a 2x2 max pooling and nothing at an
    average pooling, with the same result to the bit; "plain" leaves them as they are, and with them most of what was kept.
    """

    compressed: str = "all"
    relu: Literal["mask", "plain"] = "mask"

    def __post_init__(self) -> None:
        word, _, number = self.compressed.partition(":")
        if self.compressed != "all" and (word != "last" or not number.isdecimal()):
            raise ValueError(f"compressed must be all or last:N, got {self.compressed!r}")


@dataclass
class Decomposition(Maps):
    """epsilon: the share of a map's energy that each mode keeps. mode_ranks: so many directions of each mode instead, the last
    number standing for all further modes. factors: how singular vectors are computed; "svd" is the plain and slow way."""

    epsilon: float = 0.8
    mode_ranks: tuple[int, ...] = ()
    factors: Literal["gram", "svd"] = "gram"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must lie in (0, 1], got {self.epsilon}")
        if any(rank < 1 for rank in self.mode_ranks):
            raise ValueError(f"mode_ranks must be at least 1, got {self.mode_ranks}")

    def modes(self, x: Tensor) -> Sequence[int]:
        """Which modes get a factor."""
        return range(x.dim())

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if self.mode_ranks:
            choose = compressed.by_rank([*self.mode_ranks, *[self.mode_ranks[-1]] * x.dim()])
        elif self.epsilon == 1:
            return None  # everything, so there is nothing to compute
        else:
            choose = compressed.by_energy(self.epsilon)
        return compressed.hosvd(x, choose, self.modes(x), exact=self.factors == "svd")


@dataclass
class SVD(Decomposition):
    """Truncated SVD of each map as a matrix with a row for each image (SVD_epsilon of arXiv 2411.06346)."""

    def modes(self, x: Tensor) -> Sequence[int]:
        return [0]


@dataclass
class HOSVD(Decomposition):
    """Truncated higher-order SVD of each map: images, channels, rows, columns (HOSVD_epsilon of arXiv 2411.06346)."""


@dataclass
class GradientFilter(Maps):
    """Gradient filtering (Yang et al., CVPR 2023): gradients are averaged over r x r patches, inputs summed over them."""

    radius: int = 2

    by_input = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius < 1:
            raise ValueError(f"radius must be at least 1, got {self.radius}")

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if geometry is None or geometry[2] != (1, 1):
            return None  # a linear layer has no pixels; dilated windows overlap no patch evenly
        return Filtered.of(x, weight.shape[2:], geometry, self.radius)


@dataclass
class ASI(Maps):
    """Activation subspace iteration (Nguyen et al., ICML 2025): fixed ranks, factors refreshed by one power step a batch.

    With each task it begins anew: its first batch sets the ranks, at which HOSVD keeps a share epsilon of each mode's energy;
    or, with activation_mb > 0, for each layer one of the shares 0.4, 0.5, ..., 0.9, chosen together so that the errors
    ||dW - dW'|| of that batch's gradients are smallest in sum and all maps take at most so many MB (1e6 bytes).
    """

    epsilon: float = 0.8
    activation_mb: float = 0.0

    shares = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must lie in (0, 1), got {self.epsilon}")
        if self.activation_mb < 0:
            raise ValueError(f"activation_mb must not be negative, got {self.activation_mb}")
        self.begin_task(nn.Identity(), -1)

    def begin_task(self, model: nn.Module, task: int) -> None:
        self.task = task
        self.ranks: dict[int, list[int]] = {}
        self.bases: dict[tuple[int, torch.Size], list[Tensor]] = {}
        self.probes: dict[int, list[tuple[float, int, list[int]]]] = {}  # by layer: error, bytes, ranks of each share

    @torch.no_grad()
    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if self.activation_mb and not self.ranks:
            if layer not in self.probes:
                self.probes[layer] = []
                return Probed(x, self.shares, self.probes[layer])
            if not all(self.probes.values()):  # another pass before the first one's gradients
                return None
            chosen = within(int(self.activation_mb * 1e6), list(self.probes.values()))
            self.ranks = dict(zip(self.probes, chosen, strict=True))
        if layer not in self.ranks:
            first = compressed.hosvd(x, compressed.by_energy(self.epsilon), always=True)
            if first is None:
                return None
            self.ranks[layer] = list(first.core.shape)
        ranks = [min(rank, size) for rank, size in zip(self.ranks[layer], x.shape, strict=True)]
        before = self.bases.get((layer, x.shape)) or [
            torch.randn(size, rank, generator=generator(self.seed, "asi", self.task, layer, mode)).to(x.device)
            for mode, (size, rank) in enumerate(zip(x.shape, ranks, strict=True))
        ]
        bases = [compressed.power_step(x, mode, basis) for mode, basis in enumerate(before)]
        self.bases[layer, x.shape] = bases
        return compressed.decompose(x, bases)


def within(budget: int, layers: list[list[tuple[float, int, list[int]]]]) -> list[list[int]]:
    """For each layer the ranks of one of its (error, bytes, ranks), so that the errors are smallest in sum and the bytes at
    most `budget`; the smallest of each where even they are more. Bytes are rounded up to thousandths of the budget."""
    cells = 1000
    best = np.zeros(cells + 1)  # the smallest error of the layers so far, by how much of the budget they may take
    picks = []
    for options in layers:
        reach: np.ndarray = np.full(cells + 1, np.inf)
        pick: np.ndarray = np.zeros(cells + 1, dtype=int)
        for i, (error, size, _) in enumerate(options):
            cost = -(-size * cells // max(budget, 1))
            if cost <= cells:
                candidate = np.concatenate([np.full(cost, np.inf), best[: cells + 1 - cost] + error])
                pick[candidate < reach], reach = i, np.minimum(reach, candidate)
        best = reach
        picks.append(pick)
    if not np.isfinite(best[cells]):
        return [min(options, key=lambda option: option[1])[2] for options in layers]
    left, chosen = cells, []
    for options, pick in zip(reversed(layers), reversed(picks), strict=True):
        _, size, ranks = options[pick[left]]
        chosen.append(ranks)
        left -= -(-size * cells // max(budget, 1))
    return chosen[::-1]


@dataclass
class Checkpointing(Modifier):
    """Recomputation, the rival that is exact: of `segments` parts of the network all but the last keep their inputs alone and run
    again in the backward pass (Chen et al., arXiv 1604.06174)."""

    segments: int = 3

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(f"segments must be at least 1, got {self.segments}")

    def begin_task(self, model: nn.Module, task: int) -> None:
        for module in model.modules():
            if hasattr(module, "segments"):
                module.segments = self.segments


MODIFIERS: dict[str, type[Modifier]] = {
    "svd": SVD,
    "hosvd": HOSVD,
    "gf": GradientFilter,
    "asi": ASI,
    "checkpointing": Checkpointing,
}


class Read(NamedTuple):
    """What a layer has read and kept in a pass."""

    map: weakref.ref[Tensor]
    version: int  # of the map, which may be changed in place afterwards
    shape: torch.Size  # as the layer saw it, which may have padded it
    layer: int
    linear: bool
    learns: bool
    counted: bool  # in the formula
    kept: Kept | None


class Interception(TorchFunctionMode):
    """Lets a modifier act on the layers of a network, in training passes through it."""

    def __init__(self, modifier: Modifier, model: MultiHead) -> None:
        super().__init__()
        self.modifier = modifier
        self.bytes = 0  # what the paper's formula counts: kept inputs of the compressed layers, summed until somebody resets it
        self._first: int | None = 0 if modifier.compressed == "all" else None  # of the layers that are compressed
        self._inside = self._counting = False
        self._reads: list[Read] = []  # in this pass
        self._layers = 0
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave, always_call=True)

    def begin_task(self, model: nn.Module, task: int) -> None:
        self._first = 0 if self.modifier.compressed == "all" else None
        self.modifier.begin_task(model, task)

    def _enter(self, model: nn.Module, given: Any, named: Any) -> None:
        if self._inside or not (model.training and torch.is_grad_enabled()):
            return
        if self._first is None:
            self._first = max(0, self._count(model, given, named) - int(self.modifier.compressed.partition(":")[2]))
        self._inside, self._layers, self._reads = True, 0, []
        self.__enter__()

    def _leave(self, model: nn.Module, given: Any, out: Any) -> None:
        if self._inside and not self._counting:
            self.__exit__(None, None, None)
            self._inside, self._reads = False, []

    def _count(self, model: nn.Module, given: Any, named: Any) -> int:
        """How many layers a pass comes to, found by one that changes nothing."""
        self._inside = self._counting = True
        self._layers, self._reads = 0, []
        try:
            with evaluating(model), torch.no_grad(), self:
                model(*given, **named)
        finally:
            self._inside = self._counting = False
        return self._layers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None or not (self._counting or torch.is_grad_enabled()):
            return func(*args, **(kwargs or {}))
        return handler(self, partial(func, *args, **(kwargs or {})), *args, **(kwargs or {}))

    def _kept(self, given: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        """What to keep of x, which is made from a layer's input `given`. Linear layers that read the same input, which are heads,
        count as one layer."""
        now, linear = given._version, geometry is None
        reads = [read for read in self._reads if read.version == now and read.map() is given]
        heads = [read.layer for read in reads if read.linear and linear]
        layer = heads[0] if heads else self._layers
        self._layers += not heads
        alike = [read for read in reads if read.learns and read.shape == x.shape]
        shared = [read for read in alike if self.modifier.by_input or (read.linear and linear)]
        compressed, learns = not self._counting and self._first is not None and layer >= self._first, weight.requires_grad
        kept: Kept | None = None
        if not learns:
            if compressed and not linear:  # a plain convolution would keep its input all the same
                kept = Decomposed(x.new_empty(0), ())
        elif shared:
            kept = shared[0].kept
        elif compressed:
            with torch.autocast(x.device.type, enabled=False):  # what is kept may be bfloat16, its decomposition is not
                kept = self.modifier.keep(x.detach(), layer, weight.detach(), geometry)
        counted = learns and compressed
        if counted and not any(read.counted for read in shared):
            self.bytes += x.numel() * x.element_size() if kept is None else kept.nbytes
        self._reads.append(Read(weakref.ref(given), now, x.shape, layer, linear, learns, counted, kept))
        return kept

    def conv2d(
        self,
        plain: Callable[[], Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if input.dim() != 4:
            return plain()
        stride, dilation = pair(stride), pair(dilation)
        x, weight, bias = lowered(input, weight, bias)
        if isinstance(padding, str):
            spare = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(n % 2 for n in spare):
                x, spare = F.pad(x, [n for m in reversed(spare) for n in (m // 2, m - m // 2)]), [0, 0]
            padding = [n // 2 for n in spare]
        geometry = (stride, pair(padding), dilation, groups)
        kept = self._kept(input, x, weight, geometry)
        return plain() if kept is None else kept.conv2d(x, weight, bias, geometry)

    def linear(self, plain: Callable[[], Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.dim() < 2:
            return plain()
        x, weight, bias = lowered(input, weight, bias)
        kept = self._kept(input, x, weight, None)
        return plain() if kept is None else kept.linear(x, weight, bias)

    def relu_(self, plain: Callable[[], Tensor], input: Tensor, inplace: bool = False) -> Tensor:
        return compressed.MaskedReLU.apply(input, inplace) if self._exact(input) else plain()

    def relu_in_place(self, plain: Callable[[], Tensor], input: Tensor) -> Tensor:
        return self.relu_(plain, input, inplace=True)

    def max_pool2d(
        self,
        plain: Callable[[], Tensor],
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        usual = [pair(kernel_size), pair(stride or kernel_size), pair(padding), pair(dilation)] == [
            (2, 2),
            (2, 2),
            (0, 0),
            (1, 1),
        ]
        if not usual or ceil_mode or return_indices or input.dim() != 4 or not self._exact(input):
            return plain()
        return compressed.CodedMaxPool2d.apply(input)

    def avg_pool2d(
        self,
        plain: Callable[[], Tensor],
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        if pair(padding) != (0, 0) or ceil_mode or divisor_override or input.dim() != 4 or not self._exact(input):
            return plain()
        return compressed.SizedAvgPool2d.apply(input, pair(kernel_size), pair(stride or kernel_size))

    def _exact(self, x: Tensor) -> bool:
        return self.modifier.relu == "mask" and not self._counting and x.requires_grad


_HANDLERS: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: Interception.conv2d,
    F.linear: Interception.linear,
    F.relu: Interception.relu_,
    torch.relu: Interception.relu_,
    Tensor.relu: Interception.relu_,
    torch.relu_: Interception.relu_in_place,
    Tensor.relu_: Interception.relu_in_place,
    F.max_pool2d: Interception.max_pool2d,
    F.avg_pool2d: Interception.avg_pool2d,
}


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) if len(value) == 2 else (value[0], value[0])


def lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As autocast would have them: a layer that is computed in bfloat16 keeps bfloat16."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class Modified:
    """What a modifier adds to a method's class, before it in the order of resolution."""

    modifier: type[Modifier]
    compression: Interception

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()
        self._modifier()

    def _modifier(self) -> Modifier:
        return self.modifier(**{f.name: getattr(self, f.name) for f in fields(self.modifier)})

    def prepare(self, model: MultiHead) -> MultiHead:
        model = super().prepare(model)  # type: ignore[misc]
        if getattr(self, "compression", None) is not None:
            name = type(self).__mro__[2].name  # type: ignore[attr-defined]
            raise UserError(f"{name} keeps activations in a form of its own; it takes no modifier")
        modifier = self._modifier()
        modifier.seed = self.seed  # type: ignore[attr-defined]
        self.compression = Interception(modifier, model)
        return model

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.compression.begin_task(strategy.model, strategy.experience.current_experience)
        super().before_training_exp(strategy, **kwargs)  # type: ignore[misc]


def modified(base: type[Method], name: str) -> type[Method]:
    """The class of a method under a modifier: the fields of both, named `method+modifier`."""
    if name not in MODIFIERS:
        raise UserError(f"no modifier is called {name!r}; {suggest(name, MODIFIERS)}")
    modifier = MODIFIERS[name]
    known = {f.name for f in fields(base)}  # one without a default is no attribute of its class
    words = [f.name for f in fields(modifier)]
    if taken := [w for w in words if w in known or hasattr(base, w)] + [w for w in ("modifier", "compression") if w in known]:
        raise UserError(f"{base.name}: its {taken[0]!r} is a setting of every {name} row; give it another name")
    hints = get_type_hints(modifier)
    own = [
        (f.name, hints[f.name], f.default if f.default is not MISSING else dataclass_field(default_factory=f.default_factory))
        for f in fields(modifier)
    ]
    text = f"{(base.__doc__ or base.name).strip().splitlines()[0]} Under {name}: {(modifier.__doc__ or '').splitlines()[0]}"
    return make_dataclass(
        f"{base.__name__}With{modifier.__name__}",
        own,
        bases=(Modified, base),
        eq=False,
        namespace={"modifier": modifier, "name": f"{base.name}+{name}", "__doc__": text, "__module__": base.__module__},
    )
