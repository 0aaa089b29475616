"""`hf-era init [NAME]`: writes a config to begin with."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from hf_era.run.recipes import find_config
from hf_era.utils.checks import check_name
from hf_era.utils.files import local_path, make_folder, read_text, recipes_folder
from hf_era.utils.storage_errors import as_storage_error


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="write a commented config for your own data",
        description="Writes NAME.yaml, a config to begin with: your data and labels first, each line with a comment. A file "
        "that is there already is left alone.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", default="my_run", metavar="NAME", help="default: my_run")
    parser.add_argument(
        "--from", dest="source", metavar="CONFIG", help="a copy of another config, packaged (demo, ...) or a YAML file"
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    path = local_path(f"{options.name.removesuffix('.yaml')}.yaml")
    check_name("NAME", path.stem)  # as a run's name, which it becomes
    template = recipes_folder() / "templates" / "my_run.yaml"
    source = template if options.source is None else find_config(options.source)
    text = read_text(source)
    if options.source is None:
        text = text.replace("my_run", path.stem)
    try:
        with as_storage_error(path):
            make_folder(path.parent)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        raise ValueError(
            f"`NAME`: {path} exists already and was left as it is. Choose another name: `hf-era init NAME`."
        ) from None
    print(f"Written: {path}. Name your data and your labels in it, then: hf-era run {shlex.quote(str(path))}")
    return 0
