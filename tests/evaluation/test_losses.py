"""Token-weighted losses against a story-by-story computation, and the bootstrap interval against numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from hf_era import FastGPTNeoForCausalLM
from hf_era.data import RoutingCollator
from hf_era.evaluation import loss_estimate, story_losses, token_losses


def examples(number: int = 5) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(number):
        length = 4 + 2 * index
        ids = torch.randint(0, 52, (length,), generator=generator).tolist()
        words = (torch.rand(length, generator=generator) < 0.3).tolist()
        made.append({"input_ids": ids, "is_forget_word": words})
    return made


def test_sums_per_story_match_each_story_alone(make_base: Callable[..., Any]) -> None:
    model, stories = make_base(), examples()
    collator = RoutingCollator(pad_token_id=0)
    losses = story_losses(model, [collator(stories[:3]), collator(stories[3:])])
    for index, story in enumerate(stories):
        ids = torch.tensor([story["input_ids"]])
        with torch.no_grad():
            log_probabilities = model.eval()(ids).logits.double().log_softmax(-1)[0]
        nll = [-float(log_probabilities[position, token]) for position, token in enumerate(story["input_ids"][1:])]
        words = story["is_forget_word"][1:]
        assert float(losses.nll[index]) == pytest.approx(sum(nll), rel=1e-5)
        assert int(losses.tokens[index]) == len(nll)
        expected = sum(value for value, word in zip(nll, words, strict=True) if word)
        assert float(losses.forget_word_nll[index]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert int(losses.forget_word_tokens[index]) == sum(words)


def test_the_loss_is_weighted_by_tokens_not_by_batches() -> None:
    estimate = loss_estimate(torch.tensor([10.0, 1.0]), torch.tensor([10.0, 0.5]), bootstrap_samples=0)
    assert estimate.loss == pytest.approx(11 / 10.5)  # the mean of story means would be 1.5
    assert estimate.low is None


def test_the_model_keeps_its_mode(make_base: Callable[..., Any]) -> None:
    model = make_base().train()
    story_losses(model, [RoutingCollator(0)(examples(2))])
    assert model.training


@pytest.mark.parametrize("fast", [True, False])
def test_no_cache_is_filled(fast: bool, make_base: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_base(use_cache=True).eval()
    model = FastGPTNeoForCausalLM.from_stock(model).eval() if fast else model
    filled: list[int] = []
    update = DynamicCache.update
    monkeypatch.setattr(DynamicCache, "update", lambda *args, **kwargs: filled.append(1) or update(*args, **kwargs))
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    assert filled  # by default there is one
    filled.clear()
    story_losses(model, [RoutingCollator(0)(examples(2))])
    assert not filled


def test_labels_of_padding_do_not_count() -> None:
    logits = torch.randn(1, 3, 5)
    nll, counted = token_losses(logits, torch.tensor([[1, 2, -100]]))
    assert counted.tolist() == [[True, False]]
    assert nll[0, 1] == 0
    assert float(nll[0, 0]) == pytest.approx(-float(logits[0, 0].log_softmax(-1)[2]), rel=1e-6)


def test_interval_agrees_with_an_independent_bootstrap() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(50, 200, size=400).astype(float)
    nll = tokens * generator.normal(1.5, 0.4, size=400)
    estimate = loss_estimate(torch.tensor(nll), torch.tensor(tokens), bootstrap_samples=4000)
    chosen = generator.integers(0, 400, size=(4000, 400))
    resampled = nll[chosen].sum(1) / tokens[chosen].sum(1)
    assert estimate.low == pytest.approx(np.quantile(resampled, 0.025), abs=0.005)
    assert estimate.high == pytest.approx(np.quantile(resampled, 0.975), abs=0.005)
    assert estimate.low < estimate.loss < estimate.high
    again = loss_estimate(torch.tensor(nll), torch.tensor(tokens), bootstrap_samples=4000)
    assert again == estimate


def test_nothing_to_count_gives_no_loss() -> None:
    estimate = loss_estimate(torch.zeros(3), torch.zeros(3))
    assert (estimate.loss, estimate.low, estimate.tokens, estimate.stories) == (None, None, 0, 0)


def test_without_labels_there_is_nothing_to_predict(make_base: Callable[..., Any]) -> None:
    batch = RoutingCollator(0)(examples(2))
    del batch["labels"]
    losses = story_losses(make_base(), [batch])
    assert losses.tokens.tolist() == [0, 0]
    assert loss_estimate(losses.nll, losses.tokens).loss is None


@pytest.mark.parametrize("fast", [False, True])
def test_stories_packed_into_one_row_do_not_see_each_other(make_base: Callable[..., Any], fast: bool) -> None:
    model, stories = make_base(), examples(3)
    model = FastGPTNeoForCausalLM.from_stock(model) if fast else model
    ids = [torch.tensor(story["input_ids"]) for story in stories]
    labels = [torch.cat([torch.tensor([-100]), part[1:]]) for part in ids]
    packed = {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(len(part)) for part in ids])[None],
    }
    alone = story_losses(model, [RoutingCollator(0)(stories)])
    together = story_losses(model, [packed])
    assert float(together.tokens) == float(alone.tokens.sum())
    assert float(together.nll) == pytest.approx(float(alone.nll.sum()), rel=1e-6)
