"""The command line: `hf-era COMMAND`, and the entry point of the recipes. The commands are in `hf_era.commands`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_era.commands import card, compare, fields, generate, init, matrix, push
from hf_era.commands.evaluate import EVAL, RELEARN
from hf_era.commands.parser import CommandParser
from hf_era.run.recipes import config_names
from hf_era.utils import exit_codes
from hf_era.utils.files import recipes_folder
from hf_era.utils.freed_memory import keep_freed_memory
from hf_era.utils.signals import StoppedError, stoppable
from hf_era.utils.storage_errors import StorageError
from hf_era.version import __version__

_COMMANDS: dict[str, Any] = {
    "init": init,
    "eval": EVAL,
    "relearn": RELEARN,
    "generate": generate,
    "compare": compare,
    "card": card,
    "push": push,
    "matrix": matrix,
    "fields": fields,
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
--learning-rate is the same as --learning_rate; text is taken as it is typed (010, no, "x: y"); `null` takes a value away;
everything else is read as YAML. `hf-era fields` lists them all.

on several GPUs: accelerate launch --num_processes 4 -m hf_era run CONFIG ..."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns one of the exit statuses of `hf_era.utils.exit_codes`."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"] and len(words) > 1 and words[1].startswith("--") and words[1] not in ("--help", "--config"):
        parser.error(f"CONFIG comes first: hf-era run CONFIG {words[1]} ...")
    known, overrides = parser.parse_known_args(words)
    if known.command in _COMMANDS:
        if overrides and known.command not in _WITH_OVERRIDES:
            parser.error(f"unexpected: {' '.join(overrides)}")
        return _guarded(lambda: _COMMANDS[known.command].run(known, overrides))
    return _run([known.config, *known.overlay], known, overrides)


def run_recipe(recipe: str | Path, arguments: Sequence[str] | None = None) -> int:
    """What a file under `recipes/` does: its own YAML, `--config` files over it, overrides over those.

    Args:
        recipe: the recipe's file; its YAML is `configs/<same name>.yaml` beside it.
        arguments (*optional*): not given: the command line's.
    """
    path = Path(recipe)
    parser = CommandParser(
        prog=f"recipes/{path.name}",
        description=f"Runs recipes/configs/{path.stem}.yaml through the whole life cycle.",
        epilog=_OVERRIDES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_run_options(parser)
    known, overrides = parser.parse_known_args(arguments)
    return _run([path.parent / "configs" / f"{path.stem}.yaml", *known.overlay], known, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
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
        epilog=f"{_OVERRIDES_HELP}\n\npackaged configs: {', '.join(config_names())}\n"
        f"(in {recipes_folder() / 'configs'}; for `accelerate launch --config_file` see {recipes_folder() / 'accelerate'})",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument("config", help="YAML file, or the name of a packaged config, e.g. demo")
    _add_run_options(run)
    for command in _COMMANDS.values():
        command.add_parser(commands)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        dest="overlay",
        metavar="CONFIG",
        action="append",
        default=[],
        help="laid over it, e.g. another scale; repeatable",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and say what the run would take; train and write nothing",
    )
    parser.add_argument(
        "--allow-fewer", action="store_true", help="make fewer relearn attacks where there are too few forget examples"
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the config that files and options make together, and run nothing",
    )


def _run(paths: Sequence[str | Path], options: argparse.Namespace, overrides: Sequence[str]) -> int:
    allow_fewer = ["--relearn.allow_fewer", "true"] if options.allow_fewer else []

    def work() -> int:
        # Here, not above: `--help` need not load torch.
        from hf_era.run.config import load_run_config

        config = load_run_config(paths, [*overrides, *allow_fewer])
        if options.print_config:
            from hf_era.run.reference import describe_config

            fields.print_all(describe_config(config))
            return 0
        if options.dry_run:
            from hf_era.run.dry_run import dry_run

            dry_run(config)
            return 0
        from hf_era.run.pipeline import run_pipeline

        run_pipeline(config)
        return 0

    return _guarded(work)


def _guarded(work: Callable[[], int]) -> int:
    """Runs a command; errors that hf_era raised itself are said in one line, without a traceback."""
    keep_freed_memory()
    try:
        with stoppable():
            status = work()
            sys.stdout.flush()  # here, where an error is caught
            return status
    except StoppedError as stopped:
        if os.environ.get("RANK", "0") != "0":  # all processes of a launch stop at the same step
            return exit_codes.STOPPED
        return _say(f"{stopped} Give the same command again to go on from there.", exit_codes.STOPPED)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # after a progress bar
        return _say(
            "Interrupted. Give the same command again: what was done is kept, and a training goes on from its last "
            "checkpoint, if it had one.",
            exit_codes.INTERRUPTED,
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return _say("What read the output, such as `head`, closed it.", exit_codes.FAILED)
    except StorageError as error:
        return _say(str(error), exit_codes.STORAGE)
    except ValueError as error:
        if _is_ours(error):
            return _say(str(error), exit_codes.BAD_INPUT)
        raise
    except (RuntimeError, MemoryError) as error:
        # Here, not above: a command that needs no torch, as `init`, should not wait for it.
        from accelerate.utils.memory import should_reduce_batch_size

        from hf_era.evaluation.batch_halving import BatchMemoryError
        from hf_era.training import NonFiniteLossError

        if isinstance(error, (NonFiniteLossError, BatchMemoryError)):
            return _say(str(error), exit_codes.FAILED)
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
