"""What a field of a config says of itself: its help, and whether it belongs to a run's identity.

A run may go on from what it kept only if it is still the same run. Which settings make it another one stands on each field
of a section (of what transformers declares: in `hf_era.training.config.SHOWN_OR_KEPT`; settings of a router or of a method
identify whole):

* `identity=True`: what is computed depends on it;
* `identity=False`: it changes what is shown or kept, where, or how fast; or something else identifies what it leads to (the
  examples themselves, not the path that they were read from);
* `identity=UNLESS_DEFAULT`: as `True`, but the default goes without saying. For a field that is newer than runs that should
  still be found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

UNLESS_DEFAULT = "unless default"


class _Metadata(Mapping[str, Any]):
    """Looks like `{"help": ...}` to whoever goes through it: `HfArgumentParser` hands all that it finds to argparse, which
    knows no `identity`. Asked for by name, that is there too."""

    def __init__(self, help: str, identity: bool | str) -> None:
        self._values = {"help": help, "identity": identity}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(["help"])

    def __len__(self) -> int:
        return 1

    def copy(self) -> dict[str, Any]:
        """For the `HfArgumentParser` of transformers 5.17."""
        return dict(self)


def about(help: str, *, identity: bool | str) -> Mapping[str, Any]:
    """The `metadata` of a config's field: its help, a sentence with unit and special values, and its identity, see above."""
    return _Metadata(help, identity)


def setting(default: Any, help: str, *, identity: bool | str) -> Any:
    """A config's field with `about` itself. A default that may be changed in place is given by what makes it: `list`."""
    metadata = about(help, identity=identity)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class ByPreset:
    """The default of a field that presets set: `value` is what it comes to where none says otherwise. The class that has the
    field puts the value in its place."""

    def __init__(self, value: Any) -> None:
        self.value = value


def identity_values(
    config_class: type, values: Mapping[str, Any], inherited_without_effect: Collection[str] = ()
) -> dict[str, Any]:
    """Those of a config's values that identify a run. A name that the class does not have is left out.

    Fields that a class of another library declares say nothing of themselves. Those in `inherited_without_effect` have no
    effect; any other such field identifies, so that a new one is never overlooked.
    """
    found = {}
    for item in dataclasses.fields(config_class):
        identity = item.metadata.get("identity", item.name not in inherited_without_effect)
        if item.name not in values or identity is False:
            continue
        if identity == UNLESS_DEFAULT and values[item.name] == default_of(item):
            continue
        found[item.name] = values[item.name]
    return found


def default_of(item: dataclasses.Field[Any]) -> Any:
    """A field's default; `MISSING` if it has none."""
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default.value if isinstance(item.default, ByPreset) else item.default
