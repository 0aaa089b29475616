"""Renders tables of README, `docs/evidence.md` and `docs/speed.md` from `benchmarks/results/`, between their markers.

python benchmarks/tables.py            # after `make bench`; --check only says whether they are up to date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_era.evaluation.summary import ROBUST, estimate_of
from hf_era.reporting.comparison_tables import (
    attacks_over_seeds,
    differences_over_seeds,
    losses_over_seeds,
    strongest_attack_over_seeds,
)
from hf_era.reporting.markdown.tables import markdown_table
from hf_era.reporting.matrix_tables import curve_texts, kinds_table, range_texts, rows_table
from hf_era.reporting.numbers import format_estimate

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
SPEED, EVIDENCE = ROOT / "docs" / "speed.md", ROOT / "docs" / "evidence.md"

# GPT-Neo's own sizes, and a 7B of the same kind: parameters, layers, hidden size.
MODELS = {"125M": (125e6, 12, 768), "1.3B": (1.3e9, 24, 2_048), "7B": (7e9, 32, 4_096)}
STATE_BYTES = 16  # of a parameter in fp32: itself, its gradient, AdamW's two moments
MICRO_BATCH, BATCH = 8 * 256, 80 * 256
# Dense bf16 of an H200 by its datasheet, and the share of a GPU's rate that is the aim.
GPU_RATE, GPU_SHARE = 990e12, 0.4


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def step_table() -> str:
    rows = []
    for shape in read("train_step_cpu")["shapes"]:
        label = f"{shape['rows']} x {shape['length']}" + (", small model" if shape["model"] == "small" else "")
        for name, figure in shape["variants"].items():
            rows.append(
                [
                    label,
                    name.replace(" eager", ""),
                    f"{figure['median_s']:.2f}",
                    f"{figure['over_stock_fp32']:.2f}",
                    f"{figure['over_without_routing']:.2f}" if "over_without_routing" in figure else "",
                    f"{figure['peak_bytes'] / 2**20:,.0f}" if figure["peak_bytes"] else "",
                    f"{figure['peak_over_stock_fp32']:.2f}" if figure["peak_bytes"] else "",
                ]
            )
    columns = ["tokens", "variant", "s a step", "/ stock", "routing on / off", "peak MiB", "/ stock"]
    return markdown(columns, rows)


def switches_table() -> str:
    variants = read("switches_cpu")["variants"]
    reference = variants["all on"]["peak_bytes"]
    rows = [
        [
            name if name.startswith("all") else f"`{name}`",
            f"{figure['median_s']:.2f}",
            f"{figure['over_all_on']:.2f}",
            f"{figure['peak_bytes'] / 2**20:,.0f}",
            f"{figure['peak_bytes'] / reference:.2f}",
        ]
        for name, figure in variants.items()
    ]
    shape = " x ".join(map(str, read("switches_cpu")["shape"]))
    return markdown([f"routed step, {shape}", "s a step", "/ all on", "peak MiB", "/ all on"], rows)


def families_table() -> str:
    rows = [
        [
            f"`{name}`",
            *(f"{figure['seconds'][kind]['median_s']:.2f}" for kind in ("stock", "routed")),
            f"{figure['time_ratio']:.2f}",
            *(f"{figure['peak_bytes'][kind] / 2**20:,.0f}" for kind in ("stock", "routed")),
            f"{figure['memory_ratio']:.2f}",
        ]
        for name, figure in read("families_cpu")["families"].items()
    ]
    return markdown(["family", "stock, s", "routed, s", "/ stock", "stock, MiB", "routed, MiB", "/ stock"], rows)


def work_table() -> str:
    throughput, attack, data = read("throughput_cpu")["variants"], read("attack_cpu"), read("data")
    rows = [
        [f"training, tokens a second that are not padding: {name}", f"{over['stock, random order']:.2f} x"]
        for name, over in ((name, figure["over"]) for name, figure in throughput.items())
    ]
    rows += [
        [f"{name}, {group.removesuffix(', attack')}, time", f"{figure['ratio']:.2f}"]
        for group, variants in attack["groups"].items()
        for name, figure in variants.items()
    ]
    if attack["suite"] is not None:
        rows.append(["all attacks of preset `standard`, `stories_tiny.yaml`, s", f"{attack['suite']['seconds']:,.0f}"])
    rows += [
        [f"data: {name}, stories a second", f"{figure['stories_per_second']:,.0f}"]
        for name, figure in data["variants"].items()
    ]
    return markdown(["what", "figure"], rows)


def routing_table() -> str:
    rows = []
    for dtype, variants in read("routing_op_cpu")["dtypes"].items():
        rows += [
            [dtype, name, f"{one['median_s'] * 1e3:,.0f}", f"{one['extra_s'] * 1e3:+,.0f}",
             f"{one['extra_peak_bytes'] / 2**20:+,.0f}"]
            for name, one in variants.items()
        ]  # fmt: skip
    return markdown(["dtype", "variant", "ms", "extra ms", "extra MiB"], rows)


def routers_section() -> str:
    """What routers cost, with its heading; nothing until it was measured."""
    if not (RESULTS / "routers_cpu.json").is_file():
        return ""
    found = read("routers_cpu")
    rows = [
        [name, f"{one['median_s']:.2f}", f"{one['over_no_routing']:.2f}"] for name, one in found["variants"].items()
    ]
    seconds = "s a step" if found["clock"] == "perf_counter" else "s of processor time a step"
    shape = " x ".join(map(str, found["shape"]))
    rounds = len(found["variants"]["no routing"]["rounds_s"])
    text = [
        "## Routers\n",
        "A training step of TinyStories-28M's shape, one router after the other, without the L1 term. With `core: all`",
        "every parameter of the original model learns a share of each token (`python benchmarks/routers.py`).",
        f"The aim is 1.06 at most; medians of {rounds} rounds, which tell nothing apart that lies within 0.05.\n",
    ]
    return "\n".join([*text, markdown([f"{shape}, {found['dtype']}", seconds, "/ no routing"], rows)])


def activation_bytes() -> float:
    """Bytes that a routed step keeps per token, layer and unit of the hidden size: from the growth with layers."""
    growth = read("growth_cpu")
    points = dict(zip(growth["sweeps"]["layers"]["values"], growth["sweeps"]["layers"]["routed"], strict=True))
    low, high = 4, max(points)
    state = STATE_BYTES * (points[high]["parameters"] - points[low]["parameters"])
    grown = points[high]["peak_bytes"] - points[low]["peak_bytes"] - state
    tokens = growth["base"]["batch"] * growth["base"]["sequence length"]
    return grown / ((high - low) * tokens * growth["hidden"])


def estimates_table() -> str:
    step = read("train_step_cpu")["shapes"][-1]
    rate = step["flops"] / step["variants"]["routed fp32 eager"]["median_s"]
    rows = []
    for name, (parameters, layers, hidden) in MODELS.items():
        flops = 6 * parameters * BATCH
        rows.append(
            [
                name,
                f"{parameters * STATE_BYTES / 1e9:,.0f} GB",
                f"{activation_bytes() * layers * hidden * MICRO_BATCH / 1e9:,.1f} GB",
                f"{flops / 1e12:,.0f}",
                f"{flops / rate / 60:,.1f} min",
                f"{flops / (GPU_RATE * GPU_SHARE):,.2f} s",
            ]
        )
    columns = ["model", "weights, gradients, AdamW", "activations of 8 x 256", "TFLOP a step of 80 x 256",
               "this CPU", "one H200 at 40 % of its bf16 rate"]  # fmt: skip
    return markdown(columns, rows)


def headline_table() -> str:
    variants = read("train_step_cpu")["shapes"][-1]["variants"]
    routed = variants["routed fp32 eager"]
    throughput = read("throughput_cpu")["variants"]["routed, by length"]["over"]["stock, random order"]
    evaluation = read("attack_cpu")["groups"]["small"]["evaluation, ours"]["ratio"]
    what = [
        ("training step with routing and the L1 term, 8 x 256 tokens: time", routed["over_stock_fp32"]),
        ("the same: peak memory", routed["peak_over_stock_fp32"]),
        ("tokens a second that are not padding, real stories in batches of 8", throughput),
        ("evaluation of 300 stories, small model (`Trainer.evaluate`): time", evaluation),
    ]
    rows = [[text, "1.00", f"{figure:.2f}"] for text, figure in what]
    rows.append(["routing and L1 term on, over off, same model: time", "", f"{routed['over_without_routing']:.2f}"])
    return markdown(["", "stock", "hf_era"], rows)


MEASURED = (
    "train_step_cpu", "switches_cpu", "families_cpu", "routers_cpu", "throughput_cpu", "attack_cpu", "data",
    "routing_op_cpu", "side_mlp_cpu", "growth_cpu", "freed_memory_cpu", "startup",
)  # fmt: skip
"""The files that the page shows."""


def measured_in(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What a file was measured in, and what those of its parts were that an earlier run has left."""
    parts = [part for section in found.values() if isinstance(section, dict) for part in section.values()]
    parts.append(found.get("suite"))
    return [found, *(part["measured"] for part in parts if isinstance(part, dict) and "measured" in part)]


