"""`DataConfig`: which examples, how they are labelled, cut and split."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from hf_era.data.facts import ATTACKED, MEASURED
from hf_era.data.generator import MAXIMUM_STORIES
from hf_era.data.label_errors import LABEL_ERRORS
from hf_era.data.labelling import Labels, label_text
from hf_era.utils.checks import LARGEST_COUNT, check_count, short_repr, unknown_value_message
from hf_era.utils.fields import setting

GENERATOR = "generator"
TOPICS = "topics"
SECOND_LANGUAGE = "second_language"
FACTS = "facts"
BUILT_IN = (GENERATOR, TOPICS, SECOND_LANGUAGE, FACTS)
FROM_STORIES = (SECOND_LANGUAGE, FACTS)
"""Built-in sources that are made of texts: those of `data.stories_file`, or of the generator."""
LABELLED_BUILT_IN = (TOPICS, *FROM_STORIES)
"""Built-in sources with a column of labels."""
GIVEN = "given"
"""As a source: examples that a program hands over; nothing is read."""
TREE_WORDS = ("tree", "trees", "forest", "forests", "woodland", "woodlands")

# Least and most of the numbers.
_LIMITS = {
    "max_train_stories": (1, LARGEST_COUNT),
    "generator_stories": (1, MAXIMUM_STORIES),
    "max_characters": (1, LARGEST_COUNT),
    "max_tokens": (2, 10_000_000),
    "forget_validation_stories": (1, LARGEST_COUNT),
    "retain_validation_stories": (1, LARGEST_COUNT),
    "unlabelled_validation_stories": (0, LARGEST_COUNT),
    "attack_stories": (0, LARGEST_COUNT),
    "coherence_validation_stories": (0, LARGEST_COUNT),
    "num_proc": (1, 1_024),
}


@dataclass
class DataConfig:
    """Where examples come from, which are to be forgotten, and what becomes of them. Defaults: the seed's cuts.

    Args:
        train (`str`, *optional*, defaults to `"generator"`):
            A local file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt, compressed ones too), a directory of such files,
            of a saved data set or of a snapshot of the hub, a hub data set id, or built in: `generator` (stories; without
            other labels those about trees are to be forgotten), `topics` (short texts on several topics; without
            other labels those on chemistry), `second_language` (a quarter of the stories goes through a letter
            substitution; without other labels these) and `facts` (with a chance level, among stories; without other labels
            those about animals). Files are read by the very name that is given: nothing in it is a pattern.
        stories_file (`str`, *optional*): where the texts of `second_language` and `facts` come from, read as `train` is. Not
            given: the generator.
        validation (`str`, *optional*): likewise. Not given: the validation examples are taken out of the training examples.
        forget, retain (`str`, *optional*): two sources instead, one of forget and one of retain examples. `train`, if it is
            given too, is then of examples without a label.
        train_split, validation_split (`str`, *optional*, default `train`, `validation`): of a hub data set, of a saved
            one, or of a directory whose files say their split in their names, such as `train.jsonl`. `train_split` is
            that of `forget` and `retain` too.
        subset (`str`, *optional*): configuration name of a hub data set or snapshot.
        text_column (`str`, *optional*): not given: `text`, `story`, `content`, or the only column with text; or `messages`
            (through the tokenizer's chat template), or `prompt` and `completion` (the loss is on the completion only).
        label_column, forget_labels, retain_labels, score_column, forget_words (*optional*): which examples are to be
            forgotten, in one of these ways: see `hf_era.data.labelling`. A forget word is looked for as a whole word, in any
            case and spelling; in scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) it need not be whole.
        attack_labels (`list[str]`, *optional*): those of the forget labels whose examples the attacker is given. The model
            is then measured on the others alone, and trained on all: what an attack brings back, it did not teach.
        modules (`dict[str, list[str]]`, *optional*): which forget labels, or without a label column forget words, belong to
            which auxiliary module: `{biology: [cell biology, genetics], chemistry: [chemistry]}`. `forget_labels`, or
            `forget_words`, may then be left out. An example belongs to one module, or to none.
        max_train_stories (`int`, *optional*): at most so many training examples, the first ones.
        generator_stories (`int`, *optional*, defaults to `6000`): examples that a built-in source makes.
        labelled_fraction (`float`, *optional*, defaults to `1.0`): share of the forget training examples that keep their
            label, in (0, 1]. The others are taken for retain, by data filtering and coherence too, and counted apart.
        labelled_retain_fraction (`float`, *optional*, defaults to `1.0`): share of the retain training examples that keep
            theirs, in (0, 1]. With less than 1, examples without a label are of both kinds, as data is of which only a part
            was labelled, and a router may treat them apart (`gram`, `sgtm`). With 1 they would all be forget examples: no
            router is told of them, for that would give them away.
        label_errors (`str`, *optional*, defaults to `"random"`): which ones lose it: `random`; `short`, the shortest first;
            or `score`, those first that a classifier of words takes least for forget examples. See
            `hf_era.data.label_errors`.
        label_threshold (`float`, *optional*): in (0, 1), with `label_errors: score` and in place of `labelled_fraction`. The
            classifier labels the training examples: forget examples with a lower probability lose their label, and retain
            examples with this one or a higher are labelled forget by mistake, and counted.
        max_characters (`int`, *optional*, defaults to `1029`): a text is cut there, before words are looked for.
        max_tokens (`int`, *optional*, defaults to `256`): then it is cut to so many tokens, BOS and EOS included. An example
            keeps the label of its whole text; a run says how many forget examples thereby lost all their forget words.
        add_bos, add_eos (`bool`, *optional*, default `True`, `False`): one BOS in front, one EOS at the end of an example
            that was not cut. A chat template says for itself what stands there.
        forget_validation_stories, retain_validation_stories (`int`, *optional*, default `150`): examples to evaluate on.
        unlabelled_validation_stories (`int`, *optional*, defaults to `100`): at most so many of those without a label, if
            there are any: not more than a tenth of them.
        attack_stories (`int`, *optional*, defaults to `320`): forget examples that neither training nor evaluation sees:
            enough for five relearn attacks with 64 examples that share none.
        coherence_validation_stories (`int`, *optional*, defaults to `100`): at most so many retain training examples, and
            not more than a tenth of them, on which coherence fine-tuning chooses its weights: neither trained on nor
            measured. They are taken out whatever the method, with coherence or without, so that all runs with the same data
            are trained on the same examples. 0: it chooses on the examples that are measured, as in earlier versions.
        num_proc (`int`, *optional*): processes that tokenise. Not given: this one.

    Attributes:
        labels (`Labels`): how examples are labelled.

    Raises:
        ValueError: if labels are given in no way or in several, if sources contradict each other, or a number is out of
            range.
    """

    train: str = setting(
        GENERATOR, f"A file, a directory, a hub data set id; or built in: {', '.join(BUILT_IN)}.", identity=False
    )
    stories_file: str | None = setting(
        None, f"Texts of the built-in {', '.join(FROM_STORIES)}. Not given: the generator's.", identity=False
    )
    validation: str | None = setting(None, "Likewise. Not given: taken out of the training data.", identity=False)
    forget: str | None = setting(None, "A source of forget examples, with data.retain.", identity=False)
    retain: str | None = setting(None, "A source of retain examples, with data.forget.", identity=False)
    train_split: str = setting("train", "Split to train on, of a hub or saved data set or a directory.", identity=False)
    validation_split: str = setting("validation", "Split to evaluate on, likewise.", identity=False)
    subset: str | None = setting(None, "Configuration name of a hub data set.", identity=False)
    text_column: str | None = setting(None, "Column with the example. Not given: found.", identity=False)
    # Which examples are forgotten is part of the data's own fingerprint.
    label_column: str | None = setting(None, "Column whose value says what is to be forgotten.", identity=False)
    forget_labels: list[str] = setting(list, "Its values that are to be forgotten.", identity=False)
    retain_labels: list[str] = setting(
        list, "Its values to retain; all others are then unlabelled. Not given: all others.", identity=False
    )
    attack_labels: list[str] = setting(
        list, "Forget labels whose examples the attacker is given; all others are measured.", identity=False
    )
    score_column: str | None = setting(
        None, "Column with the probability (0 to 1) that an example is to be forgotten.", identity=False
    )
    modules: dict[str, list[str]] = setting(
        dict, "Auxiliary module -> its forget labels, or without a label column its forget words.", identity=False
    )
    max_train_stories: int | None = setting(None, "At most so many training examples.", identity=True)
    generator_stories: int = setting(6_000, "Examples that the generator makes.", identity=False)
    forget_words: list[str] = setting(list, "Examples with one of these words are to be forgotten.", identity=True)
    labelled_fraction: float = setting(1.0, "Share of the forget examples that keep their label.", identity=False)
    labelled_retain_fraction: float = setting(
        1.0,
        "Share of the retain examples that keep their label, so that not all without one are forget.",
        identity=False,
    )
    label_errors: str = setting(
        "random", f"Which forget examples lose their label: {', '.join(LABEL_ERRORS)}.", identity=False
    )
    label_threshold: float | None = setting(
        None, "Probability from which a classifier labels an example forget, instead of a fraction.", identity=False
    )
    max_characters: int | None = setting(1_029, "An example is cut at so many characters.", identity=True)
    max_tokens: int = setting(256, "And then at so many tokens, BOS and EOS included.", identity=True)
    add_bos: bool = setting(True, "One BOS in front of each example.", identity=True)
    add_eos: bool = setting(False, "One EOS at the end of each example that was not cut.", identity=True)
    forget_validation_stories: int = setting(150, "Forget examples to evaluate on.", identity=False)
    retain_validation_stories: int = setting(150, "Retain examples to evaluate on.", identity=False)
    unlabelled_validation_stories: int = setting(
        100, "At most so many examples without a label to evaluate on.", identity=False
    )
    attack_stories: int = setting(320, "Forget examples held back for the relearn attack.", identity=False)
    coherence_validation_stories: int = setting(
        100, "At most so many retain examples that coherence chooses its weights on. 0: those measured.", identity=False
    )
    num_proc: int | None = setting(None, "Processes that label and tokenise.", identity=False)

    section: ClassVar[str] = "data."
    length_setting: ClassVar[str] = "`data.max_tokens`"

    def __post_init__(self) -> None:
        self._label_built_in_source()
        self._check_sources()
        labels = self.labels  # checks what is given
        # Those that the modules name, where they were left out.
        self.forget_labels, self.forget_words = list(labels.forget_labels), list(labels.forget_words)
        self._check_attack_labels()
        self._check_label_errors()
        for name in ("train", "stories_file", "validation", "forget", "retain"):
            value = getattr(self, name)
            if value is not None and "\0" in value:
                raise ValueError(f"`data.{name}` should be a path or an id, got {short_repr(value)}.")
        for name, (least, most) in _LIMITS.items():
            check_count(f"data.{name}", getattr(self, name), least, most)

    @property
    def labels(self) -> Labels:
        return Labels(
            forget_words=self.forget_words,
            label_column=self.label_column,
            forget_labels=self.forget_labels,
            retain_labels=self.retain_labels,
            score_column=self.score_column,
            has_two_sources=self.has_two_sources,
            modules=self.modules,
            section=self.section,
        )

    @property
    def has_two_sources(self) -> bool:
        return self.forget is not None or self.retain is not None

    @property
    def sources(self) -> dict[str, str]:
        """Setting -> source, of those that are examples to train on."""
        names = ["train"] if not self.has_two_sources else ["forget", "retain"]
        if self.has_two_sources and self.train != GENERATOR:
            names.append("train")
        return {name: getattr(self, name) for name in names}

    def _label_built_in_source(self) -> None:
        """What is to be forgotten of a source that is built in, unless something says so."""
        is_said = self.forget_words or self.label_column or self.score_column or self.has_two_sources
        if self.train == GENERATOR and not is_said and not self.modules:
            self.forget_words = list(TREE_WORDS)
        elif self.train == TOPICS and not is_said and not self.forget_labels:
            self.label_column, self.forget_labels = "topic", [] if self.modules else ["chemistry"]
        elif self.train == SECOND_LANGUAGE and not is_said and not self.forget_labels:
            self.label_column, self.forget_labels = "language", [] if self.modules else ["second"]
        elif self.train == FACTS and not is_said and not self.forget_labels and not self.modules:
            self.label_column, self.forget_labels = "kind", [ATTACKED, MEASURED]
            self.attack_labels = self.attack_labels or [ATTACKED]

    def _check_sources(self) -> None:
        if self.train in FROM_STORIES and self.validation is not None:
            raise ValueError(
                f"`data.validation` is {short_repr(self.validation)}, but with `data.train: {self.train}` the validation "
                "examples are taken out of the training examples. Leave it out."
            )
        if self.stories_file is not None:
            self._check_stories_file(self.stories_file)
        if not self.has_two_sources:
            return
        for name, other in (("forget", "retain"), ("retain", "forget")):
            if getattr(self, name) is None:
                raise ValueError(
                    f"`data.{other}` is {short_repr(getattr(self, other))}, but `data.{name}` is not given. Give both, or "
                    "one source, `data.train`, with labels in it."
                )
        if self.forget == self.retain:
            raise ValueError(
                f"`{self.section}forget` and `{self.section}retain` are both {short_repr(self.forget)}. Give two sources, "
                "or one with labels in it."
            )
        if self.validation is not None:
            raise ValueError(
                f"`data.validation` is {short_repr(self.validation)}, but with `data.forget` and `data.retain` the "
                "validation examples are taken out of these two. Leave it out, or give files with a label column."
            )

    def _check_attack_labels(self) -> None:
        given, known = list(map(label_text, self.attack_labels)), list(map(label_text, self.forget_labels))
        if given and not set(given) < set(known):
            raise ValueError(
                f"`data.attack_labels` should be some of `data.forget_labels`, and not all, got {short_repr(given)} of "
                f"{short_repr(known)}: the model is measured on the others."
            )

    def _check_stories_file(self, given: str) -> None:
        if self.train not in FROM_STORIES:
            raise ValueError(
                f"`data.stories_file` is {short_repr(given)}, but `data.train: {short_repr(self.train)}` does not read it. "
                f"Give it as `data.train`, or set `data.train` to {' or '.join(FROM_STORIES)}."
            )
        if given in BUILT_IN or not given.strip():
            raise ValueError(
                f"`data.stories_file` should be a file, a directory or a hub data set id, got {short_repr(given)}. Leave it "
                "out for stories of the generator."
            )

    def _check_label_errors(self) -> None:
        for name in ("labelled_fraction", "labelled_retain_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"`data.{name}` should be in (0, 1], got {getattr(self, name)}.")
        if self.label_errors not in LABEL_ERRORS:
            raise ValueError(unknown_value_message("data.label_errors", self.label_errors, LABEL_ERRORS))
        if self.label_threshold is None:
            if self.label_errors != "random" and self.labelled_fraction == 1:
                raise ValueError(
                    f"`data.label_errors` is {self.label_errors!r}, but with `data.labelled_fraction` 1 no example loses "
                    "its label. Set a lower fraction, or leave it out."
                )
            return
        if not 0 < self.label_threshold < 1:
            raise ValueError(f"`data.label_threshold` should be in (0, 1), got {self.label_threshold}.")
        if self.label_errors != "score":
            raise ValueError(
                f"`data.label_threshold` is {self.label_threshold}, but `data.label_errors` is {self.label_errors!r}: there "
                "is no score. Set it to 'score', or leave the threshold out."
            )
        if self.labelled_fraction != 1:
            raise ValueError(
                f"`data.label_threshold` and `data.labelled_fraction` ({self.labelled_fraction}) both say which examples "
                "are labelled. Leave one of them out."
            )
        for name, reason in (("modules", "belongs to no module"), ("score_column", "has no score that fits")):
            if getattr(self, name):
                raise ValueError(
                    f"`data.label_threshold` does not go with `data.{name}`: a retain example that is labelled forget by "
                    f"mistake {reason}. Leave one of them out, or set `data.labelled_fraction` instead."
                )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
