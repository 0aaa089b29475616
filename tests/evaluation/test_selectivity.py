"""Selectivity against a computation by hand, story by story; padding left out, hooks gone afterwards."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_era.evaluation import AuxiliaryActivationMeter, selectivity, selectivity_estimates
from hf_era.evaluation.intervals import Estimate
from hf_era.models.layers import AuxiliaryMLP

WIDTH = 8


def read(model: Any, meter: AuxiliaryActivationMeter, *batches: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            meter.set_mask(batch["attention_mask"])
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


@pytest.fixture
def batches(make_batch: Callable[..., dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Three stories, then two; both batches are padded."""
    return [make_batch(seed=1), {name: value[:2] for name, value in make_batch(seed=2).items()}]


def activations_alone(model: Any, layer: int, batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """The auxiliary module's activations of each story, read by itself without padding: (tokens, width)."""
    seen: list[Tensor] = []
    module = model.transformer.h[layer].mlp.auxiliary["forget"]
    handle = module.act.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    with torch.no_grad():
        for batch in batches:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                model(input_ids=ids[None, mask.bool()])
    handle.remove()
    return seen


def test_rows_are_the_stories_in_order(make_expanded: Callable[..., Any], batches: list[dict[str, Tensor]]) -> None:
    model = make_expanded([0, 2]).eval()
    expected = {layer: activations_alone(model, layer, batches) for layer in (0, 2)}
    with AuxiliaryActivationMeter(model) as meter:
        read(model, meter, *batches)
    assert list(meter.story_rows()) == [0, 2]
    for layer, (sums, counts) in meter.story_rows().items():
        assert sums.tolist() == pytest.approx([float(story.abs().sum()) for story in expected[layer]], rel=1e-5)
        assert counts.tolist() == [WIDTH * length for length in (12, 7, 9, 12, 7)]
        assert (sums.dtype, counts.dtype) == (torch.float64, torch.float64)
        whole = torch.cat(expected[layer]).abs()
        assert meter.means()[layer] == pytest.approx(float(whole.mean()), rel=1e-5)
        assert meter.sums[layer] == pytest.approx(float(whole.sum()), rel=1e-5)
        assert meter.counts[layer] == whole.numel()


def test_hooks_are_gone_afterwards(make_expanded: Callable[..., Any], batches: list[dict[str, Tensor]]) -> None:
    model = make_expanded([0, 2]).eval()
    with AuxiliaryActivationMeter(model) as meter:
        read(model, meter, batches[0])
    read(model, meter, batches[1])
    assert all(len(sums) == 3 for sums, _ in meter.story_rows().values())
    assert not model.transformer.h[0].mlp.auxiliary["forget"].down_projection._forward_pre_hooks


def test_reset_forgets(make_expanded: Callable[..., Any], batches: list[dict[str, Tensor]]) -> None:
    model = make_expanded([0]).eval()
    with AuxiliaryActivationMeter(model) as meter:
        read(model, meter, batches[0])
        meter.reset()
        assert meter.means() == {}
        assert meter.counts == {0: 0.0}
        read(model, meter, batches[1])
    assert len(meter.story_rows()[0][0]) == 2


def test_without_a_mask_every_token_counts(make_expanded: Callable[..., Any], batches: list[dict[str, Tensor]]) -> None:
    model = make_expanded([0]).eval()
    with torch.no_grad(), AuxiliaryActivationMeter(model) as meter:
        model(input_ids=batches[0]["input_ids"])
    assert meter.story_rows()[0][1].tolist() == [WIDTH * 12] * 3


def test_an_ablated_module_has_no_rows(make_expanded: Callable[..., Any], batches: list[dict[str, Tensor]]) -> None:
    model = make_expanded([0, 1]).eval()
    model.auxiliary_modules()[1]["forget"].active = False
    with AuxiliaryActivationMeter(model) as meter:
        read(model, meter, *batches)
    rows = meter.story_rows()
    assert [len(rows[layer][0]) for layer in (0, 1)] == [5, 0]
    assert list(meter.means()) == [0]  # nothing measured is no number
    assert selectivity(meter.means(), {0: 1.0, 1: 1.0}).keys() == {0}
    estimates = selectivity_estimates(rows, rows)
    assert estimates[1] == Estimate(None)
    assert estimates[0].value == 1.0


def test_several_modules_of_a_layer_add_up(make_expanded: Callable[..., Any], batches: list[dict[str, Tensor]]) -> None:
    model = make_expanded([0]).eval()
    with AuxiliaryActivationMeter(model) as alone:
        read(model, alone, *batches)
    second = AuxiliaryMLP(16, 3, "gelu_new", 0.2)
    second.initialize()
    torch.nn.init.constant_(second.up_projection.weight, 0.0)
    torch.nn.init.constant_(second.up_projection.bias, 10.0)  # gelu(10) = 10, to fp32
    model.transformer.h[0].mlp.auxiliary["other"] = second
    with AuxiliaryActivationMeter(model) as meter:
        read(model, meter, *batches)
        second.active = False
        assert meter.story_rows()[0][1].tolist() == [(WIDTH + 3) * length for length in (12, 7, 9, 12, 7)]
        expected = alone.story_rows()[0][0] + 30 * torch.tensor([12, 7, 9, 12, 7])
        assert meter.story_rows()[0][0].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        read(model, meter, batches[0])
        with pytest.raises(RuntimeError, match="layer 0 ran on different numbers of examples"):
            meter.story_rows()


def test_measuring_does_not_wait_for_the_device(make_expanded: Callable[..., Any]) -> None:
    """A meta tensor has no values: asking for one, which on a GPU would wait, raises."""
    model = make_expanded([0, 2]).to("meta")
    with AuxiliaryActivationMeter(model) as meter:
        for layer in (0, 2):
            meter.set_mask(torch.ones(3, 12, dtype=torch.int64, device="meta"))
            model.auxiliary_modules()[layer]["forget"](torch.ones(3, 12, 16, device="meta"))
        with pytest.raises((NotImplementedError, RuntimeError)):
            meter.story_rows()


def test_means_over_processes(make_expanded: Callable[..., Any], batches: list[dict[str, Tensor]]) -> None:
    """Each process hands its totals to `total`, which adds those of the others."""
    model, meters = make_expanded([0, 2]).eval(), []
    for part in (batches[:1], batches[1:], batches):
        with AuxiliaryActivationMeter(model) as meter:
            read(model, meter, *part)
        meters.append(meter)
    totals: list[Tensor] = []
    meters[1].means(lambda sums: totals.append(sums) or sums)
    gathered = meters[0].means(lambda sums: sums + totals[0])
    assert gathered == pytest.approx(meters[2].means(), rel=1e-6)
    assert gathered != pytest.approx(meters[0].means(), rel=1e-3)


# ---- Ratios ----


def test_ratio_per_layer() -> None:
    assert selectivity({0: 3.0, 1: 1.0}, {0: 1.5, 1: 0.0}) == {0: 2.0, 1: None}


def test_the_estimate_is_weighted_by_tokens() -> None:
    forget = {3: (torch.tensor([30.0, 2.0]), torch.tensor([10.0, 2.0]))}  # 32 / 12
    retain = {3: (torch.tensor([10.0, 5.0, 5.0]), torch.tensor([10.0, 10.0, 20.0]))}  # 20 / 40
    assert selectivity_estimates(forget, retain, samples=0) == {3: Estimate(pytest.approx(32 / 12 / (20 / 40)))}


def test_interval_agrees_with_an_independent_bootstrap() -> None:
    generator = np.random.default_rng(0)

    def stories(number: int, mean: float) -> tuple[Tensor, Tensor]:
        counts = generator.integers(50, 200, size=number) * float(WIDTH)
        return torch.tensor(counts * generator.gamma(4.0, mean / 4, size=number)), torch.tensor(counts)

    forget, retain = stories(150, 0.6), stories(400, 0.3)
    estimate = selectivity_estimates({1: forget}, {1: retain}, samples=4_000)[1]
    means = []
    for sums, counts in ((part[0].numpy(), part[1].numpy()) for part in (forget, retain)):
        chosen = generator.integers(0, len(sums), size=(4_000, len(sums)))
        means.append(sums[chosen].sum(1) / counts[chosen].sum(1))
    low, high = np.quantile(means[0] / means[1], [0.025, 0.975])
    assert (estimate.low, estimate.high) == (pytest.approx(low, rel=0.015), pytest.approx(high, rel=0.015))
    assert high - low > 0.2
    assert estimate == selectivity_estimates({1: forget}, {1: retain}, samples=4_000)[1]


def test_no_activation_on_retain_stories_gives_no_value() -> None:
    some, zero = (torch.ones(2), torch.ones(2)), (torch.zeros(2), torch.ones(2))
    assert selectivity_estimates({0: some}, {0: zero}) == {0: Estimate(None)}


def test_layers_that_differ_are_refused() -> None:
    rows = (torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"`forget` has the layers \[0\], `retain` the layers \[0, 1\]"):
        selectivity_estimates({0: rows}, {0: rows, 1: rows})