def machine_line() -> str:
    """What the page's figures were measured on: one line, and more where files are of several machines or versions."""
    found: dict[str, list[tuple[str, str]]] = {}
    parts = [(name, part) for name in MEASURED for part in measured_in(read(name))]
    for name, one in parts:
        machine, versions = one["machine"], one["versions"]
        text = (
            f"{machine['torch_threads']} cores of an {machine['cpu_model']} ({machine['torch_cpu_capability']}), torch "
            f"{versions['torch']}, transformers {versions['transformers']}"
        )
        found.setdefault(text, []).append((name, one["date"][:10]))
    lines = []
    for text, files in found.items():
        dates = sorted({date for _, date in files})
        names = ", ".join(dict.fromkeys(f"`{name}`" for name, _ in files))
        which = "" if len(found) == 1 else f" ({names})"
        lines.append(f"{text}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}{which}.")
    return "\n\n".join(lines)


def growth_table() -> str:
    """Of each sweep its ends: how much more a step takes, and ours over stock at either."""
    rows = []
    for name, sweep in read("growth_cpu")["sweeps"].items():
        ends = {kind: (sweep[kind][0], sweep[kind][-1]) for kind in ("stock", "routed")}
        cells = []
        for key in ("seconds", "peak_bytes"):
            over = (
                sweep["time_ratio"]
                if key == "seconds"
                else [ours[key] / stock[key] for ours, stock in zip(sweep["routed"], sweep["stock"], strict=True)]
            )
            cells += [f"{ends[kind][1][key] / ends[kind][0][key]:.2f}" for kind in ends]
            cells.append(f"{over[0]:.2f} to {over[-1]:.2f}")
        rows.append([f"{name}, {sweep['values'][0]:,} to {sweep['values'][-1]:,}", *cells])
    columns = ["what grows", "time, stock", "routed", "routed / stock", "memory, stock", "routed", "routed / stock"]
    return markdown(columns, rows)


