"""`hf-era generate MODEL --before BASE`: what two models write after the same prompts, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

EPILOG = """\
fields of the section generation can be set too, for instance
  --generation.new_tokens 60 --generation.temperature 0 --generation.top_k 0
`hf-era fields` lists them."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="show what a model writes, beside the model before the method",
        description="Continues prompts with one model or two, side by side, with the same random numbers. Without --prompt "
        "each line of the input is one, until an empty line.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="local directory or hub id of any causal LM")
    parser.add_argument("--before", metavar="MODEL", help="the model before the method, to stand beside it")
    parser.add_argument(
        "--prompt", nargs="+", metavar="TEXT", help="what texts begin with (default: read from the input)"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="of both models, if it is not the model's own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (default: auto)")
    parser.add_argument(
        "--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16 (default: auto)"
    )
    parser.add_argument("--seed", type=int, help="of sampling (default: 0)")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from rich.console import Console

    from hf_era.models.loading import load_tokenizer, without_weight_bars

    settings = _settings(options, overrides)
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    with without_weight_bars():
        models = _models(options)
        tokenizer = load_tokenizer(options.tokenizer or options.model, "tokenizer" if options.tokenizer else "model")
    if settings.prompts:
        show(console, _continued(models, tokenizer, settings))
        return 0
    for prompt in _lines(console):
        try:
            show(console, _continued(models, tokenizer, settings, prompt))
        except ValueError as error:  # of this prompt, too long, say; the next may do
            if not sys.stdin.isatty():
                raise
            console.print(str(error), style="red", markup=False)
    return 0


def _settings(options: argparse.Namespace, overrides: Sequence[str]) -> Any:
    from hf_era.evaluation import SamplingConfig
    from hf_era.run.parsing import build, merge, parse_overrides

    given = {"prompts": options.prompt, "seed": options.seed}
    values = {"generation": {name: value for name, value in given.items() if value is not None}}
    sections = {"generation": SamplingConfig}
    values = merge(values, parse_overrides(overrides, sections, default="generation"))
    return build(SamplingConfig, values["generation"], "generation")


def _models(options: argparse.Namespace) -> dict[str, Any]:
    """Title -> model, the one before the method first."""
    from hf_era.evaluation.model_inputs import DTYPES, find_device
    from hf_era.models.loading import load_causal_lm
    from hf_era.utils.checks import unknown_value_message

    if options.dtype not in DTYPES:
        raise ValueError(unknown_value_message("dtype", options.dtype, DTYPES))
    device, found = find_device(options.device), {}
    for role, name in (("before", options.before), ("model", options.model)):
        if name is not None:
            title = f"before: {_short(name)}" if role == "before" else _short(name)
            found[title] = load_causal_lm(name, role, dtype=DTYPES[options.dtype]).to(device)
    return found


def _short(name: str) -> str:
    """The last parts of a path: `run/model` says more than `model`."""
    return "/".join(Path(name).parts[-2:])


def _continued(models: dict[str, Any], tokenizer: Any, settings: Any, prompt: str | None = None) -> list[Any]:
    """For each prompt the prompt, and the title of each model with its text."""
    from dataclasses import replace

    from hf_era.evaluation import generate_texts

    settings = settings if prompt is None else replace(settings, prompts=[prompt])
    texts = {title: generate_texts(model, tokenizer, settings).texts for title, model in models.items()}
    return [
        (prompt, {title: part[number] for title, part in texts.items()})
        for number, prompt in enumerate(settings.prompts)
    ]


def show(console: Any, continued: list[Any]) -> None:
    """Texts as columns of a table in a terminal, one under the other elsewhere."""
    from rich.table import Table
    from rich.text import Text

    from hf_era.reporting.text import visible

    for prompt, texts in continued:
        if not console.is_terminal:
            for title, text in texts.items():
                console.print(f"[{title}] {visible(text)}", markup=False)
            console.print()
            continue
        table = Table(expand=True)
        for title in texts:
            table.add_column(Text(visible(title)), ratio=1)
        table.add_row(
            *(Text.assemble((visible(prompt), "bold"), visible(text[len(prompt) :])) for text in texts.values())
        )
        console.print(table)


def _lines(console: Any, read: Callable[[str], str] = input) -> Iterator[str]:
    """The lines of the input, up to an empty one or the end."""
    while True:
        try:
            line = read("Prompt (empty: end): " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line
