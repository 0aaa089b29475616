"""Which stories and which weights each phase of a run is given, and which models its figures are of.

One tiny run of each method is watched from outside, at the calls that train, measure, attack and generate. What it should
have been given is worked out here: the stories from the split, the weights from the files in the run's directory.
"""

import functools
import hashlib
import inspect
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_era import RunConfig, run_pipeline
from hf_era.data import FORGET, RETAIN, UNLABELLED, load_splits
from hf_era.evaluation import Evaluator, RelearnExperiment, RunResult
from hf_era.evaluation.generation import generate_texts
from hf_era.evaluation.leak_audit import gradient_audit
from hf_era.evaluation.summary import comparison_values

Story = tuple[int, ...]  # its token ids, which say which one it is
Stories = dict[str, int]  # part of the split -> how many of its stories

# ---- What each phase is to be given ----

ALL = -1  # every story of that part of the split
TRAINING = {"train forget": ALL, "train unlabelled": ALL, "train retain": ALL}
NOT_LABELLED_FORGET = {"train unlabelled": ALL, "train retain": ALL}  # nobody can tell the two apart
AUDITED = {"train forget": ALL}
FORGET_MEASURED, RETAIN_MEASURED = {"validation forget": ALL}, {"validation retain": ALL}
ATTACKERS = {"attack": ALL}
CHOSEN_ON = {"coherence validation": ALL}
NONE: Stories = {}
MEASURED_ON = {"forget": "validation forget", "retain": "validation retain", "coherence": "coherence validation"}

BEFORE, EXPANDED, CONTRACTED, FINAL = "base/model", "expanded", "contracted", "model"
RANDOM = "random weights"


def with_module(weights: str) -> str:
    """Those weights and an auxiliary module that no file holds: where routing starts from."""
    return f"{weights} and a new module"


def base_phases(name: str) -> dict[str, tuple[list[str], Stories]]:
    return {
        name: ([RANDOM], TRAINING),
        f"{name}, watched on forget": ([RANDOM], FORGET_MEASURED),
        f"{name}, watched on retain": ([RANDOM], RETAIN_MEASURED),
    }


def measuring_phases(*stages: str) -> dict[str, tuple[list[str], Stories]]:
    return {
        "evaluation on forget": (list(stages), FORGET_MEASURED),
        "evaluation on retain": (list(stages), RETAIN_MEASURED),
        "generation": ([stage for stage in stages if stage != CONTRACTED], NONE),
        "attack": ([FINAL], ATTACKERS),
        "attack, measured on forget": ([FINAL], FORGET_MEASURED),
        "attack, measured on retain": ([FINAL], RETAIN_MEASURED),
        "attack, loss before on forget": ([BEFORE], FORGET_MEASURED),
        "attack, loss before on retain": ([BEFORE], RETAIN_MEASURED),
    }


def routing_phases(start: str) -> dict[str, tuple[list[str], Stories]]:
    return {
        "route": ([with_module(start)], TRAINING),
        "route, watched on forget": ([with_module(start)], FORGET_MEASURED),
        "route, watched on retain": ([with_module(start)], RETAIN_MEASURED),
        "coherence": ([CONTRACTED], NOT_LABELLED_FORGET),
        "coherence, watched": ([CONTRACTED], CHOSEN_ON),
        "leak audit": ([with_module(start), EXPANDED], AUDITED),
        **measuring_phases(BEFORE, EXPANDED, CONTRACTED, FINAL),
    }


# Of the routing; neither is the default.
L1_COEFFICIENT = 0.01
L1_LAYERS = [1]
# Of the controls of a run from scratch, so that they differ from it in the routing and the module alone.
WITH_THE_L1_TERM = ("base control", "data filtering")
MULTIPLIERS = {"original_retain": 1.0, "original_forget": -0.5, "auxiliary_retain": 0.75, "auxiliary_forget": 1.0}

