"""Avalanche's strategy plugins as methods, and on top of methods.

    register(from_plugin(LwFPlugin, name="avalanche-lwf", alpha=1.0, temperature=2.0))        a method of its own
    benchsuite run --method finetune --plugin "RWalkPlugin(ewc_lambda=0.5)"                   finetune+RWalkPlugin

Both make a subclass of a method (`plugged`) that makes the plugin at the start of a run and calls each of its hooks after the
method's own. Its arguments become settings, so they are on record and part of what identifies a run.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import qpsolvers
from avalanche.core import BaseSGDPlugin, SupervisedPlugin
from avalanche.training import plugins

from ..errors import UserError, one_line
from ..fields import convert
from ..nn.multihead import MultiHead
from ..protocol import Recipe
from ..registry import suggest
from .base import Method
from .held import pack, stored_bytes, unpack
from .replay import mixed_batches

HOOKS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]

FILLED = ("before_training_exp", "after_train_dataset_adaptation", "after_training_exp")  # hooks that fill memories

NETWORK = "model"  # an argument of this name gets the network

WATCHED = ("train_stream", "valid_stream")  # what a plugin may watch to choose when to stop


@dataclass(frozen=True)
class Call:
    """A plugin as it is written on a command line: PLACE:CLASS(NAME=LITERAL, ...), where PLACE is a module or a Python file, or
    CLASS(...) for one of `avalanche.training.plugins`. Nothing in it is evaluated but literals."""

    place: str
    name: str
    arguments: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Call:
        match = re.fullmatch(r"(?:(?P<place>[^()]+?):)?(?P<name>[A-Za-z_]\w*)\s*(?P<rest>\(.*\))?\s*", text.strip(), re.DOTALL)
        if not match:
            raise UserError(f"{text!r} is no plugin", "write MODULE:CLASS(NAME=VALUE, ...) or ./FILE.py:CLASS(NAME=VALUE, ...)")
        try:
            tree = ast.parse(f"f{match['rest'] or '()'}", mode="eval").body
            if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
                raise ValueError("an argument without a name")
            given = {word.arg: ast.literal_eval(word.value) for word in tree.keywords if word.arg}
            if len(given) != len(tree.keywords):
                raise ValueError("** is not a literal")
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            what = error.msg if isinstance(error, SyntaxError) else str(error).partition(" on line")[0].partition(": <")[0]
            raise UserError(
                f"the arguments in {text!r} cannot be read ({what})", "write each as NAME=VALUE: a number, 'text', None or a list"
            ) from None
        return cls(match["place"] or "", match["name"], given)


@dataclass
class Plug:
    """The plugin of a run.

    network: names of the network's own attributes; a plugin may add some. packed: what a checkpoint holds, until the next hook.
    stream: the tasks. samples: bytes of stored images."""

    plugin: Any
    network: frozenset[str]
    packed: Any = None
    stream: Callable[[], Any] = tuple
    samples: int = 0


class Plugged(Method):
    """A method that also trains with a plugin.

    plugin_class: of the plugin. arguments: which field gives which of its arguments. given: its other arguments."""

    plugin_class: ClassVar[Any]
    arguments: ClassVar[Mapping[str, str]]
    given: ClassVar[Mapping[str, Any]]
    trains_old_heads = True  # it may
    plug: Plug

    def __post_init__(self) -> None:
        super().__post_init__()
        if NETWORK not in _parameters(self.plugin_class):
            self._made()  # wrong arguments are told now

    def _made(self, model: MultiHead | None = None) -> Any:
        words = {argument: getattr(self, name) for argument, name in self.arguments.items()}
        words |= {name: copy.deepcopy(value) for name, value in self.given.items()}  # no run shares it with another
        words |= {NETWORK: model} if NETWORK in _parameters(self.plugin_class) else {}
        try:
            return self.plugin_class(**words)
        except Exception as error:
            raise ValueError(f"{self.plugin_class.__name__} cannot be made: {one_line(error)}") from error

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        for kind in self.plugin_class.__mro__:
            if kind in UNSUITED and (reason := UNSUITED[kind](self, recipe)):
                return reason
        return super().unsupported_reason(recipe)

    def prepare(self, model: MultiHead) -> MultiHead:
        model = super().prepare(model)
        own = frozenset(vars(model))
        self.plug = Plug(self._made(model), own)
        return model

    @property
    def memory_bytes(self) -> int:
        return int(self.__dict__.get("memory_bytes", 0)) + self.plug.samples

    @memory_bytes.setter
    def memory_bytes(self, value: int) -> None:
        self.__dict__["memory_bytes"] = value

    def _call(self, hook: str, strategy: Any, *args: Any, **kwargs: Any) -> None:
        plug = self.plug
        if strategy.is_training and strategy.experience is not None:
            plug.stream = weakref.ref(strategy.experience.origin_stream)
        if plug.packed is not None:
            self._restore()
        if hook == "before_training" and not self.trains_jointly:
            self.model.add_task(strategy.clock.train_exp_counter)  # some plugins list the network's parameters here
        watched = getattr(plug.plugin, "val_stream_name", None) if isinstance(plug.plugin, plugins.EarlyStoppingPlugin) else None
        if watched and hook == "before_training_exp":
            strategy.evaluator.reset_last_metrics()
        if watched and hook == "after_training_epoch":
            strategy.evaluator.last_metric_results.update(strategy.metrics_on(watched))
        with _undisturbed():
            getattr(plug.plugin, hook)(strategy, *args, **kwargs)
        if strategy.model is not self.model:  # a run has one network, whose weights a plugin may replace
            self.model.load_state_dict(strategy.model.state_dict())
            strategy.model = self.model
        if hook in FILLED and (stream := plug.stream()):
            plug.samples = stored_bytes(vars(plug.plugin), stream)

    def state(self) -> dict[str, Any]:
        """The run goes on with what is stored here, so that a resumed run is the same, byte by byte."""
        self.plug.packed, self.model._table = self._packed(), None
        return self.plug.packed

    def _packed(self) -> dict[str, Any]:
        plug, fresh, name = self.plug, vars(self._made(self.model)), type(self.plug.plugin).__name__
        held = {"plugin": vars(plug.plugin), "network": {k: v for k, v in vars(self.model).items() if k not in plug.network}}
        packed = {
            where: {k: pack(f"{name}.{k}", v, fresh.get(k), self.model, plug.stream() or ()) for k, v in values.items()}
            for where, values in held.items()
        }
        return {"method": super().state(), "samples": plug.samples, **packed}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state["method"])
        self.plug.samples, self.plug.packed = state["samples"], state

    def _restore(self) -> None:
        plug, fresh, stream = self.plug, vars(self._made(self.model)), self.plug.stream() or ()
        packed, plug.packed = plug.packed, None
        for where, holder in (("plugin", plug.plugin), ("network", self.model)):
            for name, value in packed[where].items():
                setattr(holder, name, unpack(value, fresh.get(name), self.model, stream))

    def unsaved(self) -> str | None:
        try:
            self._packed()
        except TypeError as error:
            return str(error)
        return super().unsaved()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without warnings that say nothing to a user: that Avalanche's plugins call its old functions, which no filter stops, and
    that early stopping has seen no metric before the first epoch."""
    with warnings.catch_warnings(record=True) as said:
        yield
    for one in said:
        if not issubclass(one.category, DeprecationWarning) and "EarlyStopping" not in str(one.message):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _forwarded(name: str) -> Callable[..., None]:
    does_nothing = getattr(SupervisedPlugin, name)

    def hook(self: Plugged, strategy: Any, *args: Any, **kwargs: Any) -> None:
        getattr(super(Plugged, self), name)(strategy, *args, **kwargs)
        if getattr(self.plugin_class, name, does_nothing) is not does_nothing or name in FILLED or name == "after_training_epoch":
            self._call(name, strategy, *args, **kwargs)

    return hook


