"""The auxiliary modules that are added, where, how wide and how they start; and the configs of expanded models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hf_era.models.families.family import Family, family_of, get_family
from hf_era.models.layers import MODULE_KINDS
from hf_era.models.loading_hint import CONFIG_HINT, CONFIG_KEY, OPENED_HINT
from hf_era.models.size import check_auxiliary_fits
from hf_era.utils.checks import check_memory, short_repr, unknown_key_message, unknown_value_message
from hf_era.utils.fields import UNLESS_DEFAULT, setting

DEFAULT_WIDTH = 64


@dataclass
class ModuleConfig:
    """One named auxiliary module beside the MLP, or the attention, of each of its target layers.

    Args:
        name (`str`, *optional*, defaults to `"forget"`):
            Part of its parameters' names. A Python identifier.
        width (`int`, *optional*):
            Hidden units, per target layer. At least 1. Of `heads`: query heads * head size, a multiple of the model's query
            heads to one key * head size. Not given, nor `width_ratio`: 64.
        target_layers (`list[int]`, *optional*):
            Indices of the layers that are expanded and routed, from 0, each once. `None` means all layers.
        initialization_scale (`float`, *optional*, defaults to `1.0`):
            The weights start normal with standard deviation `initializer_range * initialization_scale`, biases at zero. 0
            starts the module as an exact no-op that cannot learn, so it should be positive.
        kind (`str`, *optional*, defaults to `"mlp"`):
            `mlp`: an MLP of the family's own form. `heads`: attention heads beside the layer's own; not every family has a
            place for them (`hf_era.models.attention_heads`).
        width_ratio (`float`, *optional*):
            In place of `width`: as a share of the MLP's own hidden units, at least one unit. Of `heads`: of the attention's
            own query heads * head size, at least one key's. Positive. The config of a model holds the width that it came to.

    Raises:
        ValueError: for a name that is no identifier, a width below 1, a ratio that is not positive, both of them, negative
            or repeated layers, a scale that is not positive, or an unknown kind.
    """

    name: str = "forget"
    width: int | None = None
    target_layers: list[int] | None = None
    initialization_scale: float = 1.0
    kind: str = "mlp"
    width_ratio: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(
                f"`expansion.module_name` should be an identifier such as 'forget', got {short_repr(self.name)}."
            )
        if len(self.name) > 100:
            raise ValueError(
                f"`expansion.module_name` should have at most 100 characters, got {short_repr(self.name)}."
            )
        self._check_width()
        scale = self.initialization_scale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise ValueError(f"`expansion.initialization_scale` should be positive, got {short_repr(scale)}.")
        if self.target_layers is not None:
            self.target_layers = _validated_layers(self.target_layers)
        if not isinstance(self.kind, str) or self.kind not in MODULE_KINDS:
            raise ValueError(unknown_value_message("expansion.modules.kind", self.kind, sorted(MODULE_KINDS)))

    def _check_width(self) -> None:
        width, ratio = self.width, self.width_ratio
        if ratio is None:
            self.width = width = DEFAULT_WIDTH if width is None else width
        elif width is not None:
            raise ValueError(
                f"`expansion.width` and `expansion.width_ratio` are both given, {short_repr(width)} and "
                f"{short_repr(ratio)}. Give one of them, and null for the other where a recipe has it."
            )
        elif isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
            raise ValueError(
                f"`expansion.width_ratio` should be positive, a share of the MLP's hidden units such as 0.125, got "
                f"{short_repr(ratio)}."
            )
        if width is None:
            return
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"`expansion.width` should be an integer of at least 1, got {short_repr(width)}.")
        # Two weights of at least one number each and a bias for every hidden unit, in fp32, whatever the model.
        check_memory("expansion.width", short_repr(width), 12 * width, "Lower it; 64 is the default.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON; without `width_ratio` where there is none, as runs and checkpoints have it that are older than that."""
        return {name: value for name, value in asdict(self).items() if name != "width_ratio" or value is not None}

    @property
    def width_text(self) -> str:
        """The width in words, for a plan or a card."""
        if self.width_ratio is None:
            return f"width {self.width}"
        return (
            f"{self.width_ratio:g} times the {'MLP' if MODULE_KINDS[self.kind].place == 'mlp' else 'attention'}'s width"
        )

    def resolved(self, family: Family, config: Any) -> ModuleConfig:
        """The same with its width as a number of units, in a model of this family with this config.

        Raises:
            ValueError: if the model has no place for such a module, or nobody knows what a ratio is a share of.
        """
        return replace(self, width=MODULE_KINDS[self.kind].width_in(self, family, config), width_ratio=None)

    def units(self, own_width: int | None, step: int = 1) -> int:
        """The width in units, beside a part that is `own_width` wide; a ratio's is rounded to a multiple of `step`.

        Raises:
            ValueError: for a ratio where nobody knows how wide that part is.
        """
        if self.width_ratio is None:
            return self.width or DEFAULT_WIDTH
        if own_width is None:
            raise ValueError(
                f"`expansion.width_ratio` is {self.width_ratio:g}, but how wide the MLPs are is not known of this family. "
                "Give `width`, in units."
            )
        # A ratio that no machine holds becomes a width that is refused with the memory it would need.
        return max(1, round(min(self.width_ratio * own_width / step, 1e18))) * step

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
                f"`expansion.target_layers` of {self.name!r} names layer {short_repr(too_large[0])}, but the model has "
                f"{number_of_layers} layers. Choose from 0 to {number_of_layers - 1}."
            )
        return list(self.target_layers)


