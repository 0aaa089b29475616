"""A router that is registered in this file alone: gradients scaled at the parameters, and modules dialled per example.

The toy is made for batches whose rows are all forget or all retain. On forget tokens the original MLP learns a part of what
it would, and the auxiliary modules learn all of it, or a part; on retain rows the modules do not run. What flows on to
other layers is whole, in either case.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, GradientRoutingConfig, GradientRoutingTrainer
from hf_era.data import RoutingCollator
from hf_era.evaluation.relearn.attack import with_lora
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.routing import PartRouting, Router, RoutingBatch, TokenRouting, make_router, register_router
from hf_era.routing.router import ROUTERS

# ---- The toy ----


@dataclass(frozen=True)
class ToyRouter(Router):
    """Multipliers at the parameters, and modules that run on forget rows alone."""

    name: ClassVar[str] = "toy"
    original_forget: float = 0.25
    module_forget: float = 1.0

    def route(self, batch: RoutingBatch) -> TokenRouting:
        routing_weight = batch.routing_weight  # (batch, seq)
        forget = 1 - routing_weight
        module = PartRouting(
            parameter_multiplier=None if self.module_forget == 1 else routing_weight + forget * self.module_forget,
            dial=forget.amax(dim=1),
        )
        return TokenRouting(
            PartRouting(parameter_multiplier=routing_weight + forget * self.original_forget),
            dict.fromkeys(batch.modules, module),
        )


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The toy is known while this file runs."""
    register_router(ToyRouter)
    yield
    del ROUTERS[ToyRouter.name]


# ---- Models, and what is done with them ----

TARGETS = [0, 2]
FORGET_ROWS = [0, 2]

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor]


def on_slow_paths(model: Any) -> Any:
    model.set_fast_paths(ALL_SLOW)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(params=["fast", "slow"])
def model(request: pytest.FixtureRequest, make_expanded: Callable[..., Any]) -> ExpandedGPTNeoForCausalLM:
    """An expanded GPT-Neo with the toy router, in training mode; on its fast path and off it."""
    model = make_expanded(TARGETS, tie_word_embeddings=False)
    model.router = ToyRouter(original_forget=-0.5, module_forget=0.75)
    return on_slow_paths(model) if request.param == "slow" else model


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Rows 0 and 2 are forget, row 1 is retain."""
    batch = make_batch(seed=7)
    batch["routing_weight"] = torch.ones(3, 12)
    batch["routing_weight"][FORGET_ROWS] = 0.0
    return batch


def uniform(batch: Batch, weight: float) -> Batch:
    return {**batch, "routing_weight": torch.full((3, 12), weight)}


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    return {name: value[list(rows)] for name, value in batch.items()}


def summed_loss(model: Any, batch: Batch, routed: bool = True, **options: Any) -> Tensor:
    """Summed over labels, so that a batch is the sum of its rows; in the logits' dtype. Plus the L1 term, if measured."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if routed:
        inputs["routing_weight"] = batch["routing_weight"]
    outputs = model(**inputs, **options)
    logits = outputs.logits[:, :-1].flatten(0, 1)
    loss = F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
    norm = getattr(outputs, "activation_l1", None)
    return loss if norm is None else loss + 0.01 * norm


def gradients_after(model: nn.Module, *losses: Callable[[], Tensor]) -> Gradients:
    """Accumulated over the losses; a parameter that the backward pass did not come by has a gradient of zero."""
    model.zero_grad(set_to_none=True)
    for loss in losses:
        loss().backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in model.named_parameters()
    }


