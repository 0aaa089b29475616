"""How large a model is, from its config alone: said before anything of it is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hf_era.models.families.family import EXPANDED_PREFIX, FAMILIES, family_of
from hf_era.utils.checks import check_count, check_memory, error_text

BYTES_PER_PARAMETER = 4
MAXIMUM_LAYERS = 1_000
"""More than any published model has. A layer without memory still takes a millisecond or two to make."""
MAXIMUM_WIDTH = 10_000_000
"""Of hidden sizes, vocabularies and contexts alone; what they need together is compared with the memory."""

_LAYERS = ("num_layers", "num_hidden_layers", "n_layer", "n_layers")
_WIDTHS = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "vocab_size", "max_position_embeddings",
    "n_positions", "num_heads", "num_attention_heads", "n_head",
)  # fmt: skip
_SAID = ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings")


def check_config_numbers(field: str, values: Mapping[str, Any]) -> None:
    """Raises `ValueError` for sizes in a stock config's dict that no model has; to be called before it becomes a config."""
    for name, most in (*((name, MAXIMUM_LAYERS) for name in _LAYERS), *((name, MAXIMUM_WIDTH) for name in _WIDTHS)):
        if isinstance(values.get(name), int):
            check_count(f"{field}.{name}", values[name], 1, most)
    family = FAMILIES.get(str(values.get("model_type")).removeprefix(EXPANDED_PREFIX))
    if family is not None:
        family.check_config_values(field, values)


def check_model_fits(field: str, config: Any, dtype: Any = None) -> Any:
    """Builds the causal LM of a config, stock or expanded, on the meta device, where it has shapes and takes no memory.

    Args:
        field (`str`): the setting that errors name.
        config (`PreTrainedConfig`): its numbers have been through `check_config_numbers`.
        dtype (`torch.dtype`, *optional*): of the weights. Not given: that of the config, else fp32.

    Returns: the model, on the meta device. Raises `ValueError` if values of the config do not go together, or if weights and
    constants alone would need more memory than there is.
    """
    try:
        model = _on_meta(copy.deepcopy(config))
    except Exception as error:  # no heads, an unknown activation, a width that the heads do not divide
        raise ValueError(f"`{field}` cannot be built: {error_text(error)}") from error
    given = (dtype, getattr(config, "dtype", None), torch.float32)
    bytes_each = next(one for one in given if isinstance(one, torch.dtype)).itemsize
    needed = bytes_each * sum(weight.numel() for weight in model.parameters())
    needed += sum(constant.nbytes for constant in model.buffers())
    text = getattr(config, "get_text_config", lambda: config)()
    layers, hidden, tokens, positions = (number_of(text, name) for name in _SAID)
    sizes = f"a model of {layers:,} layers of width {hidden:,} with {tokens:,} tokens and {positions:,} positions"
    check_memory(field, sizes, needed, "Make it smaller, or use a machine with more memory.")
    return model


def _on_meta(config: Any) -> Any:
    family = family_of(config)
    with torch.device("meta"):
        if family is None:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        # The class itself: under DeepSpeed's ZeRO 3, `from_config` spreads what it makes over the processes.
        expanded = config.model_type != family.model_type
        return (family.model_class if expanded else family.model_class.stock_class)(config)


def check_auxiliary_fits(config: Any, layers: int, width: int, gated: bool = False) -> None:
    """Raises `ValueError` if an auxiliary module of this width in so many layers would need more memory than there is."""
    hidden = number_of(config, "hidden_size")
    sizes = f"an auxiliary module of width {width:,} in {layers:,} layers of width {hidden:,}"
    needed = BYTES_PER_PARAMETER * layers * width * ((3 if gated else 2) * hidden + 1)
    check_memory("expansion.width", sizes, needed, "Lower it; 64 is the default.")


def number_of(config: Any, name: str) -> int:
    """A size of a config; 0 if it has none of that name."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else 0
