"""The auxiliary modules that are added, where, how wide and how they start; and the configs of expanded models."""

import math
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar

from hf_era.models.families.family import ARCHITECTURES
from hf_era.models.size import check_auxiliary_fits
from hf_era.utils.checks import check_memory, short_repr, unknown_key_message


@dataclass
class ExpansionConfig:
    """Describes the auxiliary module beside the MLP of each target layer.

    Args:
        module_name (`str`, *optional*, defaults to `"forget"`):
            Name of the auxiliary module; part of its parameters' names. A Python identifier.
        width (`int`, *optional*, defaults to `64`):
            Hidden units of the auxiliary MLP, per target layer. At least 1.
        target_layers (`list[int]`, *optional*):
            Indices of the layers that are expanded and routed, from 0, each once. `None` means all layers.
        initialization_scale (`float`, *optional*, defaults to `1.0`):
            The auxiliary weights start normal with standard deviation `initializer_range * initialization_scale`, its
            bias at zero. 0 starts the module as an exact no-op that cannot learn, so it should be positive.

    Raises:
        ValueError: for a name that is no identifier, a width below 1, negative or repeated layers, a scale that is not
            positive.
    """

    module_name: str = field(default="forget", metadata={"help": "Name of the auxiliary module."})
    width: int = field(default=64, metadata={"help": "Hidden units of the auxiliary MLP in each target layer."})
    target_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers that are expanded and routed, from 0. Not given: all layers."}
    )
    initialization_scale: float = field(
        default=1.0, metadata={"help": "Factor of the model's own initializer_range for the auxiliary weights."}
    )

    def __post_init__(self) -> None:
        if not isinstance(self.module_name, str) or not self.module_name.isidentifier():
            raise ValueError(
                f"`expansion.module_name` should be an identifier such as 'forget', got {short_repr(self.module_name)}."
            )
        if len(self.module_name) > 100:
            raise ValueError(
                f"`expansion.module_name` should have at most 100 characters, got {short_repr(self.module_name)}."
            )
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"`expansion.width` should be an integer of at least 1, got {short_repr(self.width)}.")
        # Two weights of at least one number each and a bias for every hidden unit, in fp32, whatever the model.
        check_memory("expansion.width", short_repr(self.width), 12 * self.width, "Lower it; 64 is the default.")
        scale = self.initialization_scale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise ValueError(f"`expansion.initialization_scale` should be positive, got {short_repr(scale)}.")
        if self.target_layers is not None:
            self.target_layers = _validated_layers(self.target_layers)

    def resolve_layers(self, number_of_layers: int) -> list[int]:
        """The target layers in a model of `number_of_layers` layers.

        Raises:
            ValueError: if a target layer does not exist in that model.
        """
        if self.target_layers is None:
            return list(range(number_of_layers))
        too_large = [layer for layer in self.target_layers if layer >= number_of_layers]
        if too_large:
            raise ValueError(
                f"`expansion.target_layers` names layer {short_repr(too_large[0])}, but the model has "
                f"{number_of_layers} layers. Choose from 0 to {number_of_layers - 1}."
            )
        return list(self.target_layers)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExpansionConfig":
        """Builds the config from a dict; raises `ValueError` for a key it does not know."""
        known = [item.name for item in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(unknown_key_message("`expansion`", key, known))
        return cls(**values)


def _validated_layers(layers: Any) -> list[int]:
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ValueError(
            f"`expansion.target_layers` should be a list of layer indices such as [0, 1], got {short_repr(layers)}. "
            "Leave it out to expand all layers."
        )
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ValueError(f"`expansion.target_layers` should hold integers, got {short_repr(layer)}.")
        if layer < 0:
            raise ValueError(
                f"`expansion.target_layers` counts from 0 and takes no negative index, got {short_repr(layer)}."
            )
    ordered = sorted(layers)
    repeated = next((layer for layer, following in pairwise(ordered) if layer == following), None)
    if repeated is not None:
        raise ValueError(
            f"`expansion.target_layers` names layer {short_repr(repeated)} more than once, got {short_repr(list(layers))}."
        )
    return ordered


# Fields that belong to the expanded model only, or that the stock config writes for itself.
_NOT_OF_THE_BASE = ("expansion", "model_type", "architectures", "transformers_version")


class ExpandedConfigMixin:
    """Mixed into a family's config: reads the expansion, checks it, and gives the stock config back."""

    base_config_class: ClassVar[type]
    expansion: dict | None

    def check_expansion(self) -> None:
        """Fills in the expansion's defaults and checks it against the model's size; raises `ValueError`."""
        if isinstance(self.expansion, ExpansionConfig):
            self.expansion = self.expansion.to_dict()
        expansion = self.expansion_config
        layers = expansion.resolve_layers(ARCHITECTURES[self.base_config_class.model_type].layers_of(self))  # type: ignore
        check_auxiliary_fits(self, len(layers), expansion.width)
        self.expansion = expansion.to_dict()

    @property
    def expansion_config(self) -> ExpansionConfig:
        return ExpansionConfig.from_dict(self.expansion or {})

    @classmethod
    def from_base_config(cls, base_config: Any, expansion: ExpansionConfig | None = None) -> Any:
        """The expanded config of a stock config."""
        values = {name: value for name, value in base_config.to_dict().items() if name not in _NOT_OF_THE_BASE}
        return cls(**{**values, "expansion": (expansion or ExpansionConfig()).to_dict()})

    def to_base_config(self) -> Any:
        """The stock config, as if nothing had ever been expanded."""
        values = {name: value for name, value in self.to_dict().items() if name not in _NOT_OF_THE_BASE}  # type: ignore
        return self.base_config_class.from_dict(values)  # type: ignore[attr-defined]