# run -> phase -> the weights that it is given, and the stories.
EXPECTED: dict[str, dict[str, tuple[list[str], Stories]]] = {
    "pretrained": {**base_phases("base"), **routing_phases(BEFORE)},
    "scratch": {**base_phases("base control"), **routing_phases(RANDOM)},
    "data filtering": {
        **base_phases("base control"),
        "data filtering": ([RANDOM], NOT_LABELLED_FORGET),
        "data filtering, watched on forget": ([RANDOM], FORGET_MEASURED),
        "data filtering, watched on retain": ([RANDOM], RETAIN_MEASURED),
        **measuring_phases(BEFORE, FINAL),
    },
}
# run -> the trainings in their order -> steps, and the folder with what came of it (coherence keeps its best step).
TRAININGS: dict[str, dict[str, tuple[int, str | None]]] = {
    "pretrained": {"base": (3, BEFORE), "route": (4, EXPANDED), "coherence": (2, None)},
    "scratch": {"base control": (4, BEFORE), "route": (4, EXPANDED), "coherence": (2, None)},
    "data filtering": {"base control": (4, BEFORE), "data filtering": (4, FINAL)},
}
# run -> stage -> the folder of its model.
STAGES = {
    "pretrained": {
        "before": BEFORE,
        "before_ablation": EXPANDED,
        "after_ablation": CONTRACTED,
        "after_coherence": FINAL,
    },
    "data filtering": {"before": BEFORE, "after_training": FINAL},
}
STAGES["scratch"] = STAGES["pretrained"]

# ---- Watching a run ----


@dataclass(frozen=True)
class Weights:
    """Hashes of a model's weights: of all, and of those outside the auxiliary module."""

    whole: str
    original: str

    @classmethod
    def of(cls, values: Mapping[str, Tensor]) -> "Weights":
        def digest(names: Iterable[str]) -> str:
            found = hashlib.sha256()
            for name in sorted(names):
                found.update(f"{name} {values[name].dtype} {tuple(values[name].shape)}".encode())
                found.update(values[name].detach().cpu().contiguous().numpy().tobytes())
            return found.hexdigest()

        return cls(digest(values), digest(name for name in values if ".auxiliary." not in name))

    @classmethod
    def of_model(cls, model: Any) -> "Weights":
        return cls.of(dict(model.named_parameters()))


@dataclass
class Training:
    """What one call of a trainer did.

    Attributes:
        name (`str`): of the phase. settings (`dict`): those that a run and its control have in common.
        l1_coefficient (`float`): of the L1 term. multipliers (`dict`, *optional*): those of the routing.
        routed (`list[Story]`): the stories that it could see with a routing weight below 1.
        steps (`int`): that it made. end (`Weights`): what came of it.
        batches (`list[list[Story]]`): the stories of every batch that the model saw.
        deviations (`list[float]`): of every batch, how far its gradient is from that of the plain loss (and of the L1 term,
            in the phases that have it alone beside it), relative.
    """

    name: str
    settings: dict[str, Any]
    l1_coefficient: float
    multipliers: dict[str, float] | None
    routed: list[Story]
    steps: int = 0
    end: Weights | None = None
    batches: list[list[Story]] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)


Call = Callable[[], Any]


