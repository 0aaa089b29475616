"""An auxiliary module as a file: saved from an expanded model, attached to the contracted model that it belongs to.

A module's folder holds `module.safetensors` (its weights: `layers.LAYER.PARAMETER`), `module_config.json` and a `README.md`.
The config says what the module is, and which base it fits: model type, sizes, and a hash of the base's weights. Attached to
that base, it gives the logits of the model that it was saved from, bit for bit; several are added up in the order in which
they are attached.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import initialization

from hf_era.models.adapters import has_adapters, without_adapters
from hf_era.models.base_checks import check_not_quantised
from hf_era.models.checkpoint_files import read_json_object
from hf_era.models.config import ExpansionConfig, ModuleConfig
from hf_era.models.core_routing import route_core, unroute_core
from hf_era.models.families.family import EXPANDED_PREFIX
from hf_era.models.fast.causal_lm import set_fast_paths
from hf_era.models.loading import expand_base, hub_options, load_base_config, load_causal_lm
from hf_era.models.loading_hint import MODULE_README, write_readme
from hf_era.models.module_switches import is_auxiliary_parameter
from hf_era.models.self_check import check_opened
from hf_era.models.whole_weights import is_sharded, whole_model, whole_weights
from hf_era.utils.checks import error_text, listed, short_repr, unknown_key_message
from hf_era.utils.files import digest_of_file, local_path, whole_directory, write_json, write_text
from hf_era.version import __version__

WEIGHTS, CONFIG, README = "module.safetensors", "module_config.json", "README.md"
PARTS, ORDER = "modules", "modules.json"
"""Beside a base: the folder of its modules, and the file in it that says in which order they are added up."""
FORMAT = 1
_FIELD = "folder"
_AGAIN = "Save it again with `save_module`, or copy it again."


@dataclass(frozen=True)
class BaseDescription:
    """What a module file says of the base that it fits, and what is compared with the base that it is attached to.

    Attributes:
        model_type (`str`): of the stock config.
        hidden_size, number_of_layers (`int`): width of the residual stream, number of blocks.
        activation (`str`): name of the MLP's activation function.
        dtype (`str`): of the weights, such as `float32`.
        sha256 (`str`): of the weights, see `hash_of_base`.
    """

    model_type: str
    hidden_size: int
    number_of_layers: int
    activation: str
    dtype: str
    sha256: str

    @classmethod
    def of(cls, model: Any, sha256: str = "") -> BaseDescription:
        """Of the base of an expanded model."""
        family, config = model.family, model.config
        return cls(
            model_type=str(config.model_type).removeprefix(EXPANDED_PREFIX),
            hidden_size=int(getattr(config, family.hidden_size)),
            number_of_layers=family.layers_of(config),
            activation=str(getattr(config, family.activation)),
            dtype=str(model.dtype).removeprefix("torch."),
            sha256=sha256,
        )


def hash_of_base(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256, hexadecimal, of a causal LM's weights, stock or expanded: names, dtypes, shapes and bytes.

    Of the parameters alone: buffers are constants, which a model makes itself. Auxiliary modules are left out, so that a
    model has the hash that it will have when it is contracted; tied weights count once.

    Args:
        model: unwrapped. weights (*optional*): its `whole_weights`, if they are at hand.
    """
    weights = whole_weights(model) if weights is None else weights
    digest = hashlib.sha256()
    for name in sorted(name for name, _ in model.named_parameters() if not is_auxiliary_parameter(model, name)):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        as_bytes: Any = value.reshape(-1).view(torch.uint8).numpy()
        digest.update(as_bytes)
    return digest.hexdigest()


