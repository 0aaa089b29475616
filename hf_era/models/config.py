"""The auxiliary modules that are added, where, how wide and how they start; and the configs of expanded models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hf_era.models.families.family import family_of, get_family
from hf_era.models.layers import MODULE_KINDS
from hf_era.models.loading_hint import CONFIG_HINT, CONFIG_KEY
from hf_era.models.size import check_auxiliary_fits
from hf_era.utils.checks import check_memory, short_repr, unknown_key_message, unknown_value_message
from hf_era.utils.fields import UNLESS_DEFAULT, setting


@dataclass
class ModuleConfig:
    """One named auxiliary module beside the MLP of each of its target layers.

    Args:
        name (`str`, *optional*, defaults to `"forget"`):
            Part of its parameters' names. A Python identifier.
        width (`int`, *optional*, defaults to `64`):
            Hidden units, per target layer. At least 1.
        target_layers (`list[int]`, *optional*):
            Indices of the layers that are expanded and routed, from 0, each once. `None` means all layers.
        initialization_scale (`float`, *optional*, defaults to `1.0`):
            The weights start normal with standard deviation `initializer_range * initialization_scale`, biases at zero. 0
            starts the module as an exact no-op that cannot learn, so it should be positive.
        kind (`str`, *optional*, defaults to `"mlp"`):
            `mlp`: an MLP of the family's own form.

    Raises:
        ValueError: for a name that is no identifier, a width below 1, negative or repeated layers, a scale that is not
            positive, or an unknown kind.
    """

    name: str = "forget"
    width: int = 64
    target_layers: list[int] | None = None
    initialization_scale: float = 1.0
    kind: str = "mlp"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(
                f"`expansion.module_name` should be an identifier such as 'forget', got {short_repr(self.name)}."
            )
        if len(self.name) > 100:
            raise ValueError(
                f"`expansion.module_name` should have at most 100 characters, got {short_repr(self.name)}."
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
        if not isinstance(self.kind, str) or self.kind not in MODULE_KINDS:
            raise ValueError(unknown_value_message("expansion.modules.kind", self.kind, sorted(MODULE_KINDS)))

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


@dataclass
class ExpansionConfig:
    """The auxiliary modules of a model: one, described by the first four fields, or a list of several.

    Args:
        module_name, width, target_layers, initialization_scale (*optional*): of the one module; see `ModuleConfig`.
        modules (`list[dict]`, *optional*): several modules, each with the fields of `ModuleConfig`; names are distinct.
            Given, the fields above are left out.
        mlp (`str`, *optional*): opens a family that is not registered: the attribute of a block that holds its MLP, for
            instance `"mlp"`. See `hf_era.models.families.open_family`.
        down_projection (`str`, *optional*): goes with `mlp`: path in the MLP to its last linear layer, for instance
            `"down_proj"`.

    Raises:
        ValueError: as `ModuleConfig`; for two modules of one name, both ways of describing modules at once, or one of `mlp`
            and `down_projection` without the other.
    """

    module_name: str = setting("forget", "Name of the auxiliary module.", identity=True)
    width: int = setting(64, "Hidden units of the auxiliary module in each target layer.", identity=True)
    target_layers: list[int] | None = setting(
        None, "Layers that are expanded and routed, from 0. Not given: all layers.", identity=True
    )
    initialization_scale: float = setting(
        1.0, "Factor of the model's own initializer_range for the auxiliary weights.", identity=True
    )
    modules: list[Any] = setting(
        list, "Several modules: name, width, target_layers, ... each.", identity=UNLESS_DEFAULT
    )
    mlp: str | None = setting(
        None, "Opens a family that is not registered: attribute of a block that holds its MLP.", identity=UNLESS_DEFAULT
    )
    down_projection: str | None = setting(
        None, "Goes with `mlp`: path in the MLP to its last linear layer.", identity=UNLESS_DEFAULT
    )

    def __post_init__(self) -> None:
        _check_part_names(self.mlp, self.down_projection)
        one = ModuleConfig(self.module_name, self.width, self.target_layers, self.initialization_scale)
        self.target_layers = one.target_layers
        if not self.modules:
            self._modules = [one]
            return
        given = [item.name for item in fields(self) if item.name not in _BESIDE_ONE_MODULE]
        if (self.module_name, self.width, self.target_layers, self.initialization_scale) != ("forget", 64, None, 1.0):
            raise ValueError(
                f"`expansion.modules` and `expansion.{given[0]}` (or {', '.join(given[1:])}) are both given. Put what the "
                "latter say into the list, one entry per module."
            )
        if not isinstance(self.modules, (list, tuple)):
            raise ValueError(
                f"`expansion.modules` should be a list of mappings, one per module, got {short_repr(self.modules)}."
            )
        self._modules = [_module(index, values) for index, values in enumerate(self.modules)]
        names = [module.name for module in self._modules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"`expansion.modules`: two modules are called {twice!r}. Give each a name of its own.")
        self.modules = [asdict(module) for module in self._modules]

    @property
    def module_configs(self) -> list[ModuleConfig]:
        """The modules, in order; at least one."""
        return list(self._modules)

    def resolve_layers(self, number_of_layers: int) -> list[int]:
        """The layers of a model that have a module; raises `ValueError` if one does not exist in that model."""
        return sorted({layer for module in self._modules for layer in module.resolve_layers(number_of_layers)})

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the one-module form for one module, so that a checkpoint reads as it always did."""
        values = asdict(self)
        names = {key: values[key] for key in ("mlp", "down_projection") if values[key] is not None}
        if self.modules:
            return {"modules": values["modules"], **names}
        return {key: values[key] for key in values if key not in _BESIDE_ONE_MODULE} | names

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExpansionConfig:
        """Builds the config from a dict; raises `ValueError` for a key it does not know."""
        _check_keys("`expansion`", values, cls)
        return cls(**values)


