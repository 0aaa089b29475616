"""`DataConfig`: which examples, how they are labelled, cut and split."""

from dataclasses import asdict, dataclass
from typing import Any

from hf_era.data.generator import MAXIMUM_STORIES
from hf_era.data.words import fold
from hf_era.utils.checks import LARGEST_COUNT, check_count, short_repr
from hf_era.utils.fields import setting

GENERATOR = "generator"
TREE_WORDS = ("tree", "trees", "forest", "forests", "woodland", "woodlands")

MAXIMUM_WORD_CHARACTERS = 100_000
"""All forget words together: each is looked for in every example."""
# Least and most of the numbers.
_LIMITS = {
    "max_train_stories": (1, LARGEST_COUNT),
    "generator_stories": (1, MAXIMUM_STORIES),
    "max_characters": (1, LARGEST_COUNT),
    "max_tokens": (2, 10_000_000),
    "forget_validation_stories": (1, LARGEST_COUNT),
    "retain_validation_stories": (1, LARGEST_COUNT),
    "attack_stories": (0, LARGEST_COUNT),
    "num_proc": (1, 1_024),
}


@dataclass
class DataConfig:
    """Where examples come from and what becomes of them. Defaults: the built-in generator, the seed's cuts and words.

    Args:
        train (`str`, *optional*, defaults to `"generator"`):
            `generator`, a local file (.jsonl, .json, .txt, .parquet), a directory of such files or of a saved data set,
            or a hub data set id. Files are read by the very name that is given: nothing in it is a pattern.
        validation (`str`, *optional*): likewise. Not given: the validation examples are taken out of the training examples.
        train_split, validation_split (`str`, *optional*, default `train`, `validation`): of a hub data set, of a saved
            one, or of a directory whose files say their split in their names, such as `train.jsonl`.
        subset (`str`, *optional*): configuration name of a hub data set.
        text_column (`str`, *optional*): not given: `text`, `story`, `content`, or the only column with text.
        max_train_stories (`int`, *optional*): at most so many training examples, the first ones.
        generator_stories (`int`, *optional*, defaults to `6000`): examples that the generator makes.
        forget_words (`list[str]`, *optional*): an example with one of them as a whole word, in any case and spelling, is a
            forget example. In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) it need not be whole.
        labelled_fraction (`float`, *optional*, defaults to `1.0`): share of the forget training examples that keep their
            label, in (0, 1]. The others are taken for retain, by data filtering and coherence too, and counted apart.
        max_characters (`int`, *optional*, defaults to `1029`): an example is cut there, before it is labelled.
        max_tokens (`int`, *optional*, defaults to `256`): then it is cut to so many tokens, BOS and EOS included. An example
            keeps the label of its whole text; a run says how many forget examples thereby lost all their forget words.
        add_bos, add_eos (`bool`, *optional*, default `True`, `False`): one BOS in front, one EOS at the end of an example
            that was not cut.
        forget_validation_stories, retain_validation_stories (`int`, *optional*, default `150`): examples to evaluate on.
        attack_stories (`int`, *optional*, defaults to `320`): forget examples that neither training nor evaluation sees:
            enough for five relearn attacks with 64 examples that share none.
        num_proc (`int`, *optional*): processes that tokenise. Not given: this one.

    Raises:
        ValueError: for an empty forget word, or a number out of range.
    """

    train: str = setting(GENERATOR, "generator, a file, a directory, or a hub data set id.", identity=False)
    validation: str | None = setting(None, "Likewise. Not given: taken out of the training data.", identity=False)
    train_split: str = setting("train", "Split to train on, of a hub or saved data set or a directory.", identity=False)
    validation_split: str = setting("validation", "Split to evaluate on, likewise.", identity=False)
    subset: str | None = setting(None, "Configuration name of a hub data set.", identity=False)
    text_column: str | None = setting(None, "Column with the example. Not given: found.", identity=False)
    max_train_stories: int | None = setting(None, "At most so many training examples.", identity=True)
    generator_stories: int = setting(6_000, "Examples that the generator makes.", identity=False)
    forget_words: list[str] = setting(lambda: list(TREE_WORDS), "Words to forget.", identity=True)
    labelled_fraction: float = setting(1.0, "Share of the forget examples that keep their label.", identity=False)
    max_characters: int | None = setting(1_029, "An example is cut at so many characters.", identity=True)
    max_tokens: int = setting(256, "And then at so many tokens, BOS and EOS included.", identity=True)
    add_bos: bool = setting(True, "One BOS in front of each example.", identity=True)
    add_eos: bool = setting(False, "One EOS at the end of each example that was not cut.", identity=True)
    forget_validation_stories: int = setting(150, "Forget examples to evaluate on.", identity=False)
    retain_validation_stories: int = setting(150, "Retain examples to evaluate on.", identity=False)
    attack_stories: int = setting(320, "Forget examples held back for the relearn attack.", identity=False)
    num_proc: int | None = setting(None, "Processes that label and tokenise.", identity=False)

    def __post_init__(self) -> None:
        if not self.forget_words:
            raise ValueError(
                "`data.forget_words` is empty. Name at least one word, e.g. `--data.forget_words tree trees`."
            )
        for word in self.forget_words:
            if not isinstance(word, str) or not fold(word).strip():
                raise ValueError(
                    f"`data.forget_words` should hold words, got {short_repr(word)}. Take the empty word out."
                )
        if sum(map(len, self.forget_words)) > MAXIMUM_WORD_CHARACTERS:
            raise ValueError(
                f"`data.forget_words` should hold at most {MAXIMUM_WORD_CHARACTERS:,} characters in all, got "
                f"{sum(map(len, self.forget_words)):,}. Give words, not examples."
            )
        if not 0 < self.labelled_fraction <= 1:
            raise ValueError(f"`data.labelled_fraction` should be in (0, 1], got {self.labelled_fraction}.")
        for name in ("train", "validation"):
            value = getattr(self, name)
            if value is not None and "\0" in value:
                raise ValueError(f"`data.{name}` should be a path or an id, got {short_repr(value)}.")
        for name, (least, most) in _LIMITS.items():
            check_count(f"data.{name}", getattr(self, name), least, most)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
