"""The state of an optimizer and its learning-rate schedule in one file, whatever the optimizer keeps, and back bit for bit.

Tensors stand in the file by name, everything else in its JSON, where `{"$tensor": name}` points at one. It is the state in
memory that is saved, not what `state_dict` makes of it, and it is put back as it was: torch's `load_state_dict` casts every
state to its parameter's dtype (8-bit moments to fp32, fp32 moments of a bf16 model to bf16), and what torch has for sharded
models steps the optimizer once to find out what there is.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_era.training.checkpoint_state import load_tensors, save_tensors
from hf_era.utils.checks import listed

OPTIMIZER_FILE = "optimizer.safetensors"
_TENSOR, _TUPLE, _PAIRS, _DTYPE, _CLASS = "$tensor", "$tuple", "$pairs", "$dtype", "$class"
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# Tensors that are made of tensors: torchao's 8-bit and 4-bit moments. By name, so that a file can have no other class made.
_TENSOR_CLASSES = frozenset({
    "torchao.optim.subclass_8bit.OptimState8bit",
    "torchao.optim.subclass_4bit.OptimState4bit",
    "torchao.optim.subclass_fp8.OptimStateFp8",
})  # fmt: skip
# What stands in a parameter's name for something that was put around its module, in one run and maybe not in the next.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


class UnsavableStateError(ValueError):
    """An optimizer or a schedule keeps something that a checkpoint cannot hold."""


class Packer:
    """Takes values apart into JSON and tensors.

    Args:
        gathers (`bool`): `False`: look whether it can be done, and copy nothing. Whoever gathers does so in all processes.

    Attributes:
        tensors (`dict[str, Tensor]`): on the CPU, whole, no two in one storage. One that occurs twice is there once.
    """

    def __init__(self, gathers: bool = True) -> None:
        self.gathers = gathers
        self.tensors: dict[str, Tensor] = {}
        self._packed: dict[int, tuple[Tensor, dict[str, Any]]] = {}  # with the tensor, so that no other gets its id
        self._storages: set[int] = set()

    def pack(self, value: Any, path: str) -> Any:
        """Returns the JSON of a value; raises `UnsavableStateError` that names `path` and the class if there is none."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if type(value) in (Tensor, nn.Parameter, DTensor) and value.layout is torch.strided and not value.is_quantized:
            if id(value) not in self._packed:
                self._packed[id(value)] = (value, self._tensor(value, path))
            return self._packed[id(value)][1]
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            parts = [self.pack(part, f"{path}.{index}") for index, part in enumerate(value)]
            return {_TUPLE: parts} if isinstance(value, tuple) else parts
        if isinstance(value, dict):
            pairs = [[self.pack(key, path), self.pack(part, f"{path}.{key}")] for key, part in value.items()]
            plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
            return dict(pairs) if plain else {_PAIRS: pairs}
        if isinstance(value, torch.dtype):
            return {_DTYPE: str(value).removeprefix("torch.")}
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind in _TENSOR_CLASSES:
            parts, attributes = value.__tensor_flatten__()
            return {
                _CLASS: kind,
                "parts": {part: self.pack(getattr(value, part), f"{path}.{part}") for part in parts},
                "attributes": self.pack(attributes, path),
                "shape": [[*value.shape], [*value.stride()]],
            }
        raise UnsavableStateError(f"{listed([path])}, a {kind}")

    def _tensor(self, value: Tensor, path: str) -> dict[str, Any]:
        name = path.encode("ascii", "backslashreplace").decode()
        while name in self.tensors:
            name += "'"
        if self.gathers:
            whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
            whole = whole.detach().cpu().contiguous()
            storage = whole.untyped_storage().data_ptr()
            self.tensors[name] = whole.clone() if storage in self._storages else whole  # safetensors takes no views
            self._storages.add(storage)
        entry: dict[str, Any] = {_TENSOR: name, "cpu": value.device.type == "cpu"}
        return {**entry, "sharded": True} if isinstance(value, DTensor) else entry