for _name in HOOKS:
    setattr(Plugged, _name, _forwarded(_name))


def _quadprog(method: Plugged, recipe: Recipe) -> str | None:
    return None if "quadprog" in qpsolvers.available_solvers else "it needs the package quadprog: pip install quadprog"


def _mixes(method: Plugged, recipe: Recipe) -> str | None:
    return mixed_batches(recipe)


def _one_head(method: Plugged, recipe: Recipe) -> str | None:
    return "it is for one head that all tasks share, and here each task has a head of its own"


def _heads_excluded(method: Plugged, recipe: Recipe) -> str | None:
    if any(name == "heads" for name in getattr(method, method.arguments["excluded_parameters"]) or ()):
        return None
    return "it reads gradients of all weights, and heads of earlier tasks have none: add excluded_parameters=['heads']"


def _stops_early(method: Plugged, recipe: Recipe) -> str | None:
    says = {name: getattr(method, field_name) for name, field_name in method.arguments.items()}
    if says["peval_mode"] != "epoch":
        return "metrics are computed after each epoch: leave peval_mode at 'epoch'"
    if says["metric_name"] not in METRICS:
        return f"metric_name must be one of {', '.join(METRICS)}"
    if says["val_stream_name"] not in WATCHED:
        return f"test images choose nothing: val_stream_name is one of {', '.join(WATCHED)}"
    if says["val_stream_name"] == "valid_stream" and not recipe.validation:
        return "valid_stream is the share of the training images that the recipe sets aside: set it, say validation=0.1"
    if method.phase or recipe.lr_schedule == "patience":
        return f"a task may end early, which does not go with {method.phase or 'lr_schedule=patience, which ends tasks itself'}"
    return None


