"""`ExpansionConfig`: the auxiliary module that is added, where, how wide and how it starts."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_era.suggestions import unknown_key_message


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
                f"`expansion.module_name` should be an identifier such as 'forget', got {self.module_name!r}."
            )
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"`expansion.width` should be an integer of at least 1, got {self.width!r}.")
        if not isinstance(self.initialization_scale, (int, float)) or not self.initialization_scale > 0:
            raise ValueError(f"`expansion.initialization_scale` should be positive, got {self.initialization_scale!r}.")
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
                f"`expansion.target_layers` names layer {too_large[0]}, but the model has {number_of_layers} layers. "
                f"Choose from 0 to {number_of_layers - 1}."
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
            f"`expansion.target_layers` should be a list of layer indices such as [0, 1], got {layers!r}. "
            "Leave it out to expand all layers."
        )
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ValueError(f"`expansion.target_layers` should hold integers, got {layer!r}.")
        if layer < 0:
            raise ValueError(f"`expansion.target_layers` counts from 0 and takes no negative index, got {layer}.")
    repeated = sorted({layer for layer in layers if list(layers).count(layer) > 1})
    if repeated:
        raise ValueError(f"`expansion.target_layers` names layer {repeated[0]} more than once, got {list(layers)}.")
    return sorted(layers)
