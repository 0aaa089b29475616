"""`hf-era matrix`: testbeds x recipes x seeds: what the cells are, and whether they are done.

A cell of the matrix is one run with one seed: an ordinary `hf-era run`, so that a matrix that was stopped goes on where it
was. `hf_era.run.matrix_running` runs them, `hf_era.run.matrix_results` says what they say together.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_era.evaluation import RunResult
from hf_era.evaluation.cell_lines import Key
from hf_era.evaluation.summary import flat_settings
from hf_era.evaluation.yardsticks import References, check_references
from hf_era.run.config import RunConfig, lay_over, without_secrets
from hf_era.run.parsing import build, merge, read_yaml
from hf_era.run.recipes import find_config
from hf_era.utils.checks import check_count, check_name, check_path_text, short_repr, unknown_value_message
from hf_era.utils.files import fingerprint, real_path

MAXIMUM_CELLS = 10_000
MAXIMUM_JOBS = 256
TESTBED = "{testbed}"
"""Stands for the testbed's name in any text of a cell's settings."""


@dataclass
class MatrixRun:
    """One row of the matrix.

    Args:
        name (`str`): of the runs; part of their output directory.
        recipe (`str`): YAML file of a recipe, relative to the matrix's own, or the name of a packaged one.
        settings (`dict`, *optional*): what this row changes, e.g. `{routing: {rule: none}}`.
        testbeds (`list[str]`, *optional*): the only testbeds that it is in. Not given: all.
        seeds (`list[int]`, *optional*): the only ones of the matrix's seeds that it is run with. Not given: all.
        data_filtering (`str`, *optional*): the row of data filtering that it is compared with, that with as many labels,
            say. Not given: the matrix's.
    """

    name: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    testbeds: list[str] | None = None
    seeds: list[int] | None = None
    data_filtering: str | None = None


@dataclass
class MatrixConfig:
    """Testbeds x recipes x seeds.

    Args:
        output_dir (`str`, *optional*, defaults to `"runs/matrix"`): where the comparison goes; the runs go where their own
            settings say.
        seeds (`list[int]`, *optional*, defaults to `[0, 1, 2]`): of every row.
        runs (`list`): the rows, each a mapping with the fields of `MatrixRun`.
        testbeds (`dict`, *optional*): name -> the settings that make the testbed, laid over every run before a row's own.
            `{testbed}` is filled in in any text of the settings, above all in `output_dir` and `model.base_dir`.
        overlays (`list[str]`, *optional*): YAML files laid over every recipe, found likewise.
        settings (`dict`, *optional*): laid over every run, before a testbed's and a row's own.
        jobs (`int`, *optional*, defaults to `1`): cells that run side by side, each with its share of the cores.
        keep_models (`bool`, *optional*, defaults to `True`): `False`: once a cell has its result, its models and checkpoints
            are removed, but never a base that others use; and a cell that is done is not looked at again.
        data_filtering (`str`, *optional*): name of the row whose figures stand beside the others', seed by seed.
        base_curve (`list[str]`, *optional*): rows of base controls with several budgets, at least 3: what compute ratios are
            measured on, and, at least 4 of them, shares of filtering (`hf_era.evaluation.yardsticks`).
        filtering_curve (`list[str]`, *optional*): rows of data filtering with at least 4 budgets, for shares of filtering.
        base_control (`str`, *optional*): the row whose compute is 1, and over whose retain loss a retain tax is. Not given:
            that of `base_curve` with the most, and each run's own model before the method.
        frontier (`dict[str, list[str]]`, *optional*): method -> its rows, the same but for their budget: they are drawn over
            their compute as a share of the pretraining's.
        frontier_control (`str`): with a `frontier`: the entry of it whose models trained on with everything: with the same
            compute, what a retain loss is compared with.
        launcher (`list[str]`, *optional*): command that runs a config file. Not given: `hf-era run` in this Python. A
            matrix file says what is run, as a Makefile does: look at it before you run somebody else's.

    Raises:
        ValueError: for an empty matrix, a name that stands twice, or an unknown row or testbed.
    """

    output_dir: str = "runs/matrix"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    runs: list[Any] = field(default_factory=list)
    testbeds: dict[str, Any] = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1
    keep_models: bool = True
    data_filtering: str | None = None
    base_curve: list[str] = field(default_factory=list)
    filtering_curve: list[str] = field(default_factory=list)
    base_control: str | None = None
    frontier: dict[str, Any] = field(default_factory=dict)
    frontier_control: str | None = None
    launcher: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = [_row(f"runs[{index}]", values) for index, values in enumerate(self.runs)]
        if not self.runs or not self.seeds:
            raise ValueError("The matrix is empty. Give at least one of `runs` and one of `seeds`.")
        names = [run.name for run in self.runs]
        for what, values in (("runs", names), ("seeds", self.seeds)):
            twice = _first_repeated(values)
            if twice is not None:
                raise ValueError(f"`{what}`: {short_repr(twice)} stands twice. Give each a name of its own.")
        self._check_testbeds()
        what = "testbeds x runs x seeds" if self.testbeds else "runs x seeds"
        check_count(what, len(self.testbeds or [""]) * len(names) * len(self.seeds), 1, MAXIMUM_CELLS)
        check_count("jobs", self.jobs, 1, MAXIMUM_JOBS)
        check_path_text("output_dir", self.output_dir)
        self._check_frontier()
        given_names = {
            name: getattr(self, name) for name in ("data_filtering", "base_control", "base_curve", "filtering_curve")
        }
        for where, given in (given_names | {f"frontier.{name}": rows for name, rows in self.frontier.items()}).items():
            for name in given if isinstance(given, list) else [given]:
                if name is not None and name not in names:
                    raise ValueError(unknown_value_message(where, name, names))
        for run in self.runs:
            if run.data_filtering is not None and run.data_filtering not in names:
                raise ValueError(unknown_value_message(f"runs.{run.name}.data_filtering", run.data_filtering, names))
        check_references(self.references)

    @property
    def references(self) -> References:
        """The rows that others are measured against."""
        controls = {run.name: run.data_filtering or self.data_filtering for run in self.runs}
        return References(
            tuple(dict.fromkeys(self.base_curve)),
            tuple(dict.fromkeys(self.filtering_curve)),
            self.base_control,
            {row: control for row, control in controls.items() if control is not None},
            {method: tuple(rows) for method, rows in self.frontier.items()},
            tuple(self.frontier.get(self.frontier_control or "", ())),
        )

    def _check_frontier(self) -> None:
        for name, rows in self.frontier.items():
            if not isinstance(rows, list) or not rows or not all(isinstance(row, str) for row in rows):
                raise ValueError(f"`frontier.{name}` should be a list of rows, got {short_repr(rows)}.")
            if (twice := _first_repeated(rows)) is not None:
                raise ValueError(f"`frontier.{name}`: {short_repr(twice)} stands twice. Name each row once.")
        if self.frontier and self.frontier_control is None:
            raise ValueError(
                "`frontier` is given, but not which of its entries trained on with everything. Set `frontier_control`."
            )
        if self.frontier_control is not None and self.frontier_control not in self.frontier:
            raise ValueError(unknown_value_message("frontier_control", self.frontier_control, self.frontier))

    def _check_testbeds(self) -> None:
        for name, settings in self.testbeds.items():
            check_name("testbeds", name)
            if not isinstance(settings, Mapping):
                raise ValueError(f"`testbeds.{name}` should be a mapping of settings, got {short_repr(settings)}.")
        for run in self.runs:
            for name in run.testbeds or []:
                if name not in self.testbeds:
                    raise ValueError(unknown_value_message(f"runs.{run.name}.testbeds", name, self.testbeds))

    def cells_of(self) -> list[tuple[str, MatrixRun, int]]:
        """Testbed (empty: there are none), row and seed of every cell, in order: all of the first seed come first."""
        return [
            (testbed, run, seed)
            for seed in self.seeds
            for testbed in self.testbeds or [""]
            for run in self.runs
            if (run.testbeds is None or testbed in run.testbeds) and (run.seeds is None or seed in run.seeds)
        ]


def _first_repeated(values: Sequence[Any]) -> Any:
    """The smallest value that stands twice, or `None`."""
    return min((value for value, number in Counter(values).items() if number > 1), default=None)


def _row(where: str, values: Any) -> MatrixRun:
    if not isinstance(values, dict) or not {"name", "recipe"} <= set(values):
        raise ValueError(f"`{where}` should have `name` and `recipe`, got {short_repr(values)}.")
    row: MatrixRun = build(MatrixRun, values, where)
    return row


@dataclass(frozen=True)
class Cell:
    """One run of the matrix. `config` is complete; `values` is what it was made of; `testbed` is empty without any."""

    row: str
    seed: int
    config: RunConfig
    values: dict[str, Any]
    testbed: str = ""

    @property
    def title(self) -> str:
        """What it is called when something is said of it."""
        return f"{self.testbed + ', ' if self.testbed else ''}{self.row}, seed {self.seed}"

    @property
    def file_name(self) -> str:
        """A name for files of its own, without suffix."""
        return f"{self.testbed + '-' if self.testbed else ''}{self.row}-seed{self.seed}"

    @property
    def key(self) -> Key:
        return self.testbed, self.row, self.seed

    @property
    def settings_key(self) -> str:
        """Fingerprint of what it was made of, but where it is kept."""
        model = {name: value for name, value in (self.values.get("model") or {}).items() if name != "base_dir"}
        kept = {name: value for name, value in self.values.items() if name != "output_dir"}
        return fingerprint({**kept, "model": model})

    @property
    def result_file(self) -> Path:
        return self.config.output_path / "result.json"

    def result(self) -> RunResult | None:
        """Its result, if there is one that can be read; one of another hf_era, say, has to be made again."""
        try:
            return RunResult.load(self.result_file) if self.result_file.is_file() else None
        except ValueError:
            return None

    def is_done(self) -> bool:
        """Whether it has a result, and of these very settings."""
        result = self.result()
        try:
            # Fields that came with a later hf_era have their defaults.
            return result is not None and _described(RunConfig.from_dict(result.config)) == self._own_config
        except ValueError:
            return False

    @cached_property
    def _own_config(self) -> str:
        return _described(self.config)


def _described(config: RunConfig) -> str:
    return json.dumps(without_secrets(config.to_dict()), sort_keys=True, default=str)


def load_matrix(path: str | Path, overrides: dict[str, Any] | None = None) -> tuple[MatrixConfig, list[Cell]]:
    """Reads a matrix and makes the config of every cell, so that bad input is found before anything runs.

    `path` is a YAML file, or the name of a packaged one. `overrides` are fields of `MatrixConfig` over those of the file,
    e.g. `{"seeds": [0]}`.

    Raises:
        ValueError: for a missing file, an unknown key, or two cells with the same output directory.
    """
    path = find_config(path)
    matrix: MatrixConfig = build(MatrixConfig, merge(read_yaml(path), overrides or {}), "")
    cells = [_cell(path.parent, matrix, *parts) for parts in matrix.cells_of()]
    if not cells:
        raise ValueError(
            "The matrix is empty: no row has one of its `seeds` and `testbeds`. Give others, or leave them out."
        )
    folders = [str(real_path(cell.config.output_path)) for cell in cells]
    twice = _first_repeated(folders)
    if twice is not None:
        path = cells[folders.index(twice)].config.output_path
        names = f"{TESTBED}, {{name}} and {{seed}}" if matrix.testbeds else "{name} and {seed}"
        raise ValueError(f"Two cells of the matrix have the output directory {path}. Put {names} in it.")
    _check_shared_bases(cells)
    return matrix, cells


def _check_shared_bases(cells: Sequence[Cell]) -> None:
    """Raises `ValueError` for two cells that share a `model.base_dir` and would each train another base there: the second
    would refuse it, after hours perhaps."""
    known: dict[Path, tuple[Cell, dict[str, str]]] = {}
    for cell in cells:
        config = cell.config
        if not config.model.trains_base or config.model.base_dir is None:
            continue
        model = {name: getattr(config.model, name) for name in ("architecture", "tokenizer", "vocabulary_size")}
        own = flat_settings(
            {"model": model, "data": dataclasses.asdict(config.data), "training": config.stock_training}
        ) | {"seed": str(cell.seed)}
        other, base = known.setdefault(real_path(config.base_path), (cell, own))
        differing = sorted(name for name in own.keys() | base.keys() if own.get(name) != base.get(name))
        if differing:
            name = differing[0]
            values = " and ".join(str(part.get(name, "not given")) for part in (base, own))
            raise ValueError(
                f"`{other.title}` and `{cell.title}` share the base in {config.base_path}, but would each train another "
                f"one: `{name}` is {values}. Give one a `model.base_dir` of its own, or say in the section `pretraining` "
                "what the base's training has."
            )


def _cell(folder: Path, matrix: MatrixConfig, testbed: str, run: MatrixRun, seed: int) -> Cell:
    values: dict[str, Any] = {}
    files = [read_yaml(find_config(name, folder)) for name in (run.recipe, *matrix.overlays)]
    for layer in (*files, matrix.settings, matrix.testbeds.get(testbed, {}), run.settings):
        values = lay_over(values, layer)
    values = {**values, "name": run.name, "seed": seed}
    if testbed:
        values = _filled_in(values, testbed)
    try:
        return Cell(run.name, seed, RunConfig.from_dict(values), values, testbed)
    except ValueError as error:
        where = f"{testbed}: {run.name[:100]}" if testbed else run.name[:100]
        raise ValueError(f"`runs`: {where}: {error}") from error


def _filled_in(value: Any, testbed: str) -> Any:
    """A value with `{testbed}` filled in in every text inside."""
    if isinstance(value, Mapping):
        return {key: _filled_in(item, testbed) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled_in(item, testbed) for item in value]
    return value.replace(TESTBED, testbed) if isinstance(value, str) else value
