"""The evaluation and the relearn attack, end to end, against the same work done with transformers alone.

    python benchmarks/attack.py                # the model of recipes/configs/stories_small.yaml on a CPU, 28M on a GPU
    python benchmarks/attack.py --suite        # and how long the attacks of preset `standard` take on stories_tiny.yaml:
                                               # ten minutes; without it the figure stays in the file as it is

Evaluation: the loss on 300 stories (1,000 on a GPU), `Evaluator` against `Trainer.evaluate` of transformers on the stock
model, with the Trainer's defaults (batches of 8 in the order of the data set); on a CPU also with TinyStories-28M's shape
on 16, where the vocabulary is large. Attack: 2 steps on 16 forget stories with the forget and the retain loss of 64
stories each after every step, `RelearnAttack` against the plain loop on the stock model: one batch, whole logits. Both
sides see the same tokens, in turns in one process, and the losses that they report are compared.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from transformers import GPTNeoConfig, GPTNeoForCausalLM, Trainer, TrainingArguments

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    median_ratio,
    print_table,
    summarise,
    write_result,
)
from benchmarks.stories import load_tokenised
from benchmarks.train_step import gpt_neo_config, tinystories_28m
from hf_era import FastGPTNeoForCausalLM
from hf_era.data import FORGET, RETAIN, RoutingCollator, padding_token_id
from hf_era.evaluation import EvaluationConfig, Evaluator, RelearnAttack, RelearnAttackConfig
from hf_era.evaluation.relearn.attack import MeasuredStories
from hf_era.utils.files import read_json

ROOT = Path(__file__).resolve().parents[1]
ATTACK = RelearnAttackConfig(steps=2, patience=None)
STORIES, MEASURED = 16, 64


def small_config(vocabulary_size: int) -> GPTNeoConfig:
    """The model of `recipes/configs/stories_small.yaml`."""
    sizes = {"hidden_size": 192, "num_heads": 6, "max_position_embeddings": 256, "window_size": 256}
    return gpt_neo_config(4, vocab_size=vocabulary_size, bos_token_id=0, eos_token_id=0, **sizes)


class PlainEvaluation:
    """`Trainer.evaluate` of transformers. Its loss is the mean of batch means; the token-weighted one is ours."""

    def __init__(self, model: Any, stories: Dataset, pad: int, batch_size: int) -> None:
        folder = tempfile.mkdtemp(prefix="hf_era_benchmark_")
        on_cpu = not torch.cuda.is_available()
        arguments = TrainingArguments(
            folder, per_device_eval_batch_size=batch_size, report_to="none", disable_tqdm=True, use_cpu=on_cpu
        )
        self.trainer = Trainer(
            model, arguments, eval_dataset=stories.select_columns(["input_ids"]), data_collator=RoutingCollator(pad)
        )
        self.loss = math.nan

    def __call__(self) -> None:
        self.loss = self.trainer.evaluate()["eval_loss"]


class OurEvaluation:
    def __init__(self, model: Any, stories: Dataset, pad: int, device: torch.device) -> None:
        self.model, self.loss = model, math.nan
        config = EvaluationConfig(bootstrap_samples=0)
        # One story in the retain set: the loss on all stories is the forget set's.
        self.evaluator = Evaluator(stories, stories.select(range(1)), pad, config, device=device, progress=False)

    def __call__(self) -> None:
        self.loss = self.evaluator.losses(self.model, "Benchmark")["forget"]["loss"]


class PlainAttack:
    """What one writes without a library for it: one padded batch, the stock class, whole logits."""

    def __init__(self, model: Any, attack: Dataset, sets: dict[str, Dataset], pad: int, device: torch.device) -> None:
        self.model, self.loss = model, math.nan
        collator = RoutingCollator(pad)
        self.batch = {name: value.to(device) for name, value in collator(list(attack)).items()}
        self.sets = {name: list(stories) for name, stories in sets.items()}
        self.collator, self.device = collator, device

    def __call__(self) -> None:
        start = {name: value.clone() for name, value in self.model.state_dict().items()}
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=ATTACK.learning_rate, betas=(0.9, 0.95), fused=True)
        for step in range(ATTACK.steps + 1):
            if step:
                self.model.train()
                optimizer.zero_grad()
                self.model(**self.batch).loss.backward()
                optimizer.step()
            losses = {name: self.measure(name) for name in self.sets}
            self.loss = losses["forget"]
        self.model.load_state_dict(start)

    @torch.no_grad()
    def measure(self, name: str) -> float:
        self.model.eval()
        total, tokens = 0.0, 0
        for start in range(0, len(self.sets[name]), ATTACK.batch_size):
            batch = self.collator(self.sets[name][start : start + ATTACK.batch_size])
            batch = {key: value.to(self.device) for key, value in batch.items()}
            count = int((batch["labels"][:, 1:] != -100).sum())
            total, tokens = total + float(self.model(**batch).loss) * count, tokens + count
        return total / tokens


class OurAttack:
    def __init__(self, model: Any, attack: Dataset, sets: dict[str, Dataset], pad: int, device: torch.device) -> None:
        self.model, self.loss = model, math.nan
        measured = MeasuredStories(sets["forget"], sets["retain"], pad, ATTACK.batch_size, device)
        self.attack = RelearnAttack(attack, measured, pad, ATTACK)

    def __call__(self) -> None:
        self.loss = self.attack.run(self.model).points[-1].forget_loss


def evaluations(data: Any, config: GPTNeoConfig, stories: int, device: torch.device) -> dict[str, Any]:
    """Both sides' evaluation of a model with random weights."""
    pad = padding_token_id(data.tokenizer)
    evaluated = data.stories.select(range(stories)).select_columns(["input_ids", "length", "is_forget_word"])
    stock, fast = models(config, device)
    return {
        "evaluation, Trainer": PlainEvaluation(stock, evaluated, pad, 8),
        "evaluation, ours": OurEvaluation(fast, evaluated, pad, device),
    }


