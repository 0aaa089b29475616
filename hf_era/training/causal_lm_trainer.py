"""A `Trainer` for any causal LM: token-weighted evaluation, a stop at the first non-finite loss, one process or several.

The base, the base control and coherence fine-tuning use it as it is; `GradientRoutingTrainer` adds the routing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import logging

from hf_era.data import RoutingCollator, longest_first, padding_token_id
from hf_era.data.collator import IGNORE_INDEX, LABEL_MASKS, PACKING_INPUTS
from hf_era.data.padding_rows import PADDING_ROW_MARK, PaddingRowCollator
from hf_era.evaluation.intervals import ratio_estimate
from hf_era.evaluation.losses import story_losses
from hf_era.models import FastPaths
from hf_era.models.adapters import has_adapters, trained_in_place, without_adapters
from hf_era.models.fast.precision import EMULATED_BF16_MESSAGE, cpu_has_bf16_units
from hf_era.models.generation_config import make_generation_config_savable
from hf_era.models.trainable import keep_input_gradients_off
from hf_era.models.whole_weights import is_sharded, whole_model, whole_weights
from hf_era.training.checkpointing_trainer import CheckpointingTrainer
from hf_era.training.checks import (
    check_columns_are_used,
    check_has_effect,
    check_is_one_data_set,
    check_special_tokens_are_known,
    warn_of_half_precision,
)
from hf_era.training.config import CausalLMTrainingConfig
from hf_era.training.distributed import (
    WHOLE_IN_EACH_PROCESS,
    check_sharding,
    filled_up,
    fills_batches,
    is_zero_3,
    keep_dtypes_under_fsdp,
)
from hf_era.training.evaluation_sets import (
    check_something_to_predict,
    named_sets,
    no_event,
    tell_of_nothing_measured,
)
from hf_era.training.finite_losses import LossesToCheck, NonFiniteLossError
from hf_era.training.label_smoothing import CausalLabelSmoother

logger = logging.get_logger(__name__)


class CausalLMTrainer(CheckpointingTrainer):
    """`Trainer` for causal LMs whose evaluation loss is the mean over tokens, whatever the batches.

    Of a `PeftModel` the model inside is trained, which has the adapters in it: checkpoints are whole, and training goes on
    from them. One process, DDP and FSDP2 train alike, and what they save is the same: see `hf_era.training.distributed`.

    A subclass with a loss of its own divides the sum over a batch by the `num_items_in_batch` that `compute_loss` is given
    (tokens of the whole accumulated batch), and names the columns that it wants beside the model's in `extra_columns`.

    Args:
        args (`CausalLMTrainingConfig`): `TrainingArguments` and ours.
        l1_coefficient (`float`, *optional*, defaults to `0.0`): adds coefficient * (sum of |activation| over measured layers
            and real tokens) / (real tokens of the whole accumulated batch) to the loss. The model reports that sum: an
            expanded one, or a stock one after `hf_era.models.measured.measure_activations`.
        data_collator (*optional*): not given: a `RoutingCollator` with the padding id of `processing_class`, which refuses
            ids that the model's vocabulary does not have.
        kwargs: everything that `Trainer` takes.

    Raises:
        ValueError: for `args` of another class; a `train_dataset` that is a dict of splits; a column that the model takes
            and the collator does not know (`position_ids`); a special token that the model has no embedding for;
            settings of ours that an optimizer or schedule given in `optimizers` makes void (those of transformers are void
            then, as in the `Trainer`); an L1 term where the model measures nothing; adapters on tied weights, or on a model
            that is sharded; or if FSDP was asked for where nothing would be sharded.

    Warns: if the weights that `train_dataset` is to train are bf16 or fp16.
    """

    config_class: ClassVar[type[CausalLMTrainingConfig]] = CausalLMTrainingConfig
    collator_class: ClassVar[type[RoutingCollator]] = RoutingCollator
    args: CausalLMTrainingConfig
    more_against_divergence: ClassVar[str] = ""
    extra_columns: ClassVar[tuple[str, ...]] = ()
    settings_of_optimizer: ClassVar[tuple[str, ...]] = ("weight_decay_on_all_parameters",)
    # Where there is no L1 term; where there is one, the parts of the loss are always logged.
    logs_loss_parts: ClassVar[bool] = False
    # The loss is a sum over tokens divided by the token count of the whole accumulated batch.
    loss_is_scaled_for_ga: bool | None = True

    def __init__(
        self,
        model: Any = None,
        args: CausalLMTrainingConfig | None = None,
        *,
        l1_coefficient: float = 0.0,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else self.config_class()
        if not isinstance(args, self.config_class):
            raise ValueError(f"`args` should be a {self.config_class.__name__}, got {type(args).__name__}.")
        tokenizer = kwargs.get("processing_class")
        if tokenizer is not None:
            check_special_tokens_are_known(tokenizer, _vocabulary_size(model))
        if kwargs.get("data_collator") is None:
            pad = padding_token_id(tokenizer) if tokenizer is not None else 0
            kwargs["data_collator"] = self.collator_class(
                pad, args.pad_to_multiple_of, _vocabulary_size(model), positions_of(model)
            )
        else:
            check_has_effect(args, ["pad_to_multiple_of"], "a data collator")
        check_is_one_data_set(kwargs.get("train_dataset"))
        optimizer, schedule = kwargs.get("optimizers") or (None, None)
        if optimizer is not None:
            check_has_effect(args, self.settings_of_optimizer, "an optimizer")
        if schedule is not None:
            check_has_effect(args, ["minimum_learning_rate_ratio"], "a learning-rate schedule")
        model = trained_in_place(model)
        before = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(model=model, args=args, **kwargs)
        if before is not None:  # the Trainer writes its own setting there, where it would be saved with the model
            self.model.config.use_cache = before  # type: ignore[union-attr]
        self._decide_for_causal_lms()
        if not self.model_accepts_loss_kwargs:  # a mean over each batch: the Trainer divides it
            self.loss_is_scaled_for_ga = None
        self._check_what_is_trained()
        check_sharding(self.args, self.accelerator)
        keep_dtypes_under_fsdp(self.accelerator)
        if self.args.world_size > 1:
            collator: Any = self.data_collator
            self.data_collator = PaddingRowCollator(collator)
        self._set_fast_paths(self.model)
        self.add_callback(_FrozenLayersGetNoGradient())
        if self.args.bf16 and self.args.device.type == "cpu" and not cpu_has_bf16_units():
            logger.warning_once(EMULATED_BF16_MESSAGE)
        self._losses_to_check = LossesToCheck()
        self.l1_coefficient = l1_coefficient
        self.check_model()
        self._real_tokens: Tensor | int = 1
        self._loss_parts: dict[str, Tensor] = {}
        self._steps_in_loss_parts = 0

    def check_model(self) -> None:
        """Raises `ValueError` for a model that it cannot train."""
        if self.l1_coefficient > 0 and not hasattr(self.model, "routing_channel"):
            raise ValueError(
                f"`l1_coefficient` is {self.l1_coefficient}, but no layer of the {type(self.model).__name__} measures its "
                "activations. Expand the model, or call `hf_era.models.measured.measure_activations` on it."
            )

    def _decide_for_causal_lms(self) -> None:
        """What transformers decides by the name of the model's class, which of ours and of a user's it does not know."""
        self._loss_shifts_labels = True  # in the count of labels
        if self.label_smoother is not None:
            self.label_smoother = CausalLabelSmoother(self.args.label_smoothing_factor)  # type: ignore[assignment]

    def _check_what_is_trained(self) -> None:
        if has_adapters(self.model) and (self.is_fsdp_enabled or is_zero_3(self.accelerator)):
            raise ValueError(
                "`model` has adapters (peft), and they cannot be merged into a model that is sharded by FSDP or ZeRO 3. "
                "Launch with `recipes/accelerate/cpu_ddp.yaml` or another config without sharding, or train it whole."
            )
        self._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        check_columns_are_used(self.train_dataset, self.eval_dataset, self.data_collator, columns)
        if self.train_dataset is not None and not self.is_deepspeed_enabled:  # which has weights in fp32 of its own
            model: Any = self.model
            warn_of_half_precision(model, self.args.learning_rate)

    def _set_fast_paths(self, model: Any) -> None:
        """The switches of `CausalLMTrainingConfig`, for a model that has fast paths."""
        if hasattr(model, "set_fast_paths"):
            paths = FastPaths(fused_activation=self.args.fused_activation, chunked_loss=self.args.chunked_loss)
            model.set_fast_paths(paths)
            if self.args.attn_implementation is not None:
                model.set_attn_implementation(self.args.attn_implementation)  # type: ignore[attr-defined]

    def call_model_init(self, trial: Any = None) -> Any:
        """`model_init` is called again by `train`: that model needs the settings too."""
        model = trained_in_place(super().call_model_init(trial))
        make_generation_config_savable(model)
        self._set_fast_paths(model)
        return model

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the Trainer's; what bitsandbytes remembers of an optimizer before is forgotten."""
        manager = getattr(sys.modules.get("bitsandbytes.optim"), "GlobalOptimManager", None)
        if self.optimizer is None and manager is not None:
            # It keeps by place which parameter is to have fp32 states: of a training before in this process, that place is
            # another parameter's now. A continued run would not have it, and go on otherwise.
            manager.get_instance().initialize()
        return super().create_optimizer() if model is None else super().create_optimizer(model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.weight_decay_on_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    # ---- Batches ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns.extend({PADDING_ROW_MARK, *self.extra_columns, *PACKING_INPUTS, *LABEL_MASKS}.difference(columns))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= max(self.args.world_size, 1)  # of all processes, as one process would group them
            seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
            return EpochSeededSampler(sampler, seed)
        return sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As the Trainer's, the longest examples first: sums do not depend on the order, and there is less padding."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen  # type: ignore[index]
        order_is_free = self.compute_metrics is None and not self.args.dataloader_persistent_workers
        if order_is_free and isinstance(chosen, Dataset) and "length" in chosen.column_names:
            eval_dataset = longest_first(chosen)
        return super().get_eval_dataloader(eval_dataset)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        drop_last, is_training = self.args.dataloader_drop_last, bool(kwargs.get("is_training"))
        self.args.dataloader_drop_last = drop_last and is_training  # no example is left out of what is measured
        try:
            if fills_batches(dataset, self.args, self.accelerator):
                if isinstance(dataset, Dataset):
                    dataset = self._remove_unused_columns(dataset, description=description)
                dataset, sampler_fn = filled_up(dataset, sampler_fn, batch_size, self.accelerator)
            loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, *args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        if not is_training:
            # The accelerator keeps every loader that it prepares, with its view of the data set, and each evaluation would
            # leave one behind. Only its `save_state`, which the Trainer does not use, asks for them again.
            prepared = self.accelerator._dataloaders
            prepared[:] = [one for one in prepared if one is not loader]
        return loader

    # ---- Loss, and its parts in the logs ----

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list, Any]:
        """Also counts the real tokens of the whole accumulated batch: the denominator of the L1 term."""
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if num_items_in_batch is not None:
            # Without a label (one token, a masked example) the loss is 0, and not 0 / 0.
            num_items_in_batch = num_items_in_batch.clamp(min=1)
        self._steps_in_loss_parts += 1
        if self.l1_coefficient > 0 and batches:
            counts = [batch["attention_mask"].sum() for batch in batches if "attention_mask" in batch]
            counts += [torch.tensor(batch["input_ids"].numel()) for batch in batches if "attention_mask" not in batch]
            total = torch.stack(counts).sum().to(device)
            over_processes = self.args.world_size > 1 and self.args.average_tokens_across_devices
            # At least 1: a process may have nothing but padding rows.
            self._real_tokens = (self.accelerator.gather(total).sum() if over_processes else total).clamp(min=1)
        return batches, num_items_in_batch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Language-model loss plus L1 term, both normalised over the whole accumulated batch."""
        measure_l1 = self.l1_coefficient > 0 and model.training
        if measure_l1:
            inputs = {**inputs, "output_activation_l1": True}
        if model.training and self._loss_is_of_nothing(inputs.get("labels")):
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
            language_model_loss = (0.0 * logits).sum()
        else:
            language_model_loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = language_model_loss
        if measure_l1:
            # Like the language-model loss, it is a global mean: scaled by the processes that gradients are averaged over.
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            l1_loss = self.l1_coefficient * outputs["activation_l1"] / self._real_tokens * processes
            loss = language_model_loss + l1_loss
            self._add_loss_part("l1_loss", l1_loss)
        if measure_l1 or (model.training and self.logs_loss_parts):
            self._add_loss_part("language_model_loss", language_model_loss)
        return (loss, outputs) if return_outputs else loss

    def _loss_is_of_nothing(self, labels: Tensor | None) -> bool:
        """Whether the model would divide 0 by 0: a batch without a label, whose number it is not told but counts itself."""
        if self.model_accepts_loss_kwargs or self.compute_loss_func is not None or labels is None:
            return False
        return not bool((labels[:, 1:] != IGNORE_INDEX).any())

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

    def logging_sums(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        sums, numbers = super().logging_sums()
        return {**sums, **self._loss_parts}, {**numbers, "steps_in_loss_parts": self._steps_in_loss_parts}

    def continue_logging_sums(self, sums: dict[str, Tensor], numbers: dict[str, float]) -> None:
        super().continue_logging_sums(sums, numbers)
        self._loss_parts = {name: value.to(self.args.device) for name, value in sums.items() if name != "loss"}
        # A stock model's checkpoint of an earlier version has no parts, and no number of them.
        self._steps_in_loss_parts = int(numbers.get("steps_in_loss_parts", 0))

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """As the Trainer's; keys and values are kept as `use_cache` of the arguments says, and not as the model's does; of
        batches that are padded on the right the model is told so."""
        stack = super().compute_loss_context_manager()
        model: Any = self.model
        config: Any = getattr(model, "config", None)
        if hasattr(model, "set_fast_paths") and self._pads_on_the_right():
            stack.callback(setattr, model, "fast_paths", model.fast_paths)
            model.fast_paths = replace(model.fast_paths, right_padding=True)
        if hasattr(config, "use_cache"):
            stack.callback(setattr, config, "use_cache", config.use_cache)
            config.use_cache = self.args.use_cache
        return stack

    def _pads_on_the_right(self) -> bool:
        """Whether all training batches come from a collator of ours, of examples without a mask of their own."""
        columns = getattr(self.train_dataset, "column_names", None)
        collator = getattr(self.data_collator, "collator", self.data_collator)  # within that of padding rows
        return (
            type(collator) in (RoutingCollator, self.collator_class)
            and columns is not None
            and "attention_mask" not in columns
        )

    # ---- Training, and non-finite losses ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._check_evaluation_sets()
        make_generation_config_savable(self.model)
        self._losses_to_check.clear()
        self._loss_parts, self._steps_in_loss_parts = {}, 0
        output = super().train(*args, **kwargs)
        self._check_losses()
        return output

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses_to_check.add(loss, self.state.global_step + 1)
        # On a GPU the one before: the host would wait for the newest, and launch the next step too late.
        self._check_losses(all_but=int(loss.is_cuda))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm that is logged. Without clipping, transformers has it from a clipping to infinity, which multiplies every
        gradient by 1 besides: a second pass over all of them in every step."""
        is_whole = self.accelerator.distributed_type in WHOLE_IN_EACH_PROCESS
        if grad_norm is not None or not is_whole or self.accelerator.scaler is not None:
            return super()._get_grad_norm(model, grad_norm=grad_norm)
        return nn.utils.get_total_norm([value.grad for value in model.parameters() if value.grad is not None])

    def _check_losses(self, all_but: int = 0) -> None:
        broken = self._losses_to_check.first_broken(all_but)
        if broken is not None:
            raise NonFiniteLossError(self._non_finite_message(f"The loss became {float(broken.loss)}", broken.step))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A finite loss can have non-finite gradients: the broken weights show only at the next step.
        broken = next((name for name, value in model.named_parameters() if not torch.isfinite(value).all()), None)
        if broken is not None:
            raise NonFiniteLossError(
                self._non_finite_message(f"The weight {broken} became non-finite", self.state.global_step + 1)
            )
        super()._save_checkpoint(model, trial)

    def _non_finite_message(self, what: str, step: int) -> str:
        return (
            f"{what} at step {step} of {self.state.max_steps}. Training stopped; checkpoints under "
            f"{self.args.output_dir} are from before and were kept. Try a lower `training.learning_rate` (now "
            f"{self.args.learning_rate}){self.more_against_divergence}, or `training.max_grad_norm: 1.0`."
        )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # What was not logged yet is one process's share; the Trainer gathers it for the logs but not here.
        loss = getattr(self, "_tr_loss", None)
        if self.args.world_size > 1 and isinstance(loss, Tensor):
            self._tr_loss = self.accelerator.gather(loss).mean()
        return super()._finalize_training(*args, **kwargs)

    # ---- Token-weighted evaluation ----

    def _check_evaluation_sets(self) -> None:
        """Before the first step: an evaluation that fails ends a training, and all since the last checkpoint is lost."""
        for name, stories in named_sets(self.eval_dataset).items():
            collate: Any = self.data_collator
            if isinstance(stories, Dataset):
                stories = self._remove_unused_columns(stories, description="Evaluation")
            else:
                collate = self._get_collator_with_removed_columns(collate, description="Evaluation")
            check_something_to_predict(name, stories, collate, self.args.per_device_eval_batch_size)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `Trainer.evaluate`, but callbacks are told of several sets once, with the metrics of all of them and those of
        `derived_metrics`: early stopping can watch any of these, as `metric_for_best_model` can.

        Raises:
            ValueError: if a set that has a length has no token to predict; a stream then has no loss, with a warning.
        """
        sets: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics: dict[str, float] = {}
        with no_event(self.callback_handler):
            for name, stories in sets.items():
                chosen: Any = name if eval_dataset is None else stories
                metrics |= super().evaluate(chosen, ignore_keys, f"{metric_key_prefix}_{name}")
        derived = self.derived_metrics(metrics, metric_key_prefix)
        if derived:
            self.log(dict(derived))
        metrics |= derived
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(metrics))
        return metrics

    def derived_metrics(self, metrics: dict[str, float], prefix: str) -> dict[str, float]:
        """What follows from the metrics of several evaluation sets together; keys start with `prefix`."""
        return {}

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The metrics of `story_metrics`, and with them what the user's `compute_metrics` makes of the predictions."""
        measured = self.story_metrics(dataloader, metric_key_prefix)
        metrics = {name: value for name, value in measured.items() if value is not None}
        sized, loss = has_length(dataloader), f"{metric_key_prefix}_loss"
        predicts = description == "Prediction"
        if loss not in metrics and not predicts:  # predictions are worth having without labels too
            tell_of_nothing_measured(loss, sized)
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        if loss_only or (self.compute_metrics is None and not predicts):
            count = self.num_examples(dataloader) if sized else 0
            return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)  # type: ignore[arg-type]
        output = self.predictions(dataloader, description, ignore_keys, metric_key_prefix)
        return output._replace(metrics={**(output.metrics or {}), **metrics})

    def predictions(
        self, dataloader: Any, description: str, ignore_keys: list[str] | None, prefix: str
    ) -> EvalLoopOutput:
        """The Trainer's own loop, for predictions and the user's metrics; without its loss, a mean of batch means."""
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, prefix)
        left_out = (f"{prefix}_loss", f"{prefix}_model_preparation_time")
        metrics = {name: value for name, value in (output.metrics or {}).items() if name not in left_out}
        return output._replace(metrics=metrics)

    def story_metrics(self, dataloader: Any, prefix: str) -> dict[str, float | None]:
        """The metrics of one evaluation set; keys start with `prefix`. None: there was nothing to measure it on."""
        return {f"{prefix}_loss": self.dataset_loss(dataloader)}

    def dataset_loss(self, dataloader: Any, **options: Any) -> float | None:
        """Token-weighted loss over a data loader, over all processes, nats a token; None if it has no token to predict."""
        losses = story_losses(
            self.model,
            dataloader,
            device=self.args.device,
            autocast=self.evaluation_context,
            gather=self.accelerator.gather_for_metrics if self.args.world_size > 1 else None,
            **options,
        )
        return ratio_estimate(losses.nll, losses.tokens, samples=0).value

    def evaluation_context(self) -> contextlib.ExitStack:
        """The context of a forward pass in evaluation."""
        stack = self.compute_loss_context_manager()
        model: Any = self.model
        if is_sharded(model):
            # What FSDP2 gathers here it uses again in training, and autograd refuses tensors of the inference mode.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        return stack

    # ---- Weights ----

    def full_state_dict(self) -> dict[str, Tensor]:
        """The trained model's state dict with whole tensors on the main process, and an empty dict on the others.

        In one process, under DDP, FSDP2 and DeepSpeed; every process must call it. Tensors that were sharded by FSDP2 are
        on the CPU. ZeRO 3 needs `stage3_gather_16bit_weights_on_model_save: true` in its config.
        """
        if is_zero_3(self.accelerator):
            return self.accelerator.get_state_dict(self.model_wrapped) or {}
        return whole_weights(self.accelerator.unwrap_model(self.model), keep=self.is_world_process_zero())

    def save_whole_model(self, folder: str | Path) -> None:
        """Saves the trained model, auxiliary modules included and adapters merged, as `save_pretrained` does in one process.

        Every process must call it, with the same folder; the main process writes, and the others return when it has.
        """
        model = self.accelerator.unwrap_model(self.model)
        if is_sharded(model) or is_zero_3(self.accelerator):
            weights = self.full_state_dict()
            if self.is_world_process_zero():
                # A checkpoint is put back by the names that the model has.
                whole_model(model, weights).save_pretrained(folder, save_original_format=self._staging is None)
        elif self.is_world_process_zero():
            without_adapters(model).save_pretrained(folder)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, adapters merged except in checkpoints; a sharded model is gathered by us, for its own
        `save_pretrained` would meet its shards."""
        model: Any = self.model
        is_merged = has_adapters(model) and self._staging is None
        if not is_sharded(model) and not is_merged:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(str(self.args.output_dir if output_dir is None else output_dir))
        self.save_whole_model(folder)
        if self.args.should_save and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)


class _FrozenLayersGetNoGradient(TrainerCallback):
    """After the Trainer has switched checkpointing on; see `keep_input_gradients_off`."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if args.gradient_checkpointing and isinstance(model, PreTrainedModel):
            is_reentrant = bool((args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
            keep_input_gradients_off(model, is_reentrant)


def _vocabulary_size(model: Any) -> int | None:
    """How many ids a model has embeddings of; None where there is no model yet, or it does not say."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return getattr(embeddings, "num_embeddings", None)


def positions_of(model: Any) -> int | None:
    """How many tokens a model takes at most; None where there is no model yet, or it does not say."""
    config = getattr(model, "config", None)
    return None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)


class EpochSeededSampler(Sampler[int]):
    """Seeds transformers' `LengthGroupedSampler` with seed plus epoch; it otherwise draws from the global random state."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)