def largest_deviation(actual: Gradients, expected: Gradients) -> float:
    """Of any gradient, relative to the largest value of its parameter."""
    assert sorted(actual) == sorted(expected)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    return max(((actual[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items())


def is_target(name: str) -> bool:
    """Whether a parameter is of a target layer's original MLP."""
    return any(name.startswith(f"transformer.h.{layer}.mlp.c_") for layer in TARGETS)


# ---- Against formulas ----


def per_token(x: Tensor, weight: Tensor, bias: Tensor | None, m: Tensor) -> Tensor:
    """A linear layer with a copy of its parameters for every token, of which only the part `m` can learn."""
    own = m[..., None, None] * weight + (1 - m[..., None, None]) * weight.detach()  # (batch, seq, out, in)
    output = torch.einsum("btoi,bti->bto", own, x)
    return output if bias is None else output + m[..., None] * bias + (1 - m[..., None]) * bias.detach()


def by_hand(model: Any, batch: Batch, router: ToyRouter) -> Gradients:
    """Gradients of a stock GPT-Neo whose target MLPs are written out here, token by token; nothing of `hf_era` is used."""
    state = model.state_dict()
    stock = GPTNeoForCausalLM(model.config.to_base_config()).double().train()
    stock.load_state_dict({name: value.clone() for name, value in state.items() if "auxiliary" not in name})
    added = {name: value.clone().requires_grad_() for name, value in state.items() if "auxiliary" in name}
    is_forget = torch.zeros(3, 12, dtype=torch.float64)
    is_forget[FORGET_ROWS] = 1.0
    original = torch.where(is_forget > 0, router.original_forget, 1.0).double()
    module = torch.where(is_forget > 0, router.module_forget, 1.0).double()

    def mlp_of(layer: int, mlp: Any) -> Callable[[Tensor], Tensor]:
        names = ("up_projection.weight", "up_projection.bias", "down_projection.weight")
        up, bias, down = (added[f"transformer.h.{layer}.mlp.auxiliary.forget.{name}"] for name in names)

        def forward(x: Tensor) -> Tensor:
            hidden = F.gelu(per_token(x, mlp.c_fc.weight, mlp.c_fc.bias, original), approximate="tanh")
            output = per_token(hidden, mlp.c_proj.weight, mlp.c_proj.bias, original)
            added_hidden = F.gelu(per_token(x, up, bias, module), approximate="tanh")
            return output + is_forget[..., None] * per_token(added_hidden, down, None, module)

        return forward

    for layer in TARGETS:
        mlp: Any = stock.transformer.h[layer].mlp
        mlp.forward = mlp_of(layer, mlp)
    summed_loss(stock, batch, routed=False).backward()
    return {name: value.grad for name, value in [*stock.named_parameters(), *added.items()] if value.grad is not None}


@pytest.mark.parametrize("numbers", [(0.25, 1.0), (-0.5, 0.75), (1.5, -2.0)], ids=str)
def test_gradients_equal_the_formula_token_by_token(
    numbers: tuple[float, float], make_expanded: Callable[..., Any], batch: Batch
) -> None:
    model = on_slow_paths(make_expanded(TARGETS, tie_word_embeddings=False).double())
    model.router = ToyRouter(*numbers)
    found = gradients_after(model, lambda: summed_loss(model, batch))
    assert largest_deviation(found, by_hand(model, batch, model.router)) <= 1e-11
    wrong = ToyRouter(numbers[0] + 1e-6, numbers[1])
    assert largest_deviation(found, by_hand(model, batch, wrong)) > 1e-9


@pytest.mark.parametrize("with_l1", [False, True])
def test_weights_learn_the_scaled_sum_over_tokens(
    with_l1: bool, model: ExpandedGPTNeoForCausalLM, batch: Batch
) -> None:
    """`dW = sum_t m_t d_t x_t^T` and `db = sum_t m_t d_t`, of the `d_t` and `x_t` of a pass without routing (with the same
    dials); every parameter outside of the target MLPs has the gradient of that pass, to the last bits of float64."""
    model = model.double()
    router: Any = model.router
    activity = 1 - batch["routing_weight"][:, :1]  # (batch, 1)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            output.register_hook(lambda gradient: seen.update({name: (inputs[0].detach(), gradient)}))

        return hook

    handles = [
        part.register_forward_hook(remember(name))
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and any(name.startswith(f"transformer.h.{layer}.mlp.") for layer in TARGETS)
    ]
    assert len(handles) == 4 * len(TARGETS)
    expected = gradients_after(
        model,
        lambda: summed_loss(model, batch, routed=False, module_activity=activity, output_activation_l1=with_l1),
    )
    for handle in handles:
        handle.remove()
    weight = batch["routing_weight"].double()
    for name, (x, d) in seen.items():
        forget = router.module_forget if "auxiliary" in name else router.original_forget
        scaled = d * (weight + (1 - weight) * forget)[..., None]
        expected[f"{name}.weight"] = torch.einsum("bto,bti->oi", scaled, x)
        if f"{name}.bias" in expected:
            expected[f"{name}.bias"] = scaled.sum((0, 1))
    found = gradients_after(model, lambda: summed_loss(model, batch, output_activation_l1=with_l1))
    assert largest_deviation(found, expected) <= 1e-12


# ---- The gradient table ----

# (original_forget, module_forget), batch -> what the original MLP, the module, and all the rest get.
TABLE: dict[str, tuple[tuple[float, float], float, tuple[str, str, str]]] = {
    "forget stops the original dims": ((0.0, 1.0), 0.0, ("zero", "whole", "whole")),
    "forget un-teaches the original dims": ((-0.5, 1.0), 0.0, ("scaled", "whole", "whole")),
    "forget scales both": ((-0.5, -0.5), 0.0, ("scaled", "scaled", "whole")),
    "forget stops both": ((0.0, 0.0), 0.0, ("zero", "zero", "whole")),
    "retain": ((-0.5, -0.5), 1.0, ("whole", "zero", "whole")),
}


def category(found: Tensor, whole: Tensor) -> str:
    """Zero is exact; sums over tokens are made in another order than without routing."""
    if torch.count_nonzero(found) == 0:
        return "zero"
    shares = {"whole": 1.0, "scaled": -0.5}
    return next((name for name, m in shares.items() if torch.allclose(found, m * whole, rtol=1e-4, atol=1e-7)), "other")


@pytest.mark.parametrize("row", TABLE)
def test_gradient_table(row: str, model: ExpandedGPTNeoForCausalLM, batch: Batch) -> None:
    """Compared with a pass without routing: with the module on for forget rows, ablated for retain rows."""
    numbers, weight, (original, module, rest) = TABLE[row]
    model.router = ToyRouter(*numbers)
    pure = uniform(batch, weight)
    found = gradients_after(model, lambda: summed_loss(model, pure))
    model.set_active(None, weight != 1)
    whole = gradients_after(model, lambda: summed_loss(model, pure, routed=False))
    table: dict[str, set[str]] = {"original": set(), "module": set(), "rest": set()}
    for name, gradient in found.items():
        part = "module" if model.is_auxiliary_parameter(name) else "original" if is_target(name) else "rest"
        assert part == "module" or whole[name].abs().max() > 0, f"{name}: a gradient of zero compares nothing"
        table[part].add(category(gradient, whole[name]))
    assert table == {"original": {original}, "module": {module}, "rest": {rest}}


def test_the_forward_pass_depends_on_the_dials_alone(model: ExpandedGPTNeoForCausalLM, batch: Batch) -> None:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        routed = model(**inputs, routing_weight=batch["routing_weight"]).logits
        on = model(**inputs).logits
        with model.ablated():
            off = model(**inputs).logits
    assert torch.equal(routed[FORGET_ROWS], on[FORGET_ROWS])
    assert torch.equal(routed[1], off[1])
    assert not torch.equal(on[1], off[1])


def test_the_l1_term_too_teaches_the_parameters_their_part_alone(
    model: ExpandedGPTNeoForCausalLM, batch: Batch
) -> None:
    """Unlike at the activation, where the term branches off before the scaling: here it goes through the weights."""
    model.router = ToyRouter(original_forget=0.0, module_forget=0.0)
    pure = uniform(batch, 0.0)
    found = gradients_after(model, lambda: summed_loss(model, pure, output_activation_l1=True))
    plain = gradients_after(model, lambda: summed_loss(model, pure, routed=False, output_activation_l1=True))
    for name, gradient in found.items():
        if is_target(name) or model.is_auxiliary_parameter(name):
            assert torch.count_nonzero(gradient) == 0, name
        else:
            assert torch.equal(gradient, plain[name]), name


# ---- Batches, accumulation, wrappers ----


def test_a_mixed_batch_is_the_sum_of_its_pure_parts(model: ExpandedGPTNeoForCausalLM, batch: Batch) -> None:
    tolerance = 1e-11 if model.fast_paths.chunked_loss else 1e-5  # the slow attention is computed in fp32
    model = model.double()
    mixed = gradients_after(model, lambda: summed_loss(model, batch, output_activation_l1=True))
    parts = [rows_of(batch, rows) for rows in (FORGET_ROWS, [1])]
    losses = [lambda part=part: summed_loss(model, part, output_activation_l1=True) for part in parts]
    assert largest_deviation(mixed, gradients_after(model, *losses)) <= tolerance


def test_four_micro_batches_are_one_batch(model: ExpandedGPTNeoForCausalLM, make_batch: Callable[..., Batch]) -> None:
    """Through the model's own loss, as the Trainer accumulates it."""
    tolerance = 1e-11 if model.fast_paths.chunked_loss else 1e-5  # the stock loss is computed in fp32
    model = model.double()
    first, second = make_batch(seed=1), make_batch(seed=2)
    whole = {name: torch.cat([first[name], second[name][:1]]) for name in first}
    whole["routing_weight"] = torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None].expand(4, 12)
    count = (whole["labels"][:, 1:] != -100).sum()

    def loss(rows: Sequence[int]) -> Tensor:
        return model(**rows_of(whole, rows), num_items_in_batch=count).loss

    at_once = gradients_after(model, lambda: loss(range(4)))
    accumulated = gradients_after(model, *[lambda row=row: loss([row]) for row in range(4)])
    assert largest_deviation(accumulated, at_once) <= tolerance


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant: bool, model: ExpandedGPTNeoForCausalLM, batch: Batch) -> None:
    expected = gradients_after(model, lambda: summed_loss(model, batch, output_activation_l1=True))
    plain = gradients_after(model, lambda: summed_loss(model, batch, routed=False, output_activation_l1=True))
    assert largest_deviation(expected, plain) > 1e-2
    wrapped: Any = model
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.23
        wrapped.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    else:
        wrapped.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls: list[int] = []
    wrapped.transformer.h[0].mlp.register_forward_pre_hook(lambda *arguments: calls.append(1))
    found = gradients_after(model, lambda: summed_loss(model, batch, output_activation_l1=True))
    assert len(calls) == 2  # it is recomputed
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.slow
# Dynamo itself instantiates an autograd function while it traces one; torch warns of that, as it would of a user.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled(make_expanded: Callable[..., Any], batch: Batch) -> None:
    """Routed, with other weights, with dials of the caller, and without routing: compiled code keeps none of the first."""
    model = make_expanded([0], tie_word_embeddings=False, num_layers=1, attention_types=[[["global"], 1]])
    model.router = ToyRouter(original_forget=-0.5, module_forget=0.75)
    swapped = {**batch, "routing_weight": 1 - batch["routing_weight"]}
    dialled = {**batch, "module_activity": torch.tensor([[0.5], [1.0], [0.0]])}
    plain = {name: value for name, value in batch.items() if name != "routing_weight"}
    inputs: list[dict[str, Any]] = [batch, swapped, dialled, plain]
    expected = [gradients_after(model, lambda values=values: model(**values).loss) for values in inputs]
    assert len({tuple(gradients["transformer.h.0.mlp.c_fc.bias"].tolist()) for gradients in expected}) == 4
    torch.compiler.reset()
    try:
        compiled: Any = torch.compile(model, backend="aot_eager")
        for values, reference in zip(inputs, expected, strict=True):
            found = gradients_after(model, lambda values=values: compiled(**values).loss)
            assert largest_deviation(found, reference) <= 1e-5
    finally:
        torch.compiler.reset()


def test_bf16_autocast_is_near_fp32(model: ExpandedGPTNeoForCausalLM, batch: Batch) -> None:
    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(**batch).loss

    dtypes: set[torch.dtype] = set()
    model.get_submodule("transformer.h.2.mlp.c_fc").register_forward_hook(
        lambda _module, _inputs, output: dtypes.add(output.dtype)
    )
    rounded = gradients_after(model, loss)
    assert dtypes == {torch.bfloat16}
    exact = gradients_after(model, lambda: model(**batch).loss)
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - gradient).norm() <= 0.05 * gradient.norm(), name