@dataclass
class ExpansionConfig:
    """The auxiliary modules of a model: one, described by the fields below, or a list of any number.

    Args:
        module_name, width, width_ratio, target_layers, initialization_scale (*optional*): of the one module; see
            `ModuleConfig`.
        modules (`list[dict]`, *optional*): in their place: the modules, each with the fields of `ModuleConfig`; names are
            distinct. `[]`: no module, for a model that modules are attached to.
        mlp (`str`, *optional*): opens a family that is not registered: the attribute of a block that holds its MLP, for
            instance `"mlp"`. See `hf_era.models.families.open_family`.
        down_projection (`str`, *optional*): goes with `mlp`: path in the MLP to its last linear layer, for instance
            `"down_proj"`.

    Raises:
        ValueError: as `ModuleConfig`; for two modules of one name, both ways of describing modules at once, or one of `mlp`
            and `down_projection` without the other.
    """

    module_name: str = setting("forget", "Name of the auxiliary module.", identity=True)
    width: int | None = setting(
        DEFAULT_WIDTH, "Hidden units of the auxiliary module in each target layer.", identity=True
    )
    target_layers: list[int] | None = setting(
        None, "Layers that are expanded and routed, from 0. Not given: all layers.", identity=True
    )
    initialization_scale: float = setting(
        1.0, "Factor of the model's own initializer_range for the auxiliary weights.", identity=True
    )
    modules: list[Any] | None = setting(
        None, "Several modules: name, width, target_layers, ... each. []: none.", identity=UNLESS_DEFAULT
    )
    width_ratio: float | None = setting(
        None, "In place of width: as a share of the MLP's own hidden units.", identity=UNLESS_DEFAULT
    )
    mlp: str | None = setting(
        None, "Opens a family that is not registered: attribute of a block that holds its MLP.", identity=UNLESS_DEFAULT
    )
    down_projection: str | None = setting(
        None, "Goes with `mlp`: path in the MLP to its last linear layer.", identity=UNLESS_DEFAULT
    )

    def __post_init__(self) -> None:
        _check_part_names(self.mlp, self.down_projection)
        if self.width_ratio is not None and self.width == DEFAULT_WIDTH:  # the default gives way
            self.width = None
        one = ModuleConfig(
            self.module_name,
            self.width,
            self.target_layers,
            self.initialization_scale,
            width_ratio=self.width_ratio,
        )
        self.width, self.target_layers = one.width, one.target_layers
        if self.modules is None:
            self._modules = [one]
            return
        first = (self.module_name, self.width, self.target_layers, self.initialization_scale, self.width_ratio)
        if first != ("forget", DEFAULT_WIDTH, None, 1.0, None):
            given = [item.name for item in fields(self) if item.name not in ("modules", "mlp", "down_projection")]
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
        self.modules = [module.to_dict() for module in self._modules]

    @property
    def module_configs(self) -> list[ModuleConfig]:
        """The modules, in order."""
        return list(self._modules)

    def resolved(self, family: Family, config: Any) -> ExpansionConfig:
        """The same with every width as a number of units; see `ModuleConfig.resolved`."""
        modules = [module.resolved(family, config) for module in self._modules]
        if self.modules is None:
            return replace(self, width=modules[0].width, width_ratio=None)
        return self.with_modules(modules)

    def with_modules(self, modules: Sequence[Any]) -> ExpansionConfig:
        """Other modules, in a model of the same family."""
        return ExpansionConfig(modules=list(modules), mlp=self.mlp, down_projection=self.down_projection)

    def resolve_layers(self, number_of_layers: int, place: str | None = None) -> list[int]:
        """The layers of a model that have a module, or with a `place` those that have one there (`mlp`, `attention`); raises
        `ValueError` if a target layer does not exist in that model."""
        modules = [module for module in self._modules if place in (None, MODULE_KINDS[module.kind].place)]
        return sorted({layer for module in modules for layer in module.resolve_layers(number_of_layers)})

    def to_dict(self) -> dict[str, Any]:
        """As JSON; without `modules` the four fields of one module, so that a checkpoint reads as it always did."""
        given = {key: value for key, value in asdict(self).items() if value is not None or key == "target_layers"}
        if self.modules is not None:
            return {key: given[key] for key in ("modules", "mlp", "down_projection") if key in given}
        return given

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExpansionConfig:
        """Builds the config from a dict; raises `ValueError` for a key it does not know."""
        _check_keys("`expansion`", values, cls)
        return cls(**values)


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
NOT_OF_THE_BASE = ("expansion", "model_type", "architectures", "transformers_version", CONFIG_KEY)


