"""Models with adapters (peft): they are trained beside the auxiliary modules, and merged into what is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era import FastGPTNeoForCausalLM
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.measured import measure_activations
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
    trainer.save_model(str(tmp_path / "model"))
    trainer.model.save_pretrained(tmp_path / "pretrained", state_dict=trainer.model.state_dict())
    names = ("contracted", "whole", "model", "pretrained")
    contracted, *saved = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in names)
    assert not (Path(trainer.args.output_dir) / "checkpoint-1" / "README.md").exists()  # it loads in a training alone
    assert type(contracted) is GPTNeoForCausalLM
    ids, model = torch.arange(8)[None], trainer.model.eval()
    model.set_fast_paths(ALL_SLOW)
    with torch.no_grad():
        on = model(ids).logits
        for whole in saved:
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


@pytest.mark.parametrize("stock", [True, False])
def test_a_model_that_is_sharded_is_refused(
    make_base: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path, stock: bool
) -> None:
    """A stock one too: nothing of it could be saved."""
    args = CausalLMTrainingConfig(str(tmp_path), use_cpu=True, report_to=[])
    trainer = CausalLMTrainer(with_adapters(make_base()), args) if stock else make_trainer()
    trainer.is_fsdp_enabled = True
    if not stock:
        trainer._check_what_is_trained()
        trainer.model = with_adapters(trainer.model).get_base_model()
    with pytest.raises(ValueError, match="cannot be merged into a model that is sharded"):
        trainer._check_what_is_trained()


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
    trainer.save_model()
    trainer.model.save_pretrained(tmp_path / "pretrained")
    ids = torch.arange(8)[None]
    for folder in ("merged", "whole", "pretrained"):
        saved = GPTNeoForCausalLM.from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(saved(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measured", [True, False])
def test_any_model_with_adapters_is_saved_merged(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tmp_path: Path, measured: bool
) -> None:
    base = measure_activations(make_base(), [0]) if measured else make_base()
    args = CausalLMTrainingConfig(str(tmp_path / "out"), max_steps=1, save_steps=1, use_cpu=True, disable_tqdm=True)
    trainer = CausalLMTrainer(with_adapters(base), args, train_dataset=make_stories(4, routed=False))
    trainer.train()
    assert (tmp_path / "out" / "checkpoint-1").is_dir()
    trainer.save_model()
    if measured:
        trainer.model.save_pretrained(tmp_path / "pretrained")
    ids = torch.arange(8)[None]
    for folder in ("out", "pretrained") if measured else ("out",):
        saved = GPTNeoForCausalLM.from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(saved(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft's own; it goes on
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"target_modules": ["wte"]}, "`transformer.wte`.*`lm_head.weight`.*Leave `wte` out"),
        ({"target_modules": ["q_proj", "lm_head"]}, "`lm_head`.*`transformer.wte.weight`.*Leave `lm_head` out"),
        ({"modules_to_save": ["lm_head"]}, "`lm_head`.*`transformer.wte.weight`"),
        ({"modules_to_save": ["wte"]}, "`transformer.wte`.*`lm_head.weight`"),
        ({"modules_to_save": ["wte", "lm_head"]}, "`transformer.wte`.*`lm_head.original_module.weight`"),
        ({"trainable_token_indices": [1, 2]}, "`transformer.wte`.*`trainable_token_indices`"),
    ],
)
def test_an_adapter_on_a_tied_weight_is_refused(
    settings: dict[str, Any], text: str, make_expanded: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    model = with_adapters(make_expanded([0]), **settings)
    with pytest.raises(ValueError, match=f"`model`: .*{text}.*tie_word_embeddings = False"):
        make_trainer(model=model)
    with pytest.raises(ValueError, match=text):  # who trains it in a loop of his own
        model.get_base_model().contract()


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")  # peft 0.19 asks the class alone
def test_the_way_out_of_tied_weights_keeps_the_model(
    make_expanded: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    model, ids = make_expanded([0]), torch.arange(8)[None]
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    adapted = with_adapters(model, target_modules=["wte"], modules_to_save=["lm_head"])
    trainer = make_trainer(model=adapted, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_contracted(tmp_path / "stock")
    trainer.model.eval().set_fast_paths(ALL_SLOW)
    with torch.no_grad(), trainer.model.ablated():
        on, stock = trainer.model(ids).logits, GPTNeoForCausalLM.from_pretrained(tmp_path / "stock").eval()
        torch.testing.assert_close(stock(ids).logits, on, rtol=1e-4, atol=1e-5)
