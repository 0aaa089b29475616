"""The model card: how to use the model, the verdict, what it writes, its limits; all figures and settings are folded.

The text is in `model_card_template.md`; what the method says of itself comes with the result. The same result always gives
the same text; the licence of a local base model is read from its own card, if there is one and none is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_era.evaluation.relearn.result import CONSTANT, FORGET, RelearnResult
from hf_era.evaluation.results import RunResult
from hf_era.evaluation.summary import ResultSummary, summary_of
from hf_era.reporting import module_tables, provenance, tables
from hf_era.reporting.labels import AT_MOST, SCHEDULES, stage_title
from hf_era.reporting.markdown.licences import licence_fields
from hf_era.reporting.markdown.tables import escape_markdown, markdown_prose, markdown_table
from hf_era.reporting.numbers import any_interval, format_count, is_number
from hf_era.reporting.provenance import section
from hf_era.reporting.seeds import seeds_table
from hf_era.reporting.tables import Table
from hf_era.reporting.text import name_of, source_kind, visible
from hf_era.reporting.verdict import reference_text, verdict
from hf_era.utils.checks import listed, short_repr
from hf_era.utils.files import write_text

TEMPLATE = Path(__file__).with_name("model_card_template.md")
ROUTED_TOKENS = 10
"""Rows of the table of routed tokens."""
PROMPTS_SHOWN, CHARACTERS_SHOWN = 4, 160
"""Prompts whose continuations are shown, as many of each kind, and how much of each."""
LARGEST_LOSS = 100.0
"""Nats a token; the perplexity of more says nothing, and soon is no number."""
LIGHTS = {"good": "🟢", "mixed": "🟡", "bad": "🔴", "unknown": "⚪"}
"""Level of a verdict's line -> what stands in front of it."""


def render_model_card(
    result: RunResult,
    repository: str | None = None,
    license: str | None = None,
    seeds: Sequence[RunResult] = (),
    language: str | Sequence[str] | None = None,
) -> str:
    """The text of `README.md` for the final checkpoint of a run.

    Args:
        result (`RunResult`): of the run. What it does not hold shows as "not measured" or "not recorded". Settings come
            from `config`; a dict `training["arguments"]` with the resolved Trainer arguments, if there is one, wins.
        repository (`str`, *optional*): hub id of the model, `name` or `owner/name`. Not given: "path/to/this/folder".
        license (`str`, *optional*): for the metadata, an identifier of the hub such as `apache-2.0`, or `other:NAME`. Not
            given: that of a local base model's card, or left out.
        seeds (`list[RunResult]`, *optional*): of other seeds: the verdict is over all of them, and means stand beside the
            run's own figures. Results of another recipe are left out.
        language (`str` or `list[str]`, *optional*): ISO 639 codes for the metadata, such as `en`. Not given: left out.

    Raises:
        ValueError: if `repository` is no valid repository id, `license` none of the hub's, or `language` no code.
    """
    if repository is not None:
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise ValueError(f"`repository` should be a hub id such as `owner/name`: {error}") from error
    data = card_data(result, repository, license, language)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **_context(result, repository, seeds))
    return str(card).rstrip() + "\n"


def write_model_card(result: RunResult, folder: str | Path, *arguments: Any, **named: Any) -> Path:
    """Writes the card to `README.md` in a folder, in one go, and returns its path. Other arguments: `render_model_card`."""
    return write_text(Path(folder) / "README.md", render_model_card(result, *arguments, **named))


# ---- Metadata ----


def card_data(
    result: RunResult,
    repository: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
) -> ModelCardData:
    """The metadata at the top of the card; the final checkpoint's perplexities are its evaluation results."""
    entries = _evaluation_results(result)
    base = section(result, "model").get("base")
    names = ("source", "forget_source", "retain_source", "unlabelled_source")
    sources = dict.fromkeys(str(result.data.get(name) or "") for name in names)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        language=_languages(language),
        tags=["hf_era", result.method.replace("_", "-"), "unlearning"],
        base_model=base if source_kind(base)[0] == "hub" else None,
        datasets=[name for name in sources if source_kind(name)[0] == "hub"] or None,
        model_name=(repository or result.name) if entries else None,
        eval_results=entries or None,
        **licence_fields(license, base),
    )


