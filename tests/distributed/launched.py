"""What each process of a launch runs: trainers over the same stories, in the ways to launch one.

    python -m torch.distributed.run --nproc_per_node 2 tests/distributed/launched.py FOLDER CASES.json

Every case leaves `FOLDER/NAME.pt`: the gradients before each optimizer step, the logs, the weights; written by rank 0.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, TrainerCallback, set_seed

from hf_era import (
    ExpandedGPTNeoForCausalLM,
    ExpansionConfig,
    FastGPTNeoForCausalLM,
    GradientRoutingConfig,
    GradientRoutingTrainer,
)
from hf_era.data import RoutingCollator
from hf_era.methods.npo import NPOSettings, NPOTrainer
from hf_era.methods.slgr import SplitLossTrainer
from hf_era.methods.unlearning import LabelledCollator
from hf_era.models import FAMILIES
from hf_era.models.measured import measure_activations
from hf_era.training import causal_lm_trainer

VOCABULARY = 53
DROPOUTS = (
    "embed_dropout",
    "attention_dropout",
    "resid_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout",
)
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def make_model(seed: int = 0, dropout: float = 0.0, model_type: str = "gpt_neo", two_modules: bool = False) -> Any:
    """Three layers, two of them expanded; every parameter at random, so that no term is hidden. Of any family."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "bos_token_id": 52,
        "eos_token_id": 52,
        "use_cache": False,
        # Of some families:
        "intermediate_size": None if model_type == "gpt_neo" else 24,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "attention_types": [[["global"], 1], [["local"], 1], [["global"], 1]],
        "window_size": 4,
        **dict.fromkeys(DROPOUTS, dropout),
    }
    known, family = AutoConfig.for_model(model_type), FAMILIES[model_type]
    config = AutoConfig.for_model(model_type, **{key: value for key, value in values.items() if hasattr(known, key)})
    modules = [{"name": "a", "width": 8, "target_layers": [0, 1]}, {"name": "b", "width": 4, "target_layers": [1]}]
    expansion = ExpansionConfig(modules=modules) if two_modules else ExpansionConfig(width=8, target_layers=[0, 1])
    model = family.model_class(family.model_class.config_class.from_base_config(config, expansion=expansion))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.train()


def make_stories(number: int, seed: int = 0, kind: str = "mixed") -> Dataset:
    """Stories of 2 to 20 tokens. `halves`: two forget, then two retain stories, so that two processes with batches of two
    get one kind each; `mixed`: forget, retain, partly routed and unlabelled (which are as retain) in turn. `modules`: the
    same, the first of the four of a module, the third of the other, and the rest of none."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[Any]] = {"input_ids": [], "routing_weight": [], "length": []}
    if kind == "modules":
        rows["module_index"] = [(0, -1, 1, -1)[index % 4] for index in range(number)]
    for index in range(number):
        length = int(torch.randint(2, 21, (1,), generator=generator))
        weights = {
            "forget": torch.zeros(length),
            "retain": torch.ones(length),
            "partly": torch.rand(length, generator=generator),
            "unlabelled": torch.ones(length),
        }
        order = ("forget", "forget", "retain", "retain") if kind == "halves" else tuple(weights)
        rows["input_ids"].append(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist())
        rows["routing_weight"].append(weights[order[index % 4]].tolist())
        rows["length"].append(length)
    return Dataset.from_dict(rows)


class L1PerRank(GradientRoutingTrainer):
    """Planted: the L1 term is divided by this rank's tokens."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._real_tokens = sum(batch["attention_mask"].sum() for batch in batches) * self.args.world_size
        return batches, count


class TokensPerRank(GradientRoutingTrainer):
    """Planted: the language-model loss is divided by this rank's tokens."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, _ = super().get_batch_samples(*args, **kwargs)
        return batches, sum((batch["labels"][:, 1:] != -100).sum() for batch in batches) * self.args.world_size


class RepeatedStories(GradientRoutingTrainer):
    """Planted: the last batch is filled with the epoch's first stories, as accelerate does."""

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(causal_lm_trainer, "fills_batches", return_value=False):
            return super()._get_dataloader(*args, **kwargs)


class Control(causal_lm_trainer.CausalLMTrainer):
    """The stock model inside the one that it is given, with that one's L1 term."""

    def __init__(self, model: ExpandedGPTNeoForCausalLM, args: GradientRoutingConfig, **kwargs: Any) -> None:
        layers = list(model.auxiliary_modules())
        stock = measure_activations(FastGPTNeoForCausalLM.from_stock(model.contract()), layers)
        super().__init__(stock, args, l1_coefficient=args.l1_coefficient, **kwargs)


class SplitLoss(SplitLossTrainer):
    """SLGR with another model for teacher."""

    def __init__(self, model: ExpandedGPTNeoForCausalLM, args: GradientRoutingConfig, **kwargs: Any) -> None:
        weight = torch.linspace(0, 1, VOCABULARY)
        super().__init__(model, args, teacher=make_model(seed=1).contract(), vocabulary_weight=weight, **kwargs)


class Unlearning(NPOTrainer):
    """NPO of the stock model inside the one that it is given, with another for reference; every fourth story is forgotten,
    so that one of two processes has none in a step."""

    def __init__(self, model: ExpandedGPTNeoForCausalLM, args: GradientRoutingConfig, **kwargs: Any) -> None:
        stories = kwargs["train_dataset"]
        kwargs["train_dataset"] = stories.add_column("label", [int(index % 4 > 0) for index in range(len(stories))])
        kwargs["data_collator"] = LabelledCollator(0)
        stock, reference = (FastGPTNeoForCausalLM.from_stock(one.contract()) for one in (model, make_model(seed=1)))
        super().__init__(stock, args, settings=NPOSettings(), reference=reference, **kwargs)


