"""The base class of methods: an Avalanche plugin with hyper-parameters as fields and a few methods to override."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from ..errors import UserError
from ..fields import check
from ..nn.backbones import has_batchnorm
from ..nn.guard import FrozenGuard
from ..nn.multihead import MultiHead
from ..protocol import Recipe
from ..randomness import generator
from ..record.schema import FORMS
from .artifact import Artifact
from .forms import Axes


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a method for one protocol and one of its tiers (None: all tiers), with their origin."""

    protocol: str
    tier: str | None = None
    values: Mapping[str, Any]
    origin: str


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included, for `benchsuite tune`; with log=True on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """A few unordered values for `benchsuite tune`."""

    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a method may know about its run.

    n_tasks: the length of the whole sequence, also if the run learns only the first of them (`--set tasks=`). A method that reads
        it is marked on the boards: most are not told how many tasks will come.
    n_tasks_read: whether anybody has read it.
    """

    seed: int
    recipe: Recipe
    n_tasks: int
    n_tasks_read: bool = field(default=False, init=False)

    def __getattribute__(self, name: str) -> Any:
        if name == "n_tasks":
            object.__setattr__(self, "n_tasks_read", True)
        return super().__getattribute__(name)


class Method(SupervisedPlugin):
    """Base of every method: plain fine-tuning. Subclasses are dataclasses; each field is a hyper-parameter.

    A method may define any hook of an Avalanche `SupervisedPlugin` and override the methods below. From `prepare` on it knows its
    run by `self.seed`, `self.recipe` and `self.n_tasks` (see `RunInfo`); after `prepare` there are `self.model` and `self.guard`,
    which freezes entries of parameters. Every other attribute is stored in the checkpoint: tensors, numbers, strings and plain
    containers of them.
    """

    name: ClassVar[str] = ""  # default: the class's name in lower case
    label: ClassVar[str] = ""  # what tables and figures call it (say, "DER++"); default: the name
    family: ClassVar[str] = "other"  # in the field's terms (say, "replay"): its colour in figures, and a filter on the page
    marker: ClassVar[str] = ""  # in figures, one of `catalogue.MARKERS`; default: one that follows from the name
    forgetting: ClassVar[Literal["some", "none"]] = "some"  # "none": logits of old tasks stay bit-identical on the CPU
    trains_jointly: ClassVar[bool] = False  # True: trains once on all tasks together, not on a sequence
    trains_old_heads: ClassVar[bool] = False  # True: heads of earlier tasks are trained further, by design
    size_reference: ClassVar[bool] = False  # True: one plain network per task; size and forward gain of others are relative to it
    settings: ClassVar[tuple[Preset, ...]] = ()
    space: ClassVar[Mapping[str, Range | Choice]] = {}  # search space of `benchsuite tune`, by setting
    temporary: ClassVar[tuple[str, ...]] = ()  # attributes that each task makes anew; no checkpoint holds them
    forms: ClassVar[tuple[str, ...]] = FORMS  # storage forms of its artifacts; NATIVE if it stores codes itself
    unit_axes: ClassVar[Axes] = {}  # of stored tensors whose units (`method.forms`) do not lie along dimension 0

    run: RunInfo
    model: MultiHead
    guard: FrozenGuard
    _drawn: dict[str, int]  # how often a generator was asked for, by purpose
    compression: Any = None  # `nn.interception.Interception`, if activations are stored in another form
    memory_bytes: int = 0  # of samples stored in data sets; they count as training state, as tensors in attributes do anyway

    def __post_init__(self) -> None:
        check(self)

    @property
    def size_is_learnt(self) -> bool:
        """Whether the size of the artifact depends on training and not only on the settings."""
        return False

    @property
    def phase(self) -> str | None:
        """The setting that says at which share of a task's epochs another phase of training begins; None without phases. A recipe
        that may end a task early is then refused."""
        return None

    def first_epochs(self) -> int:
        """The epochs of a task before its second phase: at least one, and all of them without phases. `phase` is taken as the
        share of the second; a method that declares the share of the first overrides this."""
        share: float = getattr(self, self.phase) if self.phase else 0
        return max(1, self.recipe.epochs - round(share * self.recipe.epochs))

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        """Why this method cannot run under `recipe`, in one line; None if it can."""
        if self.forgetting == "none" and recipe.batchnorm == "shared" and has_batchnorm(recipe.backbone):
            return "batchnorm=shared changes with every later task, and so would what was learnt; use batchnorm=per_task"
        return None

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def init_seed(self) -> int:
        """The seed of initial weights: the run's, unless the recipe gives them one of their own."""
        return self.recipe.drawn_by(self.seed)

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def n_tasks(self) -> int:
        return self.run.n_tasks

    def begin(self, run: RunInfo, model: MultiHead, device: torch.device | str = "cpu") -> None:
        """Called once by the trainer, before the first task. A method overrides `prepare`, not this."""
        self.run, self._drawn = run, {}
        prepared = self.prepare(model)
        if not isinstance(prepared, MultiHead):
            raise UserError(f"prepare() of {self.name} must return the network, not {type(prepared).__name__}")
        self.model = prepared.to(device)
        self.guard = FrozenGuard(self.model)

    def prepare(self, model: MultiHead) -> MultiHead:
        """Transform the protocol's dense multi-head network (factorise, mask, gate) before the first task."""
        return model

    def artifact(self) -> Artifact:
        """Everything needed to serve every task so far. Default: all weights once, and the heads."""
        return Artifact.of_network(self.model)

    @classmethod
    def restore(cls, artifact: Artifact) -> nn.Module:
        """The served network, model(x, task), from the artifact alone, in eval mode."""
        return artifact.network()

    def alternatives(self) -> dict[str, Artifact]:
        """Other ways to store the same network, by name. Their sizes are reported beside the leaderboard."""
        return {}

    def diagnostics(self) -> dict[str, Any]:
        """What the record should say of this run besides the common columns: any of `record.schema.Diagnostics`, as a dict.

        ranks: for each layer and task, the components stored so far. other_sizes: bytes by other ways of counting, in words
        that follow "MB as". remarks: sentences for the notes under a board. extra: anything else, as plain JSON.
        It is also called before the first task, so that a mistake in it shows before hours of training."""
        return {}

    def generator(self, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for `purpose` (say, the task's position), derived from the seed of the run.

        Each call gives other draws, also for the same purpose, as in a hook of every step; a resumed run goes on with them."""
        asked, drawn = repr(purpose), self.__dict__.setdefault("_drawn", {})
        count = drawn[asked] = drawn.get(asked, 0) + 1
        again = () if count == 1 else ("again", count)
        return generator(self.seed, "method", *purpose, *again, device=device)

    @contextmanager
    def same_draws(self) -> Iterator[None]:
        """Context after which `generator` goes on as if it had not been asked: what is called often draws the same each time."""
        drawn = dict(self._drawn)
        try:
            yield
        finally:
            self._drawn = drawn

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of the method besides the network: every attribute that is not a hyper-parameter."""
        given = {
            "run",
            "model",
            "guard",
            "_drawn",
            "compression",
            "plug",
            *self.temporary,
            *(f.name for f in fields(self) if f.init),
        }
        return {name: plain(f"{type(self).__name__}.{name}", value) for name, value in vars(self).items() if name not in given}

    def unsaved(self) -> str | None:
        """Why no checkpoint can hold what the method has, None if one can: an interrupted run starts again at its first task."""
        return None

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""
        for name, value in state.items():
            setattr(self, name, value)


def plain(name: str, value: Any) -> Any:
    """`value`, if a checkpoint can store it. Otherwise raises TypeError with the name of the attribute."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in SCALARS:
        return value
    if type(value) in (dict, OrderedDict):
        if strange := [k for k in value if type(k) not in (*SCALARS, tuple)]:
            raise TypeError(f"{name} has a {type(strange[0]).__name__} as a key, which a checkpoint cannot find again; use names")
        return {k: plain(f"{name}[{k!r}]", v) for k, v in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(plain(f"{name}[{i}]", v) for i, v in enumerate(value))
    remedy = next((words for kind, words in REMEDIES.items() if isinstance(value, kind)), OTHERWISE)
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; {remedy}")


SCALARS = (NoneType, bool, int, float, str)

OTHERWISE = "name the attribute in `temporary` if each task makes it anew, else override state() and load_state()"

REMEDIES: dict[type, str] = {
    np.ndarray: "keep torch.from_numpy(...) of it",
    np.generic: "keep its .item()",
    defaultdict: "keep a plain dict",
    torch.Generator: "ask self.generator(...) for one each time you draw: it goes on",
}
