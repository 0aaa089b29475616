"""What transformers' own common tests demand of every causal LM, of each expanded class: saved and loaded, embeddings
resized and tied, attention and cache of every kind, generation, copies, pickles and exports.

Modules are on in most of these: an expanded model is a causal LM of transformers like any other.
"""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from hf_era.models import FAMILIES
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.stock_forward import CACHE_NAME

ROUNDING = 2e-6
LENGTH = 8


@pytest.fixture
def model(make_expanded: Callable[..., Any]) -> Any:
    return make_expanded().eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 52, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None, **inputs: Any) -> Tensor:
    return model(input_ids=ids, **inputs).logits


def greedy(model: Any, ids: Tensor, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "use_cache": True, **options}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()


# ---- Save and load ----


def test_saved_and_loaded_it_is_the_same_model(model: Any, ids: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert {name: list(found) for name, found in report.items() if found} == {}
    assert torch.equal(logits(loaded.eval(), ids), logits(model, ids))


def test_weights_that_are_missing_or_too_many_are_named(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if ".auxiliary." in name)
    weights["one.too.many"] = weights.pop(gone)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {gone}
    assert report["unexpected_keys"] == {"one.too.many"}


def test_a_state_dict_is_taken_strictly(model: Any) -> None:
    weights = model.state_dict()
    gone = next(name for name in weights if ".auxiliary." in name)
    del weights[gone]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{gone}"'):
        model.load_state_dict(weights)


# ---- Embeddings ----


@pytest.mark.parametrize("size", [61, 41])
def test_embeddings_are_resized(size: int, make_expanded: Callable[..., Any], ids: Tensor) -> None:
    model = make_expanded().eval()
    ids = ids % 40
    before = logits(model, ids)
    model.resize_token_embeddings(size, mean_resizing=False)
    after = logits(model, ids)
    assert after.shape[-1] == model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == size
    assert torch.allclose(after[..., :41], before[..., :41], atol=ROUNDING)
    contracted = model.contract()
    assert contracted.get_output_embeddings().weight.shape[0] == contracted.config.vocab_size == size


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_tied_where_the_config_says_so(tied: bool, make_expanded: Callable[..., Any]) -> None:
    model = make_expanded(tie_word_embeddings=tied)
    for one in (model, model.contract(), copy.deepcopy(model)):
        one.tie_weights()
        same = one.get_input_embeddings().weight is one.get_output_embeddings().weight
        assert same is tied


def test_embeddings_stand_in_for_ids(model: Any, ids: Tensor) -> None:
    embeddings = model.get_input_embeddings()(ids).detach()
    assert torch.allclose(logits(model, inputs_embeds=embeddings), logits(model, ids), atol=ROUNDING)


# ---- What the forward pass gives ----


def test_hidden_states_and_attentions(make_base: Callable[..., Any], model: Any, ids: Tensor) -> None:
    """As many and as large as the stock class's; with the modules off, the same values."""
    stock = model.contract()
    for one in (model, stock):
        one.set_attn_implementation("eager")
    model.set_fast_paths(ALL_SLOW)
    with torch.no_grad():
        wanted = stock(ids, output_hidden_states=True, output_attentions=True)
        found = model(ids, output_hidden_states=True, output_attentions=True)
        with model.ablated():
            ablated = model(ids, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        assert [part.shape for part in found[name]] == [part.shape for part in wanted[name]]
        assert all(torch.equal(*pair) for pair in zip(ablated[name], wanted[name], strict=True))
    assert not torch.equal(found.hidden_states[-1], wanted.hidden_states[-1])


def test_a_tuple_is_given_where_it_is_asked_for(model: Any, ids: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)


def test_eager_and_sdpa_attention_agree(model: Any, ids: Tensor) -> None:
    # Older versions (5.17) say that they have, and leave the cap out.
    if not type(model)._supports_sdpa or getattr(model.config, "attn_logit_softcapping", None):
        pytest.skip("transformers has no sdpa for this family: its attention caps its scores")
    found = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        found[attention] = logits(model, ids)
    assert torch.allclose(found["eager"], found["sdpa"], atol=1e-5)


def test_a_batch_is_its_rows(model: Any, ids: Tensor) -> None:
    whole = logits(model, ids)
    for row in range(len(ids)):
        assert torch.allclose(logits(model, ids[row : row + 1])[0], whole[row], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, model: Any, ids: Tensor) -> None:
    padding = torch.zeros(2, 3, dtype=torch.int64)
    parts = [padding, ids] if side == "left" else [ids, padding]
    mask = torch.cat([torch.zeros_like(part) if part is padding else torch.ones_like(part) for part in parts], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = logits(model, torch.cat(parts, 1), attention_mask=mask, position_ids=positions)
    assert torch.allclose(found[mask.bool()], logits(model, ids).flatten(0, 1), atol=1e-5)


# ---- Caches and generation ----


def test_a_cache_goes_on_where_the_last_pass_ended(model: Any, ids: Tensor) -> None:
    whole = logits(model, ids)
    with torch.no_grad():
        first = model(ids[:, :5], use_cache=True, **{CACHE_NAME: DynamicCache(config=model.config)})
        rest = model(ids[:, 5:], use_cache=True, **{CACHE_NAME: first[CACHE_NAME]})
    assert torch.allclose(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-5)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_does_not_depend_on_the_cache(cache: str, model_type: str, model: Any, ids: Tensor) -> None:
    if (cache, model_type) == ("static", "gpt_neo"):
        pytest.skip("with a static cache transformers' own GPT-Neo takes another window than without")
    assert greedy(model, ids, cache_implementation=cache) == greedy(model, ids, use_cache=False)


def test_beam_search(model: Any, ids: Tensor) -> None:
    with_cache = greedy(model, ids, num_beams=3)
    assert with_cache == greedy(model, ids, num_beams=3, use_cache=False)
    assert len(with_cache[0]) == LENGTH + 6


def test_assisted_decoding_gives_the_model_its_own_tokens(model: Any, ids: Tensor) -> None:
    """The model without its modules proposes, the model with them decides."""
    assert greedy(model, ids[:1], assistant_model=model.contract()) == greedy(model, ids[:1])


def test_checkpointing_does_without_a_cache(model: Any, ids: Tensor) -> None:
    enable = getattr(model.train(), "activation_checkpointing_enable", None)  # its name since transformers 5.23
    (enable or model.gradient_checkpointing_enable)()
    outputs = model(ids, labels=ids, use_cache=True)
    outputs.loss.backward()
    assert getattr(outputs, CACHE_NAME, None) is None
    assert all(value.grad is not None for value in model.parameters())


# ---- Copies, pickles, exports ----


def test_a_copy_has_weights_of_its_own(model: Any, ids: Tensor) -> None:
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied, ids), logits(model, ids))
    with torch.no_grad():
        for value in copied.parameters():
            value.zero_()
    assert logits(model, ids).abs().sum() > 0
    with copied.ablated():  # and switches of its own
        assert all(part.active for layer in model.auxiliary_modules().values() for part in layer.values())


def test_a_pickle_is_the_model(model: Any, ids: Tensor) -> None:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.parametrize(
    "model_type",
    [one if one in ("llama", "gpt2") else pytest.param(one, marks=pytest.mark.slow) for one in sorted(FAMILIES)],
)
def test_the_contracted_model_can_be_exported(model: Any, ids: Tensor) -> None:
    stock = model.contract().eval()
    stock.config.use_cache = False
    exported = torch.export.export(stock, (), {"input_ids": ids}, strict=False).module()
    assert torch.allclose(exported(input_ids=ids).logits, logits(stock, ids), atol=ROUNDING)
