"""Generated texts side by side: one sample per prompt, target words marked, the prompt set apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import summary_of
from hf_era.evaluation.text_metrics import target_word_spans
from hf_era.reporting.html.parts import Folded, Paragraphs, Sample
from hf_era.reporting.labels import stage_title
from hf_era.reporting.numbers import counted, format_number
from hf_era.reporting.tables import Table
from hf_era.reporting.text import MAXIMUM_TEXT, name_of, visible

_SETTINGS = {"new_tokens": "new tokens", "temperature": "temperature", "top_k": "top-k", "seed": "seed"}

SHOWN = 3
"""Prompts of each kind that stand in the page unfolded."""
_PROMPTS = {"forget": "prompt of a forget example", "retain": "prompt of a retain example", "given": "given prompt"}
"""Kinds of prompts, in the order in which they are shown; earlier results do not record them."""


def generation_parts(result: AnyResult) -> list[Any]:
    """How they were made, counts per stage, and the texts; empty if nothing was generated."""
    values = result.generations
    texts = values.get("texts") or {}
    if not any(texts.values()):
        return []
    figures = summary_of(result)
    stages = sorted(texts, key=[*result.stage_titles, *texts].index)
    titles = {stage: name_of(stage_title(figures, stage)) for stage in stages}
    words, prompts, kinds = forget_words(result), values.get("prompts") or [], values.get("prompt_labels")
    numbers = range(max(len(texts[stage]) for stage in stages))
    # Earlier results do not say what their prompts are; of one that was given there is no label.
    kind_of = {
        number: "" if not kinds else (kinds[number] or "given") if number < len(kinds) else "" for number in numbers
    }
    samples = []
    for number in sorted(numbers, key=lambda number: _rank(kind_of[number])):
        prompt = str(prompts[number]) if number < len(prompts) else ""
        shown = {
            titles[stage]: continuation(str(texts[stage][number]), prompt, words)
            for stage in stages
            if number < len(texts[stage])
        }
        samples.append(Sample(name_of(prompt) or "(no prompt)", shown, _PROMPTS.get(kind_of[number], "")))
    settings = values.get("settings") or {}
    given = [f"{title} {name_of(settings[key])}" for key, title in _SETTINGS.items() if settings.get(key) is not None]
    made = f"Sampled with {', '.join(given)}. " if given else ""
    if settings.get("trained_tokens") is not None:
        made += f"Beyond the first {name_of(settings['trained_tokens'])} tokens nothing was trained in this run. "
    marked = "; forget words are marked" if words else ""
    about = f"{made}The prompt is set apart{marked}. A few samples show the style, they prove nothing."
    return [Paragraphs([about]), *_counts(values, titles, bool(words)), *_folded(samples)]


def _folded(samples: list[Sample]) -> list[Any]:
    """The first samples of each kind of prompt, and the others folded, so that the plots are not far."""
    kinds = [sample.about for sample in samples]
    first = [number for number, kind in enumerate(kinds) if kinds[:number].count(kind) < SHOWN]
    others = [sample for number, sample in enumerate(samples) if number not in first]
    folded = [Folded(counted(len(others), "more prompt", "more prompts"), others)] if others else []
    return [*(samples[number] for number in first), *folded]


def _rank(kind: str) -> int:
    return list(_PROMPTS).index(kind) if kind in _PROMPTS else len(_PROMPTS)


def forget_words(result: AnyResult) -> Sequence[str]:
    """The words that are marked in texts."""
    return [str(word) for word in result.data.get("forget_words") or [] if str(word).strip()]


def _counts(values: dict[str, Any], titles: dict[str, str], with_words: bool) -> list[Table]:
    words, repetition = (values.get(name) or {} for name in ("target_words", "repetition"))
    with_words = with_words and bool(words)
    rows = []
    for stage, title in titles.items():
        counts = [(words.get(stage) or {}).get(name) for name in ("all", "without_prompt")] if with_words else []
        rows.append([title, *(format_number(count, 0) for count in counts), format_number(repetition.get(stage))])
    of_words = ["Forget words, prompts included", "without the prompts"] if with_words else []
    counted_words = "how many forget words, and " if with_words else ""
    caption = f"Over all samples: {counted_words}the share of word trigrams that repeat an earlier one."
    return [Table(caption, ["Model", *of_words, "Repetition"], rows)] if with_words or repetition else []


# ---- A text as HTML ----


def continuation(text: str, prompt: str, words: Sequence[str]) -> Markup:
    """A generated text as HTML: the prompt that it starts with set apart, the target words marked, everything escaped.
    Beyond `MAXIMUM_TEXT` characters it is cut, and says so."""
    shown = text[:MAXIMUM_TEXT]
    prompt_end = min(len(prompt), len(shown)) if text.startswith(prompt) else 0
    spans = target_word_spans(shown, list(words))
    html = Markup("")
    for start, end, in_prompt in ((0, prompt_end, True), (prompt_end, len(shown), False)):
        if start < end:
            part = _marked(shown, start, end, spans)
            html += Markup('<span class="prompt">{}</span>').format(part) if in_prompt else part
    if len(text) > MAXIMUM_TEXT:
        html += Markup('<span class="cut">… (the first {:,} of {:,} characters)</span>').format(MAXIMUM_TEXT, len(text))
    return html


def _marked(text: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> Markup:
    """The part from `start` to `end`; a word across its border is marked on both sides."""
    html, at = Markup(""), start
    for first, last in sorted(spans):
        first, last = max(first, at), min(last, end)
        if first < last:
            html += escape(visible(text[at:first])) + Markup("<mark>{}</mark>").format(visible(text[first:last]))
            at = last
    return html + escape(visible(text[at:end]))
