"""The phases that measure: losses with the leak audit, generations, and the relearn attack."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from datasets import Dataset

from hf_era.data import FORGET, RETAIN, RoutingCollator, padding_token_id
from hf_era.data.columns import present
from hf_era.data.labelling import MODULE
from hf_era.evaluation import (
    AuxiliaryActivationMeter,
    EvaluationConfig,
    Evaluator,
    RelearnConfig,
    RelearnExperiment,
    RelearnTrial,
    SamplingConfig,
    StoryLosses,
    ablation_audit,
    describe_generations,
    generate_texts,
    gradient_audit,
    selectivity_estimates,
)
from hf_era.evaluation.generation import longest_prompt
from hf_era.evaluation.modules import (
    examples_of_modules,
    measure_module,
    module_selectivity,
    stage_figures,
)
from hf_era.evaluation.relearn.attack import measured_steps
from hf_era.evaluation.relearn.config import PlannedAttack, plan_attacks, retain_stories_needed
from hf_era.evaluation.relearn.experiment import KeptTrials, remove_kept_trials
from hf_era.evaluation.tasks import measure_in_main, suite_key
from hf_era.methods import Cost, Method, Phase, Stage
from hf_era.methods.method import stories_labelled
from hf_era.models import family_for
from hf_era.models.loading import load_causal_lm
from hf_era.run.context import Run
from hf_era.training.report import mixed_precision
from hf_era.utils.fields import identity_values
from hf_era.utils.files import fingerprint
from hf_era.utils.processes import share_out

GENERATED_TOKEN = 20
"""How many tokens are read in the time in which one is generated: about, on a CPU."""
AUDIT_STORIES = 32
"""Labelled forget training examples behind the gradients of the leak audit."""
TRAINED_ON = "The retain examples that attacks train on are training examples of the run: nothing is reported on them."


class Measuring:
    """The phases that measure a run's models. The processes of a launch share the work out; all return the whole report."""

    def __init__(self, run: Run, method: Method) -> None:
        self.run, self.method, self.config, self.state = run, method, run.config, run.state
        self.device, self.padding = run.arguments.device, padding_token_id(run.tokenizer)
        self.records = run.config.output_path / "phases"
        before = [Stage("before", run.before_model)] if run.before_kind is not None else []
        self.stages = {stage.name: stage for stage in (*before, *method.stages(run))}
        self.final_stage = list(self.stages)[-1]
        expanded = any(stage.is_expanded for stage in self.stages.values())
        self.module_configs = run.expansion.module_configs if expanded else []
        self.own = examples_of_modules(run.data.validation_forget, [part.name for part in self.module_configs])

    def phases(self, model_key: str) -> list[Phase]:
        """Evaluation, generations, tasks of lm-eval where there are any, and relearn attack. `model_key`: of the phase that
        made the final model."""
        config, models = self.config, (model_key, self.run.base_key)
        sizes = identity_values(EvaluationConfig, asdict(config.evaluation)).values()
        # What is newer than runs that should still be found goes into a key only where there is any of it.
        apart = ["each module apart"] if self.own else []
        evaluation = fingerprint(*models, *sizes, "with the leak audit", *apart)
        generation = fingerprint(
            *models, identity_values(SamplingConfig, asdict(config.generation)), config.data.forget_words
        )
        attacks = identity_values(RelearnConfig, config.relearn.to_dict())
        attack = fingerprint(
            *models, attacks, "the first ten steps measured, the sweep at the largest number of stories",
            "chosen on one half of the forget examples, reported on the other",
            *(apart if config.relearn.each_module else []),
        )  # fmt: skip
        title = "Attacking: relearning forget examples"
        if len(self._pools()) > 1:
            title += f", and those of each of {len(self.own)} modules"
        tasks = []
        if config.evaluation.tasks:
            key = fingerprint(*models, suite_key(config.evaluation), self.generating_stages())
            tasks = [Phase("tasks", "Measuring tasks of lm-eval", key, self.measure_tasks, cost=self._tasks_cost())]
        return [
            Phase("evaluation", "Evaluating", evaluation, self.evaluate, cost=self._evaluation_cost()),
            Phase("generation", "Generating", generation, self.generate, cost=self._generation_cost()),
            *tasks,
            Phase("attack", title, attack, self.attack, clean_up=self.remove_kept_trials, cost=self._attack_cost()),
        ]

    def _evaluation_cost(self) -> Cost:
        held_out = len(self.run.data.validation_forget) + len(self.run.data.validation_retain)
        expanded = sum(stage.is_expanded for stage in self.stages.values())
        family = family_for(self.run.base_config, self.run.expansion)
        layers = len(self.run.expansion.resolve_layers(family.layers_of(self.run.base_config))) if expanded else 0
        unlabelled = len(self.stages) * len(self.run.data.validation_unlabelled)
        audits = 1
        if (
            expanded and self.own
        ):  # each module by itself: its gradients, and switched off in all and in each of its layers
            number = family.layers_of(self.run.base_config)
            layers += sum(1 + len(module.resolve_layers(number)) for module in self.module_configs)
            audits += len(self.own)
        points = self.config.evaluation.barrier_points if self._has_distance else 0
        measured = (len(self.stages) + layers + points) * held_out + unlabelled
        return Cost(2 * AUDIT_STORIES * expanded * audits, measured)

    def _generation_cost(self) -> Cost:
        settings = self.config.generation
        if not settings.enabled:
            return Cost()
        prompts = len(self.run.inputs.prompts(settings).labels)
        stages = len(self.generating_stages())
        lengths = self.run.data.validation_retain["length"]
        mean_length = sum(lengths) / len(lengths)
        return Cost(measured=stages * prompts * settings.new_tokens * GENERATED_TOKEN / mean_length)

    def _tasks_cost(self) -> Cost:
        suite = self.run.tasks  # which the main process has, the one that says what time is left
        return Cost() if suite is None else Cost(measured=len(self.generating_stages()) * suite.examples)

    def _attack_cost(self) -> Cost:
        if not self.config.relearn.enabled:
            return Cost()
        trained = measured = 0
        for attack in self.attacks():
            settings = replace(self.config.relearn, steps=attack.steps or self.config.relearn.steps)
            trained += attack.trials * attack.examples(settings.batch_stories) * settings.steps
            measured += attack.trials * measured_steps(settings) * self.attack_examples()
        return Cost(trained, measured, at_most=self.config.relearn.patience is not None)

    def attacks(self) -> list[PlannedAttack]:
        """The attacks that will be made, those of each module too, at most; on the model before the method the largest."""
        planned = []
        for module, (pool, _) in self._pools().items():
            attacks = plan_attacks(self._attack_settings(module), len(pool)).attacks
            largest = max(attacks, key=lambda attack: (attack.trials, attack.examples(None), attack.steps or 0))
            if self.config.relearn.attack_before and self._has_before:
                attacks.append(largest)
            # Beyond the edge may be twice the length of a cosine. That it is so each time is not to be expected.
            further = largest if largest.steps is None else replace(largest, steps=2 * largest.steps)
            attacks += [further] * self.config.relearn.widen_sweep
            planned += attacks
        return planned

    @property
    def _has_before(self) -> bool:
        return self.run.before_kind is not None and self.final_stage != "before"

    def _pools(self) -> dict[str | None, tuple[Dataset, Dataset]]:
        """Forget examples to attack with, and to measure on: all of them (`None`), and each module's own. A module without
        either is left out."""
        data = self.run.data
        pools: dict[str | None, tuple[Dataset, Dataset]] = {None: (data.attack_forget, data.validation_forget)}
        if not self.own or not self.config.relearn.each_module:
            return pools
        given = data.attack_forget[MODULE][:] if MODULE in data.attack_forget.column_names else []
        for module, own in self.own.items():
            rows = [index for index, name in enumerate(given) if name == module]
            if rows and own.sum() > 1:  # two halves take two
                measured = data.validation_forget.select(own.nonzero().flatten().tolist())
                pools[module] = (data.attack_forget.select(rows), measured)
        return pools

    def _attack_settings(self, module: str | None) -> RelearnConfig:
        settings = self.config.relearn
        if settings.bf16 is None:
            settings = replace(settings, bf16=mixed_precision(self.run.arguments) == "bf16")
        # What was set aside suffices for all modules together; of one there may be too few, and its notes say so.
        return settings if module is None else replace(settings, allow_fewer=True)

    def attack_examples(self) -> int:
        """How many examples an attack is measured on: two halves of forget examples, and retain examples."""
        most, data = self.config.relearn.evaluation_stories, self.run.data
        forget, retain = len(data.validation_forget), len(data.validation_retain)
        return forget + retain if most is None else min(2 * most, forget) + min(most, retain)

    def attack_retain(self) -> Dataset | None:
        """Retain examples for the attacker: of those that were trained on, because nothing is reported on them."""
        number = retain_stories_needed(self.config.relearn)
        return stories_labelled(self.run.data, RETAIN, most=number) if number else None

    def generating_stages(self) -> list[str]:
        wanted = dict.fromkeys(["before", "before_ablation", self.final_stage])
        return [stage for stage in wanted if stage in self.stages]

    # ---- Losses and leak audit ----

    def evaluate(self, key: str) -> dict[str, Any]:
        """Losses at every stage, their differences, the selectivity of the auxiliary module, and the leak audit."""
        evaluator = Evaluator(
            self.run.data.validation_forget,
            self.run.data.validation_retain,
            self.padding,
            self.config.evaluation,
            device=self.device,
            progress=self.state.is_main_process,
            state=self.state,
            unlabelled=self.run.data.validation_unlabelled,
        )
        measured: dict[str, dict[str, StoryLosses]] = {}
        accuracies: dict[str, dict[str, Any]] = {}
        selectivity: dict[str, Any] = {}
        audit: dict[str, Any] = {}
        modules: dict[str, dict[str, Any]] = {name: {} for name in self.own}
        for name, stage in self.stages.items():
            model = load_causal_lm(stage.model)
            description = name.replace("_", " ").capitalize()
            if stage.is_expanded:
                measured[name], meters = self._with_meters(evaluator, model, description)
                rows = (meters["forget"].story_rows(), meters["retain"].story_rows())
                estimates = selectivity_estimates(*rows, self.config.evaluation.bootstrap_samples)
                selectivity = {str(layer): estimate.to_dict() for layer, estimate in estimates.items()}
                audit = self._leak_audit(evaluator, model, measured[name])
                modules = {
                    part: self._measure_module(evaluator, model, part, measured[name], meters) for part in modules
                }
            else:
                measured[name] = evaluator.measure(model, description)
            accuracies[name] = evaluator.accuracies(model, description)
            del model
            gc.collect()
        return {
            "losses": {stage: evaluator.estimates(part) for stage, part in measured.items()},
            "differences": self._differences(evaluator, measured),
            "mean_of_batch_means": {
                "batch_size": self.config.evaluation.mean_of_batch_means_size,
                **{stage: evaluator.means_of_batch_means(part) for stage, part in measured.items()},
            },
            "accuracies": {stage: found for stage, found in accuracies.items() if found},
            "selectivity": selectivity,
            "leak_audit": audit,
            "base_distance": self._base_distance(evaluator, measured),
            **({"modules": self._with_stages(modules, measured)} if modules else {}),
        }

    @property
    def _has_distance(self) -> bool:
        """Whether the final model was made of one that existed."""
        return self.run.before_kind == "pretrained" and self.final_stage != "before"

    def _base_distance(self, evaluator: Evaluator, measured: dict[str, dict[str, StoryLosses]]) -> dict[str, Any]:
        """How far the final model is from the pretrained one before the method; empty where that says nothing."""
        if not self._has_distance:
            return {}
        stages = self.final_stage, "before"
        return evaluator.distance(
            *(load_causal_lm(self.stages[name].model) for name in stages), *(measured[name] for name in stages)
        )

    def _with_meters(
        self, evaluator: Evaluator, model: Any, description: str
    ) -> tuple[dict[str, StoryLosses], dict[str, AuxiliaryActivationMeter]]:
        """The losses of each set, and what its meter measured of the auxiliary modules meanwhile."""
        measured, meters = {}, {}
        for name in evaluator.sets:
            with AuxiliaryActivationMeter(model) as meters[name]:
                measured[name] = evaluator.measure_set(model, name, description, meters[name])
        return measured, meters

    def _differences(
        self, evaluator: Evaluator, measured: dict[str, dict[str, StoryLosses]]
    ) -> dict[str, dict[str, Any]]:
        ablation = {"forget": "ablation_gap", "retain": "retain_ablation_gap", "unlabelled": "unlabelled_ablation_gap"}
        method = {
            "forget": "unlearning", "retain": "retain_tax", "forget_words": "forget_words_unlearning",
            "unlabelled": "unlabelled_unlearning",
        }  # fmt: skip
        found: dict[str, dict[str, Any]] = {}
        for later, earlier, names in (
            ("after_ablation", "before_ablation", ablation),
            (self.final_stage, "before", method),
        ):
            if later in measured and earlier in measured and later != earlier:
                differences = evaluator.differences(measured[later], measured[earlier])
                found |= {name: differences[kind] for kind, name in names.items() if kind in differences}
        return found

    def _measure_module(
        self,
        evaluator: Evaluator,
        model: Any,
        module: str,
        all_on: dict[str, StoryLosses],
        meters: dict[str, AuxiliaryActivationMeter],
    ) -> dict[str, Any]:
        """One module alone: switched off, its selectivity, and its leak audit."""
        found = measure_module(evaluator, model, module, self.own, all_on)
        found["selectivity"] = module_selectivity(evaluator, meters, module, self.own[module])
        forget = stories_labelled(self.run.data, FORGET)
        rows = (
            [index for index, name in enumerate(forget[MODULE][:]) if name == module]
            if MODULE in forget.column_names
            else []
        )
        gradient = self._gradients(model, forget.select(rows[:AUDIT_STORIES]), module) if rows else {}
        found["leak_audit"] = {"gradient": gradient, "ablation": found.pop("ablation")}
        return found

    def _with_stages(
        self, modules: dict[str, dict[str, Any]], measured: dict[str, dict[str, StoryLosses]]
    ) -> dict[str, Any]:
        """With the losses of every stage on each module's own forget examples."""
        samples = self.config.evaluation.bootstrap_samples
        for name, found in modules.items():
            stages = stage_figures(measured, self.own[name], self.final_stage, samples)
            found["losses"] = {**stages.pop("losses"), **found.get("losses", {})}
            found |= stages
        return modules

    def _leak_audit(self, evaluator: Evaluator, trained: Any, all_on: dict[str, StoryLosses]) -> dict[str, Any]:
        gradient = self._gradients(trained, stories_labelled(self.run.data, FORGET, most=AUDIT_STORIES))
        removed = ablation_audit(
            trained,
            lambda name: evaluator.measure_set(trained, name, "One layer ablated at a time"),
            samples=self.config.evaluation.bootstrap_samples,
            all_on=all_on,
        )
        return {"gradient": gradient, "ablation": removed}

    def _gradients(self, trained: Any, forget: Dataset, module: str | None = None) -> dict[str, Any]:
        """The gradient audit of these training examples, at the start of training and of the trained model."""
        stories = present(forget, "input_ids", "labels", "routing_weight", "module_index")
        collator, size = RoutingCollator(self.padding), 8
        batches = [
            collator(list(stories.select(range(start, min(start + size, len(stories))))))
            for start in range(0, len(stories), size)
        ]

        def audit(name: str) -> dict[str, Any]:
            model = self.method.start_model(self.run) if name == "start" else trained
            model.router = self.run.arguments.token_router
            return gradient_audit(model, batches, device=self.device, module=module)

        names = ("start", "trained")
        return dict(zip(names, share_out(names, audit, self.state), strict=True))

    # ---- Generations ----

    def generate(self, key: str) -> dict[str, Any]:
        """Texts before the method, before ablation and of the final model, all from the same prompts."""
        if not self.config.generation.enabled:
            return {"generations": {}}
        prompts, tokenizer = self.run.inputs.prompts(self.config.generation), self.run.tokenizer
        texts: dict[str, list[str]] = {}
        for stage in self.generating_stages():
            model = load_causal_lm(self.stages[stage].model).to(self.device)
            texts[stage], allowed = generate_texts(model, tokenizer, prompts.settings, state=self.state)
        data, trained = self.config.data, None
        if longest_prompt(prompts.settings.prompts or [], tokenizer) + allowed > data.max_tokens:
            trained = data.max_tokens
        # 0 of words that no example holds would read as if they were gone.
        words = data.forget_words if self.run.data.summary["train_forget_word_tokens"] else []
        return {"generations": describe_generations(texts, prompts, words, allowed, trained)}

    # ---- Tasks of lm-eval ----

    def measure_tasks(self, key: str) -> dict[str, Any]:
        """Stage -> what the tasks say of its model. The main process measures, the others wait."""

        def measure() -> dict[str, Any]:
            assert self.run.tasks is not None
            found: dict[str, Any] = {}
            for number, stage in enumerate(self.generating_stages()):
                found[stage] = self.run.tasks.measure(load_causal_lm(self.stages[stage].model).to(self.device))
                self.run.progress((number + 1) / len(self.generating_stages()))
            return found

        return {"tasks": measure_in_main(measure, self.state)}

    # ---- Relearn attack ----

    def attack(self, key: str) -> dict[str, Any]:
        """The relearn attacks on the final model, with all forget examples and with each module's own; trials that a stopped
        run finished are not made again."""
        if not self.config.relearn.enabled:
            return {"attack": None}
        experiments = {
            module: RelearnExperiment(
                pool,
                forget,
                self.run.data.validation_retain,
                self.padding,
                self._attack_settings(module),
                device=self.device,
                progress=self.state.is_main_process,
                state=self.state,
                retain_pool=self.attack_retain(),
                note=TRAINED_ON,
            )
            for module, (pool, forget) in self._pools().items()
        }
        kept = {
            module: KeptTrials(self.records, key if module is None else fingerprint(key, module), self.state, number)
            for number, module in enumerate(experiments)
        }
        planned = sum(attack.trials for attack in self.attacks())
        through = sum(len(part.found) for part in kept.values())

        def on_trial(module: str | None, trial: RelearnTrial) -> None:
            nonlocal through
            kept[module].add(trial)
            through += self.state.num_processes  # the others are about as far
            self.run.progress(min(through / planned, 1.0))

        found = {
            module: self._attacked(experiment, kept[module].found, partial(on_trial, module))
            for module, experiment in experiments.items()
        }
        attacks = {"attack": found.pop(None)}
        return {**attacks, "module_attacks": found} if found else attacks

    def _attacked(
        self, experiment: RelearnExperiment, done: list[RelearnTrial], on_trial: Callable[[RelearnTrial], None]
    ) -> dict[str, Any]:
        before = None
        if self.run.before_kind is not None:
            before = experiment.losses(load_causal_lm(self.run.before_model))
        model = load_causal_lm(self.stages[self.final_stage].model)
        result = experiment.run(model, before, done=done, on_trial=on_trial)
        if before is not None and self.final_stage != "before":
            result = experiment.attack_before(load_causal_lm(self.run.before_model), result)
        return result.to_dict()

    def remove_kept_trials(self) -> None:
        """Once the attack is written down as done. Every process calls it; one removes."""
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            remove_kept_trials(self.records)
