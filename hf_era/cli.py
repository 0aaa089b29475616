"""The command line: `hf-era COMMAND`, and the entry point of the recipes. The commands are in `hf_era.commands`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_era.commands import card, compare, generate, matrix, push
from hf_era.commands.evaluate import EVAL, RELEARN
from hf_era.utils import exit_codes
from hf_era.utils.signals import StoppedError, stoppable
from hf_era.version import __version__

_COMMANDS: dict[str, Any] = {
    "eval": EVAL,
    "relearn": RELEARN,
    "generate": generate,
    "compare": compare,
    "card": card,
    "push": push,
    "matrix": matrix,
}

_WITH_OVERRIDES = ("eval", "relearn", "generate")

# While training: a smaller batch would be another run, so that is for the user to decide.
_OUT_OF_MEMORY = (
    "Memory does not suffice. Halve `--per_device_train_batch_size` and double `--gradient_accumulation_steps` (the same "
    "batch in smaller parts), or pass `--activation_checkpointing true`; with either it is another run, so give it another "
    "`--output_dir`. What was saved before is whole and was kept."
)

_OVERRIDES_HELP = """\
any field of the config can be overridden, for instance
  --learning_rate 3e-4            a field of the section `training`
  --data.train stories.jsonl      a field of another section
  --expansion.target_layers 0 1   a list; 0,1 is one too
text is taken as it is typed (010, no, "x: y"); `null` takes a value away; everything else is read as YAML.
`hf-era fields` lists them all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns one of the exit statuses of `hf_era.utils.exit_codes`."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"] and len(words) > 1 and words[1].startswith("--") and words[1] not in ("--help", "--config"):
        parser.error(f"CONFIG comes first: hf-era run CONFIG {words[1]} ...")
    known, overrides = parser.parse_known_args(words)
    if known.command == "fields":
        if overrides:
            parser.error(f"unexpected: {' '.join(overrides)}")
        from hf_era.run.config import describe_fields

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(describe_fields())
        return 0
    if known.command in _COMMANDS:
        if overrides and known.command not in _WITH_OVERRIDES:
            parser.error(f"unexpected: {' '.join(overrides)}")
        return _guarded(lambda: _COMMANDS[known.command].run(known, overrides))
    return _run([known.config, *(known.overlay or [])], _with_allow_fewer(known, overrides), known.dry_run)


def run_recipe(recipe: str | Path, arguments: Sequence[str] | None = None) -> int:
    """What a file under `recipes/` does: its own YAML, `--config` files over it, overrides over those.

    Args:
        recipe: the recipe's file; its YAML is `configs/<same name>.yaml` beside it.
        arguments (*optional*): not given: the command line's.
    """
    path = Path(recipe)
    parser = argparse.ArgumentParser(
        prog=f"recipes/{path.name}",
        description=f"Runs recipes/configs/{path.stem}.yaml through the whole life cycle.",
        epilog=_OVERRIDES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        help="YAML file laid over the recipe's own, e.g. another scale; repeatable",
    )
    _add_allow_fewer(parser)
    known, overrides = parser.parse_known_args(arguments)
    paths = [path.parent / "configs" / f"{path.stem}.yaml", *known.config]
    return _run(paths, _with_allow_fewer(known, overrides), known.dry_run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-era",
        description="Gradient routing for HuggingFace Transformers: expand, route, ablate, save a stock checkpoint.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf_era {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run the life cycle of a config, or go on with it",
        description="Runs the whole life cycle of a YAML config; what is done already is skipped.",
        epilog=_OVERRIDES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument("config", help="YAML file, e.g. recipes/configs/demo.yaml")
    run.add_argument("--config", dest="overlay", action="append", help="YAML file laid over it; repeatable")
    _add_allow_fewer(run)
    for command in _COMMANDS.values():
        command.add_parser(commands)
    commands.add_parser("fields", help="list every field of a config with its default", allow_abbrev=False)
    return parser


def _add_allow_fewer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and say what the run would take; train and write nothing",
    )
    parser.add_argument(
        "--allow-fewer", action="store_true", help="make fewer relearn attacks where there are too few forget examples"
    )


def _with_allow_fewer(known: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    return [*overrides, *(["--relearn.allow_fewer", "true"] if known.allow_fewer else [])]


def _run(paths: Sequence[str | Path], overrides: Sequence[str], dry: bool) -> int:
    # Here, not above: `--help` need not load torch.
    from hf_era.run.config import load_run_config
    from hf_era.run.dry_run import dry_run
    from hf_era.run.pipeline import run_pipeline

    def work() -> int:
        (dry_run if dry else run_pipeline)(load_run_config(paths, overrides))
        return 0

    return _guarded(work)


def _guarded(work: Callable[[], int]) -> int:
    """Runs a command; errors that hf_era raised itself are said in one line, without a traceback."""
    from accelerate.utils.memory import should_reduce_batch_size

    from hf_era.evaluation.batch_halving import BatchMemoryError
    from hf_era.training import NonFiniteLossError
    from hf_era.utils.storage_errors import StorageError

    try:
        with stoppable():
            return work()
    except StoppedError as stopped:
        if os.environ.get("RANK", "0") != "0":  # all processes of a launch stop at the same step
            return exit_codes.STOPPED
        return _say(f"{stopped} Give the same command again to go on from there.", exit_codes.STOPPED)
    except KeyboardInterrupt:
        return _say(
            "Interrupted. Give the same command again to go on from the last checkpoint.", exit_codes.INTERRUPTED
        )
    except StorageError as error:
        return _say(str(error), exit_codes.STORAGE)
    except (NonFiniteLossError, BatchMemoryError) as error:
        return _say(str(error), exit_codes.FAILED)
    except ValueError as error:
        if _is_ours(error):
            return _say(str(error), exit_codes.BAD_INPUT)
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            return _say(f"{_OUT_OF_MEMORY} It said: {error}", exit_codes.FAILED)
        raise


def _say(text: str, exit_code: int) -> int:
    print(f"hf-era: {text}", file=sys.stderr)
    return exit_code


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised by hf_era itself: then its message says it all and a traceback would hide it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith("hf_era")