def attacks(data: Any, config: GPTNeoConfig, device: torch.device) -> dict[str, Any]:
    """Both sides' attack on a model with random weights."""
    pad, labels = padding_token_id(data.tokenizer), data.stories["label"]
    forget = data.stories.select([i for i, label in enumerate(labels) if label == FORGET][: 64 + MEASURED])
    retain = data.stories.select([i for i, label in enumerate(labels) if label == RETAIN][:MEASURED])
    sets = {"forget": forget.select(range(64, 64 + MEASURED)), "retain": retain}
    sets = {name: part.select_columns(["input_ids", "length"]) for name, part in sets.items()}
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:STORIES].tolist()
    attack = forget.select(order).select_columns(["input_ids", "length"])
    stock, fast = models(config, device)
    return {
        "attack, plain loop": PlainAttack(stock, attack.select_columns(["input_ids"]), dict(sets), pad, device),
        "attack, ours": OurAttack(fast, attack, sets, pad, device),
    }


def models(config: GPTNeoConfig, device: torch.device) -> tuple[Any, Any]:
    torch.manual_seed(0)
    stock = GPTNeoForCausalLM(config).to(device)
    return stock, FastGPTNeoForCausalLM.from_stock(stock)


SUITE = ["scratch_fullseq", "--config", "recipes/configs/stories_tiny.yaml", "--method", "base", "--max_steps", "300"]


def seconds_of_the_suite() -> float | None:
    """Of all attacks of preset `standard` on a model that was trained for a short time; `None` without the stories."""
    stories = ROOT.parent / "shared" / "data" / "tinystories" / "train.jsonl"
    if not stories.is_file():
        print(f"The suite is left out: there is no {stories}.", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder, "model.base_dir": f"{folder}/base", "relearn.preset": "standard",
            "relearn.attack_before": False, "generation.enabled": False, "disable_tqdm": True,
        }  # fmt: skip
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "hf_era", "run", *SUITE, *given], cwd=ROOT, check=True, stdout=sys.stderr)
        seconds: dict[str, float] = read_json(Path(folder) / "result.json")["seconds"]
    return sum(value for name, value in seconds.items() if "attack" in name)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    parser = benchmark_parser(__doc__, f"attack_{device.type}", rounds=3, warm_up=1)
    parser.add_argument("--suite", action="store_true", help="time the attacks of preset `standard` too")
    options = parser.parse_args()
    of_gpt2 = load_tokenised(4_000, None)
    small = None if on_gpu else load_tokenised(4_000, 2_048)
    groups: dict[str, dict[str, Any]] = {}
    if small is None:
        groups["28M"] = evaluations(of_gpt2, tinystories_28m(), 1_000, device)
        groups["28M, attack"] = attacks(of_gpt2, tinystories_28m(), device)
    else:
        groups["small"] = evaluations(small, small_config(len(small.tokenizer)), 300, device)
        groups["28M"] = evaluations(of_gpt2, tinystories_28m(), 16, device)
        groups["small, attack"] = attacks(small, small_config(len(small.tokenizer)), device)
    synchronise = torch.cuda.synchronize if on_gpu else None
    figures = {}
    for group, variants in groups.items():
        times = interleave(variants, options.rounds, options.warm_up, options.time_limit, synchronise)
        figures[group] = report(group, variants, times)
    where = {**environment(device), "source": of_gpt2.source}
    kept = read_json(options.output).get("suite") if options.output.is_file() else None
    if options.suite and (seconds := seconds_of_the_suite()) is not None:
        kept = {"seconds": seconds, "measured": environment(device)}
    write_result(options.output, {**where, "groups": figures, "suite": kept})


def report(group: str, variants: dict[str, Any], times: dict[str, list[float]]) -> dict[str, Any]:
    rows, figures, over = [], {}, next(iter(variants))
    for name, summary in summarise(times).items():
        figures[name] = {**summary, "over": over, "ratio": median_ratio(times, name, over), "loss": variants[name].loss}
        rows.append([name, f"{summary['median_s']:.2f}", f"{figures[name]['ratio']:.3f}", f"{variants[name].loss:.6f}"])
    print_table(group, ["variant", "median s", "ratio", "loss"], rows)
    return figures


if __name__ == "__main__":
    main()