METRICS = ("Top1_Acc_Stream", "Loss_Stream")

# Why some of Avalanche's plugins cannot run under a recipe, or with these arguments
UNSUITED: dict[type, Callable[[Plugged, Recipe], str | None]] = {
    plugins.GEMPlugin: _quadprog,
    plugins.AGEMPlugin: _mixes,
    plugins.ReplayPlugin: _mixes,
    plugins.GDumbPlugin: _mixes,
    plugins.BiCPlugin: _one_head,
    plugins.CWRStarPlugin: _one_head,
    plugins.GSS_greedyPlugin: _one_head,
    plugins.RARPlugin: _one_head,
    plugins.LFLPlugin: _one_head,
    plugins.SynapticIntelligencePlugin: _heads_excluded,
    plugins.EarlyStoppingPlugin: _stops_early,
}


def plugged(
    plugin: type, name: str, base: type[Method] = Method, module: str = "", given: Mapping[str, Any] = MappingProxyType({})
) -> type[Method]:
    """The class of `base` with a plugin. given: arguments of the plugin; literals are the defaults of their settings.

    A setting has the name of its argument, or CLASS_ARGUMENT if a setting or attribute of the method has that name."""
    parameters = _parameters(plugin)
    if unknown := [word for word in given if word not in parameters]:
        raise UserError(f"{plugin.__name__} has no argument {unknown[0]!r}", suggest(unknown[0], parameters))
    taken = {f.name for f in fields(Recipe)} | set(dir(Plugged)) | set(dir(base)) | set(getattr(base, "__dataclass_fields__", ()))
    own: list[Any] = []
    arguments, constants = {}, {}
    for word, parameter in parameters.items():
        value = given.get(word, parameter.default)
        kind = _kind(parameter.annotation, value)
        if word == NETWORK:
            continue
        if kind is None:
            if word in given:
                constants[word] = value
            elif value is inspect.Parameter.empty:
                raise UserError(f"{plugin.__name__}: no text can say its {word}", "make a method of it with from_plugin")
            continue
        arguments[word] = word if word not in taken else f"{plugin.__name__}_{word}"
        if value is inspect.Parameter.empty:
            own.append((arguments[word], kind))
        else:
            own.append((arguments[word], kind, field(default=convert(word, value, kind))))
    made = make_dataclass(
        re.sub(r"\W", "_", name),
        own,
        bases=(Plugged,) if base is Method else (Plugged, base),
        eq=False,
        kw_only=True,
        namespace={
            "plugin_class": plugin,
            "arguments": arguments,
            "given": constants,
            "name": name,
            "size_reference": False,
            "__module__": module or base.__module__,
            "__doc__": f"{(base.__doc__ or name).strip().splitlines()[0] + ' With ' if base is not Method else ''}"
            f"Avalanche's {plugin.__name__}: {(plugin.__doc__ or '').strip().partition(chr(10))[0]}",
        },
    )
    return made


