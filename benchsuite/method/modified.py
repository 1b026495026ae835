"""A method under a modifier: `cacl+hosvd`."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

from ..errors import UserError
from ..nn.interception import Interception
from ..nn.modifiers import MODIFIERS, Modifier
from ..nn.multihead import MultiHead
from ..registry import suggest
from .base import Method


class Modified:
    """Mixin that applies a modifier. It precedes the method's class in the method resolution order."""

    modifier: type[Modifier]
    compression: Interception

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        self._modifier()

    def _modifier(self) -> Modifier:
        return self.modifier(**{f.name: getattr(self, f.name) for f in fields(self.modifier)})

    def prepare(self, model: MultiHead) -> MultiHead:
        model = super().prepare(model)  # type: ignore[misc]
        if getattr(self, "compression", None) is not None:
            name = self.name.partition("+")[0]  # type: ignore[attr-defined]
            raise UserError(f"{name} keeps activations in a form of its own", "it takes no modifier")
        modifier = self._modifier()
        modifier.seed = self.seed  # type: ignore[attr-defined]
        self.compression = Interception(modifier, model)
        return model

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.compression.begin_task(strategy.model, strategy.experience.current_experience)
        super().before_training_exp(strategy, **kwargs)  # type: ignore[misc]


def modified(base: type[Method], name: str) -> type[Method]:
    """The class of a method under a modifier, named `method+modifier`, with the fields of both."""
    if name not in MODIFIERS:
        raise UserError(f"no modifier is called {name!r}", suggest(name, MODIFIERS))
    modifier = MODIFIERS[name]
    known = {f.name for f in fields(base)}  # a field without a default is no attribute of the class
    words = [f.name for f in fields(modifier)]
    if taken := [w for w in words if w in known or hasattr(base, w)] + [w for w in ("modifier", "compression") if w in known]:
        raise UserError(f"{base.name}: its {taken[0]!r} is a setting of every {name} row", "give it another name")
    hints = get_type_hints(modifier)
    own = [(f.name, hints[f.name], field(default=f.default, metadata=f.metadata)) for f in fields(modifier)]
    text = f"{(base.__doc__ or base.name).strip().splitlines()[0]} Under {name}: {(modifier.__doc__ or '').splitlines()[0]}"
    return make_dataclass(
        f"{base.__name__}With{modifier.__name__}",
        own,
        bases=(Modified, base),
        eq=False,
        namespace={
            "modifier": modifier,
            "name": f"{base.name}+{name}",
            "size_reference": False,
            "__doc__": text,
            "__module__": base.__module__,
        },
    )
