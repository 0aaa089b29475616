"""Does a long run leak? Trains 2,000 tiny steps with evaluation and checkpoints, and watches memory, open files and threads.

    python benchmarks/soak.py            # about 3 minutes on 2 CPU cores; writes a JSON file

After a warm-up, in which allocators and caches fill, the resident memory should not depend on the step. The slope is that of
ordinary least squares. Memory grows in steps and stays there, so neighbouring samples tell nearly the same, and the usual
interval would be far too narrow. Ours has the standard error of Newey and West (Bartlett kernel over a quarter of the
samples) and the factor of Kiefer and Vogelsang (2005) for so wide a kernel, 2.72 instead of 1.96.

The Trainer keeps every log entry and writes them all into each checkpoint, so some growth with the entries is its own, and
stock transformers has it too; `--bare` trains without logging, evaluation and checkpoints, to tell the two apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
from transformers import TrainerCallback

from benchmarks.common import RESULTS, environment, print_table, resident_bytes, write_result
from hf_era import RunConfig
from hf_era.models.loading import expanded_from_config
from hf_era.run_inputs import load_inputs
from hf_era.training import GradientRoutingTrainer

CONFIG: dict[str, Any] = {
    "name": "soak",
    "output_dir": "soak",  # only the inputs are made of this
    "model": {
        "vocabulary_size": 512,
        "architecture": {
            "hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128, "window_size": 32,
        },
    },
    "expansion": {"width": 8},
    "data": {
        "generator_stories": 2_000, "max_tokens": 96, "forget_validation_stories": 32, "retain_validation_stories": 32,
    },
    "relearn": {"enabled": False},
}  # fmt: skip
BANDWIDTH = 0.25
"""Of the Bartlett kernel, as a share of the samples."""


@dataclass(frozen=True)
class Sample:
    """What the process held after a step. resident_bytes: VmRSS."""

    step: int
    seconds: float
    resident_bytes: int
    open_files: int
    threads: int


class Watch(TrainerCallback):
    """Takes a sample every so many steps."""

    def __init__(self, every: int) -> None:
        self.every, self.samples, self._start = every, list[Sample](), time.monotonic()
        self._process = psutil.Process()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            seconds = round(time.monotonic() - self._start, 2)
            files, threads = self._process.num_fds(), self._process.num_threads()
            self.samples.append(Sample(state.global_step, seconds, resident_bytes(), files, threads))


@dataclass(frozen=True)
class Slope:
    """A least-squares slope, with its 95 % interval for autocorrelated samples."""

    value: float
    low: float
    high: float


def fit_slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """The slope of y over x and its interval, as the head of this file says.

    Raises:
        ValueError: for fewer than 20 samples.
    """
    if len(x) < 20:
        raise ValueError(
            f"A slope with an interval needs at least 20 samples, got {len(x)}. Train longer, or sample more."
        )
    centred = np.asarray(x, dtype=float) - np.mean(x)
    values = np.asarray(y, dtype=float) - np.mean(y)
    square = float(centred @ centred)
    slope = float(centred @ values) / square
    scores = centred * (values - slope * centred)
    lags = int(BANDWIDTH * len(scores))
    variance = float(scores @ scores)
    for lag in range(1, lags):
        variance += 2 * (1 - lag / lags) * float(scores[lag:] @ scores[:-lag])
    half = _factor(BANDWIDTH) * max(variance, 0.0) ** 0.5 / square
    return Slope(slope, slope - half, slope + half)


def _factor(b: float) -> float:
    """97.5 % point of the t statistic with a Bartlett kernel over the share `b` (Kiefer and Vogelsang 2005, table 1)."""
    return 1.96 + 2.9694 * b + 0.4160 * b**2 - 0.5324 * b**3


def train(folder: Path, options: argparse.Namespace) -> list[Sample]:
    config = RunConfig.from_dict({**CONFIG, "output_dir": str(folder / "run")})
    inputs = load_inputs(config)
    strategy = "no" if options.bare else "steps"
    arguments = config.training_arguments(
        folder / "checkpoints",
        max_steps=options.steps,
        per_device_train_batch_size=8,
        eval_strategy=strategy,
        eval_steps=options.evaluate_every,
        save_strategy=strategy,
        save_steps=options.evaluate_every,
        save_total_limit=2,
        logging_strategy=strategy,
        logging_steps=options.evaluate_every,
        disable_tqdm=True,
        minimum_ablation_gap=0.0,  # a model this small localises nothing in so few steps
    )
    watch = Watch(options.sample_every)
    trainer = GradientRoutingTrainer(
        expanded_from_config(inputs.base_config, config.expansion, 0),
        arguments,
        train_dataset=inputs.data.train,
        eval_dataset={"forget": inputs.data.validation_forget, "retain": inputs.data.validation_retain},
        processing_class=inputs.tokenizer,
        callbacks=[watch],
    )
    trainer.train()
    return watch.samples


def summarise(samples: Sequence[Sample], warm_up: int) -> dict[str, Any]:
    """Slopes after the warm-up, per 1,000 steps: memory in KiB. Level: as many open files and threads at the end as then."""
    after = [sample for sample in samples if sample.step > warm_up]
    thousands = [sample.step / 1_000 for sample in after]
    memory = fit_slope(thousands, [sample.resident_bytes / 1_024 for sample in after])
    third = len(after) // 3
    counts = {}
    for name in ("open_files", "threads"):
        values = [getattr(sample, name) for sample in after]
        counts[name] = {"lowest": min(values), "highest": max(values), "last": values[-1]}
        counts[name]["level"] = max(values[-third:]) <= max(values[:third])
    return {
        "resident_mib": {"first": after[0].resident_bytes / 2**20, "last": after[-1].resident_bytes / 2**20},
        "resident_kib_per_1000_steps": asdict(memory),
        "memory_is_level": memory.low <= 0,
        **counts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000, help="training steps (default: 2000)")
    parser.add_argument("--warm-up", type=int, default=500, help="steps before the fit begins (default: 500)")
    parser.add_argument("--sample-every", type=int, default=10, help="steps between samples (default: 10)")
    parser.add_argument(
        "--evaluate-every",
        type=int,
        default=100,
        help="steps between log entries, evaluations and checkpoints (default: 100)",
    )
    parser.add_argument("--bare", action="store_true", help="no logging, evaluation or checkpoints (with --output)")
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json", help="where the figures are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = train(Path(folder), options)
    found = summarise(samples, options.warm_up)
    slope, memory = found["resident_kib_per_1000_steps"], found["resident_mib"]
    print_table(
        f"After {options.warm_up} of {options.steps} steps ({samples[-1].seconds:.0f} s)",
        ["", "first or lowest", "last", "highest", "growth per 1,000 steps"],
        [
            [
                "resident memory", f"{memory['first']:.1f} MiB", f"{memory['last']:.1f} MiB", "",
                f"{slope['value']:+.0f} KiB [{slope['low']:+.0f}, {slope['high']:+.0f}]",
            ],
            *(
                [name.replace("_", " "), *(str(found[name][key]) for key in ("lowest", "last", "highest")), ""]
                for name in ("open_files", "threads")
            ),
        ],
    )  # fmt: skip
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(
        options.output,
        {**environment(), "settings": settings, **found, "samples": [asdict(sample) for sample in samples]},
    )


if __name__ == "__main__":
    main()
