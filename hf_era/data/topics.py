"""The built-in texts on topics: what the demo forgets and keeps, so that a first run needs no download.

The texts are written by templates, from facts (`hf_era.data.topic_facts`), not by people and not by a language model. Each
is on one topic: chemistry, cooking, sailing, gardening or music. A topic has its own words and its own facts, which recur
and can be learnt: what copper is, what it does when it is left in moist air. The sentences that state them are the same in
all topics. So a model that never saw a text on chemistry knows how such a text goes, and not what it says.

Figures from these texts show that the method works end to end; they do not show how well it works on natural text.
"""

import random
from functools import cache

from hf_era.data.templates import Choice, TemplateWriter, entries, tidy
from hf_era.data.topic_facts import FACTS, SENTENCES, WORK
from hf_era.utils.checks import check_count

__all__ = ["MAXIMUM_TEXTS", "TOPICS", "generate_topics"]

TOPICS: tuple[str, ...] = tuple(FACTS)
"""Values of the column `topic`."""

MAXIMUM_TEXTS = 200_000
"""Most texts that one call makes; all are distinct, but from about so many on they differ in little more than names."""

MAXIMUM_SEED = 2**32 - 1


# The caches keep the parsing out of the import; what they hold never changes.
@cache
def _facts(topic: str) -> list[tuple[str, ...]]:
    lines = FACTS[topic].strip("\n").replace("\n ", " ").split("\n")
    return [tuple(field.strip() for field in line.split("/")) for line in lines]


@cache
def _sentences(topic: str) -> dict[str, Choice]:
    """Entries of the topic, and those that all topics share."""
    return {key: choice for block in (WORK[topic], SENTENCES) for key, choice, _ in entries(block)}


class _Lecturer(TemplateWriter):
    """Writes one text on a topic: who teaches whom, one thing in detail, what is done there, and another thing."""

    ABOUT = ("kind", "where", "effect", "use", "advice")

    def __init__(self, source: random.Random, topic: str) -> None:
        super().__init__(source, _sentences(topic))
        self.things = list(_facts(topic))
        self.remembered = {key: (self.shared(key),) for key in ("person", "place", "learner")}

    def tell(self) -> str:
        sentences = [self.take_thing("opening"), *self.say(3), self.shared("work")]
        sentences += [self.take_thing("turn"), *self.say(1), self.shared("closing")]
        return tidy(" ".join(sentences))

    def take_thing(self, sentence: str) -> str:
        self.remembered["thing"] = self.things.pop(self.index(len(self.things)))
        return self.shared(sentence)

    def say(self, number: int) -> list[str]:
        """So many different facts of the thing, in the order of `ABOUT`."""
        chosen = list(self.ABOUT)
        while len(chosen) > number:
            chosen.pop(self.index(len(chosen)))
        return [self.shared(about) for about in chosen]


def generate_topics(number: int, seed: int = 0) -> dict[str, list[str]]:
    """Makes synthetic texts on several topics.

    The same arguments give the same texts in every process and on every platform.

    Args:
        number (`int`): How many texts, 1 to `MAXIMUM_TEXTS`. All are distinct. About 0.1 ms each.
        seed (`int`, *optional*, defaults to `0`): Seed of the generator, 0 or more.

    Returns:
        `dict[str, list[str]]`: The columns `text` (40 to 110 words) and `topic` (one of `TOPICS`, each as often as the
            others or once more, in random order).

    Raises:
        ValueError: If `number` or `seed` is out of its range.

    Example:
        >>> generate_topics(1000)["topic"].count("chemistry")
        200
    """
    check_count("number", number, 1, MAXIMUM_TEXTS)
    check_count("seed", seed, 0, MAXIMUM_SEED)
    source = random.Random(seed)
    topics = [TOPICS[index % len(TOPICS)] for index in range(number)]
    for last in range(number - 1, 0, -1):  # Fisher-Yates on `Random.random` alone, whose sequence is fixed
        other = int(source.random() * (last + 1))
        topics[last], topics[other] = topics[other], topics[last]
    texts: dict[str, None] = {}  # insertion order kept; a set would not be deterministic
    for topic in topics:
        text = _Lecturer(source, topic).tell()
        while text in texts:
            text = _Lecturer(source, topic).tell()
        texts[text] = None
    return {"text": list(texts), "topic": topics}
