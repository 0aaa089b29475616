"""Everything that a GPU is to tell, in one command and at most nine minutes, with nothing downloaded.

    make gpu OUTPUT=gpu_results                            # or: python benchmarks/gpu.py gpu_results
    python benchmarks/gpu.py out --device cpu --small      # every part in small on a CPU: what its test runs

Parts, each in a process of its own, the next one started even if one failed:

    tests     the gpu-marked tests, FSDP2 on the GPUs that are there among them
    matmul    the rate of a large bf16 product: the peak that shares are of
    steps     a full bf16 step (forward, backward, AdamW): TinyStories-28M's shape, 80 x 256 tokens
    llama     the same for a Llama of SmolLM2-135M's shape, 16 x 1,024 tokens
    recipe    recipe A at its full shape for 300 steps, with its loss curve

Variants of a step: transformers' own model (`stock`), ours without routing, routed, and the router `parameter`; each as it
is (`eager`), compiled, and compiled with CUDA graphs. They are built in the order in which they matter until half of the
part's time is used up, and then timed in turns. Token positions a second, share of the measured peak (FLOPs of the stock
model's matrix products), peak memory of each alone. The figures are written as they come: `gpu.json` in the output folder,
with the card's name and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoConfig

from benchmarks.common import environment, interleave, median_ratio, print_table, summarise
from benchmarks.train_step import (
    build_model,
    flops_of,
    gpt_neo_config,
    make_batch,
    make_step,
    matmul_rate,
    tinystories_28m,
)
from hf_era import ExpansionConfig
from hf_era.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
KINDS, MODES = ("stock", "routed", "ours", "parameter"), ("eager", "compiled", "graphs")
COMPILED = {"compiled": {}, "graphs": {"mode": "reduce-overhead"}}
PARTS = {"matmul": 20, "steps": 170, "recipe": 110, "llama": 130, "tests": 100}
"""In the order in which they run, with the seconds that each may take."""
SHARED = ROOT.parent / "shared" / "data"
STORIES, TOKENIZER = SHARED / "tinystories" / "train.jsonl", SHARED / "gpt2_tokenizer"


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    name: str
    config: Callable[[], Any]
    layers: list[int] | None
    rows: int
    length: int


def llama(hidden: int, inner: int, layers: int, heads: int, vocabulary: int) -> Any:
    return AutoConfig.for_model(
        "llama", hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 3, vocab_size=vocabulary, max_position_embeddings=2_048, tie_word_embeddings=True,
        use_cache=False,
    )  # fmt: skip


def shape_of(part: str, small: bool) -> Shape:
    if part == "llama":
        if small:
            return Shape("a small Llama", lambda: llama(48, 96, 2, 3, 260), None, 2, 16)
        return Shape("SmolLM2-135M's shape", lambda: llama(576, 1_536, 30, 9, 49_152), None, 16, 1_024)
    if small:
        return Shape(
            "a small GPT-Neo", lambda: gpt_neo_config(2, vocab_size=260, hidden_size=32, num_heads=2), [0, 1], 2, 16
        )
    return Shape("TinyStories-28M's shape", tinystories_28m, [0, 1, 2, 3, 4], 80, 256)


# ---- Steps ----


def build(kind: str, shape: Shape, device: torch.device) -> tuple[Any, torch.optim.Optimizer]:
    router = {"name": "parameter", "core": "all"} if kind == "parameter" else None
    return build_model(kind, shape.config(), device, ExpansionConfig(width=64, target_layers=shape.layers), router)


def step_of(kind: str, mode: str, shape: Shape, device: torch.device) -> Callable[[], object]:
    model, optimizer = build(kind, shape, device)
    batch = make_batch(shape.rows, shape.length, device, model.config.vocab_size)
    called = model if mode == "eager" else torch.compile(model, **COMPILED[mode])
    if kind == "parameter":  # routed, without the L1 term
        step = make_step(
            "ours", "bf16", lambda **inputs: called(**inputs, routing_weight=batch["routing_weight"]), optimizer, batch
        )
    else:
        step = make_step(kind, "bf16", called, optimizer, batch)

    def work() -> object:
        if mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        return step()

    return work


def variant_names(modes: Collection[str]) -> list[str]:
    """In the order in which they matter: compiling takes half a minute each."""
    names = [f"{kind} eager" for kind in KINDS]
    names += [f"{kind} {mode}" for kind in ("routed", "stock", "parameter", "ours") for mode in MODES[1:]]
    return [name for name in names if name.split()[1] in modes]


def time_steps(part: str, small: bool, modes: Sequence[str], device: torch.device, output: Path, limit: float) -> None:
    """Builds the variants until half of the time is used up, and times them in turns; a variant that fails is said. What is
    eager is timed and written first: a compiler may take all the time that is left."""
    shape, start = shape_of(part, small), time.monotonic()
    flops = flops_of(build("stock", shape, device)[0], make_batch(shape.rows, shape.length, device, 260))
    found: dict[str, Any] = {"shape": shape.name, "batch": [shape.rows, shape.length], "flops": flops}
    found |= {"failed": {}, "left_out": [], "variants": {}}
    steps: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int | None] = {}
    for names in (variant_names({"eager"} & set(modes)), variant_names(set(modes) - {"eager"})):
        for name in names:
            if time.monotonic() - start > limit / 2:
                found["left_out"].append(name)
                continue
            try:
                with peak_of(device) as peak:
                    step = step_of(*name.split(), shape, device)
                    for _ in range(3):  # compiles, and makes the optimizer's state
                        step()
                steps[name], peaks[name] = step, peak[0]
                print(f"{part}: {name} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            except Exception as error:  # whatever a compiler says: the other variants are measured
                found["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        if steps and names:
            left = limit * 0.9 - (time.monotonic() - start)
            found["variants"] = _timed(steps, peaks, found, small, device, max(left / 2, 1.0))
        write_json(output, found)


def _timed(
    steps: dict[str, Callable[[], object]],
    peaks: dict[str, int | None],
    found: dict[str, Any],
    small: bool,
    device: torch.device,
    limit: float,
) -> dict[str, Any]:
    """The figures of each variant, timed in turns."""
    repeats, positions = 2 if small else 5, found["batch"][0] * found["batch"][1]
    several = {name: _repeated(step, repeats) for name, step in steps.items()}
    synchronise = torch.cuda.synchronize if device.type == "cuda" else None
    times = interleave(several, rounds=3 if small else 15, warm_up=1, time_limit_s=limit, synchronise=synchronise)
    times = {name: [seconds / repeats for seconds in values] for name, values in times.items()}
    return {
        name: {
            **figures,
            "over_stock_eager": median_ratio(times, name, "stock eager") if "stock eager" in times else None,
            "token_positions_per_s": positions / figures["median_s"],
            "flops_per_s": found["flops"] / figures["median_s"],
            "peak_bytes": peaks[name],
        }
        for name, figures in summarise(times).items()
    }


def _repeated(step: Callable[[], object], times: int) -> Callable[[], object]:
    """Several in a row, so that waiting for the device at the end of each counts for little."""

    def work() -> None:
        for _ in range(times):
            step()

    return work


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[int | None]]:
    """What tensors held at a time within, less what they held before, in bytes; `None` on a CPU."""
    found: list[int | None] = [None]
    if device.type != "cuda":
        yield found
        return
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    torch.cuda.synchronize(device)
    found[0] = torch.cuda.max_memory_allocated(device) - before


# ---- The other parts ----


def measure_matmul(device: torch.device, output: Path) -> None:
    write_json(output, {"bf16_flops_per_s": matmul_rate(device, torch.bfloat16)})


def run_tests(small: bool, output: Path, limit: float) -> None:
    """The gpu-marked tests; on a machine without a GPU they are skipped, which counts are said."""
    chosen = ["tests/test_gpu.py"] if small else ["tests"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "0", "-p", "no:cacheprovider", *chosen]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
        status, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, said = None, (error.stdout or b"").decode(errors="replace")
    lines = said.splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    summary = next((line for line in reversed(lines) if " in " in line), "")
    found: dict[str, Any] = {"status": status, "summary": summary, "failures": failures}
    if status:
        found |= {"error": f"{len(failures)} tests failed", "tail": lines[-40:]}
    elif status is None:
        found |= {"error": f"not through after {limit:.0f} s", "tail": lines[-40:]}
    write_json(output, found)


def run_recipe(small: bool, device: torch.device, output: Path, limit: float) -> None:
    """Recipe A for some steps: its loss curve and its speed. Data: real stories and GPT-2's tokenizer where they lie beside
    the checkout, else texts made by the package and a tokenizer trained on them."""
    folder, has_stories = output.with_suffix(""), STORIES.is_file() and TOKENIZER.is_dir() and not small
    steps = 4 if small else 300
    options = {
        "output_dir": folder / "run", "max_steps": steps, "logging_steps": 1 if small else 25, "eval_strategy": "no",
        "save_strategy": "no", "disable_tqdm": True, "bf16": device.type == "cuda", "use_cpu": device.type == "cpu",
        "model.base_control": False, "generation.enabled": False, "relearn.enabled": False,
        "data.max_train_stories": 20_000, "data.validation": None, "data.attack_stories": 0,
        "data.forget_validation_stories": 64, "data.retain_validation_stories": 200, "torch_compile": not small,
    }  # fmt: skip
    if has_stories:
        options |= {"data.train": STORIES, "model.tokenizer": TOKENIZER}
    else:
        options |= {
            "data.train": "generator",
            "model.tokenizer": None,
            "data.generator_stories": 160 if small else 4_000,
        }
    if small:
        options |= {
            "model.architecture.hidden_size": 16, "model.architecture.num_heads": 2, "model.vocabulary_size": 300,
            "data.max_tokens": 48, "data.forget_validation_stories": 6, "data.retain_validation_stories": 6,
            "per_device_train_batch_size": 4, "warmup_steps": 1, "expansion.width": 4,
        }  # fmt: skip
    command = [sys.executable, "-m", "hf_era", "run", "recipes/configs/scratch_fullseq.yaml"]
    for name, value in options.items():
        command += [f"--{name}", "null" if value is None else str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise RuntimeError(f"Recipe A ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    result = read_json(folder / "run" / "result.json")
    logs = result["training"]["log_history"]
    write_json(
        output,
        {
            "data": "real stories, GPT-2's tokenizer" if has_stories else "made texts and a tokenizer trained on them",
            "options": {name: str(value) for name, value in options.items()},
            "curve": {
                str(entry["step"]): entry["language_model_loss"] for entry in logs if "language_model_loss" in entry
            },
            "seconds": result["seconds"],
            "losses": result["losses"],
        },
    )


def run_part(options: argparse.Namespace, output: Path) -> None:
    """One part, in this process."""
    device, limit = torch.device(options.device), options.until - time.time()
    if options.part in ("steps", "llama"):
        time_steps(options.part, options.small, options.modes, device, output, limit)
    elif options.part == "matmul":
        measure_matmul(device, output)
    elif options.part == "tests":
        run_tests(options.small, output, limit)
    else:
        run_recipe(options.small, device, output, limit)


# ---- All of it ----


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the figures")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --small (default: cuda)")
    parser.add_argument("--small", action="store_true", help="tiny shapes: to try every part out, not to measure")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of the steps")
    parser.add_argument("--limit", type=float, default=530.0, help="seconds for all of it (default: 530)")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA GPU here. `--device cpu --small` tries every part out.", file=sys.stderr)
        return 2
    options.output = options.output.resolve()  # the parts run elsewhere
    if options.part:
        run_part(options, options.output / f"{options.part}.json")
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    start, found = time.monotonic(), {**environment(options.device), "small": options.small, "parts": {}}
    for part in options.parts:
        left = options.limit - (time.monotonic() - start)
        found["parts"][part] = figures = _apart(part, options, min(PARTS[part], left))
        write_json(options.output / "gpu.json", found)
        print(f"{part}: {figures.get('error', 'done')} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    _print(found)
    return int(any("error" in figures for figures in found["parts"].values()))


def _apart(part: str, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """The figures of a part that ran in a process of its own, or why there are none. What it started ends with it: on the
    same GPU it would be in the way of the next one."""
    if limit < 5:
        return {"error": "left out: no time was left"}
    file = options.output / f"{part}.json"
    file.unlink(missing_ok=True)
    until = time.time() + limit - 5
    command = [sys.executable, __file__, str(options.output), "--part", part, "--until", f"{until:.1f}"]
    command += ["--device", options.device, "--modes", *options.modes, *(["--small"] if options.small else [])]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = process.communicate(timeout=limit)[1]
        why = f"status {process.returncode}: {said[-1500:]}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"not through after {limit:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    figures = read_json(file) if file.is_file() else {}
    if not figures and not why:
        why = "it wrote no figures"
    if not why and figures.get("failed"):
        why = f"failed: {', '.join(figures['failed'])}"
    return {**({"error": why} if why else {}), **figures}


def _print(found: dict[str, Any]) -> None:
    peak = found["parts"].get("matmul", {}).get("bf16_flops_per_s")
    for part in ("steps", "llama"):
        figures = found["parts"].get(part)
        if figures is None:
            continue
        rows = [
            [
                name,
                f"{1e3 * one['median_s']:.2f}",
                "-" if one["over_stock_eager"] is None else f"{one['over_stock_eager']:.2f}",
                f"{one['token_positions_per_s']:,.0f}",
                "-" if not peak else f"{one['flops_per_s'] / peak:.1%}",
                "-" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**20:,.0f}",
            ]
            for name, one in figures.get("variants", {}).items()
        ]
        columns = ["variant", "ms", "/ stock eager", "positions/s", "of the bf16 peak", "peak MiB"]
        left_out = figures.get("left_out")
        note = f"Left out for want of time: {', '.join(left_out)}." if left_out else None
        print_table(f"{figures.get('shape', part)}, {figures.get('batch')}, bf16", columns, rows, note)
    print(json.dumps({part: figures.get("error", "done") for part, figures in found["parts"].items()}))


if __name__ == "__main__":
    sys.exit(main())
