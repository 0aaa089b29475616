"""Runs `hf-era run CONFIG` under FSDP2 on processes of a CPU. Started by a test, through a launcher.

accelerate knows no FSDP on a CPU, though torch does: while a trainer makes its accelerator, the state of the processes is
relabelled to that of a launch on GPUs, and accelerate's own FSDP2 preparation runs.
"""

import os
import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import Trainer

from hf_era import cli

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


class ShardedTrainings:
    """Makes every trainer's accelerator an FSDP2 one, and counts the trainings whose parameters were all sharded."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        create, prepare = Trainer.create_accelerator_and_postprocess, Trainer._prepare_for_training

        def create_sharding(trainer: Any) -> None:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
            create(trainer)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU

        def prepare_and_look(trainer: Any, *args: Any) -> Any:
            prepared = prepare(trainer, *args)
            assert all(isinstance(value, DTensor) for value in trainer.model.parameters())
            self.count += 1
            return prepared

        Trainer.create_accelerator_and_postprocess = create_sharding  # type: ignore[method-assign]
        Trainer._prepare_for_training = prepare_and_look  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.update(FSDP2)
    trainings = ShardedTrainings()
    trainings.install()
    status = cli.main(["run", sys.argv[1]])
    print(f"sharded trainings: {trainings.count}", file=sys.stderr)
    sys.exit(status)
