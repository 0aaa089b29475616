"""A `Trainer` for any causal LM: token-weighted evaluation, a stop at the first non-finite loss, one process or several.

The base, the base control and coherence fine-tuning use it as it is; `GradientRoutingTrainer` adds the routing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import logging

from hf_era.data import RoutingCollator, longest_first, padding_token_id
from hf_era.data.padding_rows import PADDING_ROW_MARK, PaddingRowCollator
from hf_era.evaluation.losses import story_losses
from hf_era.models import FastPaths
from hf_era.models.adapters import trained_in_place, without_adapters
from hf_era.models.fast.precision import EMULATED_BF16_MESSAGE, cpu_has_bf16_units
from hf_era.models.whole_weights import is_sharded, whole_model, whole_weights
from hf_era.training.checkpointing_trainer import CheckpointingTrainer
from hf_era.training.config import CausalLMTrainingConfig
from hf_era.training.distributed import check_sharding, filled_up, fills_batches, is_zero_3, keep_dtypes_under_fsdp

logger = logging.get_logger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss or a weight became NaN or infinite. The last checkpoint on disk is from before."""


class CausalLMTrainer(CheckpointingTrainer):
    """`Trainer` for causal LMs whose evaluation loss is the mean over tokens, whatever the batches.

    Of a `PeftModel` the model inside is trained, which has the adapters in it: checkpoints are whole, and training goes on
    from them. One process, DDP and FSDP2 train alike, and what they save is the same: see `hf_era.training.distributed`.

    A subclass with a loss of its own divides the sum over a batch by the `num_items_in_batch` that `compute_loss` is given
    (tokens of the whole accumulated batch), and names the columns that it wants beside the model's in `extra_columns`.

    Args:
        args (`CausalLMTrainingConfig`): `TrainingArguments` and ours.
        data_collator (*optional*): not given: a `RoutingCollator` with the padding id of `processing_class`, which refuses
            ids that the model's vocabulary does not have.
        kwargs: everything that `Trainer` takes.

    Raises:
        ValueError: for `args` of another class, or if FSDP was asked for where nothing would be sharded.
    """

    config_class: ClassVar[type[CausalLMTrainingConfig]] = CausalLMTrainingConfig
    args: CausalLMTrainingConfig
    more_against_divergence: ClassVar[str] = ""
    extra_columns: ClassVar[tuple[str, ...]] = ()
    # The loss is a sum over tokens divided by the token count of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(self, model: Any = None, args: CausalLMTrainingConfig | None = None, **kwargs: Any) -> None:
        args = args if args is not None else self.config_class()
        if not isinstance(args, self.config_class):
            raise ValueError(f"`args` should be a {self.config_class.__name__}, got {type(args).__name__}.")
        if kwargs.get("data_collator") is None:
            tokenizer = kwargs.get("processing_class")
            pad = padding_token_id(tokenizer) if tokenizer is not None else 0
            kwargs["data_collator"] = RoutingCollator(pad, vocabulary_size=_vocabulary_size(model))
        model = trained_in_place(model)
        before = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(model=model, args=args, **kwargs)
        if before is not None:  # the Trainer writes its own setting there, where it would be saved with the model
            self.model.config.use_cache = before  # type: ignore[union-attr]
        check_sharding(self.args, self.accelerator)
        keep_dtypes_under_fsdp(self.accelerator)
        if self.args.world_size > 1:
            collator: Any = self.data_collator
            self.data_collator = PaddingRowCollator(collator)
        self._set_fast_paths(self.model)
        if self.args.bf16 and self.args.device.type == "cpu" and not cpu_has_bf16_units():
            logger.warning_once(EMULATED_BF16_MESSAGE)
        self._last_loss: Tensor | None = None

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
        self._set_fast_paths(model)
        return model

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.weight_decay_on_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    # ---- Batches ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns.extend({PADDING_ROW_MARK, *self.extra_columns}.difference(columns))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= max(self.args.world_size, 1)  # of all processes, as one process would group them
            seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
            return EpochSeededSampler(sampler, seed)
        return sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As the Trainer's, the longest stories first: sums do not depend on the order, and there is less padding."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen  # type: ignore[index]
        order_is_free = self.compute_metrics is None and not self.args.dataloader_persistent_workers
        if order_is_free and isinstance(chosen, Dataset) and "length" in chosen.column_names:
            eval_dataset = longest_first(chosen)
        return super().get_eval_dataloader(eval_dataset)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if fills_batches(dataset, self.args, self.accelerator):
            if isinstance(dataset, Dataset):
                dataset = self._remove_unused_columns(dataset, description=description)
            dataset, sampler_fn = filled_up(dataset, sampler_fn, batch_size, self.accelerator)
        loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, *args, **kwargs)
        if not kwargs.get("is_training"):
            # The accelerator keeps every loader that it prepares, with its view of the data set, and each evaluation would
            # leave one behind. Only its `save_state`, which the Trainer does not use, asks for them again.
            prepared = self.accelerator._dataloaders
            prepared[:] = [one for one in prepared if one is not loader]
        return loader

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """As the Trainer's; keys and values are kept as `use_cache` of the arguments says, and not as the model's does."""
        stack = super().compute_loss_context_manager()
        config: Any = getattr(self.model, "config", None)
        if hasattr(config, "use_cache"):
            stack.callback(setattr, config, "use_cache", config.use_cache)
            config.use_cache = self.args.use_cache
        return stack

    # ---- Training, and non-finite losses ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._last_loss = None
        output = super().train(*args, **kwargs)
        self._check_last_loss()
        return output

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self.args.device.type != "cpu":
            self._check_last_loss()  # by now it is there: looking at the newest would make the host wait for the device
        self._last_loss = loss = super().training_step(model, inputs, num_items_in_batch)
        if self.args.device.type == "cpu":
            self._check_last_loss()
        return loss

    def _check_last_loss(self) -> None:
        loss, self._last_loss = self._last_loss, None
        if loss is not None and not torch.isfinite(loss):
            raise NonFiniteLossError(self._non_finite_message(f"The loss became {float(loss)}"))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A finite loss can have non-finite gradients: the broken weights show only at the next step.
        broken = next((name for name, value in model.named_parameters() if not torch.isfinite(value).all()), None)
        if broken is not None:
            raise NonFiniteLossError(self._non_finite_message(f"The weight {broken} became non-finite"))
        super()._save_checkpoint(model, trial)

    def _non_finite_message(self, what: str) -> str:
        return (
            f"{what} at step {self.state.global_step + 1} of {self.state.max_steps}. Training stopped; checkpoints under "
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

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        if self.compute_metrics is not None or description == "Prediction":
            return super().evaluation_loop(dataloader, description, *args, **kwargs)
        metrics = self.story_metrics(dataloader, kwargs.get("metric_key_prefix", "eval"))
        sized = has_length(dataloader)
        count = self.num_examples(dataloader) if sized else 0
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)  # type: ignore[arg-type]

    def story_metrics(self, dataloader: Any, prefix: str) -> dict[str, float]:
        """The metrics of one evaluation set; keys start with `prefix`."""
        return {f"{prefix}_loss": self.dataset_loss(dataloader)}

    def dataset_loss(self, dataloader: Any, **options: Any) -> float:
        """Token-weighted loss over a data loader, over all processes."""
        losses = story_losses(
            self.model,
            dataloader,
            device=self.args.device,
            autocast=self.evaluation_context,
            gather=self.accelerator.gather_for_metrics if self.args.world_size > 1 else None,
            **options,
        )
        return float(losses.nll.sum() / losses.tokens.sum().clamp(min=1))

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
                whole_model(model, weights).save_pretrained(folder)
        elif self.is_world_process_zero():
            without_adapters(model).save_pretrained(folder)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; a sharded model is gathered by us, for its own `save_pretrained` would meet its shards."""
        model: Any = self.model
        if not is_sharded(model):
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(str(self.args.output_dir if output_dir is None else output_dir))
        self.save_whole_model(folder)
        if self.args.should_save and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)


def _vocabulary_size(model: Any) -> int | None:
    """How many ids a model has embeddings of; None where there is no model yet, or it does not say."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return getattr(embeddings, "num_embeddings", None)


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