def freed_memory_table() -> str:
    rows = [
        [f"{shape}, {name}", f"{one['median_s']:.2f}", f"{one['over_default']:.2f}",
         f"{one['over_stock']:.2f}", f"{one['peak_bytes'] / 2**20:,.0f}"]
        for shape, variants in read("freed_memory_cpu")["shapes"].items()
        for name, one in variants.items()
    ]  # fmt: skip
    return markdown(["tokens, variant", "s a step", "/ as glibc has it", "/ stock, as glibc has it", "peak MiB"], rows)


def startup_table() -> str:
    return markdown(["until", "s"], [[name, f"{value:.1f}"] for name, value in read("startup")["seconds"].items()])


def matrix_rows() -> list[dict[str, Any]]:
    """The stored matrix over its seeds, in the order of its comparison."""
    return read("matrix_small/comparison")["over_seeds"]


# The README's rows: a result of the matrix, and what that model is in plain words.
IN_PLAIN_WORDS = {
    "data_filtering": "data filtering: trained without the forget examples",
    "scratch_fullseq": "recipe A: gradient routing **from scratch**, whole forget stories",
    "scratch_no_routing": "the same, routing off",
    "posttrain_fullseq": "recipe B: gradient routing on a **pretrained** model, whole forget stories",
    "posttrain_fullseq_uniform": "the same, every token of them alike",
    "posttrain_no_routing": "the same, routing off",
}


def summary_table() -> str:
    rows = {row["name"]: row for row in matrix_rows()}
    lines = []
    for name, text in IN_PLAIN_WORDS.items():
        figures, at_most = rows[name]["figures"], rows[name]["at_most"]
        cells = [
            format_estimate(estimate_of(figures[key]), signed=True, digits=2, at_most=key in at_most)
            for key in ("unlearning", "retain_tax", ROBUST)
        ]
        lines.append([text, *cells])
    return markdown(["forget and retain loss, minus the model before", "removed", "cost", "left under attack"], lines)


