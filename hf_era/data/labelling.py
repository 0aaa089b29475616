"""Labels: which examples are to be forgotten, said in one way for a run, `eval`, `relearn` and the trainer.

An example is *forget*, *retain*, or *unlabelled*: a third state that is trained on, counted and measured apart. What says
so is one of `LABELLINGS`, as the settings are given (`Labels`).

* `words`: a forget example has a forget word in its text, a retain example has none (`hf_era.data.words`).
* `column`: its value in a column. Without `retain_labels`, every value that is not a forget label is retain.
* `score`: its value in a column is the probability, in [0, 1], that it is to be forgotten, for instance of a classifier.
  From `FORGET_SCORE` on it is a forget example, and its routing weight is 1 - score.
* `sources`: which of two sources it comes from; a third one, if there is one, is of unlabelled examples.

A null is unlabelled, in the second and third.

Where a model has several auxiliary modules, `modules` says which of the forget labels, or words, belong to which. A forget
example belongs to one module; retain and unlabelled examples belong to none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_era.data.words import fold
from hf_era.utils.checks import listed, short_repr, unknown_key_message
from hf_era.utils.suggestions import close_name

FORGET, RETAIN, UNLABELLED = 0, 1, -1
LABEL_NAMES = {FORGET: "forget", RETAIN: "retain", UNLABELLED: "unlabelled"}
LABELLINGS = ("words", "column", "score", "sources")
FORGET_SCORE = 0.5
"""An example with a score from here on counts as a forget example."""
MAXIMUM_WORD_CHARACTERS = 100_000
"""All forget words together: each is looked for in every example."""
LABELS_SHOWN = 20
"""Values of a label column in a message; of more, no one reads one."""

LABEL_CHARACTERS = 40
"""Of such a value: in a column that holds no labels it may be a whole text."""

LABEL_COLUMN = "given_label"
"""The column in which the value of a label column travels, as text, until the example is labelled."""

MODULE = "module"
"""The column with the name of the module that an example belongs to, null for none, where labels name modules."""


@dataclass(frozen=True)
class Labels:
    """How examples are labelled.

    Args:
        forget_words (`Sequence[str]`, *optional*): words or phrases.
        label_column (`str`, *optional*): of text, whole numbers, true and false, or class labels.
        forget_labels, retain_labels (`Sequence[str]`, *optional*): its values, as text.
        score_column (`str`, *optional*): of numbers in [0, 1].
        has_two_sources (`bool`, *optional*, defaults to `False`): whether forget and retain examples come from two sources.
        modules (`Mapping[str, Sequence[str]]`, *optional*): module -> its forget labels, or without a label column its
            forget words. Those are then all of them: `forget_labels`, or `forget_words`, may be left out.
        section (`str`, *optional*): what stands before the names of these settings in messages, for instance `data.`.

    Raises:
        ValueError: if it is said in more than one way, in none, or in one that lacks something; if two modules share a label
            or a word, or `forget_labels` are others than those of the modules.
    """

    forget_words: Sequence[str] = ()
    label_column: str | None = None
    forget_labels: Sequence[str] = ()
    retain_labels: Sequence[str] = ()
    score_column: str | None = None
    has_two_sources: bool = False
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    section: str = ""
    kind: str = field(init=False, default="")

    def __post_init__(self) -> None:
        name = self.name
        self._take_labels_of_modules()
        given = {
            "words": (bool(self.forget_words), name("forget_words")),
            "column": (self.label_column is not None, name("label_column")),
            "score": (self.score_column is not None, name("score_column")),
            "sources": (self.has_two_sources, f"{name('forget')} and {name('retain')}"),
        }
        chosen = [kind for kind, (is_given, _) in given.items() if is_given]
        for several in ("forget_words", "forget_labels", "retain_labels"):
            if isinstance(value := getattr(self, several), str):  # its letters would be taken for the values
                raise ValueError(f"{name(several)} should be a list, got {short_repr(value)}. Write `[{value!r}]`.")
        for other in ("forget_labels", "retain_labels"):
            if getattr(self, other) and self.label_column is None:
                raise ValueError(
                    f"{name(other)} is {short_repr(list(getattr(self, other)))}, but no column is named that has such "
                    f"values. Name it: {name('label_column')}."
                )
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(given[kind][1] for kind in chosen)} are both given, but labels come from one of them. "
                "Drop the other."
            )
        if not chosen:
            raise ValueError(
                f"Nothing says which examples are to be forgotten. Name a column and its values ({name('label_column')}, "
                f"{name('forget_labels')}), a column with the probability of it ({name('score_column')}), the words of such "
                f"examples ({name('forget_words')}), or two sources ({name('forget')}, {name('retain')})."
            )
        object.__setattr__(self, "kind", chosen[0])
        self._check_words()
        self._check_labels()

    def name(self, setting: str) -> str:
        """A setting as messages call it."""
        return f"`{self.section}{setting}`"

    def _take_labels_of_modules(self) -> None:
        """What the modules name are the forget labels, or words."""
        if not isinstance(self.modules, Mapping):
            raise ValueError(
                f"{self.name('modules')} should be a mapping from a module to its labels, got {short_repr(self.modules)}."
            )
        if not self.modules:
            return
        if self.score_column is not None or self.has_two_sources:
            other = "score_column" if self.score_column is not None else "forget"
            way_out = f"Name a label column and give each module its labels, or leave {self.name('modules')} out."
            raise ValueError(
                f"{self.name('modules')} says which label, or word, belongs to which module, but with {self.name(other)} "
                f"an example has neither. {way_out}"
            )
        setting = "forget_words" if self.label_column is None else "forget_labels"
        same = fold if self.label_column is None else label_text
        owners: dict[Any, str] = {}
        for module, values in self.modules.items():
            where = self.name(f"modules.{module}")
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                example = f"Write `[{values!r}]`." if isinstance(values, str) and values else "Name at least one."
                raise ValueError(f"{where} should be a list of labels or words, got {short_repr(values)}. {example}")
            for value in values:
                if setting == "forget_words" and not isinstance(value, str):
                    raise ValueError(
                        f"{where} should hold words, got {short_repr(value)}. If it is a label, name its column: "
                        f"{self.name('label_column')}."
                    )
                owner = owners.setdefault(same(value), module)
                if owner != module:
                    raise ValueError(
                        f"{self.name('modules')}: {short_repr(value)} is under `{owner}` and under `{module}`, but an "
                        "example belongs to one module. Take it out of one of them."
                    )
        named = [value for values in self.modules.values() for value in values]
        given = getattr(self, setting)
        if given and not isinstance(given, str) and {same(value) for value in given} != set(owners):
            raise ValueError(
                f"{self.name(setting)} is {short_repr(list(given))}, but {self.name('modules')} names "
                f"{short_repr(named)}. Leave {self.name(setting)} out: it is what the modules have."
            )
        if not given:
            object.__setattr__(self, setting, named)

    def check_modules(self, known: Sequence[str], where: str) -> None:
        """Raises `ValueError` unless these are the modules that a model has: `known`; `where` says of what, in messages."""
        if not self.modules:
            return
        for module in self.modules:
            if module not in known:
                message = unknown_key_message(f"{self.name('modules')} ({where} does not have it)", module, known)
                raise ValueError(
                    f"{message} Which modules there are, `expansion.modules` says: [{{name: {module}}}, ...]."
                )
        without = [module for module in known if module not in self.modules]
        if without:
            raise ValueError(
                f"{self.name('modules')} names nothing for {listed(without)} of {where}, so no forget example would teach "
                "that module. Give it labels, or take the module out."
            )

    def _check_words(self) -> None:
        for word in self.forget_words:
            if not isinstance(word, str) or not fold(word).strip():
                raise ValueError(
                    f"{self.name('forget_words')} should hold words, got {short_repr(word)}. Take the empty word out."
                )
        characters = sum(map(len, self.forget_words))
        if characters > MAXIMUM_WORD_CHARACTERS:
            raise ValueError(
                f"{self.name('forget_words')} should hold at most {MAXIMUM_WORD_CHARACTERS:,} characters in all, got "
                f"{characters:,}. Give words, not examples."
            )

    def _check_labels(self) -> None:
        if self.kind != "column":
            return
        if not self.forget_labels:
            raise ValueError(
                f"{self.name('label_column')} is {short_repr(self.label_column)}, but no value of it is to be forgotten. "
                f"Name at least one: {self.name('forget_labels')}."
            )
        for setting in ("forget_labels", "retain_labels"):
            for value in getattr(self, setting):
                if label_text(value) is None:
                    raise ValueError(
                        f"{self.name(setting)} should hold labels, got {short_repr(value)}. Take it out: examples without a "
                        "label are unlabelled."
                    )
        both = {label_text(value) for value in self.forget_labels} & {label_text(value) for value in self.retain_labels}
        if both:
            raise ValueError(
                f"{self.name('retain_labels')} and {self.name('forget_labels')} share {listed(sorted(map(str, both)))}. "
                "An example is one or the other."
            )

    @property
    def column(self) -> str | None:
        """The column that the labels are read from; `None` if they are not in one."""
        return self.label_column if self.label_column is not None else self.score_column

    @property
    def column_setting(self) -> str:
        """The setting that names it."""
        return "label_column" if self.label_column is not None else "score_column"

    def of_values(self, values: Sequence[str | None]) -> list[int]:
        """The labels of examples with these values of the label column, which `label_text` made."""
        forget, retain = ({label_text(value) for value in given} for given in (self.forget_labels, self.retain_labels))
        others = UNLABELLED if retain else RETAIN
        kinds = {None: UNLABELLED} | dict.fromkeys(retain, RETAIN) | dict.fromkeys(forget, FORGET)
        return [kinds.get(value, others) for value in values]

    def modules_of_values(self, values: pa.ChunkedArray) -> pa.Array:
        """The modules, as text or null, of examples with these values of the label column."""
        owners = {label_text(value): module for module, labels in self.modules.items() for value in labels}
        return _taken(list(owners.values()), pc.index_in(values, pa.array(list(owners), pa.string())))

    def modules_of_words(self, found: np.ndarray[Any, Any], texts: Sequence[str]) -> pa.Array:
        """The same by words.

        Args:
            found (`ndarray`): (modules, examples), bool: whether an example has a word of a module.
            texts: of the examples, for the message.

        Raises:
            ValueError: if an example has words of two modules.
        """
        names = list(self.modules)
        is_of_several = found.sum(0) > 1
        if is_of_several.any():
            first = int(is_of_several.argmax())
            shared = listed(name for name, has in zip(names, found[:, first], strict=True) if has)
            raise ValueError(
                f"{self.name('modules')}: an example has words of {shared}, but it can belong to one module only: "
                f"{short_repr(texts[first])}. Name rarer words, take such examples out, or label them in a column "
                f"({self.name('label_column')})."
            )
        places = np.where(found.any(0), found.argmax(0), -1)
        return _taken(names, pa.array(places, mask=places < 0))

    def of_scores(self, scores: np.ndarray[Any, Any]) -> list[int]:
        """The labels of examples with these scores, shape (examples,), NaN where there is none."""
        labels = np.where(scores >= FORGET_SCORE, FORGET, RETAIN)
        return np.where(np.isnan(scores), UNLABELLED, labels).tolist()

    def describe(self) -> dict[str, Any]:
        """As a result records it."""
        found: dict[str, Any] = {"kind": self.kind}
        if self.kind == "words":
            found["forget_words"] = list(self.forget_words)
        if self.kind in ("column", "score"):
            found["column"] = self.column
        if self.kind == "column":
            found["forget_labels"] = list(map(str, self.forget_labels))
            found["retain_labels"] = list(map(str, self.retain_labels))
        if self.modules:
            found["modules"] = {module: list(map(str, values)) for module, values in self.modules.items()}
        return found

    def __str__(self) -> str:
        forgotten = ", ".join(map(str, self.forget_words or self.forget_labels))
        if self.modules:
            named = (f"{', '.join(map(str, values))} (module '{module}')" for module, values in self.modules.items())
            forgotten = ", ".join(named)
        if self.kind == "words":
            return f"examples with one of: {forgotten}"
        if self.kind == "column":
            return f"examples whose `{self.label_column}` is {forgotten}"
        if self.kind == "score":
            return f"examples by their `{self.score_column}`, the probability of it"
        return "the examples of a source of their own"

    # ---- What is wrong with the labels of data ----

    def no_forget_message(self, number: int, values: Mapping[Any, int], where: str) -> str:
        """What to say of data without a forget example. `values`: of the label column, and how often each occurs."""
        none = f"none of the {number} {where}"
        if self.kind == "words":
            return (
                f"{self.name('forget_words')}: {none} has one of {', '.join(self.forget_words)}. Check the words and the "
                "text column, or give more examples."
            )
        if self.kind == "column":
            return self._absent_message(self._forget_setting, self.forget_labels, none, values)
        if self.kind == "sources":
            return f"{where.capitalize()}: there is no forget example among {number}. Add some."
        return f"{self.name('score_column')}: {none} has a `{self.score_column}` of {FORGET_SCORE} or more."

    def absent_label_message(self, number: int, values: Mapping[Any, int], where: str) -> str | None:
        """What to say of data in which a label that is named, a misspelt one perhaps, does not occur; `None` if all do."""
        if self.kind != "column":
            return None
        for setting in ("forget_labels", "retain_labels"):
            absent = [value for value in getattr(self, setting) if label_text(value) not in values]
            if absent:
                shown = self._forget_setting if setting == "forget_labels" else setting
                return self._absent_message(shown, absent, f"none of the {number} {where}", values)
        return None

    def absent_module_message(self, module: str, number: int, where: str) -> str:
        """What to say of data in which no example belongs to a module."""
        labels = ", ".join(map(str, self.modules[module]))
        way_out = "Give more examples, or hold fewer back."
        if self.kind == "words":
            way_out = f"Name other words, or if these are labels, their column: {self.name('label_column')}."
        return (
            f"{self.name('modules')}: none of the {number} {where} belongs to `{module}`, whose "
            f"{'words are' if self.kind == 'words' else 'labels are'} {labels}. {way_out}"
        )

    @property
    def _forget_setting(self) -> str:
        """The setting with the labels of forget examples."""
        return "modules" if self.modules else "forget_labels"

    def _absent_message(self, setting: str, absent: Sequence[Any], none: str, values: Mapping[Any, int]) -> str:
        known = [str(value) for value in values if value is not None]
        hints = (close_name(str(value), known) for value in absent)
        hint = next((f" Did you mean {short_repr(close)}?" for close in hints if close), "")
        return (
            f"{self.name(setting)}: {none} has {' or '.join(map(str, absent))} in the column `{self.label_column}`.{hint} "
            f"It has: {_counted(values)}."
        )

    def no_retain_message(self, number: int, values: Mapping[Any, int], where: str) -> str:
        """What to say of data without a retain example."""
        if self.kind == "words":
            return (
                f"all of the {number} {where} have one of {', '.join(self.forget_words)}; there is no retain example. "
                "Name rarer words, or add other examples."
            )
        if self.kind == "column":
            return (
                f"there is no retain example: of the {number} {where} the column `{self.label_column}` has no other value "
                f"beside those of {self.name(self._forget_setting)}. It has: {_counted(values)}. Add other examples."
            )
        if self.kind == "sources":
            return f"there is no retain example among {number}. Add some."
        return (
            f"there is no retain example: none of the {number} {where} has a `{self.score_column}` below "
            f"{FORGET_SCORE}. Add other examples."
        )


def _taken(names: Sequence[str], places: Any) -> pa.Array:
    """The names at these places, null where there is no place."""
    places = places.combine_chunks() if isinstance(places, pa.ChunkedArray) else places
    return pa.array(names, pa.string()).take(places)


def label_text(value: Any) -> str | None:
    """The value of a label column as text: `1` for 1, 1.0 and "1", `true` for true, `None` for a null or an empty text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if not text:  # a null in some files, and in others an empty text
        return None
    return text.lower() if text.lower() in ("true", "false") else text


def _counted(values: Mapping[Any, int]) -> str:
    most = Counter(values).most_common(LABELS_SHOWN)
    more = f" and {len(values) - len(most)} more" if len(values) > len(most) else ""
    shown = [f"{str(value)[:LABEL_CHARACTERS]} ({number:,})" for value, number in most if value is not None]
    return (", ".join(shown) or "nulls only") + more
