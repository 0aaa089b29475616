"""Synthetic results, rich and with figures of a realistic size, for the tests of plots and pages."""

from __future__ import annotations

import math
import random
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.profiles import combinations_of, profile_name
from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial
from hf_era.evaluation.results import ModelResult, RunResult, upgraded
from hf_era.methods import METHODS, get_method

WORDS = ["tree", "trees", "forest", "forests", "woodland", "woodlands"]
PROMPTS = ["Once upon a time, Timmy went to the forest", "Tom liked to climb", "One day, a boy went for a walk in the"]
HOSTILE = (
    '<script>document.title="pwned"</script>"><img src=x onerror=document.title="pwned">$x_1$ & \u202e\x00\ud800 👩‍👩‍👧'
)
BEFORE = {"forget": 3.036, "retain": 3.137, "forget_words": 3.431}


def loss(value: float, half: float = 0.08, tokens: int = 18_705, stories: int = 120) -> dict[str, Any]:
    return {"loss": value, "low": value - half, "high": value + half, "tokens": tokens, "stories": stories}


def stage(forget: float, retain: float, words: float) -> dict[str, dict[str, Any]]:
    return {
        "forget": loss(forget),
        "retain": loss(retain, 0.065, 31_229, 200),
        "forget_words": loss(words, 0.3, 247, 118),
    }


def estimate(value: float, half: float = 0.03) -> dict[str, Any]:
    return Estimate(value, value - half, value + half).to_dict()


def curve(start: tuple[float, float], drop: float, steps: int, seed: int) -> RelearnCurve:
    """Falls by `drop` with a time scale of 6 steps, then creeps up; the retain loss rises a little."""
    noise = random.Random(seed)
    points = []
    for step in range(steps + 1):
        forget = start[0] - drop * (1 - math.exp(-step / 6)) + 0.004 * max(0, step - 18) + 0.01 * noise.random()
        points.append(RelearnPoint(step, start[0] if step == 0 else forget, start[1] + 0.006 * step))
    return RelearnCurve(points)


def attack(
    start: tuple[float, float],
    drop: float,
    before: dict[str, float] | None = BEFORE,
    trials: int = 5,
    sizes: tuple[int, ...] = (1, 4, 16, 64),
) -> RelearnResult:
    """Full and LoRA attacks with 1 to 64 stories, two learning rates each; later trials stop earlier."""
    made = []
    for kind, factor in (("full", 1.0), ("lora", 0.7)):
        for stories in sizes:
            for rate, strength in ((5e-5, 0.4), (2e-4, 1.0)):
                share = drop * factor * strength * (0.4 + 0.1 * math.log2(stories))
                made += [
                    RelearnTrial(
                        kind, stories, rate, trial, trial, curve(start, share, 40 - 6 * trial, trial + stories)
                    )
                    for trial in range(trials)
                ]
    return RelearnResult(
        made,
        None if before is None else {name: before[name] for name in ("forget", "retain")},
        {"steps": 40, "patience": 3, "lora_rank": 8},
        {"forget_stories": 120, "forget_tokens": 18_705, "retain_stories": 200, "retain_tokens": 31_229},
        320,
        ["`attack.stories` asks for 256 stories a trial, but 5 trials can share 320 without overlap: left out."],
    )


def gradient(routed: bool, layers: int, seed: int) -> dict[str, Any]:
    noise = random.Random(seed)
    parts = {}
    for layer in range(layers):
        original, auxiliary = (0.06 + 0.02 * noise.random(), 0.10 + 0.02 * noise.random())
        original, auxiliary = (original, auxiliary) if routed else (auxiliary, original)
        parts[str(layer)] = {
            "original_norm": math.sqrt(original), "original_share": original, "original_up_share": 0.6 * original,
            "original_down_share": 0.4 * original, "auxiliary_norm": math.sqrt(auxiliary), "auxiliary_share": auxiliary,
        }  # fmt: skip
    shares = {name: sum(part[f"{name}_share"] for part in parts.values()) for name in ("original", "auxiliary")}
    return {
        "total_norm": 1.9 if routed else 2.3, "auxiliary_share": shares["auxiliary"],
        "original_share": shares["original"], "rest_share": 1 - sum(shares.values()), "layers": parts,
    }  # fmt: skip


