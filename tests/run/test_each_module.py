"""A run with two modules: what is measured of each, in which files, at which cost; and which of its trials are kept."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from hf_era import run_pipeline
from hf_era.evaluation.relearn.config import RelearnConfig
from hf_era.methods import get_method
from hf_era.models import ExpansionConfig, ModuleConfig
from hf_era.run.measuring import Measuring

OWN = ["biology"] * 4 + ["chemistry"] * 2
MODULES = [{"name": "biology", "width": 4, "target_layers": [0]}, {"name": "chemistry", "width": 4}]


def stories(modules: list[str] | None, number: int = 6) -> Dataset:
    columns = {"input_ids": [[1, 2, 3]] * number, "length": [3] * number}
    return Dataset.from_dict(columns | ({"module": modules} if modules else {}))


@pytest.fixture
def make_measuring(make_config: Callable[..., Any]) -> Callable[..., Measuring]:
    """The phases of a run that is never made; its data have modules, or have none."""

    def make(modules: list[str] | None = OWN, **relearn: Any) -> Measuring:
        data = SimpleNamespace(
            validation_forget=stories(modules), validation_retain=stories(None), attack_forget=stories(modules),
            validation_unlabelled=[],
        )  # fmt: skip
        settings = RelearnConfig(**{"stories": [2], "trials": 2, "steps": 3, "lora": False, "bf16": False} | relearn)
        config = SimpleNamespace(
            output_path=Path("out"),
            relearn=settings,
            evaluation=SimpleNamespace(barrier_points=0),
            data=SimpleNamespace(forget_words=[]),
        )
        expansion = ExpansionConfig(modules=[ModuleConfig(**part) for part in MODULES])
        run = SimpleNamespace(
            config=config, data=data, expansion=expansion, base_config=make_config(), before_kind="pretrained",
            before_model="base", tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=0), state=None, base_key="base",
            arguments=SimpleNamespace(device="cpu"), coherence=SimpleNamespace(enabled=True), folder=Path,
        )  # fmt: skip
        return Measuring(run, get_method("gradient_routing"))  # type: ignore[arg-type]

    return make


def test_each_module_is_attacked_with_its_own_examples(make_measuring: Callable[..., Measuring]) -> None:
    measuring = make_measuring(sweep_learning_rates=[], attack_before=False)
    pools = measuring._pools()
    sizes = {name: (len(pool), len(measured)) for name, (pool, measured) in pools.items()}
    assert sizes == {None: (6, 6), "biology": (4, 4), "chemistry": (2, 2)}
    # With too few examples of its own a module's attack has fewer trials; that of all is as it was asked for.
    assert [(attack.stories, attack.trials) for attack in measuring.attacks()] == [(2, 2), (2, 2), (2, 1)]
    assert not measuring._attack_settings(None).allow_fewer


def test_what_it_costs_is_counted(make_measuring: Callable[..., Measuring]) -> None:
    several, one = make_measuring(), make_measuring(None)
    alone = make_measuring(each_module=False)
    assert [len(part.attacks()) for part in (several, alone, one)] == [15, 5, 5]
    assert several._attack_cost().trained > 2 * one._attack_cost().trained == 2 * alone._attack_cost().trained
    # Each module off in all of its layers and in each, on 12 examples: biology 1 + 1, chemistry 1 + 3.
    assert several._evaluation_cost().measured - one._evaluation_cost().measured == 6 * 12
    assert several._evaluation_cost().trained == 3 * one._evaluation_cost().trained


@pytest.mark.slow
@pytest.mark.usefixtures("_no_localisation_warning")
def test_a_run_with_two_modules(make_run_config: Callable[..., Any], tmp_path: Path) -> None:
    config = make_run_config(
        tmp_path,
        expansion={
            "modules": [{**part, "target_layers": [0]} for part in MODULES],
            "width": None,
            "target_layers": None,
        },
        data={
            "train": "topics",
            "label_column": "topic",
            "modules": {"biology": ["sailing"], "chemistry": ["chemistry"]},
        },
        relearn={"stories": [1]},
        generation={"enabled": False},
    )
    result = run_pipeline(config)
    assert list(result.modules) == ["biology", "chemistry"]
    for name, own in result.modules.items():
        assert list(own["crosstalk"]) == [other for other in result.modules if other != name]
        assert set(own["losses"]) == {*result.losses, "alone_off"}
        assert own["attack"]["measured"]["forget_stories"] == own["losses"]["before"]["forget"]["stories"] > 0
        assert own["leak_audit"]["gradient"]["trained"]["routed"]["other_modules_share"] == 0
        assert list(own["selectivity"]) == ["0"]
    logged = [entry for entry in result.training["log_history"] if "eval_biology_ablation_gap" in entry]
    assert len(logged) == 2
    held_out = (config.output_path / "held_out" / "forget.jsonl").read_text().splitlines()
    assert {json.loads(line)["module"] for line in held_out} == {"biology", "chemistry"}
    assert run_pipeline(config).modules == result.modules  # from what the phases kept