class ExpandedConfigMixin:
    """Mixed into a family's config: reads the expansion, checks it, and gives the stock config back.

    A family's own class adds `model_type = "expanded_..."` and the field `expansion: dict | None = None`.

    Args:
        expansion (`dict`, *optional*): the fields of an `ExpansionConfig`. Not given: its defaults.

    Raises:
        ValueError: if the expansion does not fit the model, for instance a target layer that does not exist.
    """

    base_config_class: ClassVar[type]
    opened_family: ClassVar[Any] = None  # where it was opened by the names of its parts
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
        return {**super().to_dict(), CONFIG_KEY: OPENED_HINT if self.opened_family else CONFIG_HINT}  # type: ignore[misc]

    def check_expansion(self) -> None:
        """Fills in the expansion's defaults and checks it against the model's size; raises `ValueError`."""
        if isinstance(self.expansion, ExpansionConfig):
            self.expansion = self.expansion.to_dict()
        family = family_of(self) or get_family(self.base_config_class.model_type)  # type: ignore[attr-defined]
        expansion = self.expansion_config.resolved(family, self)
        family.check_names(expansion)
        expansion.mlp, expansion.down_projection = family.names_to_open
        for module in expansion.module_configs:
            layers = module.resolve_layers(family.layers_of(self))
            check_auxiliary_fits(self, len(layers), module.width or 0, family.gated)
        self.expansion = expansion.to_dict()

    @property
    def expansion_config(self) -> ExpansionConfig:
        return ExpansionConfig.from_dict(self.expansion or {})

    @classmethod
    def from_base_config(cls, base_config: Any, expansion: ExpansionConfig | None = None) -> Any:
        """The expanded config of a stock config."""
        values = {name: value for name, value in base_config.to_dict().items() if name not in NOT_OF_THE_BASE}
        return cls(**{**values, "expansion": (expansion or ExpansionConfig()).to_dict()})

    def to_base_config(self) -> Any:
        """The stock config, as if nothing had ever been expanded."""
        values = {name: value for name, value in self.to_dict().items() if name not in NOT_OF_THE_BASE}  # type: ignore
        return self.base_config_class.from_dict(values)  # type: ignore[attr-defined]
