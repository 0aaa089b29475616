"""A family of causal LMs: all that is known of it, in one registration.

To add a family: `hf_era/models/families/NAME.py`, or a few lines in the file of those that are like it. It has two classes,
one for the config and one for the causal LM, and one registration:

    class ExpandedLlamaConfig(ExpandedConfigMixin, LlamaConfig):
        model_type = "expanded_llama"
        expansion: dict | None = None

    class ExpandedLlamaForCausalLM(ExpandedCausalLMMixin, LlamaForCausalLM):
        config_class = ExpandedLlamaConfig

    register_family(Family(model_class=ExpandedLlamaForCausalLM, gated=True))

and is imported in `hf_era/models/__init__.py`. `gpt_neo.py` is one with a faster attention; `tests/models/families/` says
what holds of all of them, and has a tiny model of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from hf_era.models.families.unsupported import unsupported_message
from hf_era.models.fast.causal_lm import CHUNKED_LOSS, FastCausalLMMixin, FastPath
from hf_era.models.mixing import mixed_class

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

EXPANDED_PREFIX = "expanded_"


def _nothing_to_check(field: str, values: Mapping[str, Any]) -> None:
    """Most configs are as harmless as they look."""


@dataclass(frozen=True)
class AttentionLayout:
    """Where the attention of a block is, and its projections: linear layers, none fused with another, and no norm over
    queries or keys. Such an attention can have heads beside its own (`hf_era.models.attention_heads`).

    Attributes:
        attribute (`str`): of a block.
        query, key, value, output (`str`): paths in the attention.
    """

    attribute: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"


@dataclass(frozen=True)
class Family:
    """Where the parts of a family's causal LM are, and what is special about it.

    Attributes:
        model_class (`type`): the expanded causal LM; its `config_class` is the expanded config, its `stock_class` the stock
            causal LM.
        blocks (`str`): path from the causal LM to the list of blocks.
        mlp (`str`): attribute of a block that holds its MLP.
        down_projection (`str`): path in the MLP to the layer whose *input* is the routed activation.
        gated (`bool`): whether MLPs are `down(act(gate(x)) * up(x))`; auxiliary modules then are, too.
        hidden_size, number_of_layers, activation (`str`): config fields: width of the residual stream, number of blocks,
            name of the MLP's activation function.
        intermediate_size (`str`, *optional*): config field: hidden units of the MLP; its value `None` means four times
            `hidden_size`. `None`: there is no such field, so that a module can neither be folded into the MLP nor be as wide
            as a share of it.
        gate_projection (`str`): path in a gated MLP to the layer whose output goes through the activation function.
        activation_module (`str`): attribute of an MLP that is not gated: its activation function. A GELU is fused with the
            routing.
        norms_heads_first (`bool`): whether norms of queries and keys get (batch, heads, seq, size).
        attention (`AttentionLayout`, *optional*): where modules of the kind `heads` can be. `None`: nowhere.
        fast_path (`FastPath`, *optional*): a faster way to compute it; the chunked loss if not given. `None`: no faster way,
            for a family whose logits are more than a product with the LM head and `final_logit_softcapping`.
        explicit_fast_class (`type`, *optional*): the stock causal LM on that path, without auxiliary modules. Not given: it
            is made.
        stored_buffers (`str`): regular expression for the end of names that old checkpoints of the family hold beside the
            weights: constants, which the model makes itself.
        check_config_values: takes the name of a setting and a config's dict, and raises `ValueError` for values that
            would do harm when they become a config.
    """

    model_class: Any
    blocks: str = "model.layers"
    mlp: str = "mlp"
    down_projection: str = "down_proj"
    gated: bool = False
    hidden_size: str = "hidden_size"
    number_of_layers: str = "num_hidden_layers"
    activation: str = "hidden_act"
    intermediate_size: str | None = "intermediate_size"
    gate_projection: str = "gate_proj"
    activation_module: str = "act"
    norms_heads_first: bool = False
    attention: AttentionLayout | None = None
    fast_path: FastPath | None = CHUNKED_LOSS
    explicit_fast_class: Any = None
    stored_buffers: str = r"(?!)"
    check_config_values: Callable[[str, Mapping[str, Any]], None] = _nothing_to_check

    @property
    def model_type(self) -> str:
        """Of the stock config."""
        return str(self.model_class.config_class.base_config_class.model_type)

    @cached_property
    def fast_class(self) -> Any:
        """The stock causal LM on the family's fast path, without auxiliary modules; `None` without such a path."""
        if self.fast_path is None:
            return None
        return self.explicit_fast_class or mixed_class(FastCausalLMMixin, self.model_class.stock_class)

    @property
    def is_registered(self) -> bool:
        """Whether it is one that hf_era's tests know, and not one that was opened by the names of its parts."""
        return FAMILIES.get(self.model_type) is self

    @property
    def names_to_open(self) -> tuple[str | None, str | None]:
        """The `mlp` and `down_projection` of an expansion that opens it; none for a registered family, which needs none."""
        return (None, None) if self.is_registered else (self.mlp, self.down_projection)

    def check_names(self, expansion: Any) -> None:
        """Raises `ValueError` for an `ExpansionConfig` that names other parts than the family has."""
        for field in ("mlp", "down_projection"):
            given, own = getattr(expansion, field, None), getattr(self, field)
            if given not in (None, own):
                raise ValueError(
                    f"`expansion.{field}` is {given!r}, but that of the family `{self.model_type}` is {own!r}. Leave "
                    "`expansion.mlp` and `expansion.down_projection` out: they are for families that hf_era does not know."
                )

    def is_stored_buffer(self, name: str) -> bool:
        return re.search(rf"{self.stored_buffers}$", name) is not None

    def is_auxiliary_weight(self, name: str) -> bool:
        """Whether a parameter or state-dict key belongs to an auxiliary module, in an adapter's copy of its MLP too."""
        places = [self.mlp] if self.attention is None else [self.mlp, self.attention.attribute]
        return any(re.search(rf"\.{place}\.(.+\.)?auxiliary\.", name) is not None for place in places)

    def get_blocks(self, model: nn.Module) -> nn.ModuleList:
        return attrgetter(self.blocks)(model)

    def get_mlp(self, block: nn.Module) -> nn.Module:
        return getattr(block, self.mlp)

    def get_down_projection(self, mlp: nn.Module) -> nn.Module:
        return mlp.get_submodule(self.down_projection)

    def get_attention(self, block: nn.Module) -> Any:
        """The attention that heads can be beside; `None` if there is no such place."""
        return None if self.attention is None else getattr(block, self.attention.attribute)

    def expanded_parts(self, block: nn.Module) -> list[tuple[Any, Any]]:
        """The parts of a block that modules are beside, or could be, and that are routed therefore; each with its down
        projection. The MLP of a target layer, and its attention where it has heads beside its own."""
        mlp, attention = self.get_mlp(block), self.get_attention(block)
        parts = [(mlp, self.get_down_projection(mlp))]
        if self.attention is not None:
            parts.append((attention, attention.get_submodule(self.attention.output)))
        return [(part, down) for part, down in parts if hasattr(part, "auxiliary")]

    def layers_of(self, config: PreTrainedConfig | Any) -> int:
        return int(getattr(config, self.number_of_layers))

    def mlp_width(self, config: PreTrainedConfig | Any) -> int | None:
        """Hidden units of the MLP of every layer; `None` where no one number says it."""
        if self.intermediate_size is None:
            return None
        width = getattr(config, self.intermediate_size, None)
        if width is None:
            return 4 * int(getattr(config, self.hidden_size))
        return width if isinstance(width, int) else None


