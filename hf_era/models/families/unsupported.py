"""What is said of a model that is of no family: what it is, what works for it, and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)


def why_no_causal_lm(model_type: str) -> str | None:
    """What a type of model is that does not predict the next token, for a message; `None` for causal LMs, multimodal ones
    too, and for a type that transformers does not know."""
    if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "an encoder with a decoder"
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # many have a causal form, which is not how they were trained
        return "an encoder"
    if model_type not in CONFIG_MAPPING or _is_multimodal(model_type):
        return None
    return (
        None if CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING else "no language model"
    )  # registered ones too


def no_causal_lm_message(model_type: str, reason: str, families: Mapping[str, Any]) -> str:
    return (
        f"The model's type `{model_type}` is {reason}, no causal LM. hf_era trains and measures models that predict the "
        f"next token; of these families it can expand them: {', '.join(sorted(families))}."
    )


def unsupported_message(model_type: str, families: Mapping[str, Any]) -> str:
    """The text for a base model whose type is of none of the `families`."""
    reason = why_no_causal_lm(model_type)
    if reason is not None:
        return no_causal_lm_message(model_type, reason, families)
    known = f"Known: {', '.join(sorted(families))}."
    if _is_multimodal(model_type):
        text_type: Any = getattr(CONFIG_MAPPING[model_type].sub_configs.get("text_config"), "model_type", None)
        text_class = (
            families[text_type].model_class.stock_class.__name__ if text_type in families else "TextForCausalLM"
        )
        return (
            f"The base model's type `{model_type}` is multimodal. Pass its text model as a model of its own: "
            f"`text = {text_class}(whole.config.text_config)`, `text.model = whole.model.language_model`, "
            f"`text.lm_head = whole.lm_head`, of the `whole` one in memory. A recipe takes the folder "
            f"that it is saved in, beside its tokenizer (`save_pretrained`). {known}"
        )
    return (
        f"The base model's type `{model_type}` is of no family that hf_era knows. {known} `hf-era eval` and `hf-era "
        "relearn` work for it anyway. To expand it, say where its MLPs are: `ExpansionConfig(mlp=..., "
        'down_projection=...)`, for instance "mlp" and "down_proj". A family with tests is one file in '
        "`hf_era/models/families/`."
    )


def _is_multimodal(model_type: str) -> bool:
    return (
        model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and "text_config" in CONFIG_MAPPING[model_type].sub_configs
    )