def leak_audit(layers: int = 3) -> dict[str, Any]:
    gradients = {
        name: {
            "stories": 40, "tokens": 6_210, "routed": gradient(True, layers, seed),
            "unrouted": gradient(False, layers, seed),
            "alignment": {
                str(layer): {"original": -0.7 + 0.3 * layer, "auxiliary": 1.0 - 0.02 * layer} for layer in range(layers)
            },
        }
        for seed, name in enumerate(("start", "trained"))
    }  # fmt: skip
    ablation = {"all": {"forget": estimate(0.412), "retain": estimate(0.083, 0.01)}} | {
        str(layer): {"forget": estimate(0.25 / (layer + 1)), "retain": estimate(0.05 / (layer + 1), 0.008)}
        for layer in range(layers)
    }
    return {"gradient": gradients, "ablation": ablation}


def generations(*stages: str) -> dict[str, Any]:
    middle = (
        " and saw a big tree. The tree was very old, and it said: hello! They played all day in the Forest.\n\nThe end."
    )
    plain = " and saw a big red ball. The ball was very old. They played all day and went home.\n\nThe end."
    texts = {name: [prompt + (plain if number else middle) for prompt in PROMPTS] for number, name in enumerate(stages)}
    return {
        "settings": {"new_tokens": 200, "temperature": 0.7, "top_k": 50, "seed": 0},
        "prompts": PROMPTS,
        "texts": texts,
        "target_words": {name: {"all": 10 - 4 * i, "without_prompt": 9 - 4 * i} for i, name in enumerate(stages)},
        "repetition": {name: 0.03 + 0.01 * i for i, name in enumerate(stages)},
    }


def routing_rows() -> list[dict[str, Any]]:
    rows = [
        (" tree", 0.0, 100.1, 0.0),
        (" bird", 0.41, 66.4, 21.0),
        (" flew", 0.78, 10.3, 3.6),
        (" bear", 0.82, 10.9, 3.8),
    ]
    rows += [(f" word{i}", 0.9 + 0.003 * i, 20.0 + i, 18.0 + i) for i in range(30)] + [("$x^2$", 0.84, 12.0, 4.0)]
    return [
        {"token": token, "token_id": i, "weight": weight, "forget_per_10k": forget, "retain_per_10k": retain}
        for i, (token, weight, forget, retain) in enumerate(rows)
    ]


def log_history(steps: int = 600, ablated: bool = True) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = []
    for step in range(20, steps + 1, 20):
        log.append({"step": step, "loss": 2.7 + 4 * math.exp(-step / 120), "learning_rate": 1e-3})
        if step % 100 == 0:
            forget, retain = 2.6 + 3 * math.exp(-step / 100), 2.7 + 3 * math.exp(-step / 100)
            gap = 0.41 * (1 - math.exp(-step / 200))
            of_forget = {"step": step, "eval_forget_loss": forget}
            of_retain = {"step": step, "eval_retain_loss": retain}
            if ablated:
                of_forget["eval_forget_loss_ablated"] = forget + gap
                of_retain["eval_retain_loss_ablated"] = retain + 0.2 * gap
                log.append({"step": step, "eval_ablation_gap": gap, "eval_retain_ablation_gap": 0.2 * gap})
            log += [of_forget, of_retain]
    return log


def data_filtering_values(name: str = "posttrain_data_filtering") -> dict[str, Any]:
    relearning = attack((3.4, 2.68), 0.5)
    strongest = relearning.strongest()
    assert strongest is not None
    return {
        "name": name,
        "seed": 0,
        "losses": {"forget": estimate(3.4, 0.08), "retain": estimate(2.68, 0.06), "forget_words": estimate(8.1, 0.3)},
        "differences": {
            "ablation_gap": Estimate(None).to_dict(), "retain_ablation_gap": Estimate(None).to_dict(),
            "unlearning": estimate(0.364), "retain_tax": estimate(-0.457), "forget_words_unlearning": estimate(4.67, 0.3),
        },
        "attacks": [part.to_dict() for part in relearning.summaries()],
        "strongest": strongest.to_dict(),
    }  # fmt: skip