class ModuleFilesMixin:
    """Saves, attaches and detaches the modules of an expanded model."""

    module_names: list[str]

    @torch.no_grad()
    def save_module(self, name: str, folder: str | os.PathLike[str], is_main_process: bool = True) -> None:
        """Saves one module, and what it fits, to a folder of its own, which is there whole or not at all.

        What is saved with it: its dial, but not whether it is on. Adapters (peft) are merged. A model sharded by FSDP2 is
        gathered: every process must call this, and pass `is_main_process`, who alone writes.

        Args:
            name (`str`): of the module.
            folder (`str` or path): new, empty, or with this module in it, which is replaced.
            is_main_process (`bool`, *optional*, defaults to `True`): whether this process writes.

        Raises:
            ValueError: for a name that no module has, a folder with other files in it, or a quantised model.
            StorageError: if it cannot be written.
        """
        model: Any = without_adapters(self)
        parts = _parts(model, name)
        check_not_quantised(model.config)
        path = local_path(folder)
        _check_folder_for(path, name)
        weights = whole_weights(model, keep=is_main_process)
        if not is_main_process:
            return
        prefixes = {module: prefix for prefix, module in model.named_modules()}
        # Cloned: a view of a storage that is shared could carry bytes of other weights.
        tensors = {
            f"layers.{layer}.{key}": weights[f"{prefixes[part]}.{key}"]
            .cpu()
            .clone(memory_format=torch.contiguous_format)
            for layer, part in parts.items()
            for key in part.state_dict()
        }
        config = next(module for module in model.config.expansion_config.module_configs if module.name == name)
        values = {
            "format": FORMAT,
            "hf_era_version": __version__,
            "module": {**asdict(config), "target_layers": sorted(parts)},
            "dial": next(iter(parts.values())).dial,
            "base": asdict(BaseDescription.of(model, hash_of_base(model, weights))),
        }
        if opened_by := _opened_by(model):
            values["opened_by"] = opened_by
        with whole_directory(path) as temporary:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
            write_json(temporary / CONFIG, {**values, "weights_sha256": digest_of_file(temporary / WEIGHTS)})
            write_text(temporary / README, _readme(values))

    @torch.no_grad()
    def attach_module(self, folder: str | os.PathLike[str], check_base: bool = True) -> None:
        """Adds a module that `save_module` wrote, with the dial that it had, switched on, in place.

        An optimizer or trainer that exists already does not know of its parameters: attach before they are made.

        Args:
            folder (`str` or path): of the module.
            check_base (`bool`, *optional*, defaults to `True`): whether the weights beside the modules must be those that
                the module was saved with. `False`: their sizes alone must fit, for a base that was fine-tuned since.

        Raises:
            ValueError: if the folder holds no module that can be read, the module is of another base, the model has one of
                that name, or the model's layers cannot be changed (sharded, adapters, dispatched to several devices).
        """
        model: Any = self
        _check_can_be_changed(model, "attach_module")
        file = _ModuleFile.read(folder)
        file.check_fits(model, check_base)
        built, blocks = file.build_for(model), model.family.get_blocks(model)  # before anything is changed
        unroute_core(model)
        expansion = model.config.expansion_config
        model.config.expansion = expansion.with_modules([*expansion.module_configs, file.module]).to_dict()
        for layer, part in built.items():
            model._put_beside(blocks[layer], {file.module.name: part})
        model.module_names.append(file.module.name)
        _layers_changed(model)

    def detach_module(self, name: str) -> None:
        """Takes a module out of the model, in place; layers without any module are stock layers again, and are not routed.

        Raises:
            ValueError: for a name that no module has, or if the model's layers cannot be changed (as `attach_module`).
        """
        model: Any = self
        _check_can_be_changed(model, "detach_module")
        blocks = model.family.get_blocks(model)
        unroute_core(model)
        for layer in _parts(model, name):
            model._take_out(blocks[layer], name)
        expansion = model.config.expansion_config
        left = [module for module in expansion.module_configs if module.name != name]
        model.config.expansion = expansion.with_modules(left).to_dict()
        model.module_names.remove(name)
        _layers_changed(model)


def attach_module(
    model: str | os.PathLike[str] | nn.Module, *folders: str | os.PathLike[str], check_base: bool = True, **kwargs: Any
) -> Any:
    """An expanded model of a stock one and of modules that `save_module` wrote.

    Args:
        model (`str`, path or model): a contracted or other stock model, which is copied, in memory, in a directory or on the
            hub. An expanded one gets the modules beside those that it has; one in memory, in place.
        folders (`str` or path): of the modules. They are added up in this order, which decides the last bits of the sum.
        check_base (`bool`, *optional*, defaults to `True`): see `ModuleFilesMixin.attach_module`.
        kwargs: passed to `from_pretrained` (`dtype`, `revision`, ...); with a model in memory: `dtype`.

    Raises:
        ValueError: as `expand_base` and `ModuleFilesMixin.attach_module`.
    """
    if not folders or not all(isinstance(folder, (str, os.PathLike)) for folder in folders):
        raise ValueError(
            f"`folders` should be the folders of modules, one after the other, got {short_repr(list(folders))}. Write "
            "`attach_module(model, 'biology', 'chemistry')`."
        )
    files = [_ModuleFile.read(folder) for folder in folders]  # what cannot be read is refused before a model is loaded
    expanded: Any = model
    if isinstance(model, (str, os.PathLike)):
        is_expanded = is_in_parts(model) or _is_expanded(load_base_config(model, **hub_options(kwargs)))
        expanded = load_causal_lm(model, **kwargs) if is_expanded else None
    elif not _is_expanded(getattr(model, "config", None)):
        expanded = None
    if expanded is None:
        return _put_together(model, files, files[0].opened_by, check_base, **kwargs)
    for file in files:
        expanded.attach_module(file.folder, check_base=check_base)
    return expanded


