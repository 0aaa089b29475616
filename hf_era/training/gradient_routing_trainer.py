"""`GradientRoutingTrainer`: a drop-in `Trainer` for expanded models.

trainer = GradientRoutingTrainer(
    "some/model",                                         # a path or hub id, or a model
    train_dataset=dataset,                                # text, and a column that says what is to be forgotten
    args=GradientRoutingConfig("out", label_column="topic", forget_labels=["chemistry"]),
)
trainer.train()
stock_model = trainer.model.contract()

Or with everything made by hand: an expanded model, a training set with `input_ids` and `routing_weight` (as
`add_routing_weights` makes it), and `eval_dataset={"forget": ..., "retain": ...}`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, set_seed

from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, selectivity
from hf_era.evaluation.summary import localised_lines, modules_together
from hf_era.models.adapters import trained_in_place
from hf_era.models.config import ExpansionConfig
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.loading import check_model_source, load_tokenizer
from hf_era.models.trainable import choose_trainable
from hf_era.training.causal_lm_trainer import CausalLMTrainer
from hf_era.training.checks import (
    check_fits_router,
    check_has_effect,
    check_is_routed,
    check_modules_arrive,
    check_modules_match,
    check_routing_weights_arrive,
)
from hf_era.training.config import FORGET_DATASET_NAME, RETAIN_DATASET_NAME, GradientRoutingConfig
from hf_era.training.evaluation_sets import check_names
from hf_era.training.publishing import MODEL_TAGS, push_contracted, save_contracted
from hf_era.training.raw_examples import expanded_model, prepare_for_trainer
from hf_era.training.zero_gradients import SkipZeroGradients


class LocalizationWarning(UserWarning):
    """Ablating the auxiliary module hardly changes the forget loss: the capability does not sit in it."""


class GradientRoutingTrainer(CausalLMTrainer):
    """Trains an expanded causal LM with gradient routing.

    Differs from `CausalLMTrainer` in the training step in three places: the loss has the L1 term that `args` ask for, the
    auxiliary modules have optimizer groups of their own, and the column `routing_weight` reaches the model, with
    `module_index` where there is one: which of the model's modules an example belongs to. It logs
    `language_model_loss` and `l1_loss` apart; with `eval_dataset={"forget": ..., "retain": ...}` it logs each loss with the
    module on (`eval_forget_loss`) and ablated (`eval_forget_loss_ablated`), `eval_ablation_gap` (ablated minus on, forget),
    `eval_retain_ablation_gap`, and `eval_selectivity_layer_N`. Other names of the two sets: `forget_dataset_name` and
    `retain_dataset_name` of the config. Of several modules, a set that is called after one is measured with that one alone
    ablated: `{"forget": ..., "retain": ..., "biology": ...}` also gives `eval_biology_ablation_gap`. The user's
    `compute_metrics` stands beside these, with the module on (`eval_forget_X`) and ablated (`eval_forget_X_ablated`).

    A model with LoRA adapters (peft) trains these and its auxiliary modules, and the adapters are merged into all that is
    saved but the checkpoints of the training. Of a `PeftModel` the model inside is trained, whose adapters are the same:
    `trainer.model` is that.

    Args:
        model: an expanded causal LM, for instance an `ExpandedGPTNeoForCausalLM`; or the path or hub id of a stock one (or
            of an expanded one), which is loaded in fp32 and expanded as `expansion` says, and so is a stock model if there
            is an `expansion`.
        args (`GradientRoutingConfig`, *optional*): the settings.
        train_dataset: `input_ids` and `routing_weight`; or text, which is labelled by what `args` say, tokenised and weighed
            (`hf_era.training.raw_examples`). `trainer.data_summary` then has the counts.
        eval_dataset (*optional*): sets by name, or one set of text that is labelled in the same way. Not given with a
            training set of text: some of its examples are taken out.
        expansion (`ExpansionConfig`, *optional*): in place of `args.expansion`.
        processing_class (*optional*): not given for a model by its path or id: the tokenizer that is there.
        kwargs: everything that `Trainer` takes.

    Raises:
        ValueError: if the model is not expanded; if `train_dataset` has no column `routing_weight`, or, at the first batch,
            if none reaches the model, whatever the data set and the collator are; if the config names an evaluation set
            that is not there; and as `CausalLMTrainer` does.

    Warns: `EvaluationSetWarning` if one of several evaluation sets is neither called the forget nor the retain set.
    """

    config_class = GradientRoutingConfig
    extra_columns = ("routing_weight", "is_unassigned", "module_index")  # a wrapper of the model hides them
    settings_of_optimizer = (
        *CausalLMTrainer.settings_of_optimizer, "auxiliary_learning_rate_factor", "auxiliary_weight_decay",
    )  # fmt: skip
    more_against_divergence = ", milder multipliers of forget tokens"
    logs_loss_parts = True
    args: GradientRoutingConfig
    model: Any

    def __init__(
        self,
        model: Any = None,
        args: GradientRoutingConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        expansion: ExpansionConfig | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else self.config_class()
        self.base_name = model if isinstance(model, str | os.PathLike) else None
        self.data_summary: dict[str, Any] = {}
        if isinstance(args, self.config_class):  # of another class it is refused below
            if self.base_name is not None and processing_class is None:
                check_model_source("model", self.base_name)  # a folder without a model has no tokenizer either
                processing_class = load_tokenizer(self.base_name, "model")
            if self.base_name is not None or expansion or args.expansion:
                set_seed(args.seed)  # of the auxiliary modules; the Trainer does it after it was given a model
            model = expanded_model(model, expansion or args.expansion)
            self._choose_trainable(model, args)
            data = prepare_for_trainer(args, train_dataset, eval_dataset, processing_class, model)
            train_dataset, eval_dataset, self.data_summary = data
        kwargs |= {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processing_class}
        check_modules_match(train_dataset, getattr(model, "module_names", None))
        if isinstance(args, self.config_class):
            check_fits_router(train_dataset, args.token_router)
        super().__init__(model=model, args=args, l1_coefficient=getattr(args, "l1_coefficient", 0.0), **kwargs)
        self._set_up_model(self.model)
        if self.args.leaves_zero_gradients_out:
            self._check_gradients_are_there()
            self.add_callback(SkipZeroGradients())
        self._check_launch_and_columns()
        check_names(
            self.eval_dataset,
            forget=(self.args.forget_dataset_name, FORGET_DATASET_NAME),
            retain=(self.args.retain_dataset_name, RETAIN_DATASET_NAME),
        )
        self._made_optimizer = False
        self._auxiliary_means: dict[str, dict[int, float]] = {}
        self._evaluation_prefix = "eval"
        self.last_ablation_gap: float | None = None

    def check_model(self) -> None:
        if not isinstance(self.model, ExpandedCausalLMMixin):
            raise ValueError(
                f"`model` should be an expanded model, got {type(self.model).__name__}. Expand it first: "
                "`hf_era.expand_base(model, ExpansionConfig(...))`."
            )
        if not self.model.module_names:
            raise ValueError(
                "`model` has no auxiliary module (`modules: []`), so nothing is routed. Attach one with "
                "`model.attach_module(folder)`, or expand the stock model with an `ExpansionConfig` that has modules."
            )

    @staticmethod
    def _choose_trainable(model: Any, args: GradientRoutingConfig) -> None:
        model = trained_in_place(model)
        if isinstance(model, ExpandedCausalLMMixin) and (args.trainable or args.lora_settings):
            set_seed(args.seed)  # of the adapters
            choose_trainable(model, args.trainable, args.lora_settings)

    def _set_up_model(self, model: Any) -> None:
        model.router = self.args.token_router
        model.add_model_tags(MODEL_TAGS)

    def call_model_init(self, trial: Any = None) -> Any:
        """`model_init` is called again by `train`: that model needs the router too."""
        model = super().call_model_init(trial)
        if isinstance(model, ExpandedCausalLMMixin):
            self._choose_trainable(model, self.args)
            self._set_up_model(model)
        return model

    def _check_launch_and_columns(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs are visible to one process, and the Trainer would use torch's DataParallel, which "
                "routing was never tried with. Start one process per GPU with `accelerate launch`, or set "
                "CUDA_VISIBLE_DEVICES=0."
            )
        check_routing_weights_arrive(self.train_dataset, self.data_collator)

    def _check_gradients_are_there(self) -> None:
        if self.is_deepspeed_enabled:
            raise ValueError(
                f"`training.skip_zero_gradients` (the router `{self.args.token_router.name}` asks for it, if you do not) "
                "looks at gradients, which DeepSpeed keeps to itself. Launch without it, or set "
                "`training.skip_zero_gradients: false`."
            )

    # ---- Loss ----

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As `CausalLMTrainer.compute_loss`; refuses a training batch without routing weights, or that lost the modules.
        What is predicted for metrics is not routed: a router would switch modules by what the examples are."""
        if not model.training:
            inputs = {name: value for name, value in inputs.items() if name not in self.extra_columns}
        else:
            check_is_routed(inputs, self.data_collator)
            check_modules_arrive(inputs, self.train_dataset, self.data_collator)
            if self.args.token_router.is_random and "routing_seed" not in inputs:
                # Of the step and not of the micro-batch: however it is cut, an example is drawn for alike.
                seed = torch.tensor(self.args.seed * 1_000_003 + self.state.global_step)
                inputs = {**inputs, "routing_seed": seed}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    # ---- Optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, its groups split so that the auxiliary modules have their own.

        A module has no gradient from examples of another one, and AdamW moves it all the same in a batch without any of its
        own: by the momentum of earlier batches, and by weight decay, unless `skip_zero_gradients`.
        """
        existed = self.optimizer is not None
        if existed and not self._made_optimizer:  # assigned after the constructor had looked
            check_has_effect(self.args, self.settings_of_optimizer, "an optimizer")
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if not existed:
            self._made_optimizer = True
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
        self.last_ablation_gap = None
        output = super().train(*args, **kwargs)
        if isinstance(self.eval_dataset, dict) and self.args.forget_dataset_name in self.eval_dataset:
            self.last_ablation_gap = self.metrics_of_the_weights().get("eval_ablation_gap")
            if self.last_ablation_gap is None:
                self.evaluate()  # the gap at the end is what counts
        if self.last_ablation_gap is not None and self.is_world_process_zero():
            names, minimum = self.model.module_names, self.args.minimum_ablation_gap
            print(*localised_lines(self.metrics_of_the_weights(), minimum, modules=names), sep="\n")
        self._warn_if_nothing_was_localised()
        return output

    def metrics_of_the_weights(self) -> dict[str, float]:
        """What was measured of the weights that training ended with, the last or the best ones, as the log has it; maybe by
        the run that this one continues. Empty if nothing was."""
        step, best = self.state.global_step, self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            step = int(Path(best).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
        entries = [entry for entry in self.state.log_history if entry.get("step") == step]
        return {name: value for entry in entries for name, value in entry.items() if name.startswith("eval_")}

    def story_metrics(self, dataloader: Any, prefix: str) -> dict[str, float | None]:
        with AuxiliaryActivationMeter(self.model) as meter:
            loss = self.dataset_loss(dataloader, on_batch=meter.set_mask)
        with self._ablated(prefix):
            ablated = self.dataset_loss(dataloader)
        self._auxiliary_means[prefix] = self._gathered_means(meter)
        return {f"{prefix}_loss": loss, f"{prefix}_loss_ablated": ablated}

    def predictions(
        self, dataloader: Any, description: str, ignore_keys: list[str] | None, prefix: str
    ) -> EvalLoopOutput:
        """With all modules on; the user's metrics also with them ablated, under names that end in `_ablated`."""
        ablated: dict[str, float] = {}
        if self.compute_metrics is not None:
            with self._ablated(prefix):
                metrics = super().predictions(dataloader, description, ignore_keys, prefix).metrics or {}
            ablated = {f"{name}_ablated": value for name, value in metrics.items()}
        output = super().predictions(dataloader, description, ignore_keys, prefix)
        return output._replace(metrics={**(output.metrics or {}), **ablated})

    def _ablated(self, prefix: str) -> Any:
        """The context in which the set of this prefix is measured ablated: without all modules, or the one it is called
        after."""
        module = prefix.removeprefix(f"{self._evaluation_prefix}_")
        return self.model.ablated(*([module] if module in self._modules_with_a_set_of_their_own else []))

    @property
    def _modules_with_a_set_of_their_own(self) -> list[str]:
        """Of several modules, those that an evaluation set can be called after."""
        names, others = self.model.module_names, (self.args.forget_dataset_name, self.args.retain_dataset_name)
        return [name for name in names if name not in others] if len(names) > 1 else []

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
        """As `CausalLMTrainer.evaluate`, with each loss and each of the user's metrics ablated too; and with a forget and a
        retain set (`forget_dataset_name`, `retain_dataset_name`) the ablation gaps and the selectivity; with a set that is
        called after one of several modules the ablation gap of that one."""
        self._evaluation_prefix = metric_key_prefix
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self.last_ablation_gap = metrics.get(f"{metric_key_prefix}_ablation_gap", self.last_ablation_gap)
        return metrics

    def derived_metrics(self, metrics: dict[str, float], prefix: str) -> dict[str, float]:
        own = {self.args.forget_dataset_name: "ablation_gap", self.args.retain_dataset_name: "retain_ablation_gap"}
        gaps = own | {name: f"{name}_ablation_gap" for name in self._modules_with_a_set_of_their_own}
        found = {
            f"{prefix}_{key}": metrics[f"{prefix}_{name}_loss_ablated"] - metrics[f"{prefix}_{name}_loss"]
            for name, key in gaps.items()
            if f"{prefix}_{name}_loss" in metrics
        }
        if all(f"{prefix}_{name}_loss" in metrics for name in own):
            ratios = selectivity(*(self._auxiliary_means[f"{prefix}_{name}"] for name in own))
            named = {f"{prefix}_selectivity_layer_{layer}": ratio for layer, ratio in ratios.items()}
            found |= {name: ratio for name, ratio in named.items() if ratio is not None}
        return found

    def _warn_if_nothing_was_localised(self) -> None:
        gap = self.last_ablation_gap
        if gap is not None and gap < self.args.minimum_ablation_gap:
            text = nothing_localised_message(gap, self.args.minimum_ablation_gap, self.model.module_names)
            warnings.warn(text, LocalizationWarning, stacklevel=3)

    # ---- Save ----

    def save_contracted(self, output_dir: str | Path, **card: Any) -> Path:
        """Saves the contracted, stock model with tokenizer and card: what `push_to_hub` uploads. Returns the folder.

        The card (`README.md`) says what was forgotten and what ablation did, from the data and the last evaluation of this
        trainer. One that somebody else wrote or changed is left alone. Every process must call this; the main one writes.

        Args:
            output_dir (`str` or `Path`): the folder.
            card (*optional*): `repository`, `license` and `language` of the card: see `render_model_card`.
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


def nothing_localised_message(gap: float, minimum: float, modules: Sequence[str] = ()) -> str:
    """The warning's text for an ablation gap (nats a token) under the threshold."""
    return (
        f"NOTHING WAS LOCALISED: ablating {modules_together(modules)} changes the forget loss by {gap:+.3f} nats a token, "
        f"less than `minimum_ablation_gap` = {minimum}. Cutting it out will remove next to nothing. Check the routing table "
        "(are the forget words routed at all?), then try more steps, a higher learning rate, "
        "`routing.weighting: uniform`, or a lower `multipliers.original_forget`."
    )