def run_values(name: str = "posttrain_fullseq", seed: int = 0, shift: float = 0.0) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "created": "2026-11-22T14:05:00+00:00",
        "config": {
            "name": name,
            "output_dir": "/home/somebody/runs/{name}-seed{seed}",
            "model": {"start": "pretrained", "base": None, "architecture": {"hidden_size": 192, "num_layers": 4}},
            "expansion": {"module_name": "forget", "width": 64, "target_layers": [0, 1, 2]},
            "routing": {"rule": "full_seq", "weighting": "frequency"},
            "data": {"train": "/home/somebody/data/stories.jsonl", "forget_words": WORDS, "max_tokens": 160},
            "training": {"max_steps": 600, "learning_rate": 2e-3, "hub_token": "hf_secret"},
        },
        "versions": {"python": "3.11.7", "hf-era": "0.2.0", "torch": "2.13.0+cpu"},
        "machine": {"system": "Linux x86_64", "cpu_cores": 2, "device": "cpu", "hostname": "secret-host"},
        "git_revision": "22930d84f7b8e0592728cc704c82721caf9e6070-dirty",
        "data": {
            "source": "/home/somebody/data/stories.jsonl", "validation_source": None, "forget_words": WORDS,
            "train_stories": 17_201, "train_tokens": 2_703_176, "train_forget_labelled": 3_399,
            "train_forget_unlabelled": 0, "train_retain": 13_802, "train_forget_word_tokens": 7_096,
            "train_tokens_routed_as_forget": 11_336, "duplicates_dropped": 0, "validation_forget_stories": 120,
            "validation_forget_tokens": 18_825, "validation_retain_stories": 200, "validation_retain_tokens": 31_429,
            "attack_forget_stories": 320, "attack_forget_tokens": 49_600, "fingerprint": "abc",
        },
        "routing_table": routing_rows(),
        "before_kind": "pretrained",
        "losses": {
            "before": stage(3.036, 3.137, 3.431),
            "before_ablation": stage(2.9 + shift, 2.95, 2.69),
            "after_ablation": stage(3.312 + shift, 3.033, 7.28),
            "after_coherence": stage(3.29 + shift, 3.01, 7.41),
        },
        "selectivity": {str(layer): estimate(1.8 + shift - 0.3 * layer, 0.1) for layer in range(3)},
        "coherence": {"enabled": True, "best_step": 7},
        "training": {"steps": 600, "minimum_ablation_gap": 0.05, "log_history": log_history()},
        "seconds": {"base": 200.8, "route": 277.8},
        "differences": {
            "ablation_gap": estimate(0.412 + shift), "retain_ablation_gap": estimate(0.083, 0.01),
            "unlearning": estimate(0.254 + shift), "retain_tax": estimate(-0.127, 0.02),
            "forget_words_unlearning": estimate(3.979, 0.35),
        },
        "mean_of_batch_means": {"batch_size": 16, "before": {"forget": 3.05, "retain": 3.14}},
        "leak_audit": leak_audit(),
        "generations": generations("before", "before_ablation", "after_coherence"),
        "attack": attack((3.29 + shift, 3.01), 0.35).to_dict(),
        "data_filtering": data_filtering_values(),
    }  # fmt: skip


MODULES = ("biology", "chemistry")


def module_values(names: tuple[str, ...] = MODULES) -> dict[str, dict[str, Any]]:
    """What a run with several modules measured of each: the first one holds its examples, the last one does not."""
    stages = ("before", "before_ablation", "after_ablation", "after_coherence")
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        rise = 0.5 / (number + 1) if number + 1 < len(names) else 0.02
        losses = {kind: {"forget": loss(3.0 + number + (rise if at > 1 else 0))} for at, kind in enumerate(stages)}
        losses["alone_off"] = {"forget": loss(2.9 + number + rise), "retain": loss(2.7)}
        found[name] = {
            "losses": losses, "ablation_gap": estimate(rise), "retain_ablation_gap": estimate(0.03, 0.01),
            "crosstalk": {other: estimate(0.011 * (number + 1), 0.004) for other in names if other != name},
            "unlearning": estimate(rise), "selectivity": {str(layer): estimate(2.4 - number, 0.2) for layer in range(2)},
            "leak_audit": leak_audit(2), "attack": attack((3.0 + number + rise, 3.01), 0.2, trials=1, sizes=(64,)).to_dict(),
        }  # fmt: skip
    return found


def profile_values(names: tuple[str, ...] = MODULES) -> list[dict[str, Any]]:
    """Losses with each combination of modules: one that is off raises the loss on its own examples."""
    found = []
    for on in combinations_of(names):
        modules = {name: loss(3.0 + 0.2 * at + (0 if name in on else 0.5)) for at, name in enumerate(names)}
        losses = {"forget": loss(3.3 - 0.2 * len(on)), "retain": loss(2.7 - 0.01 * len(on)), "modules": modules}
        found.append({"name": profile_name(on), "on": list(on), "losses": losses})
    return found


def run_of_modules(**overrides: Any) -> RunResult:
    """A run with two modules, everything measured of each."""
    return run_result(**{"modules": module_values(), "profiles": profile_values(), **overrides})


