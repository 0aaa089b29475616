"""Routers that decide for each example: how often they draw what, whatever batch an example is in, and what examples without
a label or of one of several modules do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era.routing import RoutingBatch, TokenRouting, make_router
from hf_era.routing.router import keys_of_examples

MANY = 4_000
MODULES = ("one", "other")


def routed(router: dict[str, Any], weight: float, number: int = MANY, **told: Any) -> TokenRouting:
    """Of so many examples of four tokens with this routing weight, each with tokens of its own."""
    ids = torch.arange(4 * number).reshape(number, 4)
    keys = keys_of_examples(ids, None, told.pop("seed", 0))
    return make_router(router).route(RoutingBatch(torch.full((number, 4), weight), MODULES, keys=keys, **told))


def share(values: Tensor | None) -> float:
    assert values is not None
    assert set(values.unique().tolist()) <= {0.0, 1.0}
    return float(values.mean())


def test_gram_draws_as_often_as_it_is_told() -> None:
    """3 standard deviations of 4,000 draws are 0.024 at most."""
    router = {"name": "gram", "p_as": 0.3, "p_cr": 0.4}
    forget, retain = routed(router, 0.0), routed(router, 1.0)
    assert share(forget.original.parameter_multiplier) == pytest.approx(0.3, abs=0.024)
    assert [share(forget.of(name).dial) for name in MODULES] == [1.0, 1.0]  # not said which: all
    one, other = (retain.of(name).dial for name in MODULES)
    assert share(one) == pytest.approx(0.2, abs=0.024)
    assert share(other) == pytest.approx(0.2, abs=0.024)
    assert not (one * other).any()  # one of them, or none
    assert share(retain.original.parameter_multiplier) == 1.0
    for name in MODULES:  # what is off learns nothing
        part = retain.of(name)
        assert torch.equal(part.parameter_multiplier, part.dial[:, None].expand(MANY, 4))


def test_sgtm_draws_as_often_as_it_is_told() -> None:
    router = {"name": "sgtm", "module_off_on_retain": 0.25}
    one, other = (routed(router, 1.0).of(name).dial for name in MODULES)
    assert share(one) == pytest.approx(0.75, abs=0.024)
    assert torch.equal(one, other)
    assert share(routed(router, 0.0).of("one").dial) == 1.0


@pytest.mark.parametrize("name", ["gram", "sgtm"])
def test_an_example_draws_alike_in_any_batch_and_anew_in_another_step(name: str) -> None:
    router, weight = make_router(name), torch.ones(64, 6)
    ids = torch.randint(1, 500, (64, 6), generator=torch.Generator().manual_seed(0))

    def dials(ids: Tensor, mask: Tensor | None = None, seed: int = 7) -> Tensor:
        keys = keys_of_examples(ids, mask, seed)
        return torch.stack([router.route(RoutingBatch(weight[: len(ids)], MODULES, keys=keys)).of("one").dial])

    whole, order = dials(ids), torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert 0 < whole.mean() < 1
    assert torch.equal(dials(ids[order]), whole[:, order])
    assert torch.equal(torch.cat([dials(part) for part in ids.split(5)], dim=1), whole)
    for sides in ((2, 0), (0, 3)):  # padding on the left, on the right
        padded = torch.nn.functional.pad(ids, sides)
        assert torch.equal(dials(padded, torch.nn.functional.pad(torch.ones_like(ids), sides)), whole)
    assert not torch.equal(dials(ids, seed=8), whole)


# Router, what an example without a label does: (core learns, modules are on, modules learn).
WITHOUT_A_LABEL: dict[str, tuple[dict[str, Any], tuple[float | None, float, float | None]]] = {
    "gram": ({"name": "gram", "p_as": 0.0, "p_cr": 0.0}, (1.0, 1.0, 1.0)),
    "sgtm": ({"name": "sgtm", "module_off_on_retain": 1.0}, (1.0, 1.0, 1.0)),
    "demix as retain": ({"name": "demix", "unlabelled": "retain"}, (None, 0.0, None)),
    "demix with all": ({"name": "demix", "unlabelled": "all"}, (None, 1.0, None)),
}


@pytest.mark.parametrize("case", WITHOUT_A_LABEL.values(), ids=WITHOUT_A_LABEL)
def test_examples_without_a_label(case: tuple[dict[str, Any], tuple[float | None, float, float | None]]) -> None:
    router, (core, on, learns) = case
    found = routed(router, 1.0, number=8, is_unassigned=torch.ones(8, 4, dtype=torch.bool))
    multiplier = found.original.parameter_multiplier
    assert core is None if multiplier is None else share(multiplier) == core
    for name in MODULES:
        assert share(found.of(name).dial) == on
        multiplier = found.of(name).parameter_multiplier
        assert learns is None if multiplier is None else share(multiplier) == learns


@pytest.mark.parametrize("router", [{"name": "gram", "p_as": 0.0}, {"name": "sgtm"}, {"name": "demix"}], ids=str)
def test_a_forget_example_teaches_the_module_that_it_belongs_to(router: dict[str, Any]) -> None:
    """Examples of `one`, of `other`, and of neither in particular."""
    found = routed(router, 0.0, number=3, module_index=torch.tensor([0, 1, -1]))
    for name, expected in zip(MODULES, ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0]), strict=True):
        part = found.of(name)
        learns = part.dial if part.parameter_multiplier is None else part.dial * part.parameter_multiplier[:, 0]
        assert learns.tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "gram", "p_as": 1.5}, r"`router.p_as` should be a probability in \[0, 1\], got 1.5"),
        ({"name": "gram", "p_cr": -0.1}, r"`router.p_cr` should be a probability in \[0, 1\], got -0.1"),
        ({"name": "gram", "p_cr": "often"}, r"`router.p_cr` should be a probability in \[0, 1\], got 'often'"),
        ({"name": "sgtm", "module_off_on_retain": True}, "`router.module_off_on_retain` should be a probability"),
        ({"name": "gram", "core": "heads"}, "`router.core`.*'heads'.*mlp, mlp"),
        ({"name": "demix", "unlabelled": "forget"}, "`router.unlabelled`.*'forget'.*retain, all"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router(values)
