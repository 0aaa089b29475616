"""`ablated()` and `set_active()`, and generation with the auxiliary module on and off."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])

MakeExpanded = Callable[..., ExpandedGPTNeoForCausalLM]


def test_ablated_model_equals_the_base_bit_for_bit(base: GPTNeoForCausalLM, make_batch: Callable, paths: Any) -> None:
    model, batch = paths.set(ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION)).eval(), make_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        on, stock = model(**inputs).logits, paths.reference(base)(**inputs).logits
        with model.ablated() as same:
            assert same is model
            off = model(**inputs).logits
        again = model(**inputs).logits
    assert torch.equal(off, stock)
    assert not torch.equal(on, stock)
    assert torch.equal(again, on)


def activity(model: ExpandedGPTNeoForCausalLM) -> list[bool]:
    return [module.active for modules in model.auxiliary_modules().values() for module in modules.values()]


def test_ablated_contexts_nest(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    with model.ablated():
        assert activity(model) == [False, False]
        with model.ablated():
            assert activity(model) == [False, False]
        assert activity(model) == [False, False]
    assert activity(model) == [True, True]


def test_ablated_context_restores_each_module_to_what_it_was(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    model.auxiliary_modules()[0]["forget"].active = False
    with model.ablated():
        assert activity(model) == [False, False]
    assert activity(model) == [False, True]


def stop_inside_ablated(model: ExpandedGPTNeoForCausalLM) -> None:
    with model.ablated():
        assert activity(model) == [False, False]
        raise RuntimeError("stop")


def test_ablated_context_restores_after_an_error(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    with pytest.raises(RuntimeError, match="stop"):
        stop_inside_ablated(model)
    assert activity(model) == [True, True]


def test_set_active_lasts(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    model.set_active(None, False)
    with model.ablated():
        pass
    assert activity(model) == [False, False]
    model.set_active(None, True)
    assert activity(model) == [True, True]


# ---- Generation ----


@pytest.mark.parametrize("use_cache", [False, True])
def test_generation_when_ablated_equals_that_of_the_contracted_model(
    use_cache: bool, make_expanded: MakeExpanded, paths: Any
) -> None:
    model = paths.set(make_expanded([0, 2])).eval()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    options = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 10,
        "do_sample": False,
        "use_cache": use_cache,
        "pad_token_id": 52,
    }
    contracted = model.contract().generate(prompt, **options)
    with model.ablated():
        ablated = model.generate(prompt, **options)
    on = model.generate(prompt, **options)
    assert torch.equal(ablated, contracted)
    assert on.shape[0] == 2
    assert on.shape[1] > 3
    assert not torch.equal(on, ablated)  # the random auxiliary module does change what is said
