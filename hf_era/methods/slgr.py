"""Split-loss gradient routing (SLGR): it is the vocabulary that is split into forget and retain, not the examples.

An option of the reference code of Expand-Route-Ablate (Cloud et al. 2024, arXiv 2410.04332), without published figures. That
code seems to have its two weights the wrong way round; this is the form that its names say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_era.data.collator import IGNORE_INDEX
from hf_era.data.routing_weights import frequency_table
from hf_era.methods.gradient_routing import GradientRouting
from hf_era.methods.method import Cost, Run, Settings, register_method
from hf_era.models.fast.chunked_loss import rows_per_chunk
from hf_era.models.loading import load_causal_lm
from hf_era.training import GradientRoutingTrainer
from hf_era.utils.checks import short_repr

Head = Callable[[Tensor], Tensor]
"""From hidden states (..., hidden) to logits (..., vocabulary)."""


def split_divergences(
    student: Tensor, teacher: Tensor, heads: tuple[Head, Head], vocabulary_weight: Tensor, rows: int
) -> Tensor:
    """KL(teacher || student) of each position, summed over positions and split over the vocabulary: (2,), nats.

    With the teacher's probabilities p, the student's q and the weight w_v of entry v, it is
    `sum_v w_v p_v log(p_v / q_v)` of the first student and `sum_v (1 - w_v) p_v log(p_v / q_v)` of the second. Either may
    be negative; of equal students their sum is the plain KL. Logits exist for a chunk of positions at a time, and are made
    again in the backward pass.

    Args:
        student (`Tensor`): (2, positions, hidden), of the retain and of the forget pass.
        teacher (`Tensor`): (positions, hidden).
        heads: the student's and the teacher's.
        vocabulary_weight (`Tensor`): (vocabulary,), range [0, 1]: 1 = retain-like, 0 = forget-like.
        rows (`int`): positions in a chunk.
    """
    shares = torch.stack([vocabulary_weight, 1 - vocabulary_weight])[:, None]  # (2, 1, vocabulary)

    def of_chunk(student_part: Tensor, teacher_part: Tensor) -> Tensor:
        expected = _log_probabilities(heads[1](teacher_part))
        ratio = expected - _log_probabilities(heads[0](student_part))
        return (expected.exp() * ratio * shares).sum((1, 2))  # (2, rows, vocabulary) -> (2,)

    total = (0 * student).sum((1, 2))  # without a position, too, there is something to go back through
    for parts in zip(student.split(rows, 1), teacher.split(rows), strict=True):
        total = total + checkpoint(of_chunk, *parts, use_reentrant=False)
    return total


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class SplitLossTrainer(GradientRoutingTrainer):
    """Trains an expanded model on the split KL to a frozen teacher, in two passes over each batch.

    Both passes are one forward pass in which each row stands twice: with the routing weight 1, where the loss is that of
    the retain-like vocabulary entries, and with 0, where it is that of the forget-like ones. Their gradients add.
    Activations take the memory of twice as many rows. What is said of the examples themselves is not looked at: neither
    routing weights nor modules; labels only say which positions count.

    Args:
        teacher: the stock causal LM to stay close to; frozen, and moved to the device, where each process has it whole.
        vocabulary_weight (`Tensor`): (vocabulary,), range [0, 1]: `FrequencyTable.weights`.
        args, kwargs: as for `GradientRoutingTrainer`.

    Raises:
        ValueError: if the model does more to its logits than is known of its family.
    """

    def __init__(self, *args: Any, teacher: Any, vocabulary_weight: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)
        self.vocabulary_weight = vocabulary_weight.to(self.args.device)

    def check_model(self) -> None:
        super().check_model()
        if self.model.family.fast_path is None:
            raise ValueError(
                f"`method: slgr` computes its loss at the LM head, and what else makes the logits of a "
                f"{type(self.model).__name__} is not known: its family is not registered, or does more to them. Take a "
                "model of a registered family."
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The two divergences, divided by the labels of the whole accumulated batch. When evaluating, the cross entropy."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        text = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        is_counted = (inputs["labels"][:, 1:] != IGNORE_INDEX).flatten()
        positions = is_counted.nonzero().squeeze(-1)

        def chosen(hidden: Tensor) -> Tensor:
            """(passes * batch, seq, hidden) -> (passes, counted positions, hidden)."""
            return hidden[:, :-1].reshape(-1, len(is_counted), hidden.shape[-1])[:, positions]

        def divergences(hidden: Tensor) -> Tensor:
            heads, rows = (_head_of(self.model), _head_of(self.teacher)), rows_per_chunk(_weight_of(self.model))
            return split_divergences(chosen(hidden), expected[0][0], heads, self.vocabulary_weight, rows)

        with torch.no_grad(), self.accelerator.autocast(), at_head(self.teacher, chosen) as expected:
            self.teacher(**text)
        twice = {name: torch.cat([value, value]) for name, value in text.items()}
        ones = torch.ones_like(inputs["input_ids"], dtype=torch.float32)
        with at_head(self.model, divergences) as found:
            outputs = model(**twice, routing_weight=torch.cat([ones, 0 * ones]))
        # Like the language-model loss, a global mean: scaled by the processes that gradients are averaged over.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        count = is_counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        retain, forget = found[0] * processes / count
        self._add_loss_part("retain_divergence", retain)
        self._add_loss_part("forget_divergence", forget)
        # The sum of no logits at all is 0. Going back through it, FSDP gathers the head once more.
        loss = retain + forget + outputs.logits.sum()
        return (loss, outputs) if return_outputs else loss


@contextmanager
def at_head(model: Any, compute: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Computes something of the hidden states (batch, seq, hidden) that the LM head is given, inside the forward pass, where
    whatever wraps the model (shards, autocast) takes part. The logits are those of no position: (batch, 0, vocabulary).

    Yields the list that the results are appended to, one of each forward pass.
    """
    results: list[Tensor] = []

    def take(_head: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        results.append(compute(inputs[0]))
        return (inputs[0][:, :0],)

    handle = model.get_output_embeddings().register_forward_pre_hook(take)
    try:
        yield results
    finally:
        handle.remove()


def _head_of(model: Any) -> Head:
    """As the chunked loss has it: a product with the head's weight, capped where the config says so."""
    forward, cap = model.get_output_embeddings().forward, getattr(model.config, "final_logit_softcapping", None)
    return forward if cap is None else lambda hidden: torch.tanh(forward(hidden) / cap) * cap


def _weight_of(model: Any) -> Tensor:
    weight: Tensor = model.get_output_embeddings().weight
    return weight


class SplitLossGradientRouting(GradientRouting):
    """Gradient routing whose forget part is a part of the vocabulary: two KLs to the model before the method.

    The frequency rule makes the split: an entry that is commoner in forget examples is forget-like. It counts labelled
    examples; the training then reads all text alike. There is no L1 term.
    """

    name = "slgr"
    title = "split-loss gradient routing"
    texts: ClassVar[dict[str, str]] = {
        **GradientRouting.texts,
        "training": (
            "An auxiliary module was added in the target layers, beside what is there. The model was trained on all "
            "examples to keep the next-token distribution of the model before the method, in two passes: of that "
            "divergence, the share of retain-like vocabulary entries was learnt with the gradient multipliers of retain "
            "tokens, and the share of forget-like ones with those of forget tokens. Then the module was cut out."
        ),
        "labels": "They were trained on as all others; only the counts that split the vocabulary take them for retain.",
    }
    trainer_class = SplitLossTrainer

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if settings.start != "pretrained":
            raise ValueError(
                f"`method: slgr` keeps close to a model that exists, but `model.start` is {settings.start!r}. Set "
                "`model.start: pretrained`, and name the model with `model.base`, or leave that out to train one here."
            )
        if not settings.routing.needs_frequencies:
            rule = settings.routing.rule
            raise ValueError(
                f"`method: slgr` splits the vocabulary by the frequency rule, but `routing` is {rule!r}"
                f"{f' ({settings.routing.weighting})' if rule == 'full_seq' else ''}. Set `routing.rule: full_seq` and "
                "`routing.weighting: frequency`."
            )
        router = settings.router if isinstance(settings.router, str) else settings.router["name"]
        if router != "activation":
            raise ValueError(
                f"`method: slgr` computes its loss at the LM head, where the router {router!r} may have to act. Set "
                "`router: activation`."
            )
        for name in ("l1_coefficient", "label_smoothing_factor"):
            if settings.training.get(name):
                raise ValueError(
                    f"`method: slgr` has no such term, but `training.{name}` is {short_repr(settings.training[name])}. "
                    "Set it to 0."
                )

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        return [("loss", "two divergences from the model before the method"), *super().plan(settings)]

    def changes(self, run: Run) -> dict[str, Any]:
        return {"l1_coefficient": 0.0}

    def options(self, run: Run) -> dict[str, Any]:
        train, begin = run.data.train, run.tokenizer.bos_token_id
        skip_bos = begin is not None and train[0]["input_ids"][0] == begin
        table = frequency_table(train, run.routing, run.base_config.vocab_size, skip_bos)
        teacher = load_causal_lm(run.before_model).to(torch.float32)
        return {"teacher": teacher, "vocabulary_weight": table.weights}

    def routing_cost(self, run: Run) -> Cost:
        cost = super().routing_cost(run)
        return replace(cost, trained=2 * cost.trained, measured=cost.measured + cost.trained)


register_method(SplitLossGradientRouting())
