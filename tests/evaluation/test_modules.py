"""Two modules, each by itself: against losses, activations and gradients taken by hand, one module off at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from hf_era import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, ExpansionConfig, GradientMultipliers
from hf_era.evaluation import (
    AuxiliaryActivationMeter,
    EvaluationConfig,
    Evaluator,
    ablation_audit,
    gradient_audit,
    selectivity_estimates,
    story_losses,
)
from hf_era.evaluation.modules import examples_of_modules, measure_module, module_selectivity, stage_figures
from hf_era.evaluation.profiles import combinations_of, measure_profiles, modules_to_switch

MODULES = [{"name": "biology", "width": 4, "target_layers": [0, 2]}, {"name": "chemistry", "width": 6}]
NAMES = ["biology", "chemistry"]
OWN = ["chemistry", "biology", None, "biology", "chemistry"]


@pytest.fixture(scope="module")
def model(make_config: Callable[..., Any], randomize_constants: Callable[..., None]) -> Any:
    torch.manual_seed(0)
    config = ExpandedGPTNeoConfig.from_base_config(make_config(), ExpansionConfig(modules=MODULES))
    model = ExpandedGPTNeoForCausalLM(config)
    randomize_constants(model)
    return model.eval()


def examples(number: int, modules: list[str | None] | None = None) -> Dataset:
    generator = torch.Generator().manual_seed(number)
    lengths = [4 + (3 * index) % 7 for index in range(number)]
    ids = [torch.randint(0, 52, (length,), generator=generator).tolist() for length in lengths]
    columns: dict[str, Any] = {
        "input_ids": ids, "is_forget_word": [[False] * length for length in lengths], "length": lengths,
    }  # fmt: skip
    return Dataset.from_dict(columns | ({"module": modules} if modules else {}))


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    config = EvaluationConfig(bootstrap_samples=0, batch_size=2)
    return Evaluator(examples(5, OWN), examples(4), 0, config, progress=False)


@pytest.fixture(scope="module")
def own() -> dict[str, Tensor]:
    return examples_of_modules(examples(5, OWN), NAMES)


def loss_by_hand(model: Any, stories: Dataset, rows: list[int]) -> float:
    """Token-weighted, each example alone."""
    batches = [{"input_ids": torch.tensor([stories["input_ids"][row]])} for row in rows]
    batches = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    losses = story_losses(model, batches)
    return float(losses.nll.sum() / losses.tokens.sum())


# ---- Whose an example is ----


@pytest.mark.parametrize(
    ("given", "known", "found"),
    [
        (OWN, [], {"biology": [1, 3], "chemistry": [0, 4]}),
        (OWN, ["chemistry", "biology"], {"chemistry": [0, 4], "biology": [1, 3]}),  # the model's order
        (["biology", None], ["biology", "geology"], {"biology": [0], "geology": []}),  # one without examples
        (["biology", None], [], {}),  # one module is what the whole result is about
        (None, NAMES, {}),
    ],
)
def test_which_examples_are_a_modules_own(given: Any, known: list[str], found: dict[str, list[int]]) -> None:
    parts = examples_of_modules(examples(len(given or [1]), given), known)
    assert {name: rows.nonzero().flatten().tolist() for name, rows in parts.items()} == found
    assert list(parts) == list(found)


# ---- One module off ----


def test_one_module_off_by_hand(model: Any, evaluator: Evaluator, own: dict[str, Tensor]) -> None:
    forget, retain = examples(5, OWN), examples(4)
    found = measure_module(evaluator, model, "biology", own, evaluator.measure(model, ""))
    rows = {"biology": [1, 3], "chemistry": [0, 4]}
    on = {name: loss_by_hand(model, forget, part) for name, part in rows.items()}
    retain_on = loss_by_hand(model, retain, [0, 1, 2, 3])
    model.set_active("biology", False)
    off = {name: loss_by_hand(model, forget, part) for name, part in rows.items()}
    retain_off = loss_by_hand(model, retain, [0, 1, 2, 3])
    model.set_active("biology", True)
    assert found["ablation_gap"]["value"] == pytest.approx(off["biology"] - on["biology"], abs=1e-5)
    assert found["retain_ablation_gap"]["value"] == pytest.approx(retain_off - retain_on, abs=1e-5)
    assert list(found["crosstalk"]) == ["chemistry"]
    assert found["crosstalk"]["chemistry"]["value"] == pytest.approx(off["chemistry"] - on["chemistry"], abs=1e-5)
    losses = found["losses"]["alone_off"]
    assert losses["forget"]["loss"] == pytest.approx(off["biology"], abs=1e-5)
    assert losses["retain"]["loss"] == pytest.approx(retain_off, abs=1e-5)
    assert losses["forget"]["stories"] == 2
    assert list(found["ablation"]) == ["all", "0", "2"]  # its own layers
    assert abs(found["ablation_gap"]["value"]) > 1e-3


def test_a_module_without_examples_has_no_figures_of_its_own(model: Any, evaluator: Evaluator) -> None:
    own = {"biology": torch.zeros(5, dtype=torch.bool), "chemistry": torch.ones(5, dtype=torch.bool)}
    found = measure_module(evaluator, model, "biology", own, evaluator.measure(model, ""))
    assert found["ablation_gap"]["value"] is None
    assert found["losses"]["alone_off"]["forget"]["loss"] is None
    assert found["retain_ablation_gap"]["value"] is not None
    assert found["crosstalk"]["chemistry"]["value"] is not None


def test_one_layer_of_one_module(model: Any, evaluator: Evaluator) -> None:
    seen: list[dict[int, dict[str, bool]]] = []

    def measure(name: str) -> Any:
        modules = model.auxiliary_modules().items()
        seen.append({layer: {name: part.active for name, part in named.items()} for layer, named in modules})
        return evaluator.measure_set(model, name, "")

    found = ablation_audit(model, measure, samples=0, module="biology")
    on = {0: {"biology": True, "chemistry": True}, 1: {"chemistry": True}, 2: {"biology": True, "chemistry": True}}
    off = {"biology": False, "chemistry": True}
    assert seen[::2] == [on, on | {0: off, 2: off}, on | {0: off}, on | {2: off}]
    assert list(found) == ["all", "0", "2"]
    with pytest.raises(ValueError, match=r"Unknown key `geology` in the model's modules.*Known: biology, chemistry"):
        ablation_audit(model, measure, module="geology")


def test_stages_on_a_modules_own_examples(evaluator: Evaluator, own: dict[str, Tensor], model: Any) -> None:
    with model.ablated():
        final = evaluator.measure(model, "")
    measured = {"before": evaluator.measure(model, ""), "after_ablation": final}
    found = stage_figures(measured, own["chemistry"], "after_ablation", 0)
    losses = [found["losses"][stage]["forget"]["loss"] for stage in measured]
    assert losses[0] == pytest.approx(loss_by_hand(model, examples(5, OWN), [0, 4]), abs=1e-5)
    assert found["unlearning"]["value"] == pytest.approx(losses[1] - losses[0], abs=1e-6)
    assert "unlearning" not in stage_figures({"before": final}, own["chemistry"], "before", 0)


# ---- Selectivity ----


def test_selectivity_of_one_module(model: Any, evaluator: Evaluator, own: dict[str, Tensor]) -> None:
    meters = {}
    for name in ("forget", "retain"):
        with AuxiliaryActivationMeter(model) as meters[name]:
            evaluator.measure_set(model, name, "", meters[name])
    found = module_selectivity(evaluator, meters, "biology", own["biology"])
    assert list(found) == ["0", "2"]

    def mean(stories: Dataset, rows: list[int]) -> float:
        with AuxiliaryActivationMeter(model) as meter, torch.no_grad():
            for row in rows:
                model(input_ids=torch.tensor([stories["input_ids"][row]]))
        sums, counts = meter.story_rows("biology")[2]
        return float(sums.sum() / counts.sum())

    expected = mean(examples(5, OWN), [1, 3]) / mean(examples(4), [0, 1, 2, 3])
    assert found["2"]["value"] == pytest.approx(expected, rel=1e-4)
    pooled = selectivity_estimates(meters["forget"].story_rows(), meters["retain"].story_rows(), 0)
    assert pooled[2].value != pytest.approx(expected, rel=1e-3)


# ---- Where the gradient goes ----


def test_the_gradient_of_one_modules_examples(model: Any, make_batch: Callable[..., dict[str, Tensor]]) -> None:
    model.gradient_multipliers = GradientMultipliers(original_forget=0.0)
    batch = {**make_batch(), "routing_weight": torch.zeros(3, 12), "module_index": torch.zeros(3, dtype=torch.int64)}
    audit, pooled = gradient_audit(model, batch, module="biology"), gradient_audit(model, batch)
    assert list(audit["routed"]["layers"]) == list(audit["alignment"]) == ["0", "2"]
    # Its own examples teach it, and the other module nothing.
    assert audit["routed"]["other_modules_share"] == 0
    assert audit["routed"]["auxiliary_share"] > 0
    assert audit["unrouted"]["other_modules_share"] > 0
    names = ("original", "auxiliary", "rest", "other_modules")
    assert sum(audit["unrouted"][f"{name}_share"] for name in names) == pytest.approx(1)
    both = audit["unrouted"]["auxiliary_share"] + audit["unrouted"]["other_modules_share"]
    assert both == pytest.approx(pooled["unrouted"]["auxiliary_share"], rel=1e-6)
    assert "other_modules_share" not in pooled["routed"]  # of all together there are no others
    others = gradient_audit(model, batch, module="chemistry")
    assert others["routed"]["auxiliary_share"] == 0
    with pytest.raises(ValueError, match=r"Unknown key `biolgy` in the model's modules\. Did you mean `biology`"):
        gradient_audit(model, batch, module="biolgy")


# ---- Profiles ----


def test_every_profile_by_hand(model: Any, evaluator: Evaluator, own: dict[str, Tensor]) -> None:
    forget = examples(5, OWN)
    found = measure_profiles(evaluator, model, own, NAMES)
    names = ["core", "core + biology", "core + chemistry", "core + biology + chemistry"]
    assert [profile["name"] for profile in found] == names
    for profile in found:
        for name in NAMES:
            model.set_active(name, name in profile["on"])
        losses = profile["losses"]
        assert losses["modules"]["biology"]["loss"] == pytest.approx(loss_by_hand(model, forget, [1, 3]), abs=1e-5)
        assert losses["modules"]["chemistry"]["loss"] == pytest.approx(loss_by_hand(model, forget, [0, 4]), abs=1e-5)
        assert losses["retain"]["loss"] == pytest.approx(loss_by_hand(model, examples(4), [0, 1, 2, 3]), abs=1e-5)
    model.set_active(None, True)
    assert len({profile["losses"]["retain"]["loss"] for profile in found}) == 4


def test_of_the_modules_that_are_chosen_the_others_stay_off(model: Any, evaluator: Evaluator) -> None:
    found = measure_profiles(evaluator, model, {}, modules_to_switch(model, ["chemistry"]))
    assert [profile["on"] for profile in found] == [[], ["chemistry"]]
    with model.ablated("biology"):
        expected = loss_by_hand(model, examples(4), [0, 1, 2, 3])
    assert found[1]["losses"]["retain"]["loss"] == pytest.approx(expected, abs=1e-5)
    assert found[1]["losses"]["modules"] == {}


class _Named:
    def __init__(self, *names: str) -> None:
        self.module_names = list(names)


@pytest.mark.parametrize(
    ("named", "asked", "message"),
    [
        (_Named(), [], "`profiles`: the model has no auxiliary module to switch. Give an expanded model"),
        (_Named("biology", "chemistry"), ["biolgy"], "Unknown key `biolgy` in the model's modules. Did you mean `biology`"),
        (_Named(*"abcdefg"), [], r"7 modules have 128 profiles; at most 6 .* Choose which: `--profiles a b`"),
    ],
)  # fmt: skip
def test_modules_that_cannot_be_switched(named: Any, asked: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modules_to_switch(named, asked)


def test_six_modules_are_not_too_many() -> None:
    names = modules_to_switch(_Named(*"abcdef"))
    assert len(combinations_of(names)) == 64
    assert modules_to_switch(_Named(*"abcdefg"), ["g", "a"]) == ["a", "g"]  # in the model's order
