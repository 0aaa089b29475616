"""`hf-era eval MODEL` and `hf-era relearn MODEL`: measures any causal LM, and attacks it."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_era.utils.checks import MAXIMUM_NAME_BYTES, short_repr

if TYPE_CHECKING:
    from hf_era.evaluation.model_inputs import ModelEvaluationConfig

EPILOG = """\
fields of the sections evaluation, generation and relearn can be set too, for instance
  --relearn.steps 20 --relearn.stories 4 16 --generation.new_tokens 100 --evaluation.bootstrap_samples 0
`hf-era fields relearn` lists those of a section; a field of it can do without: --steps 20."""


@dataclass(frozen=True)
class ModelCommand:
    """A command that measures one model; `attacks` says whether it also attacks it."""

    name: str
    help: str
    description: str
    attacks: bool

    def add_parser(self, commands: Any) -> None:
        parser = commands.add_parser(
            self.name,
            help=self.help,
            description=self.description,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_model_options(parser)
        parser.add_argument(
            "--output", metavar="DIR", help=f"folder for result.json and report.html (default: NAME-{self.name})"
        )
        if not self.attacks:
            parser.add_argument(
                "--profiles",
                nargs="*",
                metavar="MODULE",
                help="losses with each combination of auxiliary modules on: of all, or of these; MODEL is then a run's "
                "folder (with its own held-out examples) or an expanded model",
            )
        if self.attacks:
            parser.add_argument(
                "--attack", metavar="FILE", help="forget examples of the attacker (default: taken out of --forget)"
            )
            parser.add_argument(
                "--attack-retain",
                metavar="FILE",
                help="retain examples of the attacker, for relearn.mixtures half and retain (default: out of --retain)",
            )
            parser.add_argument(
                "--allow-fewer", action="store_true", help="use fewer examples or trials where there are too few"
            )

    def run(self, options: argparse.Namespace, overrides: Sequence[str]) -> int:
        from hf_era.evaluation.model_evaluation import evaluate_model
        from hf_era.evaluation.model_inputs import model_name

        config = model_config(options, overrides)
        suffix = self.name if config.profiles is None else "profiles"
        folder = options.output or default_folder(config.name or model_name(config.model), suffix)
        check_folder(folder, config.model)
        write_model_result(evaluate_model(config, attack=self.attacks), folder)
        return 0


EVAL = ModelCommand(
    "eval",
    "measure any causal LM on forget and retain examples, and on tasks of lm-eval",
    "Measures any causal LM on forget and retain examples: losses with 95 % intervals, generations with their forget words "
    "and repetition; against the model before the method with --before. With --profiles also, of a run with several "
    "auxiliary modules, the losses with each combination of them on; with --tasks also, or alone, on benchmarks of "
    "lm-evaluation-harness.",
    attacks=False,
)
RELEARN = ModelCommand(
    "relearn",
    "attack any causal LM: fine-tune on a few forget examples and see what comes back",
    "Fine-tunes any causal LM on a few forget examples, with several numbers of examples and learning rates, all weights "
    "and LoRA, and measures forget and retain loss on the way. `--preset strong` also tries schedules, retain examples and "
    "mini-batches. Also measures what `eval` does.",
    attacks=True,
)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the examples and how to run."""
    parser.add_argument("model", help="local directory or hub id of any causal LM")
    parser.add_argument("--forget", metavar="FILE", help="forget examples to measure on")
    parser.add_argument("--retain", metavar="FILE", help="retain examples to measure on")
    parser.add_argument("--data", metavar="FILE", help="both in one source, told apart by a column, a score or words")
    parser.add_argument("--label-column", metavar="NAME", help="column of --data that says what is to be forgotten")
    parser.add_argument("--forget-labels", nargs="+", metavar="VALUE", help="its values to forget")
    parser.add_argument(
        "--retain-labels", nargs="+", metavar="VALUE", help="its values to retain (default: all others)"
    )
    parser.add_argument(
        "--score-column",
        metavar="NAME",
        help="column of --data with the probability that an example is to be forgotten",
    )
    parser.add_argument("--before", metavar="MODEL", help="the model before the method, to compare with")
    parser.add_argument("--data-filtering", metavar="RESULT", help="result of a model that never saw a forget example")
    parser.add_argument("--tokenizer", metavar="DIR", help="if it is not the model's own")
    parser.add_argument("--name", help="what the model is called in tables (default: the last part of its path)")
    parser.add_argument(
        "--forget-words",
        nargs="+",
        metavar="WORD",
        help="words to measure and to count; with --data alone they label it",
    )
    parser.add_argument("--text-column", metavar="NAME", help="column with the example (default: found)")
    parser.add_argument("--split", help="split of a data set or directory (default: train)")
    parser.add_argument("--max-characters", type=int, metavar="N", help="an example is cut there (default: 1029)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="and there (default: 256, or the model's context)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N, mps (default: auto)")
    parser.add_argument("--dtype", help="auto (the checkpoint's), float32, bfloat16, float16 (default: auto)")
    parser.add_argument("--batch-size", help="examples a batch, or auto: sized to memory (default: auto)")
    parser.add_argument("--seed", type=int, help="of generations and of the attack's examples (default: 0)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="tasks of lm-eval by name, or over a file of yours: wmdp_local=FILE, wmdp_local_cloze=FILE, tofu_local=FILE",
    )
    parser.add_argument("--task-files", metavar="DIR", help="folder with task files of your own for lm-eval")
    parser.add_argument("--task-limit", type=int, metavar="N", help="examples of each task at most (default: all)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="few-shot examples (default: as the task has it)")
    parser.add_argument("--no-generations", action="store_true", help="do not generate texts")


def model_config(options: argparse.Namespace, overrides: Sequence[str]) -> ModelEvaluationConfig:
    """The config that options and overrides describe; raises `ValueError` for what does not fit."""
    from hf_era.evaluation import EvaluationConfig, RelearnConfig, SamplingConfig
    from hf_era.evaluation.model_inputs import ModelEvaluationConfig
    from hf_era.run.parsing import build, merge, parse_overrides

    sections = {"evaluation": EvaluationConfig, "generation": SamplingConfig, "relearn": RelearnConfig}
    given = {item.name: getattr(options, item.name, None) for item in dataclasses.fields(ModelEvaluationConfig)}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.batch_size not in (None, "auto"):
        size = {"batch_size": options.batch_size}
        values |= {"evaluation": dict(size), "relearn": dict(size)}
    names = ("tasks", "task_files", "task_limit", "num_fewshot")
    asked = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    values = merge(values, {"evaluation": asked} if asked else {})
    if options.seed is not None:
        values = merge(values, {"generation": {"seed": options.seed}, "relearn": {"seed": options.seed}})
    if options.no_generations:
        values = merge(values, {"generation": {"enabled": False}})
    if getattr(options, "allow_fewer", False):
        values = merge(values, {"relearn": {"allow_fewer": True}})
    values = merge(values, parse_overrides(overrides, sections, default="relearn"))
    if values.get("profiles") is not None:
        values = _with_what_the_run_keeps(values)
    config: ModelEvaluationConfig = build(ModelEvaluationConfig, values, "")
    return config


def _with_what_the_run_keeps(values: dict[str, Any]) -> dict[str, Any]:
    """The expanded model and the examples of a run, where the model is a run's folder; profiles have no texts to show."""
    from hf_era.run.kept import expanded_model_of

    given_examples = any(values.get(name) for name in ("forget", "retain", "data"))
    found = expanded_model_of(values["model"], needs_examples=not given_examples)
    return {**found, **values, "model": found.get("model", values["model"]), "generation": {"enabled": False}}


def check_folder(folder: str, model: str) -> None:
    """Raises `ValueError` if a folder holds the result of another model, which would be lost."""
    from pathlib import Path

    from hf_era.utils.files import read_json

    found = read_json(Path(folder) / "result.json")
    other = found.get("model") if isinstance(found, dict) else None
    if other is not None and other != model:
        raise ValueError(
            f"`output`: {folder} holds the result of another model, {short_repr(other)}. Name another: "
            "`--output FOLDER`."
        )


def write_model_result(result: Any, folder: str) -> None:
    """Writes `result.json` and `report.html`, and says the verdict; of the processes of a launch the main one does."""
    from pathlib import Path

    from accelerate import PartialState
    from rich.console import Console

    from hf_era.reporting.html.report import write_report
    from hf_era.reporting.terminal import print_result

    if not PartialState().is_main_process:
        return
    paths = [result.save(Path(folder) / "result.json"), write_report(result, Path(folder) / "report.html")]
    print_result(result, Console())
    print(f"Written: {', '.join(map(str, paths))}")


def default_folder(name: str, suffix: str) -> str:
    """The output folder of a result with this name, in the working directory wherever the name would lead.

    The name may be a path's last part or a model id that somebody else chose: `..`, `/` and the like are no folders.
    """
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-")[:MAXIMUM_NAME_BYTES]
    return f"{plain or 'model'}-{suffix}"
