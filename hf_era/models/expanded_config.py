"""What the expanded configs of all families share."""

from typing import Any, ClassVar

from hf_era.models.architectures import ARCHITECTURES
from hf_era.models.expansion import ExpansionConfig
from hf_era.models.size import check_auxiliary_fits

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