_BESIDE_ONE_MODULE = ("modules", "mlp", "down_projection")


def _check_part_names(mlp: Any, down_projection: Any) -> None:
    if mlp is None and down_projection is None:
        return
    for field, value in (("mlp", mlp), ("down_projection", down_projection)):
        if value is None:
            raise ValueError(
                f"`expansion.mlp` and `expansion.down_projection` open a family together, and `expansion.{field}` is not "
                "given. Give both, for instance `mlp: mlp, down_projection: down_proj`, or none."
            )
        parts = value.split(".") if isinstance(value, str) and field == "down_projection" else [value]
        if not all(isinstance(part, str) and (part.isidentifier() or part.isdecimal()) for part in parts):
            what = "the name of an attribute" if field == "mlp" else "a path such as `down_proj` or `fc.out`"
            raise ValueError(f"`expansion.{field}` should be {what}, got {short_repr(value)}.")


def _module(index: int, values: Any) -> ModuleConfig:
    if isinstance(values, ModuleConfig):
        return values
    where = f"`expansion.modules[{index}]`"
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where} should be a mapping such as `{{name: forget, width: 64}}`, got {short_repr(values)}."
        )
    _check_keys(where, values, ModuleConfig)
    try:
        return ModuleConfig(**values)
    except ValueError as error:  # which names the field as one module alone has it
        raise ValueError(f"{where}: {error}") from error


def _check_keys(where: str, values: Mapping[str, Any], config_class: type) -> None:
    known = [item.name for item in fields(config_class)]
    for key in values:
        if key not in known:
            raise ValueError(unknown_key_message(where, key, known))


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


# ---- Configs of expanded models ----

# Fields that belong to the expanded model only, or that the stock config writes for itself.
_NOT_OF_THE_BASE = ("expansion", "model_type", "architectures", "transformers_version", CONFIG_KEY)


class ExpandedConfigMixin:
    """Mixed into a family's config: reads the expansion, checks it, and gives the stock config back.

    A family's own class adds `model_type = "expanded_..."` and the field `expansion: dict | None = None`.

    Args:
        expansion (`dict`, *optional*): the fields of an `ExpansionConfig`. Not given: its defaults.

    Raises:
        ValueError: if the expansion does not fit the model, for instance a target layer that does not exist.
    """

    base_config_class: ClassVar[type]
    expansion: dict | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.base_config_class = next(
            base
            for base in cls.__mro__
            if issubclass(base, PreTrainedConfig) and not issubclass(base, ExpandedConfigMixin)
        )

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop(CONFIG_KEY, None)  # written anew by whoever saves
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.check_expansion()

    def to_dict(self) -> dict[str, Any]:
        """As transformers', and how to load what is saved with it."""
        return {**super().to_dict(), CONFIG_KEY: CONFIG_HINT}  # type: ignore[misc]

    def check_expansion(self) -> None:
        """Fills in the expansion's defaults and checks it against the model's size; raises `ValueError`."""
        if isinstance(self.expansion, ExpansionConfig):
            self.expansion = self.expansion.to_dict()
        expansion = self.expansion_config
        family = family_of(self) or get_family(self.base_config_class.model_type)  # type: ignore[attr-defined]
        family.check_names(expansion)
        expansion.mlp, expansion.down_projection = family.names_to_open
        for module in expansion.module_configs:
            layers = module.resolve_layers(family.layers_of(self))
            check_auxiliary_fits(self, len(layers), module.width, family.gated)
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
