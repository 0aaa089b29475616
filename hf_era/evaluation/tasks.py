"""Tasks of EleutherAI's lm-evaluation-harness (lm-eval): benchmarks with accuracies, beside the losses.

Any task of the harness by its name, and those in `recipes/lm_eval` over a file of one's own: `wmdp_local=questions.jsonl`.
The harness is imported once there is a task to measure; it indexes its own tasks (14,000 files, 11 s) only where one of them
is asked for. Models are measured as they are, in this process, by `lm_eval.evaluate`: `simple_evaluate` does the same, then
lists the machine's packages and looks for the model's revision on the hub, 3 s for each model.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from packaging.version import Version

from hf_era.data import padding_token_id
from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.evaluator import CPU_BATCH_SIZE, EvaluationConfig
from hf_era.evaluation.relearn.attack import seeded
from hf_era.utils.checks import error_text, short_repr
from hf_era.utils.files import digest_of_file, fingerprint, local_path, recipes_folder
from hf_era.utils.processes import in_all
from hf_era.utils.suggestions import did_you_mean

LEAST_VERSION = "0.4.13"
"""Whose `TaskManager.load` gives tasks and groups apart."""
SEED = 1234
"""Of few-shot examples and of tasks that sample: the harness's own default."""
GPU_BATCH_SIZE = 64
"""The harness keeps the logits of a whole batch, in fp32."""
SHARES = ("acc", "acc_norm", "exact_match")
"""Metrics that are 0 or 1 for each example: their intervals are Wilson's, which hold at 0 and 1 too."""
WITHIN_95 = 1.96
"""Standard errors on each side, for all other metrics."""


