"""Did you mean ...? The nearest of some known names, or the one that other tools' name stands for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

MAXIMUM_LENGTH = 200
"""A longer text is near to no name, and comparing it takes long."""
MAXIMUM_SUGGESTIONS = 3

_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "epochs": ("num_train_epochs", "steps"),
    "num_epochs": ("num_train_epochs", "steps"),
    "steps": ("max_steps",),
    "num_steps": ("max_steps", "steps"),
    "lr": ("learning_rate",),
    "batch_size": ("per_device_train_batch_size",),
    "train_batch_size": ("per_device_train_batch_size",),
    "eval_batch_size": ("per_device_eval_batch_size",),
    "grad_accum": ("gradient_accumulation_steps",),
    "gradient_accumulation": ("gradient_accumulation_steps",),
    "warmup": ("warmup_steps",),
    "scheduler": ("lr_scheduler_type",),
    "optimizer": ("optim",),
    "wd": ("weight_decay",),
    "r": ("rank",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "output": ("output_dir",),
    "out": ("output_dir",),
    "dataset": ("train",),
    "words": ("forget_words",),
    "layers": ("target_layers",),
    "max_length": ("max_tokens",),
    "max_seq_length": ("max_tokens",),
}
"""What a setting is called elsewhere -> what it is called here; the first of these that is known counts."""


def close_name(text: str, names: Sequence[str]) -> str | None:
    """The nearest of some names; `None` if none is near."""
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5) if len(text) <= MAXIMUM_LENGTH else []
    return close[0] if close else None


def suggestions(name: str, known: Sequence[str]) -> list[str]:
    """The known names that a name may have meant, the likeliest first; at most three.

    A name without a section is first compared with the last part of each known one: `--width` means `--expansion.width`.
    Hyphens and underscores are the same.
    """
    wanted = name.removeprefix("--").replace("-", "_").lower()
    if "." not in wanted:
        last_parts = [one.removeprefix("--").rpartition(".")[2].replace("-", "_") for one in known]
        usual = [last_parts.index(one) for one in _USUAL_NAMES.get(wanted, ()) if one in last_parts][:1]
        same = [index for index, last in enumerate(last_parts) if last == wanted]
        if usual or same:
            return [known[index] for index in dict.fromkeys([*usual, *same])][:MAXIMUM_SUGGESTIONS]
    close = close_name(name, known)
    return [] if close is None else [close]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """` Did you mean `a` or `b`?`, with the space before it; empty where nothing is near."""
    quoted = [f"`{found}`" for found in suggestions(name, known)]
    *first, last = quoted or [""]
    return f" Did you mean {', '.join(first)}{' or ' * bool(first)}{last}?" if quoted else ""