def test_fast_and_slow_paths_agree(make_expanded: Callable[..., Any], batch: Batch) -> None:
    found = []
    for prepare in (lambda model: model, on_slow_paths):
        model = prepare(make_expanded(TARGETS, tie_word_embeddings=False))
        model.router = ToyRouter(original_forget=-0.5, module_forget=0.75)

        def loss(model: Any = model) -> Tensor:
            outputs = model(**batch, output_activation_l1=True)
            return outputs.loss + 0.001 * outputs.activation_l1

        found.append(gradients_after(model, loss))
    assert largest_deviation(*found) <= 1e-5


def test_the_trainer_trains_with_it(make_expanded: Callable[..., Any], batch: Batch, tmp_path: Path) -> None:
    """Two steps on forget stories: the original MLPs of the target layers are as before, to the bit, all others are not."""
    model = make_expanded(TARGETS, tie_word_embeddings=False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    rows = batch["input_ids"].tolist()
    trainer = GradientRoutingTrainer(
        model,
        GradientRoutingConfig(
            output_dir=str(tmp_path),
            router={"name": "toy", "original_forget": 0.0},
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            warmup_steps=0,
            weight_decay=0.0,
            l1_coefficient=1e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "routing_weight": [[0.0] * 12] * 3}),
        data_collator=RoutingCollator(pad_token_id=0),
    )
    assert model.router == ToyRouter(original_forget=0.0)
    trainer.train()
    assert {name for name, value in model.named_parameters() if torch.equal(value, before[name])} == {
        name for name in before if is_target(name)
    }