def _languages(given: str | Sequence[str] | None) -> list[str] | None:
    codes = [given] if isinstance(given, str) else list(given or [])
    for code in codes:
        if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", str(code)):
            raise ValueError(f"`language` should be a code of ISO 639 such as `en` or `de`, got {short_repr(code)}.")
    return codes or None


def _evaluation_results(result: RunResult) -> list[EvalResult]:
    """Of the final checkpoint only, without what was not measured. A perplexity is `exp` of the loss a token."""
    given = (result.data.get(name) for name in ("validation_source", "source", "forget_source"))
    kind, name = source_kind(next(filter(None, given), None))
    found = []
    for part in ("forget", "retain"):
        loss = result.loss(result.final_stage, part)
        if loss is None or not is_number(loss) or loss > LARGEST_LOSS:
            continue
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=name if kind == "hub" else kind,
                dataset_name="built-in example generator of hf_era (synthetic)" if kind == "generator" else name,
                dataset_split="validation",
                metric_type="perplexity",
                metric_name=f"Perplexity on {part} examples",
                metric_value=round(math.exp(loss), 4),
            )
        )
    return found


# ---- Text ----


def _context(result: RunResult, repository: str | None, seeds: Sequence[RunResult]) -> dict[str, Any]:
    """What the template shows; all that comes from data, config or the method is escaped."""
    figures = summary_of(result)
    losses = [estimate for part in figures.losses.values() for estimate in part.values()]
    version = str(result.versions.get("hf-era", "unknown"))
    shown = {
        "generations_table": _generations_table(result),
        "figures_table": tables.figures_table(result),
        "accuracy_table": tables.accuracy_table(result),
        "tasks_table": tables.tasks_table(result),
        "losses_table": tables.losses_table(result),
        "differences_table": tables.differences_table(result),
        "distance_table": tables.distance_table(result),
        "ablation_table": tables.ablation_table(result),
        "selectivity_table": tables.selectivity_table(result) if result.has_module else None,
        "routing_table": tables.routing_table(result, ROUTED_TOKENS),
        "modules_table": module_tables.modules_table(result),
        "crosstalk_table": module_tables.crosstalk_table(result),
        "module_selectivity_table": module_tables.module_selectivity_table(result),
        "seeds_table": seeds_table(result, seeds),
        "attack_table": tables.attacks_table(result),
        "data_table": provenance.data_table(result),
        "training_table": provenance.training_table(result),
        "run_table": provenance.run_table(result),
    }
    return {
        **{name: markdown_table(table) for name, table in shown.items()},
        **_method_texts(result, version),
        **_attack_texts(figures),
        "seed": escape_markdown(result.seed),
        "title": escape_markdown(repository or result.name),
        "load_from": repository or "path/to/this/folder",
        "plain_version": re.sub(r"[^\w.+-]", "", version),
        "verdict": [
            f"{LIGHTS[line.level]} **{line.question} {escape_markdown(line.answer)}.** {escape_markdown(line.text)}"
            for line in verdict(result, seeds)
        ],
        "labels_are_words": provenance.labelling_kind(result) == "words",
        "has_unlabelled": any(result.data.get(name) for name in ("train_unlabelled", "train_forget_unlabelled")),
        "reference": escape_markdown(reference_text(result)),
        "is_of_a_run": "output_dir" in result.config,  # which writes more than a card
        "chance": tables.chance_text(result),
        "has_before": result.before_kind is not None,
        "final_stage": escape_markdown(stage_title(figures, result.final_stage)),
        "has_intervals": any_interval(losses),
        "has_difference_intervals": any_interval(list(figures.differences.values())),
        "chose_on_evaluation": "after_coherence" in result.losses
        and not result.data.get("coherence_validation_stories"),
        "has_module": result.has_module,
        "is_synthetic": source_kind(result.data.get("source"))[0] == "generator"
        and not result.data.get("stories_source"),
        "lacks_control": figures.control is None and not figures.is_control,
        "counts": escape_markdown(tables.counts_text(result)),
        "module_notes": [escape_markdown(note) for note in module_tables.attack_notes(result)],
    }


