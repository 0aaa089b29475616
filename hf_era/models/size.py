"""How large a model is, from its config alone: said before anything of it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_era.utils.checks import check_count, check_memory, short_repr

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
    """Raises `ValueError` for sizes in a stock config's dict that no model has; to be called before it becomes a config.

    A config is not as harmless as it looks: GPT-Neo's makes a list with one entry for every layer that `attention_types`
    stands for, which nine digits are enough to fill the memory with.
    """
    for name, most in (*((name, MAXIMUM_LAYERS) for name in _LAYERS), *((name, MAXIMUM_WIDTH) for name in _WIDTHS)):
        if isinstance(values.get(name), int):
            check_count(f"{field}.{name}", values[name], 1, most)
    attention = values.get("attention_types")
    if attention is not None and "gpt_neo" in str(values.get("model_type", "gpt_neo")):
        _check_attention_types(f"{field}.attention_types", attention)


def _check_attention_types(name: str, value: Any) -> None:
    """`[[["global", "local"], 6], ...]`: names of kinds of attention, and how often they are repeated."""
    rows: list[Any] = list(value) if isinstance(value, (list, tuple)) else [None]
    layers = 0
    for row in rows:
        is_pair = isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], (list, tuple))
        if not is_pair or isinstance(row[1], bool) or not isinstance(row[1], int) or row[1] < 0:
            raise ValueError(f'`{name}` should be a list such as [[["global", "local"], 6]], got {short_repr(value)}.')
        layers += len(row[0]) * row[1]
    check_count(f"{name} (layers in all)", layers, 1, MAXIMUM_LAYERS)


def check_model_fits(field: str, config: Any) -> None:
    """Raises `ValueError` if a causal LM with this config, stock or expanded, would need more memory than there is.

    The estimate is a lower bound: the embeddings, and in each layer two square matrices and the MLP.
    """
    text = getattr(config, "get_text_config", lambda: config)()
    hidden, layers, vocabulary = (_number(text, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    positions, width = (_number(text, name) for name in ("max_position_embeddings", "intermediate_size"))
    needed = BYTES_PER_PARAMETER * hidden * (vocabulary + layers * (2 * hidden + 2 * width))
    if str(getattr(text, "model_type", "")).endswith("gpt_neo"):
        # A learnt vector for every position, and in every layer a mask of all pairs of them, a byte each; while one is
        # made there are three of it.
        needed += BYTES_PER_PARAMETER * hidden * positions + (layers + 2) * positions * positions
    sizes = f"a model of {layers:,} layers of width {hidden:,} with {vocabulary:,} tokens and {positions:,} positions"
    check_memory(field, sizes, needed, "Make it smaller, or use a machine with more memory.")


def check_auxiliary_fits(config: Any, layers: int, width: int) -> None:
    """Raises `ValueError` if auxiliary modules of this width in so many layers would need more memory than there is."""
    hidden = _number(config, "hidden_size")
    sizes = f"an auxiliary module of width {width:,} in {layers:,} layers of width {hidden:,}"
    needed = BYTES_PER_PARAMETER * layers * width * (2 * hidden + 1)
    check_memory("expansion.width", sizes, needed, "Lower it; 64 is the default.")


def _number(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else 0
