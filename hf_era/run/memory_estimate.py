"""What memory a training step takes, of a model that is not made: said before anything of its size is.

Weights, gradients, optimizer states and buffers are counted. Activations are those that autograd keeps for the backward
pass, counted too, in a forward pass of a model of torch's fake tensors, which have shapes and no memory, with the batch's
size and the longest example: what is frozen, adapters, mixed precision, attention kernels and checkpointing are all in it.
The loss is a formula (`_logits`). What it leaves out: the allocator's and the library's own, temporaries inside an
operation, and buckets and gathered layers of several processes. Measured against what real steps took: `docs/my_model.md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_era.models.fast.chunked_loss import BYTES_PER_CHUNK, BYTES_PER_GPU_CHUNK
from hf_era.models.trainable import choose_trainable, keep_input_gradients_off, trained_parameters

SMALLEST_QUANTISED = 4096
"""Numbers of a weight below which bitsandbytes and torchao keep its states in fp32."""
_STATE_BYTES = {
    "adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_apex_fused": 8.0, "adamw_torch_8bit": 2.06,
    "adamw_torch_4bit": 1.06, "adamw_8bit": 2.06, "adamw_bnb_8bit": 2.06, "paged_adamw_8bit": 2.06, "lion_8bit": 1.03,
    "lion_32bit": 4.0, "sgd": 0.0, "rmsprop": 4.0, "adagrad": 4.0, "adafactor": 0.0,
}  # fmt: skip
"""Optimizer -> bytes of its states for each trained number; sums over rows and columns alone are next to nothing."""
_OF_ADAM = 8.0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step in one process.

    Attributes:
        parameters (`dict[str, int]`): numbers: `total` (without adapters), `auxiliary`, `trained`.
        weights, buffers, gradients, optimizer: of the model and its training.
        activations: kept for the backward pass. checkpointed: they would be with activation checkpointing.
        logits, whole_logits: of the loss, as it is set; without the chunked loss.
        optimizer_is_known: whether the optimizer's states are; else they are taken for AdamW's.
    """

    parameters: dict[str, int]
    weights: float
    buffers: float
    gradients: float
    optimizer: float
    activations: float
    checkpointed: float
    logits: float
    whole_logits: float
    optimizer_is_known: bool

    @property
    def total(self) -> float:
        """Of all parts. They are not all whole at one time (without accumulation, gradients come as activations go), which
        stands for what is left out."""
        held = self.weights + self.buffers + self.gradients + self.optimizer
        return held + self.activations + self.logits


def estimate_memory(make_model: Callable[[], Any], arguments: Any, length: int) -> MemoryEstimate:
    """Estimates the memory of a training step.

    Args:
        make_model: makes the model with random weights, before anything is frozen; called where they are on the meta device.
        arguments (`CausalLMTrainingConfig`): batch size, precision, optimizer, what is trained.
        length (`int`): tokens of the longest example.
    """
    batch = arguments.per_device_train_batch_size
    with torch.device("meta"):
        model = make_model().train()
        auxiliary = getattr(model, "is_auxiliary_parameter", lambda name: False)
        sizes = {name: value.numel() for name, value in model.named_parameters()}
        if hasattr(model, "is_auxiliary_parameter"):
            lora = getattr(arguments, "lora_settings", None)
            choose_trainable(model, getattr(arguments, "trainable", None), lora)
    with FakeTensorMode(), torch.device("cpu"):
        _on_a_fake_cpu(model)
        trained = [value for value in model.parameters() if value.requires_grad]
        kept = _kept_for_backward(model, arguments, batch, length)
        checkpointed = _checkpointed(model, arguments, batch, length, kept)
        vocabulary = int(model.get_input_embeddings().num_embeddings)
        hidden = int(model.get_input_embeddings().embedding_dim)
        parameters = {
            "total": sum(sizes.values()),
            "auxiliary": sum(size for name, size in sizes.items() if auxiliary(name)),
            "trained": trained_parameters(model),
        }
        per_number = _STATE_BYTES.get(_optimizer(arguments))
        return MemoryEstimate(
            parameters=parameters,
            weights=_bytes(model.parameters()),
            buffers=_bytes(model.buffers()),
            gradients=_bytes(trained),
            optimizer=sum(_state_bytes(value, _OF_ADAM if per_number is None else per_number) for value in trained),
            activations=checkpointed if arguments.gradient_checkpointing else kept,
            checkpointed=checkpointed,
            logits=_logits(arguments, batch * length, vocabulary, hidden, arguments.chunked_loss),
            whole_logits=_logits(arguments, batch * length, vocabulary, hidden, False),
            optimizer_is_known=per_number is not None,
        )


LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may take, in the second and the first version of its control groups."""


def memory_of(device: torch.device, processes: int = 1) -> float:
    """Bytes of memory that there are for each of the processes of a machine: of its GPU; without one a share of the
    machine's, or of what the container may take of it."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return min([float(psutil.virtual_memory().total), *filter(None, map(_limit, LIMITS))]) / processes


def _limit(path: Path) -> float | None:
    """`None` where there is no limit, which is `max` or a number beyond any machine."""
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def ways_out(estimate: MemoryEstimate, arguments: Any, may_freeze: bool) -> list[str]:
    """What would make it smaller, each with what it would take then; what is set already is left out."""
    batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    word = next(
        name
        for name in ("activation_checkpointing", "gradient_checkpointing")
        if name in {item.name for item in dataclasses.fields(arguments)}
    )
    found = []
    if may_freeze and estimate.parameters["trained"] == estimate.parameters["total"]:
        states = estimate.gradients + estimate.optimizer
        found.append(
            f"`training.lora: {{}}` freezes the base: of {said(states)} of gradients and optimizer states those of adapters "
            "and auxiliary modules remain"
        )
    if not arguments.gradient_checkpointing:
        found.append(
            f"`training.{word}: true`: activations {said(estimate.checkpointed)} instead of {said(estimate.activations)}, "
            "for about a third more time"
        )
    if batch > 1:
        found.append(
            f"`training.per_device_train_batch_size: {batch // 2}` with `training.gradient_accumulation_steps: "
            f"{2 * accumulation}`, the same batch: half the activations"
        )
    if _optimizer(arguments).startswith("adamw_torch") and "bit" not in _optimizer(arguments):
        found.append(
            f"`training.optim: adamw_8bit`: about a quarter of {said(estimate.optimizer)} of optimizer states "
            "(bitsandbytes; `adamw_torch_8bit`: torchao)"
        )
    if not arguments.chunked_loss:
        found.append("`training.chunked_loss: true`: the whole logits are never held")
    return [*found, "sharding, and the CPU's memory besides: `recipes/accelerate/fsdp2_offload.yaml`"]


def said(number: float) -> str:
    """Bytes as they are said: `3.4 MB`."""
    for unit in ("kB", "MB"):
        number /= 1e3
        if number < 1e3:
            return f"{number:,.1f} {unit}"
    return f"{number / 1e3:,.1f} GB"


# ---- Counting ----


def _optimizer(arguments: Any) -> str:
    return str(getattr(arguments.optim, "value", arguments.optim))


def _bytes(tensors: Any) -> float:
    return float(sum(value.numel() * value.element_size() for value in tensors))


def _state_bytes(value: Tensor, per_number: float) -> float:
    is_quantised = per_number % 1 != 0
    return value.numel() * (_OF_ADAM if is_quantised and value.numel() < SMALLEST_QUANTISED else per_number)


def _on_a_fake_cpu(model: nn.Module) -> None:
    """From the meta device, where attention would choose another kernel, in place. Tied weights stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tensors: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in tensors:
            for name, value in own.items():
                if value is None:
                    continue
                if id(value) not in made:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    is_weight = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad) if is_weight else empty
                own[name] = made[id(value)]


def _kept_for_backward(model: nn.Module, arguments: Any, batch: int, length: int) -> float:
    """Bytes that autograd keeps of a forward pass without a loss, beside the weights themselves."""
    weights = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no storage gets another's place

    def pack(value: Tensor) -> Tensor:
        if value.untyped_storage()._cdata not in weights:
            kept[value.untyped_storage()._cdata] = value
        return value

    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    precision = nullcontext() if dtype is None else torch.autocast("cpu", dtype)
    ids = torch.zeros((batch, length), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), precision:
        output = model(input_ids=ids, use_cache=False)
        size = float(sum(value.untyped_storage().nbytes() for value in kept.values()))
    del output
    return size


def _checkpointed(model: Any, arguments: Any, batch: int, length: int, kept: float) -> float:
    """What is kept with checkpointing: what goes into each block, and while one is computed again, what is kept in it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    keep_input_gradients_off(model)
    entries = _kept_for_backward(model, arguments, batch, length)
    layers = max(int(getattr(model.config.get_text_config(), "num_hidden_layers", 1)), 1)
    return entries + max(kept - entries, 0.0) / layers


def _logits(arguments: Any, positions: int, vocabulary: int, hidden: int, chunked: bool) -> float:
    """Of the loss: logits, their log-probabilities and the gradient, in fp32. In chunks, a chunk's logits and
    log-probabilities, and the gradient of the last hidden states."""
    whole = 4.0 * positions * vocabulary
    if not chunked:
        return 3 * whole
    chunk = BYTES_PER_CHUNK if arguments.device.type == "cpu" else BYTES_PER_GPU_CHUNK
    return 2 * min(chunk, whole) + 4.0 * positions * hidden