NOT_RUN = "Not run yet."
BAKEOFF_COLUMNS = (
    "Row", "Labels", "Seeds", "Retain loss", "Retain tax", "Retain loss over filtering", "Forget loss",
    "Forget loss after the attack", "Share of filtering", "Compute ratio: retain", "Forget loss with the module",
    "retain loss with it", "Accuracy after the attack", "Highest during the attack", "Share of filtering, accuracy",
)  # fmt: skip
POSTTRAINING_COLUMNS = ("Retain loss after the attack", "Distance to the base", "Barrier: forget")


FRONTIER_COLUMNS = (
    "Row", "Labels", "Seeds", "Training, share of pretraining", "Retain loss", "Retain loss over continuing", "Forget loss",
    "Forget loss after the attack", "Attack lowers: forget loss", "retain loss", "Share of filtering",
    "Distance to the base", "Barrier: forget",
)  # fmt: skip


def matrix_section(
    name: str, testbed: str, wanted: Sequence[str], start: str | None = None, with_range: bool = True
) -> str:
    """What a matrix says of one testbed, before its rows the testbed's range and curves: rows of all starts or of one,
    `scratch` or `pretrained`, with these columns."""
    if not (RESULTS / name / "table.json").is_file():
        return NOT_RUN
    found = read(f"{name}/table")
    rows = [row for row in found["rows"] if row["testbed"] == testbed and start in (None, row["start"])]
    if not rows:
        return NOT_RUN
    texts = [
        text
        for part in found["testbeds"]
        if with_range and part["name"] == testbed
        for text in [*range_texts(part), *curve_texts(part)]
    ]
    shown = rows_table(rows)
    columns = [number for number, title in enumerate(shown.header) if title in wanted]
    lines = [[row[number] for number in columns] for row in shown.rows]
    return "\n\n".join([*texts, markdown([shown.header[number] for number in columns], lines)])


def bakeoff_section(testbed: str, start: str) -> str:
    """Of one testbed from one start the columns that matter."""
    wanted = BAKEOFF_COLUMNS if start == "scratch" else (*BAKEOFF_COLUMNS, *POSTTRAINING_COLUMNS)
    return matrix_section("bakeoff", testbed, wanted, start, with_range=start == "scratch")


def attack_kinds_section(name: str) -> str:
    """Of a matrix with several kinds of attack the strongest of each."""
    if not (RESULTS / name / "table.json").is_file():
        return NOT_RUN
    kinds = kinds_table(read(f"{name}/table")["rows"])
    return NOT_RUN if kinds is None else markdown_table(kinds)


TABLES = {
    SPEED: {
        "speed": headline_table,
        "machine": machine_line,
        "step": step_table,
        "switches": switches_table,
        "families": families_table,
        "work": work_table,
        "routing": routing_table,
        "routers": routers_section,
        "growth": growth_table,
        "freed": freed_memory_table,
        "startup": startup_table,
        "estimates": estimates_table,
    },
    README: {"summary": summary_table},
    EVIDENCE: {
        **{f"bakeoff_{name}": partial(bakeoff_section, name, "scratch") for name in ("language", "facts", "trees")},
        **{f"posttraining_{name}": partial(bakeoff_section, name, "pretrained") for name in ("language", "facts")},
        "frontier": partial(matrix_section, "frontier", "language", FRONTIER_COLUMNS),
        "frontier_attacks": partial(attack_kinds_section, "frontier_attacks"),
        "frontier_stories260k": partial(matrix_section, "frontier_stories260k", "", FRONTIER_COLUMNS),
        "differences": lambda: markdown_table(differences_over_seeds(matrix_rows())),
        "losses": lambda: markdown_table(losses_over_seeds(matrix_rows())),
        "strongest": lambda: markdown_table(strongest_attack_over_seeds(matrix_rows())),
        "attacks": lambda: markdown_table(attacks_over_seeds(matrix_rows())),
    },
}


def render(page: Path) -> str:
    """The page with every table between `<!-- name -->` and `<!-- /name -->` made anew."""
    text = page.read_text(encoding="utf-8")
    for name, table in TABLES[page].items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)
        if count != 1:
            raise ValueError(
                f"{page} should have the markers `<!-- {name} -->` and `<!-- /{name} -->` once, got {count}."
            )
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is out of date")
    options = parser.parse_args()
    stale = [page for page in TABLES if page.read_text(encoding="utf-8") != render(page)]
    for page in stale:
        if options.check:
            print(f"{page} is out of date: run `python benchmarks/tables.py`.")
        else:
            page.write_text(render(page), encoding="utf-8")
            print(f"Wrote {page}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
