"""Plugins that only look on: a run with them gives the record of the run without them.

That is checked, not believed. Around each hook of such a plugin the global random generators are set back to where they were, and
nothing that it computes counts, in images or in memory. A write to a tensor of the run, through whichever view of it, is an error
(`NoWrites`), and so is anything else of the run that is another after the hook (`_state`). What escapes is a write past PyTorch,
through a NumPy array that shares memory with a weight: hooks that are called once an epoch or less compare the weights' sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ..errors import UserError
from ..nn.computed import uncounted
from ..randomness import globals_kept
from .accounting import Place, storages, tensors_in

OFTEN = ("iteration", "forward", "backward", "update")  # in the names of hooks of every step

OF_METHOD = "the method's "

PLAIN = bool | int | float | str | bytes


class Observer:
    """A plugin that may look on but not change the run. Raises UserError where it does."""

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.plugin, name)
        does_nothing = getattr(value, "__func__", None) is getattr(SupervisedPlugin, name, self)
        return partial(self._call, name, value) if callable(value) and not does_nothing else value

    def __dir__(self) -> list[str]:
        return dir(self.plugin)

    def _call(self, name: str, hook: Any, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        values = not any(word in name for word in OFTEN)
        before, guard, predicts = _state(strategy, values), NoWrites(strategy), list[bool]()
        result = None
        calls = register_module_forward_pre_hook(lambda *_: predicts.append(True))
        try:
            with globals_kept(), uncounted(), _unmeasured(), guard:
                result = hook(strategy, *args, **kwargs)
        except Exception:
            if not guard.wrote:
                raise
        finally:
            calls.remove()
        after = _state(strategy, values)
        if predicts:  # the method may take notes whenever the network is called
            before, after = ({k: v for k, v in state.items() if not k.startswith(OF_METHOD)} for state in (before, after))
        changed = guard.wrote or next((what for what in {**before, **after} if not _same(before.get(what), after.get(what))), "")
        if changed:
            raise UserError(
                f"{type(self.plugin).__name__} may only look on, but in {name} it changes {changed}",
                "as --plugin, or with from_plugin, a plugin may train: it is then part of the run's name",
            )
        return result


class NoWrites(TorchDispatchMode):
    """Context in which no operation may write to a tensor of the run. wrote: the first one that did, in words."""

    def __init__(self, strategy: Any) -> None:
        super().__init__()
        self.strategy, self.wrote = strategy, ""

    @cached_property
    def theirs(self) -> dict[Place, int]:
        """The storages of the run."""
        s = self.strategy
        parameters = [*s.model.parameters()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        loader, experience = s.dataloader, s.experience
        images = getattr(experience, "images", None)
        passing = [s.mbatch, s.mb_output, s.loss, getattr(loader, "pixels", None), getattr(loader, "labels", None)]
        passing += [vars(one) for one in (images if isinstance(images, list) else [images]) if one is not None]
        held = [dict(s.optimizer.state), vars(s.method), vars(s.method.guard), passing]
        self.held = [*parameters, *s.model.buffers(), *gradients, *tensors_in(held)]  # else their places could be given away
        return storages(self.held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[i] if i < len(args) else kwargs.get(argument.name)
                    mine = [leaf for leaf in tree_leaves(written) if isinstance(leaf, Tensor)]
                    if any(n and place in self.theirs for place, n in storages(mine).items()):
                        self.wrote = self.wrote or f"a tensor of the run ({func._schema.name.removeprefix('aten::')})"
                        raise RuntimeError(f"it writes to {self.wrote}")
        return func(*args, **kwargs)


@contextmanager
def _unmeasured() -> Iterator[None]:
    """What is computed while this is open is no part of the step that `accounting.StepMemory` measures."""
    same = saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)  # only the innermost pair is called
    with _disable_current_modes(), torch._C.DisableTorchFunction(), same:
        yield


def _state(strategy: Any, values: bool) -> dict[str, Any]:
    """What an onlooker must leave as it is, in words. values: with the sums of all parameters and buffers."""
    model, method, optimizer = strategy.model, strategy.method, strategy.optimizer
    modules = list(model.modules())
    # Without what a layer composed for its present task, which is no part of the network's state.
    tensors = [value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)]
    holders = [vars(holder) for holder in (*modules, method)]
    generators = [value for holder in holders for value in holder.values() if isinstance(value, torch.Generator)]
    state = {f"the strategy's {name}": _shallow(value) for name, value in vars(strategy).items()}
    state |= {f"{OF_METHOD}{name}": _shallow(value) for name, value in vars(method).items()}
    state |= {
        "the clock": _shallow(
            {k: v for k, v in vars(strategy.clock).items() if k != "total_iterations"}
        ),  # evaluations count there
        "the optimiser": [_shallow(group) for group in optimizer.param_groups],
        "the network's mode": [module.training for module in modules],
        "the hooks on the network": [
            [*m._forward_hooks.values(), *m._forward_pre_hooks.values(), *m._backward_hooks.values()] for m in modules
        ],
        "the weights": [(t, t.data_ptr(), t._version, t.requires_grad) for t in tensors],
        "the gradients": [(g := p.grad, None if g is None else g._version) for p in model.parameters()],
        "a random generator": [(g, g.get_state().numpy().tobytes()) for g in generators],
    }
    if values:
        with torch.no_grad():
            sums = [t.sum(dtype=torch.float64) for t in tensors]  # none before the first task of individual networks
            state["the values of the weights"] = torch.stack(sums).tolist() if sums else []
    return state


def _shallow(value: Any) -> Any:
    """A container's items, as they are now, or the value."""
    if isinstance(value, dict):
        return [item for pair in value.items() for item in (pair[0], _shallow(pair[1]))]
    return [*value] if isinstance(value, list | tuple | set) else value


def _same(before: Any, now: Any) -> bool:
    """Whether two states are the same objects, or equal plain values."""
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return len(before) == len(now) and all(map(_same, before, now))
    plain = isinstance(before, PLAIN) and type(before) is type(now)
    return before is now or (plain and (before == now or (before != before and now != now)))
