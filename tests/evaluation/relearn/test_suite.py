"""The attack suite: schedules, mini-batches, mixtures, halves, presets, the recalibrated head, answers."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from hf_era import FastGPTNeoForCausalLM
from hf_era.data import RoutingCollator
from hf_era.evaluation import RelearnAttack, RelearnAttackConfig, RelearnPoint
from hf_era.evaluation.losses import answers_right
from hf_era.evaluation.relearn import config as presets
from hf_era.evaluation.relearn import experiment as experiments
from hf_era.evaluation.relearn.attack import AttackedExamples, drawn_in_epochs, has_turned, share_of_peak
from hf_era.evaluation.relearn.config import (
    PRESETS,
    RelearnConfig,
    check_attack,
    plan_attacks,
    retain_stories_needed,
)
from hf_era.evaluation.relearn.experiment import RelearnExperiment
from hf_era.evaluation.relearn.measured import MeasuredStories
from hf_era.utils.fields import default_of


def stories(number: int, seed: int, first: int = 0, labels: bool = False) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(first, first + 26, (4 + at % 3,), generator=generator).tolist() for at in range(number)]
    columns: dict[str, Any] = {"input_ids": ids, "length": [len(part) for part in ids]}
    if labels:
        columns["labels"] = [[-100] * (len(part) - 1) + part[-1:] for part in ids]
    return Dataset.from_dict(columns)


def measured_stories() -> MeasuredStories:
    return MeasuredStories(stories(4, 1), stories(4, 2, 26), 0)


def make_experiment(forget: Dataset | None = None, **settings: Any) -> RelearnExperiment:
    values: dict[str, Any] = {
        "stories": [4], "trials": 1, "steps": 4, "learning_rate": 1e-2, "sweep_learning_rates": [], "lora": False,
        "attack_before": False, **settings,
    }  # fmt: skip
    sets = stories(8, 0), forget or stories(6, 1), stories(5, 2, 26)
    return RelearnExperiment(*sets, 0, RelearnConfig(**values), progress=False, retain_pool=stories(20, 3, 26))


# ---- Steps ----


def test_warm_up_rises_to_the_peak_and_the_cosine_comes_down() -> None:
    shares = [share_of_peak(step, 30, "cosine") for step in range(1, 31)]
    assert shares[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert shares[16] == pytest.approx(0.5 * (1 + math.cos(math.pi * 14 / 28)))
    assert shares[2:] == sorted(shares[2:], reverse=True)
    assert 0 < shares[-1] < 0.01
    assert {share_of_peak(step, 30, "constant") for step in range(1, 31)} == {1.0}
    assert share_of_peak(1, 1, "cosine") == 1.0


def test_a_schedule_scales_the_steps_of_adamw(make_base: Callable[..., Any]) -> None:
    """Against the plain loop with the rates written out."""
    settings = RelearnAttackConfig(steps=3, learning_rate=1e-2, patience=None)
    curve = RelearnAttack(stories(4, 0), measured_stories(), 0, settings, schedule="cosine").run(make_base())
    model = make_base().eval()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    batch, forget = (RoutingCollator(0)(list(stories(4, at).select_columns("input_ids"))) for at in (0, 1))
    expected = []
    for share in (1.0, 0.75, 0.25):
        optimizer.param_groups[0]["lr"] = share * 1e-2
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        expected.append(model(**forget).loss.item())
    assert [point.forget_loss for point in curve.points[1:]] == pytest.approx(expected, rel=1e-5)
    assert [point.tokens for point in curve.points] == [0, 15, 30, 45]  # 3 + 4 + 5 + 3 tokens a step


def test_patience_waits_for_the_middle_of_a_schedule() -> None:
    config = RelearnAttackConfig(steps=60, patience=2, evaluate_every=5)
    points = [RelearnPoint(step, 1.0 + step, 1.0) for step in range(0, 31, 5)]
    assert has_turned(points, config)
    assert not has_turned(points, config, "cosine")
    assert has_turned([*points, RelearnPoint(35, 40.0, 1.0)], config, "cosine")
    # What is looked at is the half for choosing.
    falling = [RelearnPoint(step, 1.0 + step, 1.0, 100.0 - step) for step in range(0, 31, 5)]
    assert not has_turned(falling, config)


def test_mini_batches_are_drawn_in_seeded_epochs() -> None:
    draws = list(islice(drawn_in_epochs(5, 2, 0), 5))
    assert Counter(row for draw in draws for row in draw) == dict.fromkeys(range(5), 2)  # 10 draws: two epochs
    assert draws == list(islice(drawn_in_epochs(5, 2, 0), 5))
    assert draws != list(islice(drawn_in_epochs(5, 2, 1), 5))
    assert list(islice(drawn_in_epochs(3, 3, 0), 2)) == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("mixture", "batch_stories", "sizes"),
    [("forget", None, [6]), ("forget", 4, [4]), ("half", None, [6, 6]), ("half", 5, [3, 2]), ("retain", 4, [4])],
)
def test_a_step_reads_its_share_of_each_part(
    mixture: str, batch_stories: int | None, sizes: list[int], make_base: Callable[..., Any]
) -> None:
    seen: list[Any] = []
    base = make_base()
    model_forward = type(base).forward
    config = RelearnAttackConfig(steps=1, patience=None, batch_stories=batch_stories, batch_size=2)
    attack = RelearnAttack(stories(6, 0), measured_stories(), 0, config, mixture=mixture, retain=stories(6, 3, 26))

    class Spy(type(base)):  # type: ignore[misc]
        def forward(self, input_ids: Any, **inputs: Any) -> Any:
            if self.training:
                seen.extend(input_ids[:, 0].tolist())
            return model_forward(self, input_ids, **inputs)

    spy = Spy(base.config)
    curve = attack.run(spy)
    from_retain = sum(first >= 26 for first in seen)
    expected = {"forget": (0, sizes[0]), "half": (sizes[-1], sizes[0]), "retain": (sizes[0], 0)}[mixture]
    assert (from_retain, len(seen) - from_retain) == expected
    assert curve.points[-1].tokens == pytest.approx(attack.tokens, abs=2)


def test_half_without_retain_examples_is_refused() -> None:
    empty = stories(0, 0)
    with pytest.raises(ValueError, match="nothing to learn from the attack's 0 examples"):
        AttackedExamples([stories(4, 0), empty], 0, measured_stories())


# ---- The plan ----


def test_the_sweep_is_rates_times_schedules_times_kinds_times_mixtures() -> None:
    config = RelearnConfig(
        stories=[2, 4], trials=1, steps=20, learning_rate=1e-3, sweep_learning_rates=[1e-3, 1e-2],
        lora_learning_rates=[5e-3], schedules=["cosine", "constant"], mixtures=["forget", "half"],
    )  # fmt: skip
    plan = plan_attacks(config, 4).attacks
    assert [part.attack.name for part in plan[:2]] == ["full 2 0.001 cosine-10", "full 2 0.001 cosine-20"]
    at_most = [part.attack for part in plan if part.stories == 4]
    assert len(at_most) == len(set(at_most)) == (2 + 1) * 3 * 2  # rates x (two lengths of cosine, constant) x mixtures
    assert {part.steps for part in plan if part.schedule == "constant"} == {None}
    # Without a sweep the other combinations are tried at the one rate.
    alone = RelearnConfig(stories=[4], trials=1, sweep_learning_rates=[], lora=False, mixtures=["forget", "retain"])
    assert [part.attack.name for part in plan_attacks(alone, 4).attacks] == ["full 4 5e-05", "full 4 5e-05 retain"]
    assert next(part.examples(None) for part in plan if part.stories == 4 and part.mixture == "half") == 8


def test_a_preset_sets_fields_and_a_given_field_wins() -> None:
    strong = RelearnConfig(preset="strong", steps=40, patience=None)
    assert (strong.steps, strong.patience) == (40, None)
    assert strong.batch_stories == PRESETS["strong"]["batch_stories"]
    assert strong.mixtures == ["forget", "half", "retain"]
    assert strong.stories is not PRESETS["strong"]["stories"]
    plain = RelearnConfig()
    assert plain.to_dict() == RelearnConfig(**plain.to_dict()).to_dict()
    assert (plain.preset, plain.steps, plain.mixtures) == ("standard", 200, ["forget"])
    defaults = {name: default_of(item) for name, item in RelearnConfig.__dataclass_fields__.items()}
    assert defaults == plain.to_dict()  # what a list of fields shows
    for name, values in PRESETS.items():
        assert values.keys() <= defaults.keys()
        plan_attacks(RelearnConfig(preset=name), 320)  # what `data.attack_stories` sets aside by default


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"preset": "strongest"},
            r"Unknown value for `relearn.preset`: 'strongest'. Did you mean .strong.*Known: quick,",
        ),
        ({"schedules": ["linear"]}, r"Unknown value for `relearn.schedules`: 'linear'.* Known: constant, cosine"),
        ({"mixtures": []}, r"`relearn.mixtures` is empty. Name at least one of forget, half, retain"),
        ({"cosine_steps": [0]}, r"`relearn.cosine_steps` should be at least 1, got 0"),
        ({"batch_stories": 0}, r"`relearn.batch_stories` should be at least 1, got 0"),
        (
            {"mixtures": ["half"], "batch_stories": 1},
            r"`relearn.batch_stories` is 1, but a step of `half` .* at least 2",
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelearnConfig(**settings)


def test_too_few_examples_for_two_halves_or_no_retain_example_are_refused() -> None:
    config = RelearnConfig(stories=[4], trials=1, mixtures=["retain"])
    check_attack(config, 4, 2, 1)
    with pytest.raises(
        ValueError, match=r"There is 1 forget example with two .* it takes two halves: .*validation_sto"
    ):
        check_attack(config, 4, 1, 1)
    with pytest.raises(ValueError, match=r"`relearn.mixtures` \['retain'\] .* need retain examples .* there is none"):
        check_attack(config, 4, 2, 0)
    one = Dataset.from_dict({"input_ids": [[1, 2], [3]], "length": [2, 1]})
    with pytest.raises(ValueError, match="There is 1 forget example with two tokens or more"):
        make_experiment(one)
    assert retain_stories_needed(config) == 4
    assert retain_stories_needed(RelearnConfig(stories=[4])) == 0


# ---- What is measured ----


def test_the_halves_share_no_example_and_are_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    stock = MeasuredStories.__init__

    def spy(self: Any, forget: Dataset, retain: Dataset, *rest: Any) -> None:
        given.append((forget["input_ids"][:], rest[-1]["input_ids"][:]))
        stock(self, forget, retain, *rest)

    monkeypatch.setattr(experiments.MeasuredStories, "__init__", spy)
    for seed in (0, 0, 1):
        make_experiment(seed=seed)
    assert sorted(given[0][0] + given[0][1]) == sorted(stories(6, 1)["input_ids"][:])
    assert (len(given[0][0]), len(given[0][1])) == (3, 3)
    assert given[0] == given[1] != given[2]
    make_experiment(evaluation_stories=2)
    assert tuple(map(len, given[-1])) == (2, 2)


def test_retain_examples_alone_are_an_attack(make_base: Callable[..., Any]) -> None:
    result = make_experiment(mixtures=["retain", "half"]).run(make_base())
    retain, half = result.summaries()
    assert (retain.mixture, half.mixture) == ("retain", "half")
    assert retain.retain_at_lowest.value is not None
    last = [trial.curve.points[-1] for trial in result.trials]
    assert last[0].retain_loss < result.trials[0].curve.points[0].retain_loss
    assert last[1].tokens > last[0].tokens


def test_the_share_of_right_answers_stands_beside_the_loss(make_base: Callable[..., Any]) -> None:
    model, asked = make_base(), stories(6, 1, labels=True)
    batch = RoutingCollator(0)(list(asked.select_columns(["input_ids", "labels"])))
    with torch.no_grad():
        likeliest = model(batch["input_ids"]).logits.argmax(-1)
    ends = [length - 1 for length in asked["length"]]
    expected = [int(likeliest[row, end - 1]) == asked[row]["input_ids"][end] for row, end in enumerate(ends)]
    assert answers_right(model, batch).tolist() == expected
    # All labels have to be right: one more that is wrong makes the example wrong.
    batch["labels"] = torch.where(batch["labels"] == -100, -100, likeliest.roll(1, 1))
    assert answers_right(model, batch).all()
    batch["labels"][:, 1] = (likeliest[:, 0] + 1) % 53
    assert not answers_right(model, batch).any()
    summary = make_experiment(asked, steps=30).run(make_base()).summaries()[0]
    assert summary.start_accuracy in (0.0, 1 / 3, 2 / 3, 1.0)
    assert summary.accuracy_at_lowest.value is not None
    assert make_experiment().run(make_base()).summaries()[0].start_accuracy is None


def test_recalibrating_the_head_takes_suppressed_words_out(
    make_base: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head whose bias forbids the forget tokens: the raw loss is high, the recalibrated one is not, and nothing but the
    bias of a copy is changed."""
    monkeypatch.setattr("hf_era.evaluation.relearn.head_bias.RECALIBRATION_STEPS", 60)
    model = FastGPTNeoForCausalLM.from_stock(make_base())
    head = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.cat([torch.full((26,), -1.0), torch.zeros(27)]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, experiment = make_experiment(), make_experiment(recalibrate_head=True)
    result = experiment.run(model, experiment.losses(model))
    assert result.raw == plain.losses(model)
    start = result.trials[0].curve.points[0]
    assert start.forget_loss < result.raw["forget"] - 0.2
    assert start.forget_loss == pytest.approx(result.before["forget"], rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stock = make_base()  # a head without a bias gets one, in the attack's copy alone
    assert experiment.losses(stock) != plain.losses(stock)
    assert stock.get_output_embeddings().bias is None
    assert presets.RECALIBRATION_STEPS == 200


# ---- Beyond the sweep ----


def test_a_sweep_goes_on_beyond_its_edge_until_the_best_learning_rate_lies_inside(
    make_base: Callable[..., Any],
) -> None:
    experiment = make_experiment(learning_rate=1e-3, sweep_learning_rates=[3e-3], widen_sweep=8)
    made: list[float] = []
    result = experiment.run(make_base(), on_trial=lambda trial: made.append(trial.learning_rate))
    strongest = result.strongest()
    assert strongest is not None
    assert "learning rate" not in strongest.edges
    assert made == pytest.approx([1e-3 * 3**number for number in range(len(made))])
    assert len(made) > 2
    assert strongest.learning_rate == made[-2]  # the last one brought back less, and ended it
    again = experiment.run(make_base(), done=result.trials, on_trial=lambda trial: made.append(0.0))
    assert (again, 0.0 in made) == (result, False)


def test_a_sweep_is_widened_so_often_and_downwards_too(make_base: Callable[..., Any]) -> None:
    for settings, expected in (
        ({"learning_rate": 1e-4, "widen_sweep": 2}, [1e-4, 3e-4, 9e-4]),  # a single rate first goes up
        ({"learning_rate": 0.2, "sweep_learning_rates": [0.1], "widen_sweep": 1}, [0.2, 0.1, 0.05]),
        # None of these brings anything back: lower ones may, whichever of the equals was made first.
        ({"learning_rate": 0.1, "sweep_learning_rates": [0.2], "widen_sweep": 2}, [0.1, 0.2, 0.05, 0.025]),
        ({"learning_rate": 1e-4}, [1e-4]),
    ):
        result = make_experiment(**settings).run(make_base())
        assert [trial.learning_rate for trial in result.trials] == expected
        strongest = result.strongest()
        assert strongest is not None
        assert "learning rate" in strongest.edges


def test_a_cosine_that_was_too_short_is_made_twice_as_long(make_base: Callable[..., Any]) -> None:
    settings = {"schedules": ["cosine"], "cosine_steps": [4], "patience": 3}
    rates = {"learning_rate": 1e-2, "sweep_learning_rates": [1e-3, 0.3]}
    result = make_experiment(**settings, **rates, widen_sweep=2).run(make_base())
    tried = [(trial.learning_rate, trial.steps) for trial in result.trials]
    assert tried[:3] == [(1e-2, 4), (1e-3, 4), (0.3, 4)]
    assert tried[3:] == [(1e-2, 8), (1e-2, 16)]
    assert result.trials[3].curve.points[-1].step == 8  # by its own schedule, not that of the settings