def test_adapters_that_it_would_not_reach_are_refused(model: ExpandedGPTNeoForCausalLM, batch: Batch) -> None:
    """An adapter's own matrices would learn all that a forget token teaches, without a word."""
    adapted = with_lora(model, 2, 4)
    message = r"at the parameters does not reach those of peft\..*, take a router with a `core`, to which they belong"
    with pytest.raises(ValueError, match=message):
        adapted(**batch)
    adapted.set_active(None, False)  # of the original MLP alone
    with pytest.raises(ValueError, match=message):
        adapted(**batch)
    adapted(**{name: value for name, value in batch.items() if name != "routing_weight"}).loss.backward()


# ---- By name ----


def test_a_router_is_made_of_its_name_or_a_mapping() -> None:
    assert make_router("toy") == ToyRouter()
    assert make_router({"name": "toy", "original_forget": 0.5}) == ToyRouter(0.5)
    router = ToyRouter(0.5, 2.0)
    assert router.to_dict() == {"name": "toy", "original_forget": 0.5, "module_forget": 2.0}
    assert make_router(router.to_dict()) == router


KNOWN = "activation, demix, gram, parameter, sgtm, toy"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("toi", f"Unknown value for `router`: 'toi'. Did you mean `toy`? Known: {KNOWN}."),
        ({"name": ["toy"]}, f"Unknown value for `router`: ['toy']. Did you mean `toy`? Known: {KNOWN}."),
        (
            {"name": "toy", "original_forgot": 1},
            "Unknown key `original_forgot` in `router` (toy). Did you mean `original_forget`? "
            "Known: original_forget, module_forget.",
        ),
        ({"original_forget": 1}, "`router` should be a name, or a mapping with `name`, got {'original_forget': 1}."),
    ],
)
def test_unknown_names_and_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match="router") as caught:
        make_router(values)
    assert str(caught.value) == message


def test_a_router_is_registered_once() -> None:
    class Other(ToyRouter):
        """Another of the same name."""

    assert register_router(ToyRouter) is ToyRouter
    with pytest.raises(ValueError, match=r"There is a router `toy` already: ToyRouter\. Choose another name\."):
        register_router(Other)


def test_a_model_says_that_another_router_has_no_gradient_multipliers(model: ExpandedGPTNeoForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"The router `toy` has no gradient multipliers\. Look at `model\.router`"):
        _ = model.gradient_multipliers
