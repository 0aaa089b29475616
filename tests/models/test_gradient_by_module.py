"""What an example of one module teaches to the others: nothing. A table of gradients, and how it holds in a training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from hf_era import ExpansionConfig, GradientMultipliers, expand_base
from hf_era.models.families.family import FAMILIES

Gradients = dict[str, Tensor]

MULTIPLIERS = GradientMultipliers(original_forget=-0.5, auxiliary_forget=1.0, auxiliary_retain=0.25)
# Row -> its module (-1: none), its routing weight, whether it has no label.
ROWS = {
    "of a": (0, 0.0, False),
    "of b": (1, 0.0, False),
    "forget, of none": (-1, 0.0, False),
    "retain, of none": (-1, 1.0, False),
    "unlabelled": (-1, 1.0, True),
}
TABLE = {
    "of a": {"a": "taught", "b": "zero"},
    "of b": {"a": "zero", "b": "taught"},
    "forget, of none": {"a": "taught", "b": "taught"},
    "retain, of none": {"a": "taught", "b": "taught"},
    "unlabelled": {"a": "taught", "b": "taught"},
}
# One family with a gate and one without; the others have the same modules.
MODEL_TYPES = [
    pytest.param(name, marks=[] if name in ("gpt_neo", "llama") else pytest.mark.slow) for name in sorted(FAMILIES)
]


def tiny_config(model_type: str, layers: int) -> Any:
    sizes = {
        "vocab_size": 53, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers,
        "num_attention_heads": 4, "max_position_embeddings": 32, "initializer_range": 0.2, "bos_token_id": 52,
        "eos_token_id": 52, "pad_token_id": 0, "use_cache": False,
    }  # fmt: skip
    if model_type == "gpt_neo":
        sizes |= {"num_layers": layers, "num_heads": 4, "attention_types": [[["local"], layers]], "window_size": 4}
        sizes = {name: sizes[name] for name in sizes if name not in ("num_hidden_layers", "num_attention_heads")}
    elif model_type == "gpt2":
        sizes = {"vocab_size": 53, "n_embd": 16, "n_inner": 24, "n_layer": layers, "n_head": 4, "n_positions": 32}
        sizes |= {f"{name}_pdrop": 0 for name in ("resid", "embd", "attn")}
    elif model_type != "gpt_neox":
        sizes |= {"num_key_value_heads": 2, "head_dim": 4}
    return AutoConfig.for_model(model_type, **sizes)


def make_model(model_type: str, layers: int = 3) -> Any:
    """Two modules in fp64; of three layers `a` is in the first two, `b` in the last two."""
    torch.manual_seed(0)
    stock = FAMILIES[model_type].model_class.stock_class(tiny_config(model_type, layers))
    first, last = sorted({0, layers // 2}), sorted({layers // 2, layers - 1})
    modules = [{"name": "a", "width": 5, "target_layers": first}, {"name": "b", "width": 6, "target_layers": last}]
    model = expand_base(stock, ExpansionConfig(modules=modules)).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.gradient_multipliers = MULTIPLIERS
    return model


@pytest.fixture(scope="module", params=MODEL_TYPES)
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


def batch_of(*rows: str) -> dict[str, Any]:
    """The rows by name, each with tokens and a length of its own."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, 52, (len(ROWS), 9), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 6:] = mask[3, 7:] = 0
    index, weight, unlabelled = map(torch.tensor, zip(*ROWS.values(), strict=True))
    chosen = [list(ROWS).index(row) for row in rows]
    batch = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": input_ids.masked_fill(mask == 0, -100),
        "routing_weight": weight[:, None].expand(-1, 9),
        "is_unassigned": unlabelled[:, None].expand(-1, 9),
        "module_index": index,
    }
    return {name: values[chosen] for name, values in batch.items()}


def gradients(model: Any, *batches: dict[str, Any], l1: float = 0.1, call: Any = None) -> Gradients:
    """Of all batches together, one backward pass after the other."""
    model.zero_grad(set_to_none=True)
    for batch in batches:
        # Sums over a fixed number of tokens: what rows add does not depend on the batch that they are in.
        outputs = (model if call is None else call)(
            **batch, output_activation_l1=l1 > 0, num_items_in_batch=torch.tensor(40)
        )
        loss = outputs["loss"] + (l1 * outputs["activation_l1"] / 40 if l1 else 0)
        loss.backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in model.named_parameters()
    }


