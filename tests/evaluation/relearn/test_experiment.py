"""The relearn experiment: which attacks are made with which stories, and what it finds on models that knew or did not."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_era import FastGPTNeoForCausalLM
from hf_era.evaluation.losses import story_losses
from hf_era.evaluation.relearn.attack import RelearnAttack
from hf_era.evaluation.relearn.config import PlannedAttack, RelearnConfig, check_attack, plan_attacks
from hf_era.evaluation.relearn.experiment import RelearnExperiment
from hf_era.evaluation.relearn.measured import PaddedExamples
from hf_era.evaluation.relearn.result import RelearnResult, RelearnTrial

SYMBOLS = 26


def as_dataset(stories: list[list[int]]) -> Dataset:
    return Dataset.from_dict({"input_ids": stories, "length": [len(story) for story in stories]})


def random_stories(number: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    return as_dataset([torch.randint(0, 52, (4 + at % 5,), generator=generator).tolist() for at in range(number)])


def language(first: int, seed: int) -> list[list[int]]:
    """26 symbols, each with one successor, in one circle; a story of 6 from each."""
    circle = torch.randperm(SYMBOLS, generator=torch.Generator().manual_seed(seed)).tolist()
    return [[first + circle[(start + step) % SYMBOLS] for step in range(6)] for start in range(SYMBOLS)]


def small_config(**settings: Any) -> RelearnConfig:
    values: dict[str, Any] = {"stories": [1, 3], "trials": 2, "steps": 3, "learning_rate": 1e-2, "patience": None}
    return RelearnConfig(
        **{**values, "sweep_learning_rates": [1e-3, 1e-2], "lora_learning_rates": [1e-3], "lora_rank": 2, **settings}
    )


def make_experiment(pool: int = 6, **settings: Any) -> RelearnExperiment:
    sets = random_stories(pool, 0), random_stories(9, 1), random_stories(8, 2)
    return RelearnExperiment(*sets, 0, small_config(**settings), progress=False)


def train(model: Any, stories: list[list[int]], steps: int, learning_rate: float, labels: Callable[[], Any]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=torch.tensor(stories), labels=labels()).loss.backward()
        optimizer.step()


def test_a_planted_forget_set_comes_back_and_one_that_was_never_known_does_not(make_base: Callable[..., Any]) -> None:
    """Forget: one language; retain: another. `hidden` knows both and was then taught random answers in 7 short steps."""
    forget, retain = language(0, 0), language(SYMBOLS, 1)
    knows, never = (FastGPTNeoForCausalLM.from_stock(make_base()) for _ in range(2))
    train(knows, forget + retain, 100, 1e-2, lambda: torch.tensor(forget + retain))
    train(never, retain, 100, 1e-2, lambda: torch.tensor(retain))
    hidden, generator = copy.deepcopy(knows), torch.Generator().manual_seed(0)
    train(hidden, forget, 7, 1e-3, lambda: torch.randint(0, SYMBOLS, (SYMBOLS, 6), generator=generator))

    settings = {"stories": [8], "steps": 20, "learning_rate": 1e-3, "sweep_learning_rates": [], "evaluate_every": 5}
    config = small_config(**settings, lora_learning_rates=[3e-3], evaluation_stories=None)
    experiment = RelearnExperiment(*map(as_dataset, (forget, forget, retain)), 0, config, progress=False)
    before = experiment.losses(knows)
    brought_back, unknown = experiment.run(hidden, before), experiment.run(never, before)
    for part in brought_back.summaries():
        assert part.start_forget > before["forget"] + 0.2
        assert part.lowest_forget.value < before["forget"] + 0.1
    strongest = brought_back.strongest()
    assert (strongest.kind, strongest.recovered, strongest.trials) == ("full", 2, 2)
    assert 0 < strongest.steps_to_recover <= 20
    # 8 stories hold most of the language's 26 successors; one in half as many symbols is ln 13 = 2.6 nats.
    for part in unknown.summaries():
        assert (part.recovered, part.steps_to_recover) == (0, None)
        assert part.robust_unlearning.value > 2.6


def test_the_plan_holds_every_n_the_sweep_and_lora() -> None:
    experiment = make_experiment()
    plan = [(part.kind, part.stories, part.learning_rate, part.trials) for part in experiment.plan()]
    # The sweep and LoRA at the largest N; 1e-2 is the main learning rate and is not repeated.
    assert plan == [("full", 1, 1e-2, 2), ("full", 3, 1e-2, 2), ("full", 3, 1e-3, 2), ("lora", 3, 1e-3, 2)]
    fewer = make_experiment(sweep_trials=1).plan()
    assert [(part.stories, part.learning_rate, part.trials) for part in fewer] == [
        (1, 1e-2, 2), (3, 1e-2, 2), (3, 1e-3, 1), (3, 1e-3, 1)
    ]  # fmt: skip
    # A sweep at a number of its own comes on top of that at the headline number; 2 stories were not tried with 1e-2.
    own = make_experiment(sweep_stories=2).plan()[2:]
    assert [(part.kind, part.stories, part.learning_rate) for part in own] == [
        ("full", 3, 1e-3), ("lora", 3, 1e-3), ("full", 2, 1e-3), ("full", 2, 1e-2), ("lora", 2, 1e-3)
    ]  # fmt: skip
    assert experiment.describe() == (
        "8 relearn attacks of up to 3 steps on 1, 3 forget examples, learning rates 0.01, 0.001 and, with LoRA, 0.001; "
        "measured every step on 5 forget and 8 retain examples, chosen on 4 other forget examples"
    )


def test_the_result_holds_every_trial_and_json_takes_it(make_base: Callable[..., Any]) -> None:
    experiment, seen = make_experiment(evaluation_stories=4), []
    before = {"forget": 1.0, "retain": 2.0}
    result = experiment.run(make_base(), before, on_trial=seen.append)
    assert seen == result.trials
    assert [(part.attack, part.trial, part.seed) for part in seen] == [
        (part.attack, trial, trial) for part in experiment.plan() for trial in range(part.trials)
    ]
    full, lora = result.trials[4], result.trials[6]  # the same N, learning rate, stories and seed
    assert full.curve.points[0] == lora.curve.points[0]
    assert full.curve.points[1] != lora.curve.points[1]
    assert result.before == before
    assert result.pool_stories == 6
    assert (result.measured["forget_stories"], result.measured["retain_stories"]) == (4, 4)
    assert result.settings["sweep_learning_rates"] == [1e-3, 1e-2]
    assert RelearnResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_trials_of_an_attack_share_no_story(monkeypatch: pytest.MonkeyPatch, make_base: Callable[..., Any]) -> None:
    given: list[list[list[int]]] = []
    seeds: list[int] = []
    stock = RelearnAttack.__init__

    def spy(self: Any, stories: Dataset, *args: Any) -> None:
        given.append(stories["input_ids"][:])
        seeds.append(args[2].seed)
        stock(self, stories, *args)

    monkeypatch.setattr(RelearnAttack, "__init__", spy)
    make_experiment(lora=False, sweep_learning_rates=[]).run(make_base())
    pool = random_stories(6, 0)["input_ids"][:]
    ones, threes = given[:2], given[2:]
    assert seeds == [0, 1, 0, 1]
    assert sorted(story for part in threes for story in part) == sorted(pool)  # 2 trials x 3 stories: all 6, once
    assert threes[0] != pool[:3]  # in a seeded order
    assert ones == [[threes[0][0]], [threes[0][1]]]


def test_the_same_seed_gives_the_same_curves_and_leaves_the_model_alone(make_base: Callable[..., Any]) -> None:
    model = make_base(resid_dropout=0.1).eval()
    model.transformer.wte.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    one = make_experiment().run(model)
    torch.manual_seed(2)
    assert make_experiment().run(model) == one
    assert make_experiment(seed=1).run(model).trials != one.trials
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"transformer.wte.weight"}


def test_it_goes_on_after_the_trials_that_are_done(make_base: Callable[..., Any]) -> None:
    model, experiment = make_base(), make_experiment()
    whole = experiment.run(model)
    made: list[RelearnTrial] = []
    other = replace(whole.trials[4], learning_rate=0.5)  # not in the plan
    seeded = replace(whole.trials[5], seed=9)  # of another seed
    result = experiment.run(model, done=[whole.trials[6], seeded, other, *whole.trials[:4]], on_trial=made.append)
    assert made == [whole.trials[4], whole.trials[5], whole.trials[7]]
    assert result == whole


def test_the_strongest_attack_is_made_on_the_model_before_the_method_too(make_base: Callable[..., Any]) -> None:
    settings: dict[str, Any] = {"stories": [3], "trials": 1, "sweep_learning_rates": [], "lora": False, "steps": 1}
    experiment, before = make_experiment(**settings), make_base(seed=1)
    plain = experiment.run(make_base(), experiment.losses(before))
    result = experiment.attack_before(before, plain)
    assert result.before_trials == experiment.run(before).trials
    assert result.before_attacked is not None
    assert result.before_attacked.attack == plain.summaries()[0].attack
    assert result.before_attacked.start_forget == plain.before["forget"]
    assert make_experiment(**settings, attack_before=False).attack_before(before, plain) == plain


def test_losses_are_those_of_step_0_on_the_same_stories(make_base: Callable[..., Any]) -> None:
    model = make_base()
    experiment = make_experiment()
    losses = experiment.losses(model)
    first = experiment.run(model).trials[0].curve.points[0]
    assert losses == {"forget": first.forget_loss, "retain": first.retain_loss}
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).tolist()
    for name, rows in (("forget_loss", order[::2]), ("selection_loss", order[1::2])):
        half = PaddedExamples(random_stories(9, 1).select(rows), 0, "cpu")
        expected = story_losses(model, half.batches(range(len(half)), 4))
        assert getattr(first, name) == pytest.approx(float(expected.nll.sum() / expected.tokens.sum()), rel=1e-6)
    subset = make_experiment(evaluation_stories=3)
    assert subset.losses(model)["forget"] != pytest.approx(losses["forget"], rel=1e-3)
    assert subset.losses(model) == make_experiment(evaluation_stories=3).losses(model)


def test_a_trial_that_diverges_keeps_its_finite_points_and_is_noted(make_base: Callable[..., Any]) -> None:
    result = make_experiment(lora=False, sweep_learning_rates=[1e30], trials=1).run(make_base())
    *_, broken = result.trials
    assert [point.step for point in broken.curve.points] == [0]
    assert result.notes == [
        "The attack with N = 3 at 1e+30, trial 1: the loss was no longer finite after step 0; the curve up to there counts."
    ]
    # A trial that patience ended is no such trial.
    patient = make_experiment(lora=False, sweep_learning_rates=[], steps=30, patience=1).run(make_base())
    assert min(trial.curve.points[-1].step for trial in patient.trials) < 30
    assert patient.notes == []


def test_a_story_without_anything_to_learn_does_not_count() -> None:
    pool = as_dataset([[1], [2, 3], [4, 5, 6], [7, 8]])
    sets = pool, random_stories(3, 1), random_stories(3, 2)
    config = small_config(stories=[3], trials=1)
    assert len(RelearnExperiment(*sets, 0, config, progress=False).plan()) == 3
    with pytest.raises(ValueError, match=r"needs 4 forget examples, for trials share none, but there are 3 that"):
        RelearnExperiment(*sets, 0, replace(config, stories=[4]), progress=False)


def small_llama(**sizes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    values = {"vocab_size": 53, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, **sizes}
    return LlamaForCausalLM(
        LlamaConfig(**values, num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=0)
    )


def test_stories_that_do_not_fit_the_model_are_refused_before_the_first_step(make_base: Callable[..., Any]) -> None:
    experiment, seen = make_experiment(), []
    assert len(experiment.run(small_llama(max_position_embeddings=8)).trials) == 8  # the longest story has 8 tokens
    refused = [
        (
            make_base(max_position_embeddings=7),
            r"`data.max_tokens`: the longest .* 8 tokens, .* 7 at most .*max_tokens 7`",
        ),
        (small_llama(vocab_size=40), r"examples hold token 51, but the model knows 40 tokens"),
    ]
    for model, message in refused:
        for call in (experiment.check, experiment.losses, lambda model: experiment.run(model, on_trial=seen.append)):
            with pytest.raises(ValueError, match=message):
                call(model)
    broken = make_base()
    with torch.no_grad():
        broken.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"forget loss is not finite before the attack"):
        experiment.run(broken, on_trial=seen.append)
    with pytest.raises(ValueError, match=r"`before` should hold a finite `forget` and `retain` loss, got \{'forget'"):
        experiment.run(make_base(), {"forget": 1.0}, on_trial=seen.append)
    assert seen == []


def test_too_few_stories_are_refused_with_their_number_and_the_ways_out() -> None:
    config = small_config(stories=[1, 16], trials=5, sweep_trials=2)
    check_attack(config, 80)
    message = (
        r"`relearn.stories` 16 with `relearn.trials` 5 needs 80 forget examples, for trials share none, but there are 79 "
        r"that neither training nor any evaluation saw. Set more aside with `data.attack_stories`, lower `relearn.trials` "
        r"or `relearn.stories`, or take what there is with `--allow-fewer`\."
    )
    with pytest.raises(ValueError, match=message):
        check_attack(config, 79)
    with pytest.raises(ValueError, match=message.replace("80", "96").replace("trials` 5", "sweep_trials` 6").replace(
        "lower `relearn.trials`", "lower `relearn.sweep_trials`").replace("79", "95")):  # fmt: skip
        check_attack(replace(config, sweep_trials=6), 95)
    with pytest.raises(ValueError, match=r"needs 80 forget examples"):  # the most that any attack needs
        check_attack(config, 4)
    with pytest.raises(
        ValueError, match=r"`relearn.sweep_stories` 50 with `relearn.sweep_trials` 2 needs 100 .* or `relearn.sw"
    ):
        check_attack(replace(config, sweep_stories=50), 80)
    check_attack(replace(config, enabled=False), 0)
    with pytest.raises(ValueError, match=r"there are 5 that neither"):
        make_experiment(pool=5)
    for allow_fewer in (False, True):
        with pytest.raises(ValueError, match=r"there are 0 that .* Set some aside with `data.attack_stories`"):
            check_attack(replace(config, allow_fewer=allow_fewer), 0)


def test_fewer_trials_then_fewer_stories_where_the_user_allows_it() -> None:
    config = small_config(stories=[1, 4, 16, 64], trials=5, sweep_learning_rates=[1e-3], allow_fewer=True)
    plan = plan_attacks(config, 20)
    assert plan.attacks == [
        PlannedAttack("full", 1, 1e-2, 5),
        PlannedAttack("full", 4, 1e-2, 5),
        PlannedAttack("full", 16, 1e-2, 1),
        PlannedAttack("full", 20, 1e-2, 1),
        PlannedAttack("full", 20, 1e-3, 1),
        PlannedAttack("lora", 20, 1e-3, 1),
    ]
    assert plan.notes == [
        "Attacks with 16 forget examples and 5 trials that share none were asked for; with 20 in all it became 1 trial with "
        "16 examples.",
        "Attacks with 64 forget examples and 5 trials that share none were asked for; with 20 in all it became 1 trial with "
        "20 examples.",
    ]
    # With 16 stories, N = 64 becomes the N = 16 that is made already.
    assert [(part.stories, part.trials) for part in plan_attacks(config, 16).attacks] == [
        (1, 5), (4, 4), (16, 1), (16, 1), (16, 1)
    ]  # fmt: skip
    assert [part.kind for part in plan_attacks(config, 16).attacks] == ["full"] * 4 + ["lora"]
    assert plan_attacks(config, 320).notes == []
    assert make_experiment(pool=1, allow_fewer=True).plan() == [
        PlannedAttack("full", 1, 1e-2, 1), PlannedAttack("full", 1, 1e-3, 1), PlannedAttack("lora", 1, 1e-3, 1)
    ]  # fmt: skip


def test_notes_of_the_plan_stand_in_the_result(make_base: Callable[..., Any]) -> None:
    experiment = make_experiment(pool=5, stories=[3], lora=False, sweep_learning_rates=[], allow_fewer=True)
    (note,) = experiment.run(make_base()).notes
    assert "with 5 in all it became 1 trial with 3 examples" in note
