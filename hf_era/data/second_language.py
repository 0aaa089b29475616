"""Examples in two languages that say the same kind of thing: a testbed on which forgetting has a range.

The second language is the first one through a fixed letter substitution: a word keeps its length, a text its punctuation,
its spaces and its capitals, and hardly a word of one language is a word of the other. So a model that never saw the second
language predicts it far worse than one that did, while both know equally well what stories are about: more than 1 nat lies
between the two even after an attack, where stories about trees leave 0.1.

It is an invented language, written in the letters a to z: other letters (é), digits and signs stay as they are.
"""

import random
import string
from collections.abc import Sequence

from hf_era.data.splits import story_key
from hf_era.utils.checks import check_count

SECOND_LANGUAGE_FRACTION = 0.25
"""Share of the examples that are in the second language."""

FIRST, SECOND = "first", "second"
"""Values of the column `language`."""

# No letter stays, no two are exchanged (so translating twice does not lead back), and it was chosen among such permutations
# as one that makes English words of the fewest English words: of 4,000 TinyStories, none but single letters.
_LETTERS = "qmxcvgaspbuolzrntwekdyifhj"
_TABLE = str.maketrans(string.ascii_letters, _LETTERS + _LETTERS.upper())


def translate(text: str) -> str:
    """The text in the second language, of the same length.

    Example:
        >>> translate("Once upon a time, a fox ran.")
        'Rzxv dnrz q kplv, q grf wqz.'
    """
    return text.translate(_TABLE)


def in_two_languages(texts: Sequence[str | None], seed: int = 0) -> dict[str, list[str | None]]:
    """Puts about `SECOND_LANGUAGE_FRACTION` of the texts into the second language.

    Which ones, the seed and a text's own words say: of a text that occurs twice both are in the same language, so that no
    text and its translation ever both occur, and it stays in that language whatever other texts are there.

    Args:
        texts (`Sequence[str | None]`): in the order in which they come back. An empty or missing one stays.
        seed (`int`, *optional*, defaults to `0`): 0 or more.

    Returns:
        `dict[str, list[str | None]]`: The columns `text` and `language` (`"first"` or `"second"`).

    Raises:
        ValueError: if `seed` is out of range.
    """
    check_count("seed", seed, 0, 2**32 - 1)
    is_second = [
        random.Random(f"language-{seed}-{story_key(text or '')}").random() < SECOND_LANGUAGE_FRACTION for text in texts
    ]
    return {
        "text": [translate(text) if text and second else text for text, second in zip(texts, is_second, strict=True)],
        "language": [SECOND if second else FIRST for second in is_second],
    }
