"""What a GPU has to do: the same gradients as a CPU, and the trainer in bf16. `python -m pytest -m gpu` where there is one;
everywhere else the same lines run on the CPU, so that a slip in them shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import GradientRoutingConfig, GradientRoutingTrainer
from hf_era.data import RoutingCollator
from hf_era.models.fast.causal_lm import ALL_SLOW

ON_A_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_A_GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where to compute; products in fp32 are not rounded."""
    if request.param == "cuda":
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    return str(request.param)


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = model(**batch, output_activation_l1=True)
    (outputs.loss + 1e-3 * outputs.activation_l1).backward()
    return {name: value.grad.cpu() for name, value in model.named_parameters()}


def test_fp32_gradients_agree_with_the_cpu(
    device: str, make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    batch = make_batch()
    expected = gradients(make_expanded([0, 1]), batch)
    found = gradients(make_expanded([0, 1]).to(device), {name: value.to(device) for name, value in batch.items()})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_does_not_depend_on_the_routing(
    device: str, make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]], dtype: torch.dtype
) -> None:
    model = make_expanded().to(device, dtype)
    batch = {name: value.to(device) for name, value in make_batch().items()}
    routed = model(**batch, skip_logits=False).logits
    del batch["routing_weight"]
    assert torch.equal(model(**batch, skip_logits=False).logits, routed)


# Dynamo instantiates an autograd function while it traces one, inductor scripts its own helpers, and says that fp32 is fp32.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_fast_paths_have_the_gradients_of_the_slow_ones(
    device: str, make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]], is_compiled: bool
) -> None:
    batch = {name: value.to(device) for name, value in make_batch().items()}
    slow = make_expanded([0, 1]).to(device)
    slow.set_fast_paths(ALL_SLOW)
    slow.set_attn_implementation("eager")
    expected = gradients(slow, batch)
    fast = make_expanded([0, 1]).to(device)
    backend = "inductor" if device == "cuda" else "eager"  # which takes half a minute on a CPU
    outputs = (torch.compile(fast, backend=backend) if is_compiled else fast)(**batch, output_activation_l1=True)
    (outputs.loss + 1e-3 * outputs.activation_l1).backward()
    assert outputs.logits is None
    for name, value in fast.named_parameters():
        torch.testing.assert_close(value.grad.cpu(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*no bf16 units.*")
def test_the_trainer_runs_in_bf16_and_contracts(device: str, make_expanded: Callable[..., Any], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    stories = [
        {"input_ids": torch.randint(0, 52, (12,), generator=generator), "routing_weight": torch.rand(12)}
        for _ in range(16)
    ]
    args = GradientRoutingConfig(
        str(tmp_path),
        max_steps=4,
        bf16=True,
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=4,
        use_cpu=device == "cpu",
    )
    trainer = GradientRoutingTrainer(
        make_expanded(),
        args,
        train_dataset=stories,
        data_collator=RoutingCollator(0),  # type: ignore[arg-type]
    )
    trainer.train()
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # without autocast
    model.set_fast_paths(ALL_SLOW)
    model.set_attn_implementation("eager")
    ids = torch.arange(8, device=device)[None]
    with torch.no_grad(), model.eval().ablated():
        torch.testing.assert_close(model.contract()(ids).logits, model(ids).logits)
