"""What is known of each architecture: one row per family. Adding a family is one row, one config and one model class."""

import importlib
import re
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class ArchitectureSpec:
    """Where the parts of a family's causal LM are.

    Attributes:
        model_type (`str`): of the stock config.
        blocks (`str`): path from the causal LM to the list of blocks.
        mlp (`str`): attribute of a block that holds its MLP.
        down_projection (`str`): attribute of the MLP whose *input* is the routed activation.
        hidden_size (`str`): config field with the width of the residual stream.
        number_of_layers (`str`): config field with the number of blocks.
        activation (`str`): config field with the name of the MLP's activation function.
        fast_model (`str`): "module:class" of the fast causal LM without auxiliary modules.
        expanded_model (`str`): "module:class" of the expanded causal LM; its `config_class` is the expanded config.
        stored_buffers (`str`): regular expression for the end of names that old checkpoints of the family hold beside the
            weights: constants, which the model makes itself.
    """

    model_type: str
    blocks: str
    mlp: str
    down_projection: str
    hidden_size: str
    number_of_layers: str
    activation: str
    fast_model: str
    expanded_model: str
    stored_buffers: str

    def is_stored_buffer(self, name: str) -> bool:
        return re.search(rf"{self.stored_buffers}$", name) is not None

    def get_blocks(self, model: "nn.Module") -> "nn.ModuleList":
        return attrgetter(self.blocks)(model)

    def get_mlp(self, block: "nn.Module") -> "nn.Module":
        return getattr(block, self.mlp)

    def layers_of(self, config: "PreTrainedConfig") -> int:
        return int(getattr(config, self.number_of_layers))

    def load_model_class(self) -> Any:
        return _load(self.expanded_model)

    def load_fast_class(self) -> Any:
        return _load(self.fast_model)


ARCHITECTURES: dict[str, ArchitectureSpec] = {
    "gpt_neo": ArchitectureSpec(
        model_type="gpt_neo",
        blocks="transformer.h",
        mlp="mlp",
        down_projection="c_proj",
        hidden_size="hidden_size",
        number_of_layers="num_layers",
        activation="activation_function",
        fast_model="hf_era.models.families.gpt_neo:FastGPTNeoForCausalLM",
        expanded_model="hf_era.models.families.gpt_neo:ExpandedGPTNeoForCausalLM",
        stored_buffers=r"\.attn\.attention\.(bias|masked_bias)",
    ),
}

EXPANDED_PREFIX = "expanded_"


def is_auxiliary_weight(name: str) -> bool:
    """Whether a parameter of this name belongs to the auxiliary module of an MLP, in any family."""
    return any(f".{spec.mlp}.auxiliary." in name for spec in ARCHITECTURES.values())


def spec_of(config: Any) -> ArchitectureSpec | None:
    """The spec of a stock or expanded config's family, or `None` if it has none."""
    return ARCHITECTURES.get(str(config.model_type).removeprefix(EXPANDED_PREFIX))


def get_architecture(model_type: str) -> ArchitectureSpec:
    """The spec of a stock architecture.

    Raises:
        ValueError: if the architecture has no spec (the message lists those that have one), or if it is the type of a
            model that is expanded already.
    """
    if model_type.removeprefix(EXPANDED_PREFIX) in ARCHITECTURES and model_type.startswith(EXPANDED_PREFIX):
        raise ValueError(
            f"The base model is of type `{model_type}`: it is expanded already. Load it with `from_pretrained` to go on "
            "with it, or pass its contracted checkpoint as the base."
        )
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"No architecture spec for the base model's type `{model_type}`. Known: {', '.join(sorted(ARCHITECTURES))}. "
            "Another family is one row in `hf_era/models/families/family.py`, one config and one model class."
        )
    return ARCHITECTURES[model_type]


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