def from_plugin(plugin: type, *, name: str, **arguments: Any) -> type[Method]:
    """A method that fine-tunes with an Avalanche strategy plugin, to be registered.

    arguments: of the plugin. Numbers, text, true and false, None and lists of them become settings of the method. Anything else
    is copied for each run, and only the digest of your file tells its values apart. An argument `model` gets the network."""
    check_plugin(plugin, name)
    return plugged(plugin, name, module=sys._getframe(1).f_globals["__name__"], given=arguments)


def check_plugin(plugin: Any, text: str) -> None:
    """Raises UserError for what is no strategy plugin."""
    if not (isinstance(plugin, type) and issubclass(plugin, BaseSGDPlugin)) or issubclass(plugin, Method):
        raise UserError(f"{text}: is not an Avalanche strategy plugin", "it must be a class that inherits from SupervisedPlugin")


@cache
def _parameters(plugin: Any) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(plugin).parameters.items() if p.kind in named}


def _kind(annotation: Any, value: Any) -> Any:
    """The type of a setting that gives an argument; None if text cannot give it."""
    unknown = annotation in (inspect.Parameter.empty, Any) or isinstance(annotation, str)
    found = dict.fromkeys(_scalars(annotation))
    if unknown and value is inspect.Parameter.empty:
        return Union[int, float, bool, str, None]  # noqa: UP007
    if value is not inspect.Parameter.empty and (unknown or found):
        found |= dict.fromkeys(_kinds_of(value) if unknown or not _fits(value, found) else ())
    if not found or (value is not inspect.Parameter.empty and not _fits(value, found)):
        return None
    if set(found) == {NoneType}:
        return Union[int, float, bool, str, None] if unknown else None  # noqa: UP007
    return Union[tuple(found)]  # noqa: UP007


def _scalars(hint: Any) -> list[Any]:
    """The parts of an annotation that `fields.convert` knows."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (bool, int, float, str, NoneType) or origin is Literal:
        return [hint]
    if origin in (Union, UnionType):
        return [kind for part in inner for kind in _scalars(part)]
    if isinstance(origin, type) and issubclass(origin, Sequence) and len(kinds := _scalars(inner[0])) == 1:
        return [tuple[kinds[0], ...]]  # type: ignore[valid-type]
    return []


def _kinds_of(value: Any) -> list[Any]:
    if type(value) in (int, float):
        return [int, float]
    if type(value) in (bool, str, NoneType):
        return [type(value)]
    if isinstance(value, list | tuple) and all(type(item) in (bool, int, float, str) for item in value):
        inner = dict.fromkeys(kind for item in value for kind in _kinds_of(item)) or {str: None}
        return [tuple[Union[tuple(inner)], ...]]  # type: ignore[misc]  # noqa: UP007
    return []


def _fits(value: Any, kinds: Iterable[Any]) -> bool:
    try:
        convert("", value, Union[tuple(kinds)])  # noqa: UP007
    except (UserError, TypeError):
        return False
    return True
