"""The relearn attack: one trial, its curve, and what it leaves alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_era import FastGPTNeoForCausalLM
from hf_era.data import RoutingCollator
from hf_era.evaluation import RelearnAttack, RelearnAttackConfig, RelearnPoint, story_losses


def stories(number: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    lengths = [4 + index % 5 for index in range(number)]
    ids = [torch.randint(0, 52, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "length": lengths})


def make_attack(sets: tuple[Dataset, Dataset, Dataset] | None = None, **settings: Any) -> RelearnAttack:
    values = {"stories": 4, "steps": 3, "learning_rate": 1e-2, "patience": None, **settings}
    attack, forget, retain = sets or (stories(6, 0), stories(5, 1), stories(5, 2))
    return RelearnAttack(attack, forget, retain, 0, RelearnAttackConfig(**values))


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
    curve = make_attack(steps=5, evaluate_every=2).run(make_base(), on_step=seen.append)
    assert [point.step for point in curve.points] == [0, 2, 4, 5]
    assert seen == curve.points


def test_the_seed_chooses_the_stories(make_base: Callable[..., Any]) -> None:
    sets = (stories(30, 0), stories(5, 1), stories(5, 2))
    one, same, other = (as_numbers(make_attack(sets, seed=seed).run(make_base())) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_too_few_stories_are_refused_with_their_number() -> None:
    with pytest.raises(ValueError, match=r"`relearn.stories` asks for 64 forget stories, but there are 6 that"):
        make_attack(stories=64)
    with pytest.raises(ValueError, match="There is no retain story to measure the attack on"):
        make_attack((stories(6, 0), stories(5, 1), stories(0, 2)))


@pytest.mark.parametrize("name", ["stories", "steps", "patience", "evaluate_every", "batch_size"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`relearn.{name}` should be at least 1, got 0"):
        RelearnAttackConfig(**{name: 0})
    with pytest.raises(ValueError, match=r"`relearn.learning_rate` should be positive, got 0"):
        RelearnAttackConfig(learning_rate=0.0)
