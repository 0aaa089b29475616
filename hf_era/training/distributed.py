"""The same batches, losses and files whether one process trains or several; one alone is not touched.

The rows of a global batch are those that one process with the whole batch would take, filled up with rows that count for
nothing (`hf_era.data.padding_rows`). A user's `dataloader_drop_last`, `dispatch_batches` or streaming data set is left to
accelerate.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from hf_era.data.padding_rows import PaddedSampler, StoriesWithPaddingRows

WHOLE_IN_EACH_PROCESS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""One process, or plain data parallelism: every one has all weights and gradients."""


def check_sharding(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Raises `ValueError` if FSDP was asked for and accelerate would run plain data parallelism instead."""
    asked_for = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked_for and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for (`distributed_type: FSDP` or `training.fsdp`), but on the device `{args.device.type}` "
            f"accelerate would run {accelerator.distributed_type.value} without a word: nothing would be sharded. Launch it "
            "on GPUs with `use_cpu: false`, or use `recipes/accelerate/cpu_ddp.yaml` on a CPU."
        )


def keep_dtypes_under_fsdp(accelerator: Accelerator) -> None:
    """accelerate's mixed precision for FSDP2 casts what goes into and comes out of the model and each block to bf16.
    Routing weights and losses must stay fp32 (a loss of 4.815 would be 4.8125); parameters and gradients are what was
    asked for."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and isinstance(policy, MixedPrecisionPolicy):
        outputs = None if policy.output_dtype == policy.param_dtype else policy.output_dtype
        plugin.mixed_precision_policy = replace(policy, cast_forward_inputs=False, output_dtype=outputs)


def fills_batches(dataset: Any, args: TrainingArguments, accelerator: Accelerator) -> bool:
    """Whether the last batch of a data set is filled up with padding rows."""
    if args.world_size <= 1 or isinstance(dataset, IterableDataset) or not has_length(dataset):
        return False
    left_alone = args.dataloader_drop_last or args.train_sampling_strategy == "batch_rebalance"
    return not (left_alone or accelerator.dataloader_config.dispatch_batches)


def filled_up(
    dataset: Any, sampler_of: Callable[[Any], Any] | None, batch_size: int, accelerator: Accelerator
) -> tuple[StoriesWithPaddingRows, Callable[[Any], PaddedSampler]]:
    """A data set with padding rows behind its examples, and what makes the sampler of it.

    Args:
        dataset: examples, without the columns that the model does not take.
        sampler_of (*optional*): makes the sampler of the data set itself. Not given: one example after the other.
        batch_size (`int`): rows of each process, or of all together where accelerate splits batches.
    """
    config = accelerator.dataloader_config
    multiple = batch_size * (1 if config.split_batches else accelerator.num_processes)

    def filled(stories: Any) -> PaddedSampler:
        sampler = sampler_of(dataset) if sampler_of is not None else None
        sampler = SequentialSampler(dataset) if sampler is None else sampler
        if isinstance(sampler, RandomSampler) and config.use_seedable_sampler:
            # As accelerate would, if it saw the sampler: the order depends on seed and epoch alone.
            sampler = SeedableRandomSampler(
                data_source=sampler.data_source, generator=sampler.generator, data_seed=config.data_seed
            )
        return PaddedSampler(sampler, multiple, len(stories))

    return StoriesWithPaddingRows(dataset), filled


def is_zero_3(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed has spread the parameters over the processes; its other stages leave them whole."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3