class Suite:
    """Tasks, loaded and checked, to measure models with.

    Args:
        config (`EvaluationConfig`): `tasks`, `task_files`, `task_limit`, `num_fewshot` and the batch size.
        tokenizer: of the models. It is left as it is.

    Attributes:
        examples (`int`): texts that a measurement reads: of a multiple-choice task each choice is one.

    Raises:
        ValueError: if lm-eval is not installed, a task is unknown or cannot be loaded, or its file is not as it should be.
    """

    def __init__(self, config: EvaluationConfig, tokenizer: Any) -> None:
        _check_installed()
        self.config, self.tokenizer = config, _own_tokenizer(tokenizer)
        self._tasks: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        with _quiet():
            self._load()
        self.examples = sum(self._readings(task) for task in self._tasks.values())

    def _load(self) -> None:
        specs = [_parsed(text) for text in self.config.tasks]
        own = _manager(self.config, defaults=False)
        manager, local = own, _local_tasks()
        if any(name not in own.all_tasks for name, _ in specs):
            manager = _manager(self.config, defaults=True)
        for name, file in specs:
            if name not in manager.all_tasks:
                raise ValueError(_unknown_message(name, manager.all_tasks))
            if file is None and name in local:
                raise ValueError(
                    f"`evaluation.tasks`: {name} measures a file of yours. Name it: `--tasks {name}=questions.jsonl`. "
                    "What it should hold: docs/my_evaluation.md."
                )
            if file is not None and name not in own.all_tasks:
                raise ValueError(_no_file_message(name, file))
            if file is not None:
                metadata = {"data": str(local_path(file).absolute()), "tokenizer": self.tokenizer}
                self._add(name, _manager(self.config, defaults=False, metadata=metadata), file)
            else:
                self._add(name, manager, None)

    def _add(self, name: str, manager: Any, file: str | None) -> None:
        try:
            loaded = manager.load(name)
        except Exception as error:  # whatever a task's own code, `datasets` or the hub raises
            raise ValueError(_loading_message(name, file, error)) from error
        suffix = "" if file is None else f"={Path(file).name}"
        for task_name, task in loaded["tasks"].items():
            if file is not None and task.get_config("custom_dataset") is None:
                raise ValueError(_no_file_message(name, file))
            key = f"{task_name}{suffix}"
            if key in self._tasks:
                raise ValueError(
                    f"`evaluation.tasks`: {key} is there twice. Name each task once, and files of one task differently."
                )
            fewshot = task.get_config("num_fewshot")
            if fewshot is None or (self.config.num_fewshot is not None and fewshot != 0):  # 0: its author rules it out
                task.set_config(key="num_fewshot", value=self.config.num_fewshot or 0)
            self._tasks[key] = task
        if file is None:
            self._groups |= loaded.get("groups", {})

    def _readings(self, task: Any) -> int:
        number = self._documents(task)
        return round(number / (_chance(task, number) or 1.0))

    def _documents(self, task: Any) -> int:
        """How many of a task's examples are measured."""
        return min(len(task.eval_docs), self.config.task_limit or len(task.eval_docs))

    def describe(self) -> str:
        """The tasks and how many examples of each are measured: `wmdp_bio (1,273), ...`."""
        shown = [f"{name} ({self._documents(task):,})" for name, task in list(self._tasks.items())[:6]]
        more = len(self._tasks) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def measure(self, model: Any) -> dict[str, dict[str, Any]]:
        """Measures a causal LM, where it is and in its dtype.

        Returns: task -> `examples` (how many), `shots` (few-shot examples in each prompt), `version` of the task, `chance`
        (the accuracy of guessing; `None` where that means nothing), `group` (that with figures of its own which it is in, or
        `None`; the group is an entry like the tasks) and `metrics`: name -> `value`, `standard_error`, and the ends of its
        95 % interval over examples, `low` and `high`.

        Raises:
            ValueError: if the harness cannot measure the model, or a generated answer does not fit its context.
        """
        device = next(model.parameters()).device
        given = self.config.batch_size or (CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE)
        training = model.training
        with _quiet(), seeded(SEED, device):
            found, _ = halving_batches(
                lambda size: self._evaluated(model, size),
                given,
                doing="Measuring tasks",
                setting="`evaluation.batch_size`",
            )
        model.train(training)
        return self._figures(found)

    def _evaluated(self, model: Any, batch_size: int) -> Any:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        harness = HFLM(
            pretrained=model, tokenizer=copy.deepcopy(self.tokenizer), backend="causal", batch_size=batch_size
        )
        for name, task in self._tasks.items():
            task.set_fewshot_seed(seed=SEED)
            if task.OUTPUT_TYPE == "generate_until":
                _check_generation(name, task, harness)
        return lm_eval.evaluate(
            lm=harness,
            task_dict={"tasks": self._tasks, "groups": self._groups},
            limit=self.config.task_limit,
            bootstrap_iters=self.config.bootstrap_samples,
            log_samples=False,
        )

    def _figures(self, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        results, sizes = found["results"], found["n-samples"]
        inside = {child: group for group, members in self._members(found).items() for child in members}
        figures = {}
        for name, values in results.items():
            task = self._tasks.get(name)
            number = (
                sizes[name]["effective"]
                if name in sizes
                else sum(sizes[child]["effective"] for child in self._members(found).get(name, ()) if child in sizes)
            )
            metrics = dict(_metrics(values, number))
            if not metrics:
                continue
            accuracies = {"acc", "acc_norm"} & {metric.split(" ")[0] for metric in metrics}
            figures[name] = {
                "examples": number,
                "shots": found["n-shot"].get(name),
                "version": found["versions"].get(name),
                "chance": _chance(task, self._documents(task)) if task is not None and accuracies else None,
                "group": inside.get(name),
                "metrics": metrics,
            }
        return figures

    def _members(self, found: Mapping[str, Any]) -> dict[str, list[str]]:
        """Group with figures of its own -> all tasks inside, also those of groups inside."""
        groups = found.get("group_subtasks", {})

        def leaves(name: str) -> Iterator[str]:
            for child in groups.get(name, ()):
                yield child
                yield from leaves(child)

        return {name: list(leaves(name)) for name in groups if dict(_metrics(found["results"].get(name, {}), 1))}


def load_suite(config: EvaluationConfig, tokenizer: Any, state: PartialState | None = None) -> Suite | None:
    """The suite of a config; `None` if it names no task. Of the processes of a launch the main one loads it, and all hear of
    what is wrong with it; the others get `None`."""
    if not config.tasks:
        return None
    alone = state is None or state.is_main_process
    return in_all(lambda: Suite(config, tokenizer) if alone else None, state)[
        0 if state is None else state.process_index
    ]


def measure_in_main(work: Callable[[], dict[str, Any]], state: PartialState | None = None) -> dict[str, Any]:
    """What `work` returns in the main process, the one that has the suite; in all."""
    return in_all(lambda: work() if state is None or state.is_main_process else {}, state)[0]


def suite_key(config: EvaluationConfig) -> str:
    """A fingerprint of what a suite measures: names, the content of files, numbers."""
    files = [local_path(file) for _, file in map(_parsed, config.tasks) if file is not None]
    folder = [] if config.task_files is None else sorted(local_path(config.task_files).rglob("*"))
    read = [digest_of_file(path) for path in (*files, *folder) if path.is_file()]
    return fingerprint(config.tasks, read, config.task_limit, config.num_fewshot, config.bootstrap_samples)


# ---- Loading ----


def _check_installed() -> None:
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(LEAST_VERSION):
        raise ValueError(
            f"`evaluation.tasks` (`--tasks`) needs EleutherAI's lm-evaluation-harness, {LEAST_VERSION} or newer: "
            f'{f"{found} is" if found else "none is"} installed. `pip install "lm-eval>={LEAST_VERSION}"`, or name no tasks.'
        )


def _parsed(text: str) -> tuple[str, str | None]:
    name, _, file = text.partition("=")
    return name, file or None


def _manager(config: EvaluationConfig, defaults: bool, metadata: dict[str, Any] | None = None) -> Any:
    from lm_eval.tasks import TaskManager

    folders = [str(recipes_folder() / "lm_eval")]
    if config.task_files is not None:
        path = local_path(config.task_files)
        if not path.is_dir():
            raise ValueError(
                f"`evaluation.task_files` (`--task-files`): {path} is no folder. Pass one with task files of lm-eval."
            )
        folders.append(str(path))
    return TaskManager(include_path=folders, include_defaults=defaults, metadata=metadata)


def _local_tasks() -> set[str]:
    """The tasks over a local file that come with the package; each is in a file of its name."""
    return {path.stem for path in (recipes_folder() / "lm_eval").glob("*_local*.yaml")}


def _local_names() -> str:
    return ", ".join(sorted(_local_tasks()))


def _unknown_message(name: str, known: Sequence[str]) -> str:
    return (
        f"Unknown task in `evaluation.tasks` (`--tasks`): {short_repr(name)}.{did_you_mean(name, list(known))} `lm-eval ls "
        f"tasks` lists those of the harness; your own are read from `--task-files FOLDER`, and {_local_names()} measure a "
        "file: `--tasks NAME=FILE`."
    )


def _no_file_message(name: str, file: str) -> str:
    return (
        f"`evaluation.tasks`: {name} has data of its own, and does not read {short_repr(file)}. Files are measured by "
        f"{_local_names()}, and by tasks of yours with a `custom_dataset` that takes `data`."
    )


def _loading_message(name: str, file: str | None, error: Exception) -> str:
    text = error_text(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error_text(error)}"
    if file is not None:
        return f"`evaluation.tasks`: {name}={file}: {text}"
    return (
        f"`evaluation.tasks`: {name} could not be loaded: {text.rstrip('.')}. The harness's tasks read their "
        "data from the hub. On a machine without it, give a local copy: multiple choice as `--tasks wmdp_local=FILE`, "
        "questions and answers as `--tasks tofu_local=FILE`, anything else with a task file of your own (`--task-files "
        "FOLDER`). Formats: docs/my_evaluation.md."
    )


def _own_tokenizer(tokenizer: Any) -> Any:
    """A copy that has a token to pad with. The harness would add a new one, for which the model has no embedding."""
    own = copy.deepcopy(tokenizer)
    if own.pad_token_id is None:
        own.pad_token = own.convert_ids_to_tokens(padding_token_id(own))
    return own


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's log says what every call passes. What goes wrong is raised."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_generation(name: str, task: Any, harness: Any) -> None:
    if harness.eot_token_id is None:
        raise ValueError(
            f"`evaluation.tasks`: {name} lets the model write, and its tokenizer has no token that ends a text. Give the "
            "tokenizer an `eos_token`, or leave the task out."
        )
    tokens = (task.config.generation_kwargs or {}).get("max_gen_toks", harness.max_gen_toks)
    if tokens >= harness.max_length:
        raise ValueError(
            f"`evaluation.tasks`: {name} writes up to {tokens} tokens, but the model has {harness.max_length} positions. "
            "Leave it out, or give a task file of your own with a lower `generation_kwargs: {max_gen_toks: ...}`."
        )


# ---- Figures ----


def _metrics(values: Mapping[str, Any], number: int) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Metrics of a task in the harness's result, where keys are `acc,none` and `acc_stderr,none`; the filter is named
    unless it is `none`."""
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        error = float(error) if isinstance(error, (int, float)) else None
        low, high = _interval(metric, float(value), error, number)
        name = metric if kept == "none" else f"{metric} ({kept})"
        yield name, {"value": float(value), "standard_error": error, "low": low, "high": high}


def _interval(metric: str, value: float, error: float | None, number: int) -> tuple[float | None, float | None]:
    right = value * number
    if metric in SHARES and number and abs(right - round(right)) < 1e-6:
        from scipy.stats import binomtest

        interval = binomtest(round(right), number).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)
    return (None, None) if not error else (value - WITHIN_95 * error, value + WITHIN_95 * error)


def _chance(task: Any, number: int) -> float | None:
    """The accuracy of guessing: the mean of 1 / choices over the examples that are measured; `None` without choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    documents = task.eval_docs
    counts = [len(task.doc_to_choice(documents[row])) for row in range(number)]
    return sum(1 / count for count in counts) / number if number and all(counts) else None