class Unpacker:
    """Puts together what a `Packer` took apart. Tensors that were one are one again."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._placed: dict[tuple[str, Any], Tensor] = {}

    def unpack(self, value: Any, parameter: Tensor, scalars_follow: bool = False) -> Any:
        """A value that belongs to a parameter.

        Args:
            value: the JSON.
            parameter (`Tensor`): its tensors go where it is; what has its shape is sharded as it is.
            scalars_follow (`bool`, *optional*): whether scalars that were on the CPU go there too.
        """
        if isinstance(value, list):
            return [self.unpack(part, parameter, scalars_follow) for part in value]
        if not isinstance(value, dict):
            return value
        if _TENSOR in value:
            return self._tensor(value, parameter, scalars_follow)
        if _TUPLE in value:
            return tuple(self.unpack(value[_TUPLE], parameter, scalars_follow))
        if _DTYPE in value:
            return _DTYPES[value[_DTYPE]]
        if value.get(_CLASS) in _TENSOR_CLASSES:
            module, _, name = value[_CLASS].rpartition(".")
            parts, attributes = (self.unpack(value[key], parameter) for key in ("parts", "attributes"))
            kind = getattr(importlib.import_module(module), name)
            return kind.__tensor_unflatten__(parts, attributes, *map(tuple, value["shape"]))
        pairs = value[_PAIRS] if _PAIRS in value else value.items()
        return {
            self.unpack(key, parameter, scalars_follow): self.unpack(part, parameter, scalars_follow)
            for key, part in pairs
        }

    def _tensor(self, entry: dict[str, Any], parameter: Tensor, scalars_follow: bool) -> Tensor:
        tensor = self.tensors[entry[_TENSOR]]
        if tensor.dim() == 0 and entry["cpu"] and not scalars_follow:
            device = torch.device("cpu")  # a count of steps, which the host reads
        else:
            device = parameter.device
        sharded = isinstance(parameter, DTensor) and ("sharded" in entry or tensor.shape == parameter.shape)
        key = entry[_TENSOR], id(parameter) if sharded else device
        if key not in self._placed:
            own = tensor.to(device, copy=True)
            if isinstance(parameter, DTensor) and sharded:  # every process has read the whole
                own = distribute_tensor(own, parameter.device_mesh, parameter.placements, src_data_rank=None)
            self._placed[key] = own
        return self._placed[key]


def save_optimizer(
    path: Path,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    writes: bool,
    stepped_weights: dict[str, Tensor] | None = None,
) -> None:
    """Writes the state of optimizer and learning-rate schedule. Every process calls it; those that do not write take part in
    gathering what is sharded.

    Args:
        path (`Path`): the file.
        model (`nn.Module`): unwrapped; a state gets the name of its parameter.
        optimizer, scheduler: as the Trainer has them.
        writes (`bool`): whether this process writes.
        stepped_weights (`dict[str, Tensor]`, *optional*): by name, the weights that the optimizer steps on, where they are
            not those that the model has now.

    Raises:
        UnsavableStateError: for a value that cannot be saved.
    """
    packer = Packer()
    values = _packed(packer, model, plain_optimizer(optimizer), scheduler)
    values["stepped_weights"] = packer.pack(stepped_weights or {}, "stepped_weights")
    if writes:
        save_tensors(path, packer.tensors, values)


def check_can_be_saved(model: Any, optimizer: Any, scheduler: Any) -> None:
    """Raises `UnsavableStateError` with a way out if what optimizer and schedule keep now cannot be saved."""
    optimizer = plain_optimizer(optimizer)
    try:
        beside = sorted({*optimizer.state_dict()} - {"state", "param_groups"})
        if beside:
            raise UnsavableStateError(f"{listed(beside[:1])} beside its groups and the states of its parameters")
        _packed(Packer(gathers=False), model, optimizer, scheduler)
    except UnsavableStateError as error:
        raise UnsavableStateError(
            f"`optim`: the optimizer {type(optimizer).__name__} keeps {error}. Checkpoints hold tensors, numbers, text, "
            "lists and dicts of these, and nothing that runs code when it is read, so training could not go on from one. "
            "Take another optimizer, or save the weights alone (`save_only_model: true`) or nothing (`save_strategy: 'no'`)."
        ) from None


def _packed(packer: Packer, model: Any, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    names = _names_of_parameters(model, optimizer)
    state = {names.get(id(key), key): value for key, value in optimizer.state.items()}
    groups = [{**group, "params": [names[id(value)] for value in group["params"]]} for group in optimizer.param_groups]
    return {
        # No prefix: so have all versions named these tensors.
        "state": {str(name): packer.pack(value, str(name)) for name, value in state.items()},
        "groups": packer.pack(groups, "param_groups"),
        "schedule": packer.pack(scheduler.state_dict(), "schedule"),
    }


def load_optimizer(path: Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Puts back what `save_optimizer` wrote, whatever the number of processes was; the model gets the `stepped_weights`.

    Raises:
        ValueError: if the optimizer trains other parameters than the one that was saved.
    """
    optimizer = plain_optimizer(optimizer)
    tensors, values = load_tensors(path)
    unpacker = Unpacker(tensors)
    names = _names_of_parameters(model, optimizer)
    group_of = {name: group for group in values["groups"] for name in group["params"]}
    _check_same_parameters(path, set(names.values()), set(group_of))
    state = values["state"] if "state" in values else _flat_state(tensors, values["numbers"])
    any_parameter = next(value for group in optimizer.param_groups for value in group["params"])
    for index, group in enumerate(optimizer.param_groups):
        first = next(iter(group["params"]), any_parameter)
        # A group without parameters goes by its place.
        saved = group_of[names[id(first)]] if group["params"] else values["groups"][index]
        follow = bool(saved.get("capturable") or saved.get("fused") or group.get("capturable") or group.get("fused"))
        group |= {key: unpacker.unpack(part, first, follow) for key, part in saved.items() if key != "params"}
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
            if names[id(parameter)] in state:
                optimizer.state[parameter] = unpacker.unpack(state[names[id(parameter)]], parameter, follow)
    for name in state.keys() - set(names.values()):
        optimizer.state[name] = unpacker.unpack(state[name], any_parameter)
    scheduler.load_state_dict(unpacker.unpack(values["schedule"], any_parameter))
    _step_on(values.get("stepped_weights") or {}, unpacker, model, optimizer)


