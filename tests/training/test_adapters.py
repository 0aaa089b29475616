"""Models with adapters (peft): they are trained beside the auxiliary modules, and merged into what is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era import FastGPTNeoForCausalLM
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.training import CausalLMTrainer
from hf_era.training.config import CausalLMTrainingConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name


def with_adapters(model: Any, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, **{"target_modules": ["c_fc", "c_proj", "q_proj"], **settings}))


def test_adapters_and_the_auxiliary_module_are_trained_and_merged(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any], tmp_path: Path
) -> None:
    def make(**settings: Any) -> Any:
        return make_trainer(model=with_adapters(make_expanded([0, 1])), **settings)

    trainer = make(save_strategy="steps", save_steps=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name or ".auxiliary." in name for name in moved)
    assert any("c_proj.lora_A" in name for name in moved)
    assert any("auxiliary.forget.down_projection" in name for name in moved)
    again = make()
    again.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-1"))
    assert all(map(torch.equal, trainer.model.state_dict().values(), again.model.state_dict().values()))

    trainer.save_contracted(tmp_path / "contracted")
    trainer.save_whole_model(tmp_path / "whole")
    contracted, whole = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("contracted", "whole")
    )
    assert type(contracted) is GPTNeoForCausalLM
    ids, model = torch.arange(8)[None], trainer.model.eval()
    model.set_fast_paths(ALL_SLOW)
    with torch.no_grad():
        on = model(ids).logits
        torch.testing.assert_close(whole(ids).logits, on, rtol=1e-4, atol=1e-5)
        with model.ablated():
            torch.testing.assert_close(contracted(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert all(value.requires_grad for value in model.contract().parameters())
    assert any("lora_A" in name for name in model.state_dict())  # its own are left as they were


def test_modules_that_are_trained_whole_beside_adapters_are_kept(make_expanded: Callable[..., Any]) -> None:
    model = with_adapters(make_expanded([0]), modules_to_save=["ln_f"]).get_base_model()
    with torch.no_grad():
        model.transformer.ln_f.modules_to_save["default"].weight.fill_(3.0)
    assert model.contract().transformer.ln_f.weight.tolist() == [3.0] * 16


def test_what_adapts_no_layer_is_refused(make_expanded: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(make_expanded([0]), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"`model`: PROMPT_TUNING has its parameters beside the model.*Use LoRA"):
        make_trainer(model=model)


def test_a_stock_model_with_adapters_is_to_be_expanded_first(
    make_base: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="should be an expanded model, got GPTNeoForCausalLM"):
        make_trainer(model=with_adapters(make_base()))


def test_a_fast_causal_lm_with_adapters_goes_on_and_is_saved_merged(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tmp_path: Path
) -> None:
    def make(folder: str) -> Any:
        base = FastGPTNeoForCausalLM.from_stock(make_base())
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "use_cpu": True, "disable_tqdm": True}
        args = CausalLMTrainingConfig(str(tmp_path / folder), **settings)
        return CausalLMTrainer(with_adapters(base), args, train_dataset=make_stories(8, routed=False))

    trainer, again = make("whole"), make("again")
    trainer.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert all(map(torch.equal, trainer.model.state_dict().values(), again.model.state_dict().values()))
    trainer.save_whole_model(tmp_path / "merged")
    saved, ids = GPTNeoForCausalLM.from_pretrained(tmp_path / "merged").eval(), torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(saved(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)
