"""Everything that a GPU is to tell, in one command and at most nine minutes, with nothing downloaded.

    make gpu OUTPUT=gpu_results                            # or: python benchmarks/gpu.py gpu_results [--data FOLDER]
    python benchmarks/gpu.py out --device cpu --small      # every part in small on a CPU: what its test runs

Parts, each in a process of its own, the next one started even if one failed:

    tests     the gpu-marked tests, FSDP2 on the GPUs that are there among them
    matmul    the rate of a large bf16 product: the peak that shares are of
    steps     a full bf16 step (forward, backward, AdamW): TinyStories-28M's shape, 80 x 256 tokens
    llama     the same for a Llama of SmolLM2-135M's shape, 16 x 1,024 tokens
    recipe    recipe A at its full shape for 300 steps, with its loss curve
    fsdp2     the same for 60 steps, its parameters sharded by FSDP2 (on a CPU, which that is refused on: launched plainly)

Variants of a step: transformers' own model (`stock`), ours without routing, routed (with the L1 term), and the router
`parameter` (without); each as it is (`eager`), compiled, and compiled with CUDA graphs (forward and backward; AdamW is
fused, and launched by itself). `stock eager` is built first. Then one variant after the other, in the order in which
they matter, is built, timed in turns with it and let go, until the part's time is used up; the figures are written
after each: `gpu.json` in the output folder, with the card's name and the date. Token positions a second; share of the
measured peak, of the FLOPs of the stock model's matrix products with half of the attention's, the other half being
masked; peak memory of a step, compiling left out. Ours is told, as its trainer tells it, that padding is on the right,
so that attention takes no mask when compiled either.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch._dynamo
from torch._dynamo.utils import counters
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
from hf_era import ExpansionConfig, FastPaths
from hf_era.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
MODES = ("eager", "compiled", "graphs")
COMPILED = {"compiled": {}, "graphs": {"mode": "reduce-overhead"}}
BASELINE = "stock eager"
VARIANTS = (
    "routed eager", "routed graphs", "stock graphs", "parameter graphs", "routed compiled", "ours graphs", "ours eager",
    "parameter eager", "stock compiled", "parameter compiled", "ours compiled",
)  # fmt: skip
"""In the order in which they matter: compiling takes half a minute each."""
PARTS = {"matmul": 15, "recipe": 60, "steps": 200, "llama": 145, "tests": 70, "fsdp2": 40}
"""In the order in which they run, with the seconds that each may take."""
STORIES, TOKENIZER = Path("tinystories") / "train.jsonl", Path("gpt2_tokenizer")


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
    expansion = ExpansionConfig(width=64, target_layers=shape.layers)
    model, optimizer = build_model(kind, shape.config(), device, expansion, router)
    if kind != "stock":
        model.set_fast_paths(FastPaths(right_padding=True))
    return model, optimizer


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


def time_steps(
    part: str, small: bool, modes: Collection[str], device: torch.device, output: Path, limit: float
) -> None:
    """Builds and times one variant after the other until the time is used up; one that fails is said."""
    shape, start = shape_of(part, small), time.monotonic()
    torch._dynamo.config.recompile_limit = 64  # all kinds share code, and beyond the limit compiled is eager
    found: dict[str, Any] = {"shape": shape.name, "batch": [shape.rows, shape.length], "failed": {}, "left_out": []}
    found["variants"] = {}
    stock = _Variant(BASELINE, shape, device)
    found |= {"stock_flops": _flops(shape, device)}
    for name in [BASELINE, *(one for one in VARIANTS if one.split()[1] in modes)]:
        if time.monotonic() - start > limit * 0.7:  # the longest compilation has to fit into what is left
            found["left_out"].append(name)
            continue
        try:
            found["variants"][name] = _timed(
                stock if name == BASELINE else _Variant(name, shape, device), stock, found, 2 if small else 5
            )
        except Exception as error:  # whatever a compiler says: the other variants are measured
            found["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        write_json(output, found)
        print(f"{part}: {name} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


class _Variant:
    """A model and its step, warmed up.

    Attributes:
        peak_bytes (`int`, *optional*): of a step, with weights and optimizer; `None` on a CPU.
        compiler (`dict[str, int]`): what torch says of how it compiled; breaks and skips are fallbacks to something slower.
    """

    def __init__(self, name: str, shape: Shape, device: torch.device) -> None:
        torch.compiler.reset()
        counters.clear()
        self.name, self.device, self.peak_bytes = name, device, None
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self.step = step_of(*name.split(), shape, device)
        self.step()  # compiles, and makes the optimizer's state
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(3):  # a graph is recorded in the second step
            self.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self.peak_bytes = torch.cuda.max_memory_allocated(device) - held
        self.compiler = {
            "graph_breaks": sum(counters["graph_break"].values()),
            "graphs": counters["stats"]["unique_graphs"],
            "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
        }


def _timed(variant: _Variant, stock: _Variant, found: dict[str, Any], repeats: int) -> dict[str, Any]:
    """The figures of a variant, timed in turns with the stock model."""
    steps = {one.name: _repeated(one.step, repeats) for one in (stock, variant)}
    device, positions = variant.device, found["batch"][0] * found["batch"][1]
    synchronise = torch.cuda.synchronize if device.type == "cuda" else None
    times = interleave(steps, rounds=5, warm_up=1, time_limit_s=12.0, synchronise=synchronise)
    times = {name: [seconds / repeats for seconds in values] for name, values in times.items()}
    figures = summarise(times)[variant.name]
    return {
        **figures,
        "over_stock_eager": median_ratio(times, variant.name, BASELINE),
        "token_positions_per_s": positions / figures["median_s"],
        "flops_per_s": found["stock_flops"]["causal"] / figures["median_s"],
        "peak_bytes": variant.peak_bytes,
        "compiler": variant.compiler,
    }


def _flops(shape: Shape, device: torch.device) -> dict[str, int]:
    """FLOPs of a step's matrix products: `whole`, and `causal` without the half of the attention that is masked. Counted
    with one row: attention in fp32 keeps its scores, and those of all rows do not fit on every card."""
    model = build("stock", shape, device)[0]
    whole = shape.rows * flops_of(model, make_batch(1, shape.length, device, model.config.vocab_size))
    # Two products of length x length x hidden, each with two more in the backward pass.
    attention = 12 * model.config.num_hidden_layers * shape.rows * shape.length**2 * model.config.hidden_size
    return {"whole": whole, "causal": whole - attention // 2}


def _repeated(step: Callable[[], object], times: int) -> Callable[[], object]:
    """Several in a row, so that waiting for the device at the end of each counts for little."""

    def work() -> None:
        for _ in range(times):
            step()

    return work


# ---- The other parts ----


def measure_matmul(device: torch.device, output: Path) -> None:
    """The best of some products, and the mean of a thousand in a row, of a card that has become warm."""
    best, size = matmul_rate(device, torch.bfloat16), 8_192 if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    repeats, synchronise = (1_000, torch.cuda.synchronize) if device.type == "cuda" else (2, lambda: None)
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        left @ right
    synchronise()
    sustained = repeats * 2 * size**3 / (time.perf_counter() - start)
    write_json(output, {"bf16_flops_per_s": best, "sustained_bf16_flops_per_s": sustained})


def run_tests(small: bool, output: Path, limit: float) -> None:
    """The gpu-marked tests; on a machine without a GPU they are skipped, which counts are said."""
    chosen = ["tests/test_gpu.py", *([] if small else ["tests/distributed/test_fsdp2_on_gpus.py"])]
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


def run_recipe(
    small: bool, data: Path | None, device: torch.device, output: Path, limit: float, sharded: bool = False
) -> None:
    """Recipe A for some steps, as one process or launched as one that shards: its loss curve and its speed.

    Data: real stories and GPT-2's tokenizer from the folder, else, which is another shape and is said, texts made by the
    package and a tokenizer trained on them.
    """
    folder, has_stories = output.with_suffix(""), data is not None and not small
    steps, every = (4, 1) if small else (60, 20) if sharded else (300, 50)
    options = {
        "output_dir": folder / "run", "max_steps": steps, "logging_steps": every, "eval_strategy": "no",
        "save_strategy": "no", "disable_tqdm": True, "bf16": device.type == "cuda", "use_cpu": device.type == "cpu",
        "model.base_control": False, "generation.enabled": False, "relearn.enabled": False,
        "data.max_train_stories": 20_000, "data.validation": None, "data.attack_stories": 0,
        "data.forget_validation_stories": 64, "data.retain_validation_stories": 200,
    }  # fmt: skip
    if has_stories:
        options |= {"data.train": data / STORIES, "model.tokenizer": data / TOKENIZER}
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
    if sharded:
        way = "fsdp2" if device.type == "cuda" else "cpu"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
        command += ["--config_file", f"recipes/accelerate/{way}.yaml", "recipes/scratch_fullseq.py"]
    for name, value in options.items():
        command += [f"--{name}", "null" if value is None else str(value)]
    _run_to_the_end(command, limit)
    result = read_json(folder / "run" / "result.json")
    logs = result["training"]["log_history"]
    found = {
        "data": "real stories, GPT-2's tokenizer" if has_stories else "made texts and a tokenizer trained on them",
        "options": {name: str(value) for name, value in options.items()},
        "curve": {str(entry["step"]): entry["language_model_loss"] for entry in logs if "language_model_loss" in entry},
        "seconds": result["seconds"],
        "losses": result["losses"],
    }
    if not has_stories and not small:
        found["error"] = (
            f"without the real stories: no {STORIES} and {TOKENIZER} in `--data`, or beside or in the checkout"
        )
    write_json(output, found)


def _run_to_the_end(command: list[str], limit: float) -> None:
    """Raises `RuntimeError` if it fails, `TimeoutExpired` after so many seconds; then nothing of it goes on."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        said = process.communicate(timeout=limit)[1]
    except subprocess.TimeoutExpired:
        process.terminate()  # a launcher ends its workers, whose session is another
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"Recipe A ended with status {process.returncode}:\n{said[-3000:]}")


def stories_folder(given: Path | None) -> Path | None:
    """The folder with the stories and the tokenizer: the one given, or beside or in the checkout."""
    folders = [given] if given is not None else [ROOT.parent / "shared" / "data", ROOT / "shared" / "data"]
    return next((one.resolve() for one in folders if (one / STORIES).is_file() and (one / TOKENIZER).is_dir()), None)


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
        run_recipe(options.small, stories_folder(options.data), device, output, limit, options.part == "fsdp2")


# ---- All of it ----


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the figures")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --small (default: cuda)")
    parser.add_argument("--data", type=Path, help=f"folder with {STORIES} and {TOKENIZER} (default: ../shared/data)")
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
    command += [] if options.data is None else ["--data", str(options.data.resolve())]
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
                f"{one['over_stock_eager']:.2f}",
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
