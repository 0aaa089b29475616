"""Recalibrates the bias of the LM head alone, before anything is measured: what only suppresses words comes back at once.

A model that says certain words less has not forgotten: adding to their logits undoes it, and no weight has to be learnt. So
that this is no part of what a loss is said to show, SGTM (safety-research/selective-gradient-masking) redraws the head's
bias, N(0, 0.1), and trains it alone before every loss that it reports: AdamW, 200 steps, learning rate 1e-2 to 1e-3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_era.evaluation.relearn.attack import AttackedExamples
from hf_era.evaluation.relearn.config import RECALIBRATION_STEPS

DEVIATION = 0.1
FIRST_RATE, LAST_RATE = 1e-2, 1e-3
BATCH = 32
"""Examples of a step: half forget, half retain."""


def recalibrate_head(model: Any, examples: AttackedExamples, batch_size: int, seed: int) -> None:
    """Redraws the bias of a model's LM head and trains it alone, in place; a head without a bias gets one.

    Args:
        model: any causal LM. examples (`AttackedExamples`): forget and retain examples; a step draws `BATCH` of them.
        batch_size (`int`): examples in memory at a time. seed (`int`): of the bias and of the draws.

    Raises:
        ValueError: if the model has no LM head that is a linear layer.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"`relearn.recalibrate_head`: {type(model).__name__} has no LM head that is a linear layer, but "
            f"{type(head).__name__}. Leave the pass out with `--relearn.recalibrate_head false`."
        )
    bias = DEVIATION * torch.randn(head.out_features, generator=torch.Generator().manual_seed(seed))
    head.bias = nn.Parameter(bias.to(head.weight.device, head.weight.dtype))
    model.requires_grad_(False)
    head.bias.requires_grad_(True)
    optimizer = torch.optim.AdamW([head.bias], weight_decay=0.0)
    model.eval()
    draws = examples.draws(examples.shares(BATCH), seed)
    for step in range(RECALIBRATION_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = FIRST_RATE + (LAST_RATE - FIRST_RATE) * step / (RECALIBRATION_STEPS - 1)
        optimizer.zero_grad()
        examples.accumulate(model, next(draws), batch_size)
        optimizer.step()
    model.requires_grad_(True)