@torch.no_grad()
def _step_on(weights: dict[str, Any], unpacker: Unpacker, model: Any, optimizer: Any) -> None:
    if weights:
        optimizer.train()  # its state was saved as it is while others look at the model
        for name, parameter in parameters_by_name(model).items():
            parameter.copy_(unpacker.unpack(weights[name], parameter))


def _flat_state(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The states in a file of the first layout, which has no tree but `PARAMETER.NAME`."""
    state: dict[str, dict[str, Any]] = {}
    for key, value in {**{key: {_TENSOR: key, "cpu": True} for key in tensors}, **numbers}.items():
        parameter, name = key.rsplit(".", 1)
        state.setdefault(parameter, {})[name] = value
    return state


def _check_same_parameters(path: Path, trained: set[str], saved: set[str]) -> None:
    other = sorted(trained ^ saved)
    if other:
        now, then = ("is", "was not") if other[0] in trained else ("is not", "was")
        raise ValueError(
            f"`resume_from_checkpoint`: {other[0]} (and {len(other) - 1} more) {now} trained, but {then} when {path} was "
            "saved. Freeze and train the same parameters, or load the checkpoint as a model to start anew from its weights."
        )


def plain_optimizer(optimizer: Any) -> Any:
    """The optimizer without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def parameters_by_name(model: Any) -> dict[str, nn.Parameter]:
    """The parameters, each once, under the names that they have without what was put around their modules."""
    parameters = {}
    for name, parameter in model.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        parameters[name] = parameter
    return parameters


def _names_of_parameters(model: Any, optimizer: Any) -> dict[int, str]:
    """The name of each parameter that the optimizer has, by its id; one that the model has not goes by its place."""
    names = {id(value): name for name, value in parameters_by_name(model).items()}
    return {
        id(value): names.get(id(value), f"param_groups.{number}.params.{index}")
        for number, group in enumerate(optimizer.param_groups)
        for index, value in enumerate(group["params"])
    }
