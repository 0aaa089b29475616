"""The same batches, losses and files whether one process trains or several."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from hf_era.data.padding_rows import PADDING_ROW_MARK, PaddedSampler, PaddingRowCollator, StoriesWithPaddingRows
from hf_era.models.whole_weights import is_sharded, whole_model, whole_weights
from hf_era.training.checkpointing_trainer import ContinuableTrainer


class DistributedTrainer(ContinuableTrainer):
    """A trainer whose several processes share the batches as one process would have them; one alone is not touched.

    The rows of a global batch are those that one process with the whole batch would take, filled up with rows that count
    for nothing (`hf_era.data.padding_rows`). A user's `dataloader_drop_last`, `dispatch_batches` or streaming data set is
    left to accelerate.
    """

    def check_sharding(self) -> None:
        """Raises `ValueError` if FSDP was asked for and accelerate would run plain data parallelism instead."""
        asked_for = bool(self.args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if asked_for and self.accelerator.distributed_type != DistributedType.FSDP:
            raise ValueError(
                f"FSDP was asked for (`distributed_type: FSDP` or `training.fsdp`), but on the device "
                f"`{self.args.device.type}` accelerate would run {self.accelerator.distributed_type.value} without a word: "
                "nothing would be sharded. Launch it on GPUs with `use_cpu: false`, or use "
                "`recipes/accelerate/cpu_ddp.yaml` on a CPU."
            )

    def set_up_processes(self) -> None:
        """Once, after the Trainer's own constructor."""
        self.check_sharding()
        self._keep_dtypes_under_fsdp()
        if self.args.world_size > 1:
            collator: Any = self.data_collator
            self.data_collator = PaddingRowCollator(collator)

    def _keep_dtypes_under_fsdp(self) -> None:
        """accelerate's mixed precision for FSDP2 casts what goes into and comes out of the model and each block to bf16.
        Routing weights and losses must stay fp32 (a loss of 4.815 would be 4.8125); parameters and gradients are what was
        asked for."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        policy = getattr(plugin, "mixed_precision_policy", None)
        if plugin is not None and isinstance(policy, MixedPrecisionPolicy):
            outputs = None if policy.output_dtype == policy.param_dtype else policy.output_dtype
            plugin.mixed_precision_policy = replace(policy, cast_forward_inputs=False, output_dtype=outputs)

    # ---- Batches ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if PADDING_ROW_MARK not in columns:
            columns.append(PADDING_ROW_MARK)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not self._fills_batches(dataset):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, *args, **kwargs)
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset, description=description)
        config = self.accelerator.dataloader_config
        multiple = batch_size * (1 if config.split_batches else self.args.world_size)

        def filled(stories: Any) -> Any:
            sampler = sampler_fn(dataset) if sampler_fn is not None else None
            sampler = SequentialSampler(dataset) if sampler is None else sampler
            if isinstance(sampler, RandomSampler) and config.use_seedable_sampler:
                # As accelerate would, if it saw the sampler: the order depends on seed and epoch alone.
                sampler = SeedableRandomSampler(
                    data_source=sampler.data_source, generator=sampler.generator, data_seed=config.data_seed
                )
            return PaddedSampler(sampler, multiple, len(stories))

        stories: Any = StoriesWithPaddingRows(dataset)
        return super()._get_dataloader(stories, description, batch_size, filled, *args, **kwargs)

    def _fills_batches(self, dataset: Any) -> bool:
        if self.args.world_size <= 1 or isinstance(dataset, IterableDataset) or not has_length(dataset):
            return False
        left_alone = self.args.dataloader_drop_last or self.args.train_sampling_strategy == "batch_rebalance"
        return not (left_alone or self.accelerator.dataloader_config.dispatch_batches)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= max(self.args.world_size, 1)  # of all processes, as one process would group them
        return sampler

    # ---- Sums over the processes ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self._first_step_since_continued and isinstance(model, DistributedDataParallel):
            self._lay_out_buckets(model, inputs, num_items_in_batch)
        self._first_step_since_continued = False
        return super().training_step(model, inputs, num_items_in_batch)

    def _lay_out_buckets(self, model: DistributedDataParallel, inputs: dict[str, Any], num_items: Any) -> None:
        """DDP puts its gradients into other buckets after the first backward pass, and where a gradient lies in a bucket
        says in which order three or more processes add it up. The run that was stopped had that behind it; a continued one
        does it here, with a pass that is thrown away, and so adds up in the same order from its first step on."""
        sums, synchronises = self.logging_sums(), model.require_backward_grad_sync
        device = self.args.device
        devices = [] if device.type == "cpu" else [device]
        model.require_backward_grad_sync = True  # else nothing is looked at while batches are accumulated
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items)
            self.accelerator.backward(loss)
        model.require_backward_grad_sync = synchronises
        model.zero_grad()
        self.continue_logging_sums(*sums)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # What was not logged yet is one process's share; the Trainer gathers it for the logs but not here.
        loss = getattr(self, "_tr_loss", None)
        if self.args.world_size > 1 and isinstance(loss, Tensor):
            self._tr_loss = self.accelerator.gather(loss).mean()
        return super()._finalize_training(*args, **kwargs)

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
        if self._is_zero_3:
            return self.accelerator.get_state_dict(self.model_wrapped) or {}
        return whole_weights(self.accelerator.unwrap_model(self.model), keep=self.is_world_process_zero())

    @property
    def _is_zero_3(self) -> bool:
        """Whether DeepSpeed has spread the parameters over the processes; its other stages leave them whole."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return plugin is not None and plugin.zero_stage == 3

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

    def save_whole_model(self, folder: str | Path) -> None:
        """Saves the trained model, auxiliary modules included, as `model.save_pretrained(folder)` does in one process.

        Every process must call it; the main process writes, and the others return when it has.

        Args:
            folder (`str` or path): where to; the same on all processes.
        """
        model = self.accelerator.unwrap_model(self.model)
        if is_sharded(model) or self._is_zero_3:
            weights = self.full_state_dict()
            if self.is_world_process_zero():
                whole_model(model, weights).save_pretrained(folder)
        elif self.is_world_process_zero():
            model.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
