"""`GradientRoutingTrainer`: a drop-in `Trainer` for expanded models.

model = ExpandedGPTNeoForCausalLM.from_base("roneneldan/TinyStories-28M", ExpansionConfig(width=64))
trainer = GradientRoutingTrainer(
    model,
    GradientRoutingConfig("out", max_steps=1000),
    train_dataset=train,                                  # input_ids, routing_weight
    eval_dataset={"forget": forget, "retain": retain},    # input_ids
    processing_class=tokenizer,
)
trainer.train()
stock_model = trainer.model.contract()
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, selectivity
from hf_era.models.adapters import has_adapters
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.training.causal_lm_trainer import CausalLMTrainer
from hf_era.training.config import GradientRoutingConfig
from hf_era.training.distributed import is_zero_3
from hf_era.training.publishing import MODEL_TAGS, push_contracted, save_contracted
from hf_era.utils.checks import unknown_key_message


class LocalizationWarning(UserWarning):
    """Ablating the auxiliary module hardly changes the forget loss: the capability does not sit in it."""


class GradientRoutingTrainer(CausalLMTrainer):
    """Trains an expanded causal LM with gradient routing.

    Differs from `CausalLMTrainer` in the training step in three places: the loss has an L1 term with a denominator of its
    own, the auxiliary modules have optimizer groups of their own, and the column `routing_weight` reaches the model. It logs
    `language_model_loss` and `l1_loss` apart; with `eval_dataset={"forget": ..., "retain": ...}` it logs each loss with the
    module on (`eval_forget_loss`) and ablated (`eval_forget_loss_ablated`), `eval_ablation_gap` (ablated minus on, forget),
    `eval_retain_ablation_gap`, and `eval_selectivity_layer_N`.

    A model with LoRA adapters (peft) trains these and its auxiliary modules, and the adapters are merged into what is saved
    whole or contracted. Of a `PeftModel` the model inside is trained, whose adapters are the same: `trainer.model` is that.

    Args:
        model: an expanded causal LM, for instance an `ExpandedGPTNeoForCausalLM`.
        args (`GradientRoutingConfig`, *optional*): the settings.
        kwargs: everything that `Trainer` takes.

    Raises:
        ValueError: if the model is not expanded.
    """

    config_class = GradientRoutingConfig
    extra_columns = ("routing_weight",)  # a wrapper of the model hides it
    more_against_divergence = ", milder multipliers of forget tokens"
    args: GradientRoutingConfig
    model: Any

    def __init__(self, model: Any = None, args: GradientRoutingConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        if not isinstance(self.model, ExpandedCausalLMMixin):
            raise ValueError(
                f"`model` should be an expanded model, got {type(self.model).__name__}. Expand it first: "
                "`hf_era.expand_base(model, ExpansionConfig(...))`."
            )
        self._set_up_model(self.model)
        self._check_launch_and_columns()
        self._real_tokens: Tensor | int = 1
        self._loss_parts: dict[str, Tensor] = {}
        self._steps_in_loss_parts = 0
        self._auxiliary_means: dict[str, dict[int, float]] = {}
        self.last_ablation_gap: float | None = None

    def _set_up_model(self, model: Any) -> None:
        model.router = self.args.token_router
        model.add_model_tags(MODEL_TAGS)

    def call_model_init(self, trial: Any = None) -> Any:
        """`model_init` is called again by `train`: that model needs the router too."""
        model = super().call_model_init(trial)
        if isinstance(model, ExpandedCausalLMMixin):
            self._set_up_model(model)
        return model

    def _check_launch_and_columns(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs are visible to one process, and the Trainer would use torch's DataParallel, whose "
                "threads share one model's routing. Start one process per GPU with `accelerate launch`, or set "
                "CUDA_VISIBLE_DEVICES=0."
            )
        if has_adapters(self.model) and (self.is_fsdp_enabled or is_zero_3(self.accelerator)):
            raise ValueError(
                "`model` has adapters (peft), and they cannot be merged into a model that is sharded by FSDP or ZeRO 3. "
                "Launch with `recipes/accelerate/cpu_ddp.yaml` or another config without sharding, or train it whole."
            )
        columns = getattr(self.train_dataset, "column_names", None)
        if isinstance(columns, list) and "routing_weight" not in columns:
            raise ValueError(
                unknown_key_message("`train_dataset`", "routing_weight", columns).replace("Unknown key", "No column")
                + " Without it nothing is routed; for a control without routing, add the column with 1.0 for every token."
            )

    # ---- Loss ----

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list, Any]:
        """Also counts the real tokens of the whole accumulated batch: the denominator of the L1 term."""
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [batch["attention_mask"].sum() for batch in batches if "attention_mask" in batch]
        counts += [torch.tensor(batch["input_ids"].numel()) for batch in batches if "attention_mask" not in batch]
        self._steps_in_loss_parts += 1
        if counts:
            total = torch.stack(counts).sum().to(device)
            over_processes = self.args.world_size > 1 and self.args.average_tokens_across_devices
            self._real_tokens = self.accelerator.gather(total).sum() if over_processes else total
        return batches, num_items_in_batch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Language-model loss plus L1 term, both normalised over the whole accumulated batch."""
        measure_l1 = self.args.l1_coefficient > 0 and model.training
        if measure_l1:
            inputs = {**inputs, "output_activation_l1": True}
        language_model_loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = language_model_loss
        if measure_l1:
            # Like the language-model loss, it is a global mean: scaled by the processes that gradients are averaged over.
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            l1_loss = self.args.l1_coefficient * outputs["activation_l1"] / self._real_tokens * processes
            loss = language_model_loss + l1_loss
            self._add_loss_part("l1_loss", l1_loss)
        if model.training:
            self._add_loss_part("language_model_loss", language_model_loss)
        return (loss, outputs) if return_outputs else loss

    def _add_loss_part(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self._loss_parts[name] = self._loss_parts[name] + value if name in self._loss_parts else value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._loss_parts:
            for name, value in self._loss_parts.items():
                total = self.accelerator.gather(value).mean() if self.args.world_size > 1 else value
                logs[name] = float(total) / max(self._steps_in_loss_parts, 1)
            self._loss_parts, self._steps_in_loss_parts = {}, 0
        super().log(logs, start_time)

    # ---- Optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, its groups split so that the auxiliary modules have their own."""
        existed = self.optimizer is not None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if not existed:
            named = (self.model if model is None else model).named_parameters()
            auxiliary = {id(value) for name, value in named if self.model.is_auxiliary_parameter(name)}
            groups = optimizer.param_groups
            groups[:] = [part for group in groups for part in self._split_group(group, auxiliary)]
        return optimizer

    def _split_group(self, group: dict[str, Any], auxiliary: set[int]) -> list[dict[str, Any]]:
        """One optimizer group -> the groups of its original and its auxiliary parameters, without empty ones."""
        own = {**group, "params": [value for value in group["params"] if id(value) in auxiliary]}
        own["lr"] = group["lr"] * self.args.auxiliary_learning_rate_factor
        if self.args.auxiliary_weight_decay is not None and group["weight_decay"] > 0:
            own["weight_decay"] = self.args.auxiliary_weight_decay
        rest = {**group, "params": [value for value in group["params"] if id(value) not in auxiliary]}
        return [part for part in (rest, own) if part["params"]]

    # ---- Train and evaluate ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._loss_parts, self._steps_in_loss_parts = {}, 0
        self.last_ablation_gap = None
        output = super().train(*args, **kwargs)
        sets = self.eval_dataset
        if isinstance(sets, dict) and {"forget", "retain"} <= set(sets):
            self.last_ablation_gap = self._gap_at_the_end()
            if self.last_ablation_gap is None:
                self.evaluate()  # the gap at the end is what counts
        self._warn_if_nothing_was_localised()
        return output

    def _gap_at_the_end(self) -> float | None:
        """The ablation gap that was measured after the last step, maybe by the run that this one continues."""
        entries = [entry for entry in self.state.log_history if entry.get("step") == self.state.global_step]
        return next((entry["eval_ablation_gap"] for entry in entries if "eval_ablation_gap" in entry), None)

    def logging_sums(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        sums, numbers = super().logging_sums()
        return {**sums, **self._loss_parts}, {**numbers, "steps_in_loss_parts": self._steps_in_loss_parts}

    def continue_logging_sums(self, sums: dict[str, Tensor], numbers: dict[str, float]) -> None:
        super().continue_logging_sums(sums, numbers)
        self._loss_parts = {name: value.to(self.args.device) for name, value in sums.items() if name != "loss"}
        self._steps_in_loss_parts = int(numbers["steps_in_loss_parts"])

    def story_metrics(self, dataloader: Any, prefix: str) -> dict[str, float]:
        with AuxiliaryActivationMeter(self.model) as meter:
            loss = self.dataset_loss(dataloader, on_batch=meter.set_mask)
        with self.model.ablated():
            ablated = self.dataset_loss(dataloader)
        self._auxiliary_means[prefix] = self._gathered_means(meter)
        return {f"{prefix}_loss": loss, f"{prefix}_loss_ablated": ablated}

    def _gathered_means(self, meter: AuxiliaryActivationMeter) -> dict[int, float]:
        if self.args.world_size == 1:
            return meter.means()
        # fp32: not every device has fp64
        return meter.means(
            lambda sums: self.accelerator.gather(sums.float().to(self.args.device).unsqueeze(0)).sum(0).cpu()
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `Trainer.evaluate`; with the sets `forget` and `retain` it adds the ablation gap and the selectivity."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        names = {kind: f"{metric_key_prefix}_{kind}" for kind in ("forget", "retain")}
        if not all(f"{name}_loss_ablated" in metrics for name in names.values()):
            return metrics
        derived: dict[str, float] = {}
        for kind, key in (("forget", "ablation_gap"), ("retain", "retain_ablation_gap")):
            loss = metrics[f"{names[kind]}_loss"]
            derived[f"{metric_key_prefix}_{key}"] = metrics[f"{names[kind]}_loss_ablated"] - loss
        ratios = selectivity(self._auxiliary_means[names["forget"]], self._auxiliary_means[names["retain"]])
        derived |= {f"{metric_key_prefix}_selectivity_layer_{layer}": ratio for layer, ratio in ratios.items() if ratio}
        self.last_ablation_gap = derived[f"{metric_key_prefix}_ablation_gap"]
        self.log(dict(derived))
        return metrics | derived

    def _warn_if_nothing_was_localised(self) -> None:
        gap = self.last_ablation_gap
        if gap is not None and gap < self.args.minimum_ablation_gap:
            text = nothing_localised_message(gap, self.args.minimum_ablation_gap)
            warnings.warn(text, LocalizationWarning, stacklevel=3)

    # ---- Save ----

    def save_contracted(self, output_dir: str | Path, **card: Any) -> Path:
        """Saves the contracted, stock model with tokenizer and card: what `push_to_hub` uploads. Returns the folder.

        A card (`README.md`) that is there already is left alone; `card` goes to the Trainer's own card otherwise. Every
        process must call this; the main one writes.
        """
        return save_contracted(self, Path(output_dir), card)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Uploads the *contracted* model; the auxiliary module never leaves the machine. Arguments as in `Trainer`."""
        options = {"commit_message": commit_message, "run_as_future": not blocking}
        return push_contracted(self, token, revision, private, kwargs, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: checkpoints hold the auxiliary module, and a hub repository would keep it in its history."""


def nothing_localised_message(gap: float, minimum: float) -> str:
    """The warning's text for an ablation gap (nats a token) under the threshold."""
    return (
        f"NOTHING WAS LOCALISED: ablating the auxiliary module changes the forget loss by {gap:+.3f} nats a token, less "
        f"than `minimum_ablation_gap` = {minimum}. Cutting it out will remove next to nothing. Check the routing table "
        "(are the forget words routed at all?), then try more steps, a higher learning rate, "
        "`routing.weighting: uniform`, or a lower multiplier of forget tokens in the original dims."
    )
