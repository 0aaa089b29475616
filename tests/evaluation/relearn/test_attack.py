"""The relearn attack: one trial, its curve, and what it leaves alone."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from hf_era import FastGPTNeoForCausalLM
from hf_era.data import RoutingCollator
from hf_era.evaluation import RelearnAttack, RelearnAttackConfig, RelearnPoint, story_losses
from hf_era.evaluation.relearn.attack import MeasuredStories, has_turned, is_measured
from hf_era.evaluation.relearn.config import RelearnConfig


def stories(number: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    lengths = [4 + index % 5 for index in range(number)]
    ids = [torch.randint(0, 52, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "length": lengths})


def make_attack(sets: tuple[Dataset, Dataset, Dataset] | None = None, **settings: Any) -> RelearnAttack:
    config = RelearnAttackConfig(**{"steps": 3, "learning_rate": 1e-2, "patience": None, **settings})
    attack, forget, retain = sets or (stories(4, 0), stories(5, 1), stories(5, 2))
    return RelearnAttack(attack, MeasuredStories(forget, retain, 0, config.batch_size), 0, config)


def as_numbers(curve: Any) -> list[float]:
    return [value for point in curve.points for value in (point.forget_loss, point.retain_loss)]


def test_the_first_point_is_the_model_as_it_is(make_base: Callable[..., Any]) -> None:
    model, forget = make_base(), stories(5, 1)
    curve = make_attack().run(model)
    losses = story_losses(model, [RoutingCollator(0)(list(forget.select_columns("input_ids")))])
    assert curve.points[0].forget_loss == pytest.approx(float(losses.nll.sum() / losses.tokens.sum()), rel=1e-6)
    assert [point.step for point in curve.points] == [0, 1, 2, 3]


def test_the_attack_learns_what_it_is_given_and_leaves_the_model_alone(make_base: Callable[..., Any]) -> None:
    model, attack = make_base(), stories(4, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curve = make_attack((attack, attack, stories(5, 2)), steps=6).run(model)
    assert curve.points[-1].forget_loss < curve.points[0].forget_loss - 0.1
    assert curve.lowest.forget_loss == min(point.forget_loss for point in curve.points)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_steps_are_those_of_adamw_on_one_batch(make_base: Callable[..., Any]) -> None:
    """Against the plain loop on the stock class: one batch, whole logits."""
    sets = (stories(4, 0), stories(5, 1), stories(5, 2))
    curve = make_attack(sets).run(make_base())
    model = make_base().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    batch, forget = (RoutingCollator(0)(list(part.select_columns("input_ids"))) for part in sets[:2])
    expected = [model(**forget).loss.item()]
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        expected.append(model(**forget).loss.item())
    assert [point.forget_loss for point in curve.points] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_figures_do_not_depend_on_the_batch_size(make_base: Callable[..., Any], batch_size: int) -> None:
    whole, cut = make_attack().run(make_base()), make_attack(batch_size=batch_size).run(make_base())
    assert as_numbers(cut) == pytest.approx(as_numbers(whole), rel=1e-5)


def test_any_causal_lm_can_be_attacked(make_base: Callable[..., Any], make_expanded: Callable[..., Any]) -> None:
    fast = FastGPTNeoForCausalLM.from_stock(make_base())
    assert as_numbers(make_attack().run(fast)) == pytest.approx(as_numbers(make_attack().run(make_base())), rel=1e-6)
    torch.manual_seed(0)
    other = GPT2LMHeadModel(
        GPT2Config(vocab_size=53, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    )
    for model in (other, make_expanded([0])):
        curve = make_attack((stories(4, 0), stories(4, 0), stories(5, 2))).run(model)
        assert curve.points[-1].forget_loss < curve.points[0].forget_loss


def test_it_stops_after_rises_in_a_row(make_base: Callable[..., Any]) -> None:
    # Learning random stories makes the loss on other random stories rise.
    curve = make_attack(steps=40, patience=3, learning_rate=1e-3).run(make_base())
    losses = [point.forget_loss for point in curve.points]
    assert len(losses) < 41
    assert losses[-4] < losses[-3] < losses[-2] < losses[-1]
    assert len(make_attack(steps=40, patience=None, learning_rate=1e-3).run(make_base()).points) == 41


def test_evaluations_can_be_further_apart(make_base: Callable[..., Any]) -> None:
    seen: list[RelearnPoint] = []
    curve = make_attack(steps=16, evaluate_every=5).run(make_base(), on_step=seen.append)
    assert [point.step for point in curve.points] == [*range(11), 15, 16]  # most happens in the first ten steps
    assert seen == curve.points


@pytest.mark.parametrize(("every", "last"), [(1, 11), (3, 12), (4, 12), (5, 15), (6, 18)])
def test_the_first_steps_do_not_use_up_the_patience(every: int, last: int) -> None:
    """AdamW overshoots at first: ten steps are always made, and the rises that count are `evaluate_every` apart."""
    config = RelearnAttackConfig(patience=3, evaluate_every=every)
    points, step = [RelearnPoint(0, 1.0, 1.0)], 0
    while not has_turned(points, config):
        step += 1
        if is_measured(step, config):
            points.append(RelearnPoint(step, 1.0 + step, 1.0))
    assert step == last
    assert not has_turned(points, RelearnAttackConfig(patience=None))


def test_a_loss_that_is_no_longer_finite_ends_the_trial(make_base: Callable[..., Any]) -> None:
    # AdamW moves every weight by about the learning rate: after one step the logits overflow fp32.
    curve = make_attack(steps=6, learning_rate=1e30).run(make_base())
    losses = as_numbers(curve)
    assert len(curve.points) == 1
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("kind", ["forget", "retain"])
def test_a_model_whose_loss_is_not_finite_is_refused(make_base: Callable[..., Any], kind: str) -> None:
    """Token 52 is in the stories of one kind only; its embedding is broken."""
    model = make_base(tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.wte.weight[52] = math.nan
    broken = Dataset.from_dict({"input_ids": [[52, 1, 2]], "length": [3]})
    sets = {"forget": stories(5, 1), "retain": stories(5, 2), kind: broken}
    attack = make_attack((stories(4, 0), sets["forget"], sets["retain"]))
    with pytest.raises(ValueError, match=rf"The model's {kind} loss is not finite before the attack, but nan"):
        attack.run(model)


def test_the_seed_decides_dropout_and_leaves_no_trace(make_base: Callable[..., Any]) -> None:
    model = make_base(resid_dropout=0.3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (as_numbers(make_attack(seed=seed).run(model)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert one == same
    assert one != other


def test_frozen_parameters_are_attacked_too(make_base: Callable[..., Any]) -> None:
    frozen = make_base().eval().requires_grad_(False)
    assert as_numbers(make_attack().run(frozen)) == as_numbers(make_attack().run(make_base()))
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_half_precision_is_attacked_in_fp32(make_base: Callable[..., Any]) -> None:
    """A step of 1e-6 is far below half a unit in the last place of nearly all bf16 weights."""
    half = make_base().to(torch.bfloat16)
    curve, expected = (
        make_attack(learning_rate=1e-6).run(model) for model in (half, make_base().to(torch.bfloat16).float())
    )
    assert as_numbers(curve) == as_numbers(expected)
    assert len({point.forget_loss for point in curve.points}) == 4
    assert half.dtype == torch.bfloat16


def test_bf16_passes_are_near_those_in_fp32(make_base: Callable[..., Any]) -> None:
    sets = stories(4, 0), stories(5, 1), stories(5, 2)
    config = RelearnAttackConfig(steps=3, learning_rate=1e-3, patience=None)
    found = []
    for bf16 in (False, True):
        measured = MeasuredStories(*sets[1:], 0, bf16=bf16)
        attack = RelearnAttack(sets[0], measured, 0, config)
        points: list[RelearnPoint] = []
        attack.run(make_base(), on_step=points.append)
        found.append([point.forget_loss for point in points])
    fp32, bf16_losses = found
    assert bf16_losses == pytest.approx(fp32, rel=0.02)
    assert bf16_losses != pytest.approx(fp32, rel=1e-5)


def test_a_causal_lm_that_takes_no_number_of_items_is_divided_the_same(make_base: Callable[..., Any]) -> None:
    class Plain(GPT2LMHeadModel):
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:  # type: ignore[override]
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": 0}
    model = Plain(GPT2Config(**sizes, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    whole, cut = make_attack().run(model), make_attack(batch_size=3).run(model)
    assert as_numbers(cut) == pytest.approx(as_numbers(whole), rel=1e-5)


def test_a_class_of_the_users_own_is_attacked_as_it_is(make_config: Callable[..., Any]) -> None:
    """It has a parameter that the fast class of its architecture does not know."""

    class WithTemperature(GPTNeoForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.temperature = torch.nn.Parameter(torch.ones(()))

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> Any:  # type: ignore[override]
            hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            logits = self.lm_head(hidden) / self.temperature
            loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
            return CausalLMOutput(loss=loss, logits=logits)

    torch.manual_seed(0)
    model = WithTemperature(make_config())
    stock = GPTNeoForCausalLM(make_config())
    stock.load_state_dict({name: value for name, value in model.state_dict().items() if name != "temperature"})
    curve, stock_curve = make_attack().run(model), make_attack().run(stock)
    assert as_numbers(curve)[:2] == pytest.approx(as_numbers(stock_curve)[:2], rel=1e-6)
    assert as_numbers(curve)[2:] != pytest.approx(
        as_numbers(stock_curve)[2:], rel=1e-4
    )  # the temperature is trained too


def test_stories_of_one_token_count_for_nothing(make_base: Callable[..., Any]) -> None:
    def with_short(part: Dataset) -> Dataset:
        return Dataset.from_dict({"input_ids": [[3], *part["input_ids"]], "length": [1, *part["length"]]})

    sets = stories(4, 0), stories(5, 1), stories(5, 2)
    short = with_short(sets[0]), with_short(sets[1]), with_short(sets[2])
    assert as_numbers(make_attack(short).run(make_base())) == as_numbers(make_attack(sets).run(make_base()))
    # Lengths of 5 stories are 4 to 8: 3 + 4 + 5 + 6 + 7 tokens are predicted.
    counts = {"forget_stories": 5, "forget_tokens": 25, "retain_stories": 5, "retain_tokens": 25}
    assert MeasuredStories(short[1], short[2], 0).counts == counts


def test_nothing_to_learn_from_or_to_measure_is_refused() -> None:
    single = Dataset.from_dict({"input_ids": [[3], [4]], "length": [1, 1]})
    with pytest.raises(ValueError, match="nothing to learn from the attack's 2 examples: none has two tokens"):
        make_attack((single, stories(5, 1), stories(5, 2)))
    with pytest.raises(
        ValueError, match="There is no retain example to measure the attack on: of 2, none has two tokens"
    ):
        make_attack((stories(6, 0), stories(5, 1), single))
    with pytest.raises(ValueError, match="There is no forget example to measure the attack on: of 0,"):
        make_attack((stories(6, 0), stories(0, 1), stories(5, 2)))


@pytest.mark.parametrize("name", ["steps", "patience", "evaluate_every", "batch_size", "lora_rank"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`relearn.{name}` should be at least 1, got 0"):
        RelearnAttackConfig(**{name: 0})
    with pytest.raises(ValueError, match=r"`relearn.learning_rate` should be positive and finite, got 0"):
        RelearnAttackConfig(learning_rate=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stories": []}, r"`relearn.stories` is empty. Give at least one number"),
        ({"stories": [4, 0]}, r"`relearn.stories` should hold numbers of at least 1, got 0"),
        ({"trials": 0}, r"`relearn.trials` should be at least 1, got 0"),
        ({"sweep_trials": 0}, r"`relearn.sweep_trials` should be at least 1, got 0"),
        ({"evaluation_stories": 0}, r"`relearn.evaluation_stories` should be at least 1, got 0"),
        ({"seed": -1}, r"`relearn.seed` should be at least 0, got -1"),
        (
            {"sweep_learning_rates": [1e-3, -1.0]},
            r"`relearn.sweep_learning_rates` should be positive and finite, got -1.0",
        ),
        (
            {"lora_learning_rates": [float("nan")]},
            r"`relearn.lora_learning_rates` should be positive and finite, got nan",
        ),
        (
            {"lora_learning_rates": []},
            r"`relearn.lora_learning_rates` is empty. Give one, or set `relearn.lora` to false",
        ),
        ({"lora_alpha": 0.0}, r"`relearn.lora_alpha` should be positive and finite, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelearnConfig(**settings)


def test_every_setting_has_a_help_text() -> None:
    assert all(item.metadata.get("help") for item in fields(RelearnConfig))