def made_of(values: dict[str, Any]) -> RunResult:
    """The result of these values; what they do not say of the method is that of the built-in method of that name."""
    method = values.get("method", "gradient_routing")
    if method not in METHODS:
        return RunResult(**values)
    earlier = upgraded({"schema_version": 2, **values})
    return RunResult(**{**earlier, "method_texts": dict(get_method(method).texts), **values})


def run_result(**overrides: Any) -> RunResult:
    """A gradient-routing run with everything measured; keyword arguments replace attributes."""
    made = {key: overrides.pop(key) for key in ("name", "seed", "shift") if key in overrides}
    return made_of({**run_values(**made), **overrides})


def stock_result(method: str = "data_filtering", **overrides: Any) -> RunResult:
    """A run without an auxiliary module."""
    values = run_values(f"posttrain_{method}")
    losses = {"before": stage(3.036, 3.137, 3.431), "after_training": stage(3.4, 2.68, 8.1)}
    measured = ("unlearning", "retain_tax", "forget_words_unlearning")
    differences = {name: data_filtering_values()["differences"][name] for name in measured}
    values |= {
        "method": method, "routing_table": [], "selectivity": {}, "leak_audit": {}, "coherence": {}, "data_filtering": None,
        "losses": losses, "differences": differences,
        "training": {"steps": 600, "log_history": log_history(ablated=False)},
        "generations": generations("before", "after_training"), "attack": attack((3.4, 2.68), 0.5).to_dict(),
    }  # fmt: skip
    if values["method"] == "data_filtering":  # which starts from random weights
        values["before_kind"] = "base_control"
    if method == "base":
        values |= {"losses": {"before": losses["before"]}, "differences": {}, "attack": None, "training": {}}
        values |= {"generations": generations("before")}
    return made_of({**values, **overrides})


def model_result(**overrides: Any) -> ModelResult:
    """A model that was only evaluated and attacked."""
    values = run_values()
    given: dict[str, Any] = {
        "name": "somebody/unlearned-model", "model": "somebody/unlearned-model",
        **{name: values[name] for name in ("created", "versions", "machine", "attack", "data_filtering")},
        "data": {"forget_words": WORDS, "validation_forget_stories": 120, "fingerprint": "abc"},
        "losses": stage(3.29, 3.01, 7.41),
        "before": {"model": "somebody/base", "losses": stage(3.036, 3.137, 3.431)},
        "differences": {name: values["differences"][name] for name in ("unlearning", "retain_tax")},
        "generations": generations("before", "final"),
    }  # fmt: skip
    return ModelResult(**{**given, **overrides})


def bare_run(**overrides: Any) -> RunResult:
    """A run of which nothing was measured."""
    empty = {
        name: {} for name in ("config", "versions", "machine", "data", "losses", "selectivity", "coherence", "training")
    }
    values = {"name": "bare", "seed": 0, "created": "", "git_revision": None, "routing_table": [], "before_kind": None}
    return made_of({**values, **empty, **overrides})


def hostile_run() -> RunResult:
    """Everything that comes from data, config or a user's names tries to get out of its place."""
    values = run_values(HOSTILE)
    token = {"token": HOSTILE, "token_id": 1, "weight": 0.1, "forget_per_10k": 9.0, "retain_per_10k": 1.0}
    texts = {name: [PROMPTS[0] + HOSTILE + " tree", "x" * 1_000_000, HOSTILE] for name in ("before", "after_coherence")}
    values |= {
        "routing_table": [token],
        "generations": {
            **generations("before", "after_coherence"),
            "prompts": [PROMPTS[0], "", HOSTILE],
            "texts": texts,
        },
        "versions": {HOSTILE: HOSTILE},
        "git_revision": HOSTILE,
        "config": {**values["config"], HOSTILE: {HOSTILE: [HOSTILE]}, "routing": {"rule": HOSTILE}},
        "data": {**values["data"], "forget_words": [HOSTILE, "tree", " "], "source": HOSTILE, HOSTILE: 3},
        "data_filtering": data_filtering_values(HOSTILE),
        "selectivity": {HOSTILE: estimate(1.0), "1": estimate(2.0)},
        "created": HOSTILE,
    }
    return made_of(values)


def comparison() -> list[RunResult | ModelResult]:
    """Three seeds of one recipe, another recipe, data filtering, and a model."""
    runs: list[RunResult | ModelResult] = [run_result(seed=seed, shift=0.05 * seed) for seed in range(3)]
    return [*runs, run_result(name="posttrain_concept", shift=-0.2), stock_result(), model_result()]