def _generations_table(result: RunResult) -> Table | None:
    """What the first prompts of each kind lead to, before the method and now; `None` if nothing was generated."""
    values = result.generations
    texts, prompts = values.get("texts") or {}, values.get("prompts") or []
    figures, final = summary_of(result), result.final_stage
    stages = [stage for stage in dict.fromkeys(["before", final]) if texts.get(stage)]
    labels = values.get("prompt_labels") or [None] * len(prompts)
    kinds = [[number for number, label in enumerate(labels) if label == kind] for kind in dict.fromkeys(labels)]
    rows = []
    for number in [number for numbers in kinds for number in numbers[: PROMPTS_SHOWN // len(kinds)]]:
        kind = f" ({labels[number]})" if labels[number] else ""
        written = [_written(texts[stage], number, str(prompts[number])) for stage in stages]
        rows.append([f"{_short(prompts[number])}{kind}", *written])
    titles = ["This model" if stage == final else name_of(stage_title(figures, stage)) for stage in stages]
    header = ["Prompt", *titles]
    return Table("", header, rows, text_columns=len(header)) if rows and stages else None


def _written(texts: Sequence[str], number: int, prompt: str) -> str:
    """The beginning of what follows the prompt."""
    return _short(str(texts[number]).removeprefix(prompt)) if number < len(texts) else "-"


def _short(text: object) -> str:
    line = " ".join(visible(str(text)[: 4 * CHARACTERS_SHOWN]).split())
    return line if len(line) <= CHARACTERS_SHOWN else f"{line[:CHARACTERS_SHOWN]}…"


def _method_texts(result: RunResult, version: str) -> dict[str, str]:
    """The method's own prose. Where it has no introduction, one that holds for all."""
    made = (
        f'A causal language model that was made by hf_era {{version}} with the method "{name_of(result.method_title)}".'
    )
    texts = {name: str(result.method_texts.get(name) or "") for name in ("introduction", "training", "labels")}
    texts["introduction"] = texts["introduction"] or made
    return {name: markdown_prose(text.replace("{version}", version)) for name, text in texts.items()}


def _attack_texts(figures: ResultSummary) -> dict[str, Any]:
    """How the relearn attacks were made and what they were measured on, in words."""
    relearning = figures.relearning
    if relearning is None:
        return {}
    steps, patience, every = (relearning.settings.get(name) for name in ("steps", "patience", "evaluate_every"))
    made = f"AdamW, betas 0.9 and 0.95, at most {format_count(steps)} steps"
    made += f", measured at least every {format_count(every or 1)}"
    made += f", {_patience_text(relearning, patience)}" if patience else ""
    made += _how_text(relearning)
    measured, halves = relearning.measured, relearning.measured.get("selection_stories")
    parts = [
        f"{format_count(measured.get(f'{kind}_stories'))} {kind} examples "
        f"({format_count(measured.get(f'{kind}_tokens'))} tokens)"
        for kind in ("forget", "retain")
    ]
    return {
        "attack_settings": escape_markdown(made),
        "at_most": escape_markdown(AT_MOST),
        "attack_halves": escape_markdown(format_count(halves)) if halves else None,
        "attack_measured": escape_markdown(" and ".join(parts)),
        "attack_notes": [escape_markdown(note) for note in relearning.notes],
    }


def _patience_text(relearning: RelearnResult, patience: int) -> str:
    """When trials end; earlier results counted rises."""
    if any(trial.curve.points[0].selection_loss is not None for trial in relearning.trials):
        return f"stopped when none of {format_count(patience)} evaluations in a row is below the one before them"
    return f"stopped after {format_count(patience)} rises in a row"


def _how_text(relearning: RelearnResult) -> str:
    """Schedules, mini-batches and other data, where there are any."""
    schedules = dict.fromkeys(trial.schedule for trial in relearning.trials)
    found = f", schedules: {listed([SCHEDULES.get(name, name) for name in schedules])}"
    found = found if list(schedules) != [CONSTANT] else ""
    batch = relearning.settings.get("batch_stories")
    found += f", {format_count(batch)} examples a step" if batch else ""
    others = any(trial.mixture != FORGET for trial in relearning.trials)
    return f"{found}; some of them on retain examples too, or alone" if others else found