FAMILIES: dict[str, Family] = {}
"""Model type of the stock config -> family."""


def register_family(family: Family) -> None:
    """Makes a family known, to hf_era and to transformers' Auto classes.

    Raises:
        ValueError: if its model type has a family already.
    """
    known = FAMILIES.setdefault(family.model_type, family)
    if known is not family:
        raise ValueError(
            f"There is a family `{family.model_type}` already: {known.model_class.__name__}. Register each one once."
        )
    family.model_class.family = family
    if family.fast_class is not None:
        family.fast_class.family = family
    register_stored_names(family)
    _register_auto_classes(family)


def register_stored_names(family: Family) -> None:
    """Lets our classes read and write the names that the stock class has in files, where they are not the model's own: the
    head of a GPT-NeoX is stored as `embed_out`. transformers looks them up by the name of the class, then by model type."""
    stored = get_checkpoint_conversion_mapping(family.model_class.stock_class.__name__)
    if stored is None:
        stored = get_checkpoint_conversion_mapping(family.model_type)
    for model_class in (family.model_class, family.fast_class):
        if stored is not None and model_class is not None:
            register_checkpoint_conversion_mapping(model_class.__name__, stored, overwrite=True)


def register_auto_classes() -> None:
    """Makes `AutoConfig` and `AutoModelForCausalLM` know every family. Calling it again changes nothing."""
    for family in FAMILIES.values():
        _register_auto_classes(family)


def _register_auto_classes(family: Family) -> None:
    config_class = family.model_class.config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, family.model_class, exist_ok=True)


def family_of(config: Any) -> Family | None:
    """The family of a stock or expanded config, or `None` if it has none. Stock configs do not know one that was opened."""
    opened: Family | None = getattr(type(config), "opened_family", None)
    return opened or FAMILIES.get(str(config.model_type).removeprefix(EXPANDED_PREFIX))


def get_family(model_type: str) -> Family:
    """The family of a stock model type.

    Raises:
        ValueError: if nobody registered it (the message lists those that are, and says what it is instead), or if it is
            the type of a model that is expanded already.
    """
    if model_type.removeprefix(EXPANDED_PREFIX) in FAMILIES and model_type.startswith(EXPANDED_PREFIX):
        raise ValueError(
            f"The base model is of type `{model_type}`: it is expanded already. Load it with `from_pretrained` to go on "
            "with it, or pass its contracted checkpoint as the base."
        )
    if model_type not in FAMILIES:
        raise ValueError(unsupported_message(model_type, FAMILIES))
    return FAMILIES[model_type]


def family_for(base_config: Any, expansion: Any = None) -> Family:
    """The family of a stock config: the registered one, or one that the expansion opens by the names of its parts.

    Raises:
        ValueError: as `get_family`, if the expansion names no parts; if it names other parts than a registered family has;
            or if the model has no such parts.
    """
    registered = FAMILIES.get(base_config.model_type)
    if registered is not None:
        registered.check_names(expansion)
        return registered
    if getattr(expansion, "mlp", None) is None:
        return get_family(base_config.model_type)
    from hf_era.models.families.open_family import open_family  # its classes are made of what needs this file

    return open_family(base_config, expansion)
