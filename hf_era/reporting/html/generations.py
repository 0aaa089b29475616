"""Generated texts side by side: one sample per prompt, target words marked, the prompt set apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_era.evaluation.results import STAGES, ModelResult, RunResult
from hf_era.reporting.html.parts import Paragraphs, Sample, Table
from hf_era.reporting.html.tables import stage_titles
from hf_era.reporting.html.text import continuation, name_of
from hf_era.reporting.markdown.formatting import format_number

_ORDER = (*STAGES, "final")
_SETTINGS = (("new_tokens", "new tokens"), ("temperature", "temperature"), ("top_k", "top-k"), ("seed", "seed"))


def generation_parts(result: RunResult | ModelResult) -> list[Any]:
    """How they were made, counts per stage, and the texts; empty if nothing was generated."""
    values = result.generations
    texts = values.get("texts") or {}
    if not any(texts.values()):
        return []
    stages = sorted(texts, key=lambda stage: _ORDER.index(stage) if stage in _ORDER else len(_ORDER))
    words, prompts, titles = forget_words(result), values.get("prompts") or [], stage_titles(result, stages)
    samples = []
    for number in range(max(len(texts[stage]) for stage in stages)):
        prompt = str(prompts[number]) if number < len(prompts) else ""
        shown = {
            titles[stage]: continuation(str(texts[stage][number]), prompt, words)
            for stage in stages
            if number < len(texts[stage])
        }
        samples.append(Sample(name_of(prompt) or "(no prompt)", shown))
    return [_settings(values), *_counts(values, titles), *samples]


def forget_words(result: RunResult | ModelResult) -> Sequence[str]:
    """The words that are marked in texts."""
    return [str(word) for word in result.data.get("forget_words") or [] if str(word).strip()]


def _settings(values: dict[str, Any]) -> Paragraphs:
    settings = values.get("settings") or {}
    given = [f"{title} {name_of(settings[key])}" for key, title in _SETTINGS if settings.get(key) is not None]
    made = f"Sampled with {', '.join(given)}. " if given else ""
    return Paragraphs(
        [f"{made}The prompt is set apart; forget words are marked. A few samples show the style, they prove nothing."]
    )


def _counts(values: dict[str, Any], titles: dict[str, str]) -> list[Table]:
    words, repetition = (values.get(name) or {} for name in ("target_words", "repetition"))
    rows = []
    for stage, title in titles.items():
        counted = words.get(stage) or {}
        rows.append(
            [
                title,
                *(format_number(counted.get(name), 0) for name in ("all", "without_prompt")),
                format_number(repetition.get(stage)),
            ]
        )
    header = ["Model", "Forget words, prompts included", "without the prompts", "Repetition"]
    caption = "Over all samples: how many forget words, and the share of word trigrams that repeat an earlier one."
    return [Table(caption, header, rows)] if words or repetition else []
