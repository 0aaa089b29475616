"""Low-rank adapters for an attack: the cheap fine-tuning that an attacker with little memory would do."""

from __future__ import annotations

import warnings
from typing import Any

# Both are peft's own business: it asks transformers by an old name, and corrects a setting for GPT-2's layers by itself.
_PEFT_NOISE = ("`is_gradient_checkpointing` is deprecated", "fan_in_fan_out is set to False")


def with_lora(model: Any, rank: int, alpha: float) -> Any:
    """Puts LoRA adapters (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the LM head, in place.

    Only the adapters can be trained afterwards. They start as no change, at random: seed torch before. What is returned is
    the model itself and not peft's wrapper, so that a fast class keeps its chunked loss; its linear layers are called as
    modules, and take part with their adapters.

    Args:
        model: a causal LM. rank (`int`): of the adapters. alpha (`float`): their scale is alpha / rank.

    Raises:
        ValueError: if peft finds no layer to put them on, or knows it not.
    """
    from peft import LoraConfig, get_peft_model  # heavy, and seldom needed

    scale: Any = alpha  # peft's hint says int, its formula does not mind
    settings = LoraConfig(
        r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        for message in _PEFT_NOISE:
            warnings.filterwarnings("ignore", message=message)
        try:
            return get_peft_model(model, settings).get_base_model()
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`relearn.lora`: peft can put no adapters on {type(model).__name__} ({error}). "
                "Leave this attack out with `--relearn.lora false`."
            ) from error
