"""The files of a checkpoint on disk, looked at before transformers reads them: what they are, and whether they are whole.

Only safetensors files are read. A pickle (`pytorch_model.bin`, `*.pt`, `*.ckpt`) runs whatever code it holds when it is
loaded, so a directory that has nothing else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_era.utils.checks import error_text, short_repr

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAXIMUM_JSON_BYTES = 64_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
_FLOATING = ("F64", "F32", "F16", "BF16")


def read_json_object(field: str, path: Path) -> dict[str, Any]:
    """A JSON file with an object at its top; raises `ValueError` that names the file for anything else."""
    try:
        if path.stat().st_size > MAXIMUM_JSON_BYTES:
            raise ValueError(f"it has more than {MAXIMUM_JSON_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`{field}`: {path} cannot be read as JSON ({error_text(error)}). Save the model again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"`{field}`: {path} should hold an object, got {short_repr(content)}. Save the model again.")
    return content


def check_weight_files(
    field: str, folder: Path, variant: str | None = None, is_constant: Callable[[str], bool] | None = None
) -> dict[str, list[int]]:
    """The names and shapes of the weights in a folder, as the headers of its safetensors files have them.

    Args:
        field (`str`): the setting that errors name.
        folder (`Path`): with a `config.json`.
        variant (`str`, *optional*): as in `from_pretrained`: `model.VARIANT.safetensors`.
        is_constant (*optional*): whether a name is that of a constant that is stored beside the weights. Given: all weights
            must be floating numbers. Integers would be taken for them, so that one wrong letter in a file's header would
            make noise of a weight. Not given: a weight may be anything (quantised models have integers).

    Raises:
        ValueError: if the weights are missing, pickled, cut off, or of another kind than they should be.
    """
    weights, index = (folder / _with_variant(name, variant) for name in (WEIGHTS, INDEX))
    if weights.is_file():
        files = [weights]
    elif index.is_file():
        files = _shards(field, folder, index)
    else:
        raise ValueError(_no_weights(field, folder, weights.name))
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= _header(field, file, is_constant)
    return shapes


def _with_variant(name: str, variant: str | None) -> str:
    stem, _, ending = name.partition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


def _no_weights(field: str, folder: Path, wanted: str) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES)
    if not pickles:
        return f"`{field}`: the directory {folder} holds no weights: there is no {wanted}. Save the model there again."
    return (
        f"`{field}`: {folder} holds its weights as {pickles[0]}, which can run code when it is loaded; hf_era reads "
        f"safetensors only. Where you trust it, load it yourself, save it with `save_pretrained` (which writes {wanted}), "
        "and pass that directory."
    )


def _shards(field: str, folder: Path, index: Path) -> list[Path]:
    weight_map = read_json_object(field, index).get("weight_map")
    names: Iterable[Any] = weight_map.values() if isinstance(weight_map, dict) else []
    if not names:
        raise ValueError(f"`{field}`: {index} has no `weight_map` of weights and files. Save the model again.")
    files = []
    for name in dict.fromkeys(map(str, names)):
        if Path(name).name != name or not name.endswith(".safetensors") or "\0" in name:
            raise ValueError(
                f"`{field}`: {index} names {short_repr(name)}, which is no safetensors file beside it. Save the model again."
            )
        if not (folder / name).is_file():
            raise ValueError(
                f"`{field}`: {index} names {short_repr(name)}, but {folder} holds no such file. Copy it there."
            )
        files.append(folder / name)
    return files


def _header(field: str, file: Path, is_constant: Callable[[str], bool] | None) -> dict[str, list[int]]:
    try:
        with safe_open(file, framework="pt") as weights:  # reads the header and compares it with the file's size
            metadata = weights.metadata() or {}
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: list(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`{field}`: {file} is damaged or cut off ({error_text(error)}). Copy or download it again, or save the "
            "model again."
        ) from error
    if metadata.get("format") not in (None, "pt"):
        raise ValueError(
            f"`{field}`: {file} was written for {short_repr(metadata['format'])}, not for PyTorch. Save it with PyTorch."
        )
    if is_constant is None:
        return shapes
    wrong = next((name for name, kind in kinds.items() if kind not in _FLOATING and not is_constant(name)), None)
    if wrong is not None:
        raise ValueError(
            f"`{field}`: the weight {short_repr(wrong)} in {file} holds {kinds[wrong]}, not floating numbers. Its header "
            "may be damaged: copy or download it again."
        )
    return shapes
