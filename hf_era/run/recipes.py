"""The recipes that come with the package: configs that are found by name. Where they lie: `utils.files.recipes_folder`."""

from __future__ import annotations

import os
from pathlib import Path

from hf_era.utils.checks import check_path_text
from hf_era.utils.files import local_path, recipes_folder
from hf_era.utils.suggestions import did_you_mean


def config_names() -> list[str]:
    """The names of the packaged configs."""
    return sorted(path.stem for path in (recipes_folder() / "configs").glob("*.yaml"))


def find_config(name: str | Path, folder: str | Path = "") -> Path:
    """The file that a name stands for: that file itself, the same with `.yaml`, or the packaged config of this name.

    Args:
        name: as it was typed, or stands in another file.
        folder (*optional*): where relative paths begin. Not given: the working directory.

    Raises:
        ValueError: if it is neither; it names the packaged configs.
    """
    check_path_text("config", str(name))
    path = Path(folder) / local_path(name)
    for candidate in (path, Path(f"{path}.yaml")):
        if os.path.isfile(candidate):  # False for a name that is too long with its `.yaml`, too
            return candidate
    names = config_names()
    stem = str(name).removesuffix(".yaml")
    if stem in names:
        return recipes_folder() / "configs" / f"{stem}.yaml"
    meant = did_you_mean(Path(name).name.removesuffix(".yaml"), names)
    raise ValueError(
        f"The config file {path} does not exist.{meant} Pass a YAML file, or the name of a packaged config: "
        f"{', '.join(names)}."
    )