class Watcher:
    """Writes down what the phases of one run are given.

    Args:
        trainings: the names of the trainings, in their order.

    Attributes:
        given: phase -> the weights and the stories of each of its calls.
        trainings: by name. texts: the weights and the texts of each call of the generation.
        audit_multipliers: of the model, in each call of the leak audit.
    """

    def __init__(self, trainings: Iterable[str]) -> None:
        self._names = list(trainings)
        self.given: dict[str, list[tuple[Weights, list[Story]]]] = {}
        self.trainings: dict[str, Training] = {}
        self.texts: list[tuple[Weights, list[str]]] = []
        self.audit_multipliers: list[dict[str, float]] = []
        self._now: Training | None = None
        self._made_with: list[tuple[Any, dict[str, Any]]] = []  # evaluators and experiments, and their arguments

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Puts itself around the calls of a run, until `patch` is undone."""
        self._around(patch, transformers.Trainer, "train", self._train)
        self._around(patch, transformers.Trainer, "training_step", self._training_step)
        for owner in (Evaluator, RelearnExperiment):
            self._around(patch, owner, "__init__", self._make)
        self._around(patch, Evaluator, "measure_set", self._measure)
        self._around(patch, RelearnExperiment, "losses", self._losses_before)
        self._around(patch, RelearnExperiment, "run", self._attack)
        for function, advice in ((gradient_audit, self._audit), (generate_texts, self._generate)):
            for name, module in list(sys.modules.items()):
                if name.startswith("hf_era") and vars(module).get(function.__name__) is function:
                    self._around(patch, module, function.__name__, advice)

    @staticmethod
    def _around(
        patch: pytest.MonkeyPatch, owner: Any, name: str, advice: Callable[[dict[str, Any], Call], Any]
    ) -> None:
        """`advice` gets the arguments by name, makes the call, and returns what it returned."""
        original = getattr(owner, name)
        signature = inspect.signature(original)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            return advice(signature.bind(*args, **kwargs).arguments, lambda: original(*args, **kwargs))

        patch.setattr(owner, name, watched)

    def _add(self, phase: str, model: Any, stories: Iterable[Iterable[int]] = ()) -> None:
        self.given.setdefault(phase, []).append((Weights.of_model(model), [tuple(story) for story in stories]))

    # ---- Training ----

    def _train(self, arguments: dict[str, Any], call: Call) -> Any:
        trainer = arguments["self"]
        phase = self._names.pop(0) if self._names else f"one more {type(trainer).__name__}"
        self._add(phase, trainer.model, trainer.train_dataset["input_ids"])
        watched = trainer.eval_dataset
        for name, stories in ({"": watched} if not isinstance(watched, Mapping) else watched).items():
            self._add(f"{phase}, watched{name and ' on '}{name}", trainer.model, stories["input_ids"])
        names = ("seed", "learning_rate", "max_steps", "per_device_train_batch_size", "weight_decay", "adam_beta2")
        settings = {name: getattr(trainer.args, name) for name in names}
        l1_coefficient = trainer.l1_coefficient
        multipliers = getattr(trainer.args, "multipliers", None)
        routed = stories_below_one(trainer.train_dataset)
        self._now = self.trainings[phase] = Training(phase, settings, l1_coefficient, multipliers, routed)
        output = call()
        self._now.steps, self._now.end = trainer.state.global_step, Weights.of_model(trainer.model)
        return output

    def _training_step(self, arguments: dict[str, Any], call: Call) -> Any:
        model, inputs, count = arguments["model"], arguments["inputs"], arguments.get("num_items_in_batch")
        batch = {name: inputs[name].clone() for name in ("input_ids", "attention_mask", "labels")}
        parameters = list(model.parameters())
        before = [torch.zeros_like(value) if value.grad is None else value.grad.clone() for value in parameters]
        loss = call()
        assert self._now is not None
        expected = plain_gradients(model, batch, count, L1_COEFFICIENT if self._now.name in WITH_THE_L1_TERM else 0.0)
        pairs = list(zip(parameters, before, expected, strict=True))
        error = sum(float((value.grad - start - plain).square().sum()) for value, start, plain in pairs)
        size = sum(float(plain.square().sum()) for _, _, plain in pairs)
        self._now.deviations.append((error / size) ** 0.5)
        self._now.batches.append(real_tokens(batch))
        return loss

    # ---- Measuring ----

    def _make(self, arguments: dict[str, Any], call: Call) -> Any:
        self._made_with.append((arguments["self"], arguments))
        return call()

    def _stories(self, made: Any, name: str) -> list[list[int]]:
        """The stories that an evaluator or experiment was made with under this name."""
        return next(arguments[name]["input_ids"] for owner, arguments in self._made_with if owner is made)

    def _measure(self, arguments: dict[str, Any], call: Call) -> Any:
        name = arguments["name"]
        self._add(f"evaluation on {name}", arguments["model"], self._stories(arguments["self"], name))
        return call()

    def _losses_before(self, arguments: dict[str, Any], call: Call) -> Any:
        for name in ("forget", "retain"):
            phase = f"attack, loss before on {name}"
            self._add(phase, arguments["model"], self._stories(arguments["self"], name))
        return call()

    def _attack(self, arguments: dict[str, Any], call: Call) -> Any:
        for name, suffix in {"pool": "", "forget": ", measured on forget", "retain": ", measured on retain"}.items():
            self._add(f"attack{suffix}", arguments["model"], self._stories(arguments["self"], name))
        return call()

    def _audit(self, arguments: dict[str, Any], call: Call) -> Any:
        batches = arguments["batches"]
        batches = [batches] if isinstance(batches, Mapping) else list(batches)
        self.audit_multipliers.append(arguments["model"].gradient_multipliers.to_dict())
        self._add("leak audit", arguments["model"], [story for batch in batches for story in real_tokens(batch)])
        return call()

    def _generate(self, arguments: dict[str, Any], call: Call) -> Any:
        self._add("generation", arguments["model"])
        generated = call()
        self.texts.append((Weights.of_model(arguments["model"]), list(generated.texts)))
        return generated


def stories_below_one(dataset: datasets.Dataset) -> list[Story]:
    """The stories with a routing weight below 1 on any token."""
    if "routing_weight" not in dataset.column_names:
        return []
    rows = zip(dataset["input_ids"], dataset["routing_weight"], strict=True)
    return [tuple(ids) for ids, weights in rows if min(weights) < 1.0]


def real_tokens(batch: Mapping[str, Tensor]) -> list[Story]:
    """The stories of a batch, without their padding."""
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in rows]


def plain_gradients(
    model: Any, batch: dict[str, Tensor], count: Any, l1_coefficient: float = 0.0
) -> tuple[Tensor, ...]:
    """Of the cross entropy, from whole logits, without routing; and of the L1 term over `L1_LAYERS`, where there is one."""
    mask, norms = batch["attention_mask"], []
    handles = [
        model.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(
            lambda _, inputs: norms.append((inputs[0].abs().sum(-1) * mask).sum())
        )
        for layer in L1_LAYERS
    ]
    logits = model(input_ids=batch["input_ids"], attention_mask=mask).logits[:, :-1]
    for handle in handles:
        handle.remove()
    targets = batch["labels"][:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    loss = loss / ((targets != -100).sum() if count is None else count) + l1_coefficient * sum(norms) / mask.sum()
    return torch.autograd.grad(loss, list(model.parameters()))


# ---- What was to be expected ----


@dataclass
class WatchedRun:
    """A run that went through, what its phases were given, and what they should have been given.

    Attributes:
        parts: part of the split -> its stories.
        names: hash of weights -> the folder that holds them, or `RANDOM`.
        losses: `forget`, `retain`, `coherence`, `reported` (by the attack)
            -> folder -> the loss of its model on those stories, nats a token.
    """

    name: str
    config: RunConfig
    result: RunResult
    watcher: Watcher
    parts: dict[str, list[Story]]
    names: dict[str, str]
    losses: dict[str, dict[str, float]]

    def name_of(self, weights: Weights) -> str:
        if weights.whole in self.names:
            return self.names[weights.whole]
        name = self.names.get(weights.original, "weights of no file")
        return name if weights.whole == weights.original else with_module(name)

    def count(self, stories: Iterable[Story]) -> Stories:
        """How many of the stories are of which part of the split, in the order of the parts."""
        part_of = {story: name for name, part in self.parts.items() for story in part}
        other = "no part of the split"
        found = Counter(part_of.get(story, other) for story in stories)
        return {name: found[name] for name in (*self.parts, other) if found[name]}

    def found(self, phase: str) -> list[tuple[str, Stories]]:
        """The weights and stories that a phase was given, each pair once."""
        calls = [(self.name_of(weights), self.count(stories)) for weights, stories in self.watcher.given.get(phase, [])]
        return [call for index, call in enumerate(calls) if call not in calls[:index]]

    def expected(self, phase: str) -> list[tuple[str, Stories]]:
        weights, stories = EXPECTED[self.name][phase]
        counts = {part: len(self.parts[part]) if number == ALL else number for part, number in stories.items()}
        return [(name, counts) for name in weights]


@torch.no_grad()
def plain_loss(model: Any, stories: Iterable[Story]) -> float:
    """Nats a token, from whole logits, one story at a time."""
    total, tokens = 0.0, 0
    for story in stories:
        ids = torch.tensor(story)
        logits = model(input_ids=ids[None]).logits[0, :-1]
        total += float(F.cross_entropy(logits.double(), ids[1:], reduction="sum"))
        tokens += len(story) - 1
    return total / tokens


def split_into_parts(config: RunConfig, tokenizer: Any) -> dict[str, list[Story]]:
    """Part of the split -> its stories as the model is to see them: BOS, text, cut at `max_tokens`."""
    splits = load_splits(config.data, config.seed)
    texts = {
        "validation forget": splits.validation_forget["text"][:],
        "validation retain": splits.validation_retain["text"][:],
        "attack": splits.attack_forget["text"][:],
        "coherence validation": splits.coherence_validation["text"][:],
    }
    for label, name in ((FORGET, "forget"), (UNLABELLED, "unlabelled"), (RETAIN, "retain")):
        rows = zip(splits.train["text"][:], splits.train["label"][:], strict=True)
        texts[f"train {name}"] = [text for text, found in rows if found == label]

    def story(text: str) -> Story:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple([tokenizer.bos_token_id, *ids][: config.data.max_tokens])

    return {name: [story(text) for text in part] for name, part in texts.items()}


def observed_run(name: str, config: RunConfig, watcher: Watcher) -> WatchedRun:
    """Runs it with the watcher around it, and reads what it left behind."""
    with pytest.MonkeyPatch.context() as patch:
        watcher.watch(patch)
        result = run_pipeline(config)
    folders = [folder for folder in (BEFORE, EXPANDED, CONTRACTED, FINAL) if (config.output_path / folder).is_dir()]
    torch.manual_seed(config.seed)
    start = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.output_path / BEFORE))
    names = {Weights.of_model(start).whole: RANDOM}
    for folder in folders:
        weights = Weights.of(load_file(config.output_path / folder / "model.safetensors"))
        names.setdefault(weights.whole, folder)
    models = {folder: AutoModelForCausalLM.from_pretrained(config.output_path / folder).eval() for folder in folders}
    parts = split_into_parts(config, AutoTokenizer.from_pretrained(config.output_path / FINAL))
    losses = {
        kind: {folder: plain_loss(model, parts[part]) for folder, model in models.items()}
        for kind, part in MEASURED_ON.items()
    }
    # The attack chooses on one half of the forget examples and reports the other.
    order = torch.randperm(
        len(parts[MEASURED_ON["forget"]]), generator=torch.Generator().manual_seed(config.relearn.seed)
    )
    reported = [parts[MEASURED_ON["forget"]][index] for index in order[::2].tolist()]
    losses["reported"] = {folder: plain_loss(model, reported) for folder, model in models.items()}
    return WatchedRun(name, config, result, watcher, parts, names, losses)


@pytest.fixture(scope="session")
def watched_run(
    make_run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], WatchedRun]:
    """The run of that name; each is made once. Half of the forget stories have lost their label."""

    @functools.cache
    def run(name: str) -> WatchedRun:
        folder = tmp_path_factory.mktemp("wiring")
        config = make_run_config(
            folder,
            method="data_filtering" if name == "data filtering" else "gradient_routing",
            model={"start": "pretrained" if name == "pretrained" else "scratch"},
            expansion={"width": 16, "initialization_scale": 3.0, "target_layers": L1_LAYERS},
            data={"labelled_fraction": 0.5},
            training={"learning_rate": 2e-2, "l1_coefficient": L1_COEFFICIENT, "multipliers": MULTIPLIERS,
                      "minimum_ablation_gap": -1.0},  # four steps localise nothing
        )  # fmt: skip
        # Large weights: a module that starts small would do nothing in four steps, and its ablation neither.
        architecture = {**config.model.architecture, "initializer_range": 0.2}
        config = replace(config, model=replace(config.model, architecture=architecture))
        if name == "pretrained":
            config = replace(config, pretraining={"max_steps": 3})
        # With all such stories asked for, one that does not belong there cannot stay out by chance.
        labels = load_splits(config.data, config.seed).train["label"][:]
        stories = labels.count(RETAIN) + labels.count(UNLABELLED)
        config = replace(config, coherence=replace(config.coherence, stories=stories, learning_rate=1e-2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
            return observed_run(name, config, Watcher(TRAININGS[name]))

    return run


# ---- The tests ----

RUNS = pytest.mark.parametrize("name", list(EXPECTED))
ROUTED_RUNS = pytest.mark.parametrize("name", ["pretrained", "scratch"])


@RUNS
def test_the_runs_can_tell_one_story_and_one_model_from_another(
    name: str, watched_run: Callable[[str], WatchedRun]
) -> None:
    """Else the tests below would say nothing."""
    run = watched_run(name)
    stories = [story for part in run.parts.values() for story in part]
    assert len(set(stories)) == len(stories)
    assert all(run.parts.values())
    stages = STAGES[name].values()
    for folder in stages:
        assert folder in run.names.values(), f"{folder} holds the weights of another: {list(run.names.values())}"
    for losses in run.losses.values():
        gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(losses.values()))]
        assert min(gaps) > 20 * TOLERANCE, f"two stages have the same loss: {losses}"
    if "coherence" in TRAININGS[name]:
        assert run.result.coherence["best_step"] > 0, "coherence changed nothing: take another learning rate"


@pytest.mark.parametrize(("name", "phase"), [(name, phase) for name in EXPECTED for phase in EXPECTED[name]])
def test_each_phase_is_given_its_own_weights_and_stories(
    name: str, phase: str, watched_run: Callable[[str], WatchedRun]
) -> None:
    run = watched_run(name)
    found, expected = run.found(phase), run.expected(phase)
    surplus = [call for call in found if call not in expected]
    missing = [call for call in expected if call not in found]
    assert not surplus, f"{phase} was given {surplus}, expected {expected}"
    assert not missing, f"{phase} was not given {missing}, only {found}"


@RUNS
def test_no_phase_is_left_out_of_the_table(name: str, watched_run: Callable[[str], WatchedRun]) -> None:
    assert set(watched_run(name).watcher.given) == set(EXPECTED[name])


@RUNS
def test_each_training_makes_its_steps_on_its_stories_and_is_saved(
    name: str, watched_run: Callable[[str], WatchedRun]
) -> None:
    run = watched_run(name)
    for phase, (steps, folder) in TRAININGS[name].items():
        training = run.watcher.trainings[phase]
        assert training.steps == steps, f"{phase} made {training.steps} steps"
        allowed = EXPECTED[name][phase][1]
        seen = run.count(story for batch in training.batches for story in batch)
        assert set(seen) <= set(allowed), f"{phase} saw {seen} in its batches, expected only {list(allowed)}"
        assert training.end is not None
        if folder is not None:
            assert run.name_of(training.end) == folder, f"{folder} is not what came of {phase}"


@RUNS
def test_only_the_routing_phase_is_routed_and_the_controls_have_its_l1_term(
    name: str, watched_run: Callable[[str], WatchedRun]
) -> None:
    """The routing may not reach a base, a control or the coherence fine-tuning; the L1 term reaches the controls alone."""
    for phase, training in watched_run(name).watcher.trainings.items():
        largest = max(training.deviations)
        if phase == "route":
            assert largest > 1e-2, "the gradient of the routing phase is that of the plain loss"
            continue
        with_l1 = phase in WITH_THE_L1_TERM
        term = " and the L1 term" if with_l1 else ""
        assert largest < 1e-5, (
            f"the gradient of {phase} is not that of the plain loss{term}: off by {largest:.1e} of it"
        )
        assert training.l1_coefficient == (L1_COEFFICIENT if with_l1 else 0.0)


@pytest.mark.parametrize("name", ["scratch", "data filtering"])
def test_the_result_says_what_its_controls_share(name: str, watched_run: Callable[[str], WatchedRun]) -> None:
    run = watched_run(name)
    assert run.result.config["model"]["controls_share_l1"] is True
    assert run.result.base_training["l1_coefficient"] == L1_COEFFICIENT
    assert run.result.training["arguments"]["l1_coefficient"] == L1_COEFFICIENT
    if name == "data filtering":
        shared = {"l1_coefficient": L1_COEFFICIENT, "unlabelled_stories": len(run.parts["train unlabelled"])}
        assert comparison_values(run.result)["training"] == shared


@ROUTED_RUNS
def test_the_labelled_forget_stories_are_routed_as_the_settings_say(
    name: str, watched_run: Callable[[str], WatchedRun]
) -> None:
    """Those that lost their label are trained as retain."""
    run = watched_run(name)
    route = run.watcher.trainings["route"]
    assert run.count(route.routed) == {"train forget": len(run.parts["train forget"])}
    assert (route.l1_coefficient, route.multipliers) == (L1_COEFFICIENT, MULTIPLIERS)
    assert run.watcher.audit_multipliers == [MULTIPLIERS, MULTIPLIERS]


@pytest.mark.parametrize(("name", "trained"), [("scratch", "route"), ("data filtering", "data filtering")])
def test_the_base_control_is_trained_as_the_run_but_for_its_method(
    name: str, trained: str, watched_run: Callable[[str], WatchedRun]
) -> None:
    """The same data, steps and seed; where both have all stories, the same batches in the same order."""
    trainings = watched_run(name).watcher.trainings
    assert trainings["base control"].settings == trainings[trained].settings
    if trained == "route":
        assert trainings["base control"].batches == trainings["route"].batches


@RUNS
def test_each_figure_is_of_the_model_that_it_names(name: str, watched_run: Callable[[str], WatchedRun]) -> None:
    run = watched_run(name)
    found, expected = figures(run.result), expected_figures(run)
    assert set(found) == set(expected)
    wrong = [
        f"{figure} is {found[figure]:.5f}, expected {value:.5f}"
        for figure, value in expected.items()
        if found[figure] != pytest.approx(value, abs=TOLERANCE)
    ]
    assert not wrong, "; ".join(wrong)


@ROUTED_RUNS
def test_texts_are_of_the_stage_that_they_stand_under(name: str, watched_run: Callable[[str], WatchedRun]) -> None:
    run = watched_run(name)
    made = {run.name_of(weights): texts for weights, texts in run.watcher.texts}
    for stage, texts in run.result.generations["texts"].items():
        assert texts == made[STAGES[name][stage]], f"the texts of {stage} are not those of {STAGES[name][stage]}"


TOLERANCE = 2e-5  # nats a token


def figures(result: RunResult) -> dict[str, float]:
    """Those of the result file that name a model and stories."""
    found: dict[str, float] = {}
    for stage, losses in result.losses.items():
        found |= {f"{kind} loss {stage}": losses[kind]["loss"] for kind in ("forget", "retain")}
    names = ("ablation_gap", "retain_ablation_gap", "unlearning", "retain_tax")
    found |= {name: estimate["value"] for name, estimate in result.differences.items() if name in names}  # type: ignore[misc]
    assert result.attack is not None
    found["attack: unlearning"] = result.attack["unlearning"]
    for kind in ("forget", "retain"):
        found[f"attack: {kind} loss before the method"] = result.attack["before"][kind]
        for index, trial in enumerate(result.attack["trials"]):
            found[f"attack {index}: {kind} loss at its start"] = trial["curve"]["points"][0][f"{kind}_loss"]
    if result.coherence.get("enabled"):
        found |= {f"coherence: {name}": result.coherence[name] for name in ("first_loss", "best_loss")}
    if result.leak_audit:
        for model, audit in result.leak_audit["gradient"].items():
            found |= {f"leak audit of {model}: {name}": audit[name] for name in ("stories", "tokens")}
        for kind, estimate in result.leak_audit["ablation"]["all"].items():
            found[f"leak audit: {kind} loss that ablation adds"] = estimate["value"]
    return found


def expected_figures(run: WatchedRun) -> dict[str, float]:
    """The same, worked out from the saved models and the split."""
    loss = {kind: run.losses[kind] for kind in ("forget", "retain")}
    forget, retain = loss["forget"], loss["retain"]
    expected = {
        f"{kind} loss {stage}": loss[kind][folder] for stage, folder in STAGES[run.name].items() for kind in loss
    }
    attacked = {"forget": run.losses["reported"], "retain": retain}
    expected["unlearning"] = forget[FINAL] - forget[BEFORE]
    expected["attack: unlearning"] = attacked["forget"][FINAL] - attacked["forget"][BEFORE]
    expected["retain_tax"] = retain[FINAL] - retain[BEFORE]
    for kind in loss:
        expected[f"attack: {kind} loss before the method"] = attacked[kind][BEFORE]
        expected |= {f"attack {index}: {kind} loss at its start": attacked[kind][FINAL] for index in range(3)}
    if EXPANDED in forget:
        gaps = {kind: loss[kind][CONTRACTED] - loss[kind][EXPANDED] for kind in loss}
        expected |= {"ablation_gap": gaps["forget"], "retain_ablation_gap": gaps["retain"]}
        expected |= {f"leak audit: {kind} loss that ablation adds": gap for kind, gap in gaps.items()}
        expected |= {
            f"coherence: {name}": run.losses["coherence"][folder]
            for name, folder in (("first_loss", CONTRACTED), ("best_loss", FINAL))
        }
        stories = run.parts["train forget"]
        for model in ("start", "trained"):
            expected[f"leak audit of {model}: stories"] = len(stories)
            expected[f"leak audit of {model}: tokens"] = sum(len(story) - 1 for story in stories)
    return expected
