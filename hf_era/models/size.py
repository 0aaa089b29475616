"""How large a model is, from its config alone: said before anything of it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_era.models.families.family import EXPANDED_PREFIX, FAMILIES, family_of
from hf_era.utils.checks import check_count, check_memory

BYTES_PER_PARAMETER = 4
MAXIMUM_LAYERS = 10_000
MAXIMUM_WIDTH = 10_000_000
"""Of hidden sizes, vocabularies and contexts alone; what they need together is compared with the memory."""

_LAYERS = ("num_layers", "num_hidden_layers", "n_layer", "n_layers")
_WIDTHS = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "vocab_size", "max_position_embeddings",
    "n_positions", "num_heads", "num_attention_heads", "n_head",
)  # fmt: skip


def check_config_numbers(field: str, values: Mapping[str, Any]) -> None:
    """Raises `ValueError` for sizes in a stock config's dict that no model has; to be called before it becomes a config."""
    for name, most in (*((name, MAXIMUM_LAYERS) for name in _LAYERS), *((name, MAXIMUM_WIDTH) for name in _WIDTHS)):
        if isinstance(values.get(name), int):
            check_count(f"{field}.{name}", values[name], 1, most)
    family = FAMILIES.get(str(values.get("model_type")).removeprefix(EXPANDED_PREFIX))
    if family is not None:
        family.check_config_values(field, values)


def check_model_fits(field: str, config: Any) -> None:
    """Raises `ValueError` if a causal LM with this config, stock or expanded, would need more memory than there is.

    The estimate is a lower bound: the embeddings, and in each layer two square matrices and the MLP.
    """
    text = getattr(config, "get_text_config", lambda: config)()
    hidden, layers, vocabulary = (number_of(text, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    positions, width = (number_of(text, name) for name in ("max_position_embeddings", "intermediate_size"))
    needed = BYTES_PER_PARAMETER * hidden * (vocabulary + layers * (2 * hidden + 2 * width))
    family = family_of(text)
    if family is not None:
        needed += family.extra_bytes(text)
    sizes = f"a model of {layers:,} layers of width {hidden:,} with {vocabulary:,} tokens and {positions:,} positions"
    check_memory(field, sizes, needed, "Make it smaller, or use a machine with more memory.")


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