KINDS = (GradientRoutingTrainer, Control, SplitLoss, Unlearning, L1PerRank, TokensPerRank, RepeatedStories)
TRAINERS: dict[str, Any] = {kind.__name__: kind for kind in KINDS}


def whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().clone()


class CatchGradients(TrainerCallback):
    """Copies all gradients, gathered, just before each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.sharded: set[bool] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = list(kwargs["model"].named_parameters())
        self.sharded |= {isinstance(value, DTensor) and isinstance(value.grad, DTensor) for _, value in named}
        assert all(value.grad is not None for _, value in named)
        self.steps.append({name: whole(value.grad) for name, value in named})


@contextmanager
def launch(way: str) -> Iterator[Any]:
    """The environment of a way to launch: `one`, `ddp`, `fsdp2`, `fsdp2_as_launched` by accelerate, on GPUs, or
    `deepspeed`, whose config is among the settings.

    Yields what to call once the arguments exist.

    accelerate knows no FSDP on a CPU, though torch does: the state of the processes is relabelled to that of a GPU launch,
    and from there on accelerate's own FSDP2 preparation runs, on the gloo processes.
    """
    AcceleratorState._reset_state(reset_partial_state=True)

    def relabel() -> None:
        if way == "fsdp2":
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    with mock.patch.dict(os.environ, FSDP2 if way == "fsdp2" else {}):
        if way in ("one", "ddp", "deepspeed"):
            os.environ.pop("ACCELERATE_USE_FSDP", None)
        yield relabel
    AcceleratorState._reset_state(reset_partial_state=True)


def checkpointing(use_reentrant: bool) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(GradientRoutingConfig)}
    # transformers 5.2x renamed the arguments.
    word = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {word: True, f"{word}_kwargs": {"use_reentrant": use_reentrant}}


def arguments(folder: Path, settings: dict[str, Any]) -> GradientRoutingConfig:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "l1_coefficient": 1e-2,
        "train_sampling_strategy": "sequential",
    }
    settings = dict(settings)
    reentrant = settings.pop("use_reentrant", None)
    return GradientRoutingConfig(
        **{**values, **settings, **(checkpointing(reentrant) if reentrant is not None else {})}
    )


def processes_agree(trainer: GradientRoutingTrainer) -> bool:
    """Whether all processes hold the same weights after training."""
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    total = torch.stack([whole(value).double().abs().sum() for _, value in named]).sum().to(trainer.args.device)
    everyones = trainer.accelerator.gather(total.reshape(1))
    return bool((everyones == everyones[0]).all())


def run_case(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Trains one case; the result is the same on every rank.

    Args:
        folder (`Path`): for files; the same on all ranks.
        case (`dict`): `way` (see `launch`), `name`, and, optionally, `model_type`, `router`, `stories`, `kind`, `dropout`,
            `eval_stories`, `save`, and the trainer's `settings`. `resume`: the checkpoint (`checkpoint-4`) that a second
            trainer continues from.
    """
    with launch(case["way"]) as relabel:
        set_seed(0)
        router = {"router": case["router"]} if "router" in case else {}
        args = arguments(folder / case["name"], {**case.get("settings", {}), **router})
        assert args.use_cpu == (args.device.type == "cpu")
        relabel()
        catch = CatchGradients()
        number = case.get("eval_stories")
        sets = {"forget": make_stories(number, 5), "retain": make_stories(number + 1, 6)} if number else None

        def make_trainer(callbacks: list[TrainerCallback]) -> GradientRoutingTrainer:
            return TRAINERS[case.get("trainer", "GradientRoutingTrainer")](
                make_model(
                    dropout=case.get("dropout", 0.0),
                    model_type=case.get("model_type", "gpt_neo"),
                    two_modules=case.get("kind") == "modules",
                ),
                args,
                train_dataset=make_stories(case.get("stories", 8), kind=case.get("kind", "mixed")),
                eval_dataset=sets,
                data_collator=RoutingCollator(pad_token_id=0),
                callbacks=callbacks,
            )

        trainer = make_trainer([] if case["way"] == "deepspeed" else [catch])  # its gradients are the engine's own
        trainer.train()
        assert trainer.is_deepspeed_enabled == (case["way"] == "deepspeed")
        if case["way"] != "deepspeed":
            assert catch.sharded == {case["way"].startswith("fsdp2")}, catch.sharded
        result = {
            "gradients": catch.steps,
            "logs": trainer.state.log_history,
            "weights": {name: value.cpu().clone() for name, value in trainer.full_state_dict().items()},
            "processes": args.world_size,
            "processes_agree": processes_agree(trainer),
        }
        if case.get("resume"):
            again = make_trainer([])
            again.train(resume_from_checkpoint=str(folder / case["name"] / case["resume"]))
            result["resumed"] = {name: value.cpu().clone() for name, value in again.full_state_dict().items()}
            result["resumed_logs"] = again.state.log_history
        if case.get("save"):
            trainer.save_whole_model(folder / f"{case['name']}-whole")
            if not isinstance(trainer, GradientRoutingTrainer):
                return result
            trainer.save_contracted(folder / f"{case['name']}-contracted")
            if case["way"] != "deepspeed":
                result["contracted"] = dict(trainer.model.contract().state_dict())
                trainer.model.save_module("forget", folder / f"{case['name']}-module", is_main_process=args.should_save)
        return result


def main() -> None:
    folder = Path(sys.argv[1])
    for case in json.loads(Path(sys.argv[2]).read_text()):
        result = run_case(folder, case)
        if int(os.environ.get("RANK", "0")) == 0:
            torch.save(result, folder / f"{case['name']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # All results are written. gloo's threads sometimes abort the process that takes their group down ("terminate called
        # without an active exception"), so it is not taken down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
