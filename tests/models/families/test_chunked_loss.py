"""The chunked loss of every family is the stock one: loss and gradients, in float64, with capped logits too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era.models.fast import chunked_loss

Batch = dict[str, Tensor]
CAP = {"gemma2": 0.75, "gemma3_text": 0.75}


@pytest.fixture(params=[True, False], ids=["one chunk", "several chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 28 - 3 labels: all at once, or 16 at a time (the fewest)."""
    if not request.param:
        monkeypatch.setattr(chunked_loss, "BYTES_PER_CHUNK", 1)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("count", [None, 17], ids=["mean", "number of items"])
def test_loss_and_gradients_are_the_stock_ones(
    count: int | None, model_type: str, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    """Of logits that are capped where the config says so: a cap of less than most of them, so that its slope matters."""
    cap = CAP.get(model_type)
    model = make_expanded(**({} if cap is None else {"final_logit_softcapping": cap})).double()
    inputs, labels = check.inputs(batch), batch["labels"]
    options = {} if count is None else {"num_items_in_batch": torch.tensor(count)}

    def chunked() -> Tensor:
        outputs = model(**inputs, labels=labels, routing_weight=batch["routing_weight"], **options)
        assert outputs.logits is None
        return outputs.loss

    def stock() -> Tensor:
        logits = model(**inputs, routing_weight=batch["routing_weight"]).logits[:, :-1]
        if cap is not None:
            share = ((logits / cap).atanh().abs() > 1).double().mean()  # the logit before it is above the cap
            assert 0.2 < share < 1
        losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return losses / ((labels[:, 1:] != -100).sum() if count is None else count)

    expected = stock()
    assert chunked().item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = check.gradients_after(model, stock)
    assert check.largest_deviation(check.gradients_after(model, chunked), gradients) <= 1e-11


@pytest.mark.parametrize("model_type", sorted(CAP), indirect=True)
def test_without_its_cap_the_loss_would_be_another(check: Any, make_expanded: Callable[..., Any], batch: Batch) -> None:
    """Planted: the check above sees a cap that is left out, and one that is there is the config's."""
    model = make_expanded(final_logit_softcapping=0.75)
    with_cap = check.total_loss(model, batch, with_l1=False).item()
    model.config.final_logit_softcapping = None
    assert check.total_loss(model, batch, with_l1=False).item() != pytest.approx(with_cap, rel=1e-3)
