"""The base frozen but for what is routed, or for adapters: what the trainer makes of it, and that it goes on exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.training import GradientRoutingConfig


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"lora": {"rank": 2}}, "lora_"),
        ({"trainable": "routed"}, ".mlp.c_"),
        ({"trainable": "modules"}, ".auxiliary."),
    ],
    ids=["lora", "routed", "modules"],
)
def test_only_what_is_chosen_moves_and_it_goes_on_exactly(
    settings: dict[str, Any], part: str, make_trainer: Callable[..., Any], make_expanded: Callable[..., Any]
) -> None:
    def make(**more: Any) -> Any:
        return make_trainer(model=make_expanded([0, 1]), **settings, **more)

    trainer = make(save_strategy="steps", save_steps=1, auxiliary_learning_rate_factor=0.5)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(part in name for name in moved)
    assert all(part in name or ".auxiliary." in name for name in moved)
    kept = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert {name.split(".")[2] for name in kept} == {"0", "1"}
    assert sorted({group["lr"] for group in trainer.optimizer.param_groups}) != [1e-2]
    again = make(auxiliary_learning_rate_factor=0.5)
    again.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-1"))
    assert all(map(torch.equal, trainer.model.state_dict().values(), again.model.state_dict().values()))


def test_adapters_are_merged_into_what_is_saved(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = make_trainer(model=make_expanded([1]), lora='{"rank": 2, "attention": true}')
    trainer.train()
    trainer.save_contracted(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(stock) is GPTNeoForCausalLM
    model, ids = trainer.model.eval(), torch.arange(8)[None]
    model.set_fast_paths(ALL_SLOW)
    with torch.no_grad(), model.ablated():
        torch.testing.assert_close(stock(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")  # the name that 5.17 knows
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_asks_frozen_layers_for_no_gradient(
    reentrant: bool, make_trainer: Callable[..., Any], make_expanded: Callable[..., Any]
) -> None:
    """Reentrant checkpointing has to: without a gradient that comes in, it lets none out."""
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    seen: list[bool] = []

    def train(**more: Any) -> Any:
        trainer = make_trainer(model=make_expanded([1, 2]), max_steps=1, trainable="routed", **more)
        trainer.model.transformer.h[1].attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((args or (kwargs.get("hidden_states"),))[0].requires_grad),
            with_kwargs=True,
        )
        trainer.train()
        return trainer.model.state_dict()

    plain, checkpointed = train(), train(**options)
    assert not seen[0]
    assert seen[-1] or not reentrant  # the recomputation of this kind
    assert any(seen[1:]) == reentrant
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trainable": "rooted"}, r"`training.trainable`: 'rooted'. Did you mean.*routed"),
        ({"trainable": "all", "lora": {}}, "`training.lora` trains adapters in place.*`training.trainable` is 'all'"),
        ({"lora": {"r": 4}}, "Unknown key `r` in `training.lora`. Did you mean.*rank"),
        ({"lora": {"rank": 0}}, "`training.lora.rank` should be at least 1, got 0"),
        ({"lora": {"alpha": "x"}}, "`training.lora.alpha` should be a finite number, got 'x'"),
        ({"lora": {"dropout": 1.0}}, r"`training.lora.dropout` should be in \[0, 1\), got 1.0"),
        ({"lora": {"target_modules": "q_proj"}}, "`training.lora.target_modules` should be a list of names.*'q_proj'"),
        ({"lora": {"target_modules": ["a"], "attention": True}}, "`training.lora.attention` is true, but.*names all layers"),
        ({"lora": "rank 4"}, "`training.lora` should be a dict or JSON, got 'rank 4'"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        GradientRoutingConfig(str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(("optimizer", "package"), [("adamw_8bit", "bitsandbytes"), ("adamw_torch_8bit", "torchao")])
def test_an_optimizer_whose_package_is_missing_is_refused(
    optimizer: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_era.training.config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"`training.optim` is '{optimizer}'.*`pip install {package}`"):
        GradientRoutingConfig(str(tmp_path), use_cpu=True, optim=optimizer)