def _put_together(
    stock: Any, files: Sequence[_ModuleFile], opened_by: Mapping[str, Any], check_base: bool, **kwargs: Any
) -> Any:
    expanded = expand_base(stock, ExpansionConfig(modules=[], **opened_by), **kwargs)
    for file in files:
        expanded.attach_module(file.folder, check_base=check_base)
    return check_opened(expanded)


# ---- A base and its modules, in one folder ----


def save_in_parts(model: Any, folder: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
    """Saves an expanded model as its contracted base, which plain transformers loads, and a file for each module, in the
    folder `modules`. Arguments as in `save_pretrained`, but `push_to_hub`, which is refused; every process must call it for
    a sharded model."""
    if kwargs.get("push_to_hub"):
        raise ValueError(  # transformers would push the base alone, without a word
            "`push_to_hub`: a model of a family that hf_era does not know is a base and a file for each module, of which "
            "only the base would be pushed. Push `model.contract()`; or, to publish what is in the modules too, save it to "
            "a folder and upload that with `huggingface_hub.upload_folder`."
        )
    path, weights = local_path(folder), kwargs.pop("state_dict", None)
    if weights is not None:  # given where the model's own weights are not whole
        whole_model(model, weights).save_pretrained(folder, *args, **kwargs)
        return
    is_main_process = kwargs.get("is_main_process", True)
    base = model.contract()
    if is_main_process:
        remove_parts(path)
    base.save_pretrained(folder, *args, **kwargs)
    for name in model.module_names:
        model.save_module(name, path / PARTS / name, is_main_process)
    if is_main_process:
        write_json(path / PARTS / ORDER, {"modules": model.module_names, "opened_by": _opened_by(model)})
        write_readme(path, model.config, in_parts=True)


def _opened_by(model: Any) -> dict[str, Any]:
    """What an expansion has to say to open the family of a base; empty for a registered one."""
    expansion = model.config.expansion_config
    names = {"mlp": expansion.mlp, "down_projection": expansion.down_projection}
    return {} if model.family.is_registered else names


def is_in_parts(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds what `save_in_parts` wrote."""
    return (local_path(folder) / PARTS / ORDER).is_file()


def remove_parts(folder: Path) -> None:
    """Removes the modules that `save_in_parts` wrote to a folder; nothing else there."""
    (folder / PARTS / ORDER).unlink(missing_ok=True)
    for config in sorted(folder.glob(f"{PARTS}/*/{CONFIG}")):
        shutil.rmtree(config.parent)


def load_expanded(folder: str | os.PathLike[str], **kwargs: Any) -> Any:
    """The expanded model that `save_pretrained` saved as a base and its modules: one of a family that is not registered.

    Args:
        folder (`str` or path): with `config.json` and `modules`.
        kwargs: passed to `from_pretrained` (`dtype`, ...).

    Raises:
        ValueError: if there are no modules, or as `attach_module`.
    """
    path = local_path(folder)
    if not is_in_parts(path):
        raise ValueError(
            f"`{_FIELD}`: {path} holds no {PARTS}/{ORDER}, so it is no expanded model in parts. Load an ordinary one with "
            "`AutoModelForCausalLM`, and attach a module with `hf_era.attach_module`."
        )
    values = read_json_object(_FIELD, path / PARTS / ORDER)
    names, opened_by = values.get("modules"), values.get("opened_by", {})
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ValueError(f"`{_FIELD}`: {path / PARTS / ORDER} should list names of modules, got {short_repr(names)}.")
    # In another dtype the weights have another hash.
    files = [_ModuleFile.read(path / PARTS / name) for name in names]
    return _put_together(path, files, opened_by, check_base="dtype" not in kwargs, **kwargs)


def _is_expanded(config: Any) -> bool:
    return str(getattr(config, "model_type", "")).startswith(EXPANDED_PREFIX)


# ---- Reading ----


@dataclass(frozen=True)
class _ModuleFile:
    """A module's folder that was read and is whole in itself."""

    folder: Path
    module: ModuleConfig
    dial: float
    base: BaseDescription
    weights: dict[str, Tensor]
    opened_by: dict[str, Any]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> _ModuleFile:
        path = local_path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                what = f"it holds no {name}" if path.is_dir() else "there is no such directory"
                raise ValueError(
                    f"`{_FIELD}`: {path} is no module that was saved with `save_module`: {what}. Pass the folder of one."
                )
        values = read_json_object(_FIELD, path / CONFIG)
        if values.get("format") != FORMAT:
            raise ValueError(
                f"`{_FIELD}`: {path / CONFIG} is of format {short_repr(values.get('format'))}, saved by hf_era "
                f"{short_repr(values.get('hf_era_version'))[1:-1]}; this version, {__version__}, reads format {FORMAT}. "
                "Update hf_era, or save the module again with this version."
            )
        try:
            module = ModuleConfig(**values["module"])
            ExpansionConfig(**values.get("opened_by", {}))
            base = BaseDescription(**values["base"])
            dial = values["dial"]
            if isinstance(dial, bool) or not isinstance(dial, (int, float)) or not 0 <= dial <= 1:
                raise ValueError(f"`dial` should be in [0, 1], got {short_repr(dial)}")
            _check_kinds(base)
        except (KeyError, TypeError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error_text(error)
            raise ValueError(f"`{_FIELD}`: {path / CONFIG} describes no module ({what}). {_AGAIN}") from error
        weights = _read_weights(path, values.get("weights_sha256"))
        return cls(path, module, float(dial), base, weights, values.get("opened_by", {}))

    def check_fits(self, model: Any, check_base: bool) -> None:
        """Raises `ValueError` if the module cannot be attached to a model; nothing is changed."""
        name, where = self.module.name, f"`{_FIELD}`: the module `{self.module.name}` in {self.folder}"
        if name in model.module_names:
            raise ValueError(
                f"{where} cannot be attached: the model has a module of that name. Take it out first, with "
                f"`detach_module({name!r})`."
            )
        own = BaseDescription.of(model)
        for field in ("model_type", "hidden_size", "number_of_layers", "activation"):
            wanted, found = getattr(self.base, field), getattr(own, field)
            if wanted != found:
                raise ValueError(
                    f"{where} belongs to another base: `{field}` of its base is {short_repr(wanted)}, of this model "
                    f"{short_repr(found)}. Attach it to the base that it was saved from."
                )
        self._check_shapes(model, where)
        own_hash = hash_of_base(model) if check_base else self.base.sha256
        if own_hash != self.base.sha256:
            raise ValueError(
                f"{where} belongs to another base: the hash of this model's weights is {own_hash[:16]} ({own.dtype}), its "
                f"base's was {self.base.sha256[:16]} ({self.base.dtype}). Another dtype changes the hash, too: load the "
                "base in the dtype that it had. To attach it anyway, to a base that was fine-tuned since, pass "
                "`check_base=False`."
            )

    def _check_shapes(self, model: Any, where: str) -> None:
        expected: dict[str, list[int]] = {}
        try:
            self.module.resolved(model.family, model.config).resolve_layers(self.base.number_of_layers)
        except ValueError as error:
            raise ValueError(f"{where} cannot be attached: {error} {_AGAIN}") from error
        with torch.device("meta"):
            for layer in self.module.resolve_layers(self.base.number_of_layers):
                state = model._new_module(self.module).state_dict()
                expected |= {f"layers.{layer}.{key}": list(value.shape) for key, value in state.items()}
        for key in sorted({*expected, *self.weights}):
            value, wanted = self.weights.get(key), expected.get(key)
            if value is None or wanted is None or list(value.shape) != wanted or not value.is_floating_point():
                found = "is missing" if value is None else f"has the shape {list(value.shape)} ({value.dtype})"
                raise ValueError(
                    f"{where} is not what its {CONFIG} says: the weight {short_repr(key)} {found}, and should "
                    f"{'not be there' if wanted is None else f'have the shape {wanted}'}. {_AGAIN}"
                )

    def build_for(self, model: Any) -> dict[int, Any]:
        """The module in each of its layers, on their devices; in its own dtype, or the model's if the base had another."""
        same_dtype = self.base.dtype == BaseDescription.of(model).dtype
        blocks, built = model.family.get_blocks(model), {}
        for layer in self.module.resolve_layers(len(blocks)):
            with initialization.no_init_weights():
                part = model._new_module(self.module)
            device, prefix = next(blocks[layer].parameters()).device, f"layers.{layer}."
            dtype = None if same_dtype else model.dtype
            own = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
            # Copied: what was read is a map of the file, which may be cut or replaced later.
            part.load_state_dict(
                {key: value.to(device, dtype, copy=True) for key, value in own.items()}, strict=True, assign=True
            )
            part.dial, part._is_hf_initialized = self.dial, True
            built[layer] = part.to(device).train(model.training)
        return built


def _check_kinds(base: BaseDescription) -> None:
    for item in fields(base):
        value, wanted = getattr(base, item.name), int if item.type == "int" else str
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ValueError(f"`base.{item.name}` should be of type {wanted.__name__}, got {short_repr(value)}")


def _read_weights(folder: Path, sha256: Any) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if digest_of_file(path) != sha256:
        raise ValueError(f"`{_FIELD}`: {path} is damaged or cut off: its SHA-256 is not the one in {CONFIG}. {_AGAIN}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"`{_FIELD}`: {path} cannot be read ({error_text(error)}). {_AGAIN}") from error


# ---- Checks and changes ----


def _parts(model: Any, name: str) -> dict[int, Any]:
    """Layer index -> the module of a name in it; raises `ValueError` for a name that no module has."""
    if name not in model.module_names:
        raise ValueError(unknown_key_message("the model's modules", name, model.module_names))
    return {layer: named[name] for layer, named in model.auxiliary_modules().items() if name in named}


def _check_folder_for(path: Path, name: str) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"`{_FIELD}` should be a directory, got the file {path}.")
    others = sorted(
        inside.name
        for inside in (path.iterdir() if path.is_dir() else ())
        if inside.name not in (WEIGHTS, CONFIG, README)
    )
    if others:
        raise ValueError(
            f"`{_FIELD}`: {path} holds other files ({listed(others[:3])}). A module has a folder of its own: pass a new "
            f"one, such as {path / name}."
        )
    if (path / CONFIG).is_file():
        there = read_json_object(_FIELD, path / CONFIG).get("module")
        if isinstance(there, Mapping) and there.get("name") != name:
            raise ValueError(
                f"`{_FIELD}`: {path} holds the module {short_repr(there.get('name'))} already. Each module has a folder of "
                "its own: pass another."
            )


def _check_can_be_changed(model: Any, call: str) -> None:
    check_not_quantised(model.config)
    if has_adapters(model):
        raise ValueError(
            f"`{call}`: the model has adapters (peft), which stand where the layers are changed. Merge them first, or put "
            "them on afterwards."
        )
    if is_sharded(model):
        raise ValueError(
            f"`{call}`: the model is sharded by FSDP2, and its layers are fixed. Call it before `fully_shard`."
        )
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ValueError(
            f"`{call}`: the model is dispatched to several devices (`device_map`), and its layers are fixed. Load it "
            "without `device_map`, call it, then `accelerate.dispatch_model`; or save it and load that with `device_map`."
        )


def _layers_changed(model: Any) -> None:
    """What a model knows of its layers, once these have changed."""
    if model.family.fast_path is not None:
        model.family.fast_path.expand(model)
        set_fast_paths(model, model.fast_paths)
    route_core(model, model.router)
    model._no_split_modules = model.block_class_names()


def _readme(values: Mapping[str, Any]) -> str:
    module, base = values["module"], values["base"]
    return MODULE_README.format(
        name=module["name"],
        kind=module["kind"],
        width=module["width"],
        layers=", ".join(map(str, module["target_layers"])),
        base_type=base["model_type"],
        dtype=base["dtype"],
        sha256=base["sha256"],
    )