def of_module(found: Gradients, module: str) -> Gradients:
    own = {name: value for name, value in found.items() if f".auxiliary.{module}." in name}
    assert own
    return own


def kind(found: Gradients) -> str:
    """`zero` if every gradient is exactly that, `taught` if none is."""
    kinds = {"zero" if not torch.count_nonzero(value) else "taught" for value in found.values()}
    return kinds.pop() if len(kinds) == 1 else "partly"


def assert_same(model: Any, actual: Gradients, expected: Gradients) -> None:
    in_fp32 = model.config.model_type.startswith("expanded_gemma")  # its norms are, whatever the dtype
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name],
            value,
            rtol=1e-5 if in_fp32 else 1e-9,
            atol=1e-7 if in_fp32 else 1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.fixture(scope="module")
def alone(model: Any) -> dict[str, Gradients]:
    """Each row in a batch of its own."""
    return {row: gradients(model, batch_of(row)) for row in ROWS}


def test_table(alone: dict[str, Gradients]) -> None:
    found = {row: {module: kind(of_module(alone[row], module)) for module in "ab"} for row in ROWS}
    assert found == TABLE


def test_the_table_notices_a_router_that_is_not_told(model: Any) -> None:
    batch = batch_of("of a")
    del batch["module_index"]
    assert kind(of_module(gradients(model, batch), "b")) == "taught"


def test_what_belongs_to_none_teaches_as_if_nothing_was_said(model: Any, alone: dict[str, Gradients]) -> None:
    for row in ("forget, of none", "retain, of none", "unlabelled"):
        batch = batch_of(row)
        del batch["module_index"]
        for name, value in gradients(model, batch).items():  # a bias sums its tokens in another order
            torch.testing.assert_close(value, alone[row][name], rtol=1e-12, atol=1e-15)


@contextmanager
def cut_off(model: Any, module: str) -> Iterator[None]:
    """The module's output is a constant to the backward pass."""
    parts: list[nn.Module] = [named[module] for named in model.auxiliary_modules().values() if module in named]
    handles = [part.register_forward_hook(lambda part, inputs, output: output.detach()) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_all_else_learns_as_if_the_other_module_was_a_constant(model: Any) -> None:
    """The original dims, all that lies before them, and the example's own module."""
    batch = batch_of("of a")
    found = gradients(model, batch, l1=0)
    del batch["module_index"]
    with cut_off(model, "b"):
        expected = gradients(model, batch, l1=0)
    assert_same(model, found, expected)
    assert kind({name: value for name, value in found.items() if ".auxiliary." not in name}) == "taught"


def test_a_mixed_batch_and_accumulated_ones_are_the_sum_of_their_rows(model: Any, alone: dict[str, Gradients]) -> None:
    expected = {name: sum(found[name] for found in alone.values()) for name in alone["of a"]}
    assert_same(model, gradients(model, batch_of(*ROWS)), expected)  # type: ignore[arg-type]
    names = list(ROWS)
    assert_same(model, gradients(model, batch_of(*names[:3]), batch_of(*names[3:])), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(model: Any, alone: dict[str, Gradients], use_reentrant: bool) -> None:
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # since transformers 5.23
    getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": use_reentrant})
    try:
        assert_same(model, gradients(model, batch_of("of a")), alone["of a"])
        assert kind(of_module(gradients(model, batch_of("of b")), "a")) == "zero"
    finally:
        getattr(model, f"{word}_checkpointing_disable")()


# torch itself makes one of these while it follows a function of ours.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gpt_neo"])
def test_compiled(model_type: str) -> None:
    model = make_model(model_type, layers=1)
    expected = gradients(model, batch_of("of a", "of b"))
    torch.compiler.reset()
    try:
        compiled: Any = torch.compile(model, backend="eager")
        assert_same(model, gradients(model, batch_of("of a", "of b"), call=compiled), expected)
        assert kind(of_module(gradients(model, batch_of("of b", "of b"), call=compiled), "a")) == "zero"
    finally:
        torch.compiler.reset()
