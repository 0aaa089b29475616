"""The auxiliary modules of a model, on, off or dialled, one by one or all at once; nothing here changes a weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from hf_era.models.families.family import Family
from hf_era.models.layers import AuxiliaryModule
from hf_era.utils.checks import short_repr, unknown_key_message


def is_auxiliary_parameter(model: Any, name: str) -> bool:
    """Whether a parameter or state-dict key of a causal LM belongs to an auxiliary module; a stock model has none."""
    return hasattr(model, "is_auxiliary_parameter") and model.is_auxiliary_parameter(name)


class ModuleSwitchesMixin:
    """Finds the modules of an expanded model, and switches them.

    What is set here holds for all examples, and is not saved with the model. For each example of a batch there is
    `module_activity` of the forward pass, (batch, modules); the two are multiplied.
    """

    family: ClassVar[Family]
    module_names: list[str]

    def auxiliary_modules(self) -> dict[int, dict[str, AuxiliaryModule]]:
        """The auxiliary modules: layer index -> module name -> module."""
        found: dict[int, dict[str, AuxiliaryModule]] = {}
        for layer, block in enumerate(self.family.get_blocks(self)):  # type: ignore[arg-type]
            parts = self.family.expanded_parts(block)
            named = {name: module for part, _ in parts for name, module in part.auxiliary.items()}
            if named:
                found[layer] = {**{name: named[name] for name in self.module_names if name in named}, **named}
        return found

    def is_auxiliary_parameter(self, name: str) -> bool:
        """Whether a parameter or state-dict key belongs to an auxiliary module."""
        return self.family.is_auxiliary_weight(name)

    def set_active(self, module: str | None, active: bool) -> None:
        """Switches a module, or all of them for `None`, on or off in all layers, in place.

        Raises:
            ValueError: for a name that no module has, or a state that is neither `True` nor `False`.
        """
        parts = self._modules_named(module, "set_active")
        if not isinstance(active, bool):
            raise ValueError(f"`active` should be True (on) or False (off), got {short_repr(active)}.")
        for part in parts:
            part.active = active

    def set_dial(self, module: str | None, dial: float) -> None:
        """Sets how much of the output of a module, or of all for `None`, takes part, from 0 (as ablated) to 1, in place.

        Raises:
            ValueError: for a name that no module has, or a dial that is no number in [0, 1].
        """
        parts = self._modules_named(module, "set_dial")
        if isinstance(dial, bool) or not isinstance(dial, (int, float)) or not 0 <= dial <= 1:
            raise ValueError(f"`dial` should be in [0, 1], got {short_repr(dial)}. 0 is off, 1 is on.")
        for part in parts:
            part.dial = float(dial)

    @contextmanager
    def ablated(self, *modules: str) -> Iterator[Any]:
        """Within this context the modules of these names are off; afterwards each is as it was before.

        No name at all means all modules: `ablated(*names)` of an empty list switches all of them off, and not none.
        """
        with self._as_before_afterwards():
            for module in modules or (None,):
                self.set_active(module, False)
            yield self

    @contextmanager
    def dialled(self, module: str | None, dial: float) -> Iterator[Any]:
        """Within this context the dial of a module, or of all for `None`, has this value; afterwards each is as it was."""
        with self._as_before_afterwards():
            self.set_dial(module, dial)
            yield self

    @contextmanager
    def _as_before_afterwards(self) -> Iterator[None]:
        before = [(part, part.active, part.dial) for part in self._modules_named(None)]
        try:
            yield
        finally:
            for part, active, dial in before:
                part.active, part.dial = active, dial

    def _modules_named(self, name: str | None, call: str = "") -> list[AuxiliaryModule]:
        """A module in each of its layers; all modules for `None`."""
        if isinstance(name, (bool, int, float)):  # the order of the arguments was another one once
            first = self.module_names[0] if self.module_names else "forget"
            raise ValueError(
                f"`{call}` takes the name of a module first, then the value, got {short_repr(name)} as the name. Write "
                f"`{call}({first!r}, {short_repr(name)})`, or None as the name for all modules."
            )
        if name is not None and name not in self.module_names:
            raise ValueError(unknown_key_message("the model's modules", name, self.module_names))
        named = [pair for layer in self.auxiliary_modules().values() for pair in layer.items()]
        return [module for own, module in named if name in (None, own)]
