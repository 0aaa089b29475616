"""The built-in synthetic story generator: the default data set, so that a first run needs no download.

The stories are written by templates (`hf_era.data.story_grammar`), not by people and not by a language model. They
look like children's stories of the TinyStories kind, they cover thirteen everyday topics and one topic to forget, the
forest. Figures from these stories show that the method works end to end; they do not show how well it works on natural
text, which is far more varied. For results that mean something, train on a real data set.

What the stories share (openings, names, feelings, morals) appears in every topic. What belongs to the forest (squirrels
that bury acorns, branches that break, owls in hollow trunks) appears in forest stories only, and the words of
`FOREST_WORDS` appear at least twice in each of these and never in another story. So a model that never saw a forest
story has a clearly higher loss on them, and still knows how a story goes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from hf_era.data.story_grammar import FOREST, FOREST_WORDS, LESSONS, RETAIN_TOPICS, SHARED
from hf_era.data.templates import Choice, TemplateWriter, entries, tidy

__all__ = ["FOREST_WORDS", "MAXIMUM_STORIES", "generate_stories"]

MAXIMUM_STORIES = 200_000
"""Most stories that one call makes. The templates could combine to many more distinct texts, but these would differ
from each other in a few words only, so a longer training set would promise a variety that it does not have."""

MINIMUM_WORDS, MAXIMUM_WORDS = 60, 150
"""Length of a story in words (whitespace-separated); a longer or shorter draft is thrown away and drawn again."""


@dataclass(frozen=True)
class _Scene:
    """One thing that can happen in a topic. `speaks_of` is its text with the arrival's, to see who takes part."""

    lesson: str
    arrival: Choice
    plot: Choice
    speaks_of: str


# The caches keep the parsing out of the import; what they hold never changes.
@cache
def _shared() -> dict[str, Choice]:
    return {key: choice for key, choice, _ in entries(SHARED)}


@cache
def _topics(block: str) -> dict[str, list[_Scene]]:
    """Scenes of each topic of a grammar block, by the topic's name."""
    topics: dict[str, list[_Scene]] = {}
    for key, choice, text in entries(block):
        if key not in LESSONS:
            scenes, arrival, arrival_text = topics.setdefault(key, []), choice, text
        else:
            scenes.append(_Scene(key, arrival, choice, arrival_text + text))
    return topics


class _Storyteller(TemplateWriter):
    """Writes one story."""

    def cast(self, scene: str) -> None:
        """Choose the characters that the text of the scene speaks of; who is not in it is not introduced."""
        hero_is_girl = self.source.random() < 0.5
        # The friend has the other pronoun: with two girls "she" would be anyone's guess.
        hero = self.shared("girl" if hero_is_girl else "boy")
        friend = self.shared("boy" if hero_is_girl else "girl")
        adult = self.shared("grown_up")
        he, him, his, child = ("she", "her", "her", "girl") if hero_is_girl else ("he", "him", "his", "boy")
        has_friend, has_adult = "{friend}" in scene, "{adult}" in scene
        fields = {
            "name": hero,
            "he": he,
            "him": him,
            "his": his,
            "himself": him + "self",
            "child": child,
            "friend": friend,
            "friend_his": "his" if hero_is_girl else "her",
            "adult": adult,
            "companion": friend if has_friend else adult,
        }
        self.remembered.update({key: (value,) for key, value in fields.items()})
        company = "with_both" if has_friend and has_adult else "with_friend" if has_friend else "with_adult"
        self.remembered["with"] = (self.shared(company),)

    def tell(self, scenes: Sequence[_Scene]) -> str:
        """Opening with the trait, arrival, plot, moral, and sometimes a closing sentence."""
        scene = scenes[self.index(len(scenes))]
        self.cast(scene.speaks_of)
        self.remembered["trait"] = (self.shared(f"{scene.lesson}_trait"),)
        # One to three paragraphs, as in stories for children.
        breaks = [self.pick(("\n", " ")) for _ in range(2)]
        text = self.shared("opening") + breaks[0] + self.choose(scene.arrival) + " " + self.choose(scene.plot)
        text += breaks[1] + self.shared(f"{scene.lesson}_ending") + " " + self.shared("closing")
        return tidy(text)


def _check(number: int, seed: int, forest_fraction: float) -> None:
    for name, value in (("number", number), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"`{name}` should be an integer, got {value!r}. Pass a whole number.")
    if number <= 0:
        raise ValueError(f"`number` should be positive, got {number}. Ask for 1 to {MAXIMUM_STORIES} stories.")
    if number > MAXIMUM_STORIES:
        raise ValueError(
            f"`number` should be at most {MAXIMUM_STORIES}, got {number}: the generator makes up to {MAXIMUM_STORIES} "
            "distinct stories. Ask for fewer, or load a real data set."
        )
    if seed < 0:
        raise ValueError(f"`seed` should not be negative, got {seed}. Pass 0 or more.")
    if isinstance(forest_fraction, bool) or not 0.0 <= forest_fraction <= 1.0:  # NaN fails the comparison too
        raise ValueError(
            f"`forest_fraction` should lie in [0, 1], got {forest_fraction}. Pass 0.2 for one forest story in five."
        )


def _forest_positions(number: int, forest_fraction: float, source: random.Random) -> list[bool]:
    """True where a forest story goes: an exact count, at random places (Fisher-Yates on `Random.random` alone)."""
    forest_number = int(number * forest_fraction + 0.5)
    positions = [index < forest_number for index in range(number)]
    for last in range(number - 1, 0, -1):
        other = int(source.random() * (last + 1))
        positions[last], positions[other] = positions[other], positions[last]
    return positions


def generate_stories(number: int, seed: int = 0, forest_fraction: float = 0.2) -> list[str]:
    """Make synthetic children's stories, a share of them about the forest.

    The same arguments give the same list in every process and on every platform. The list for a smaller `number` is not
    a prefix of the list for a larger one, and two seeds may, rarely, have a story in common: to get disjoint training
    and evaluation stories, split one list.

    Args:
        number (`int`): How many stories, 1 to `MAXIMUM_STORIES`. All are distinct. About 0.1 ms each.
        seed (`int`, *optional*, defaults to `0`): Seed of the generator, 0 or more.
        forest_fraction (`float`, *optional*, defaults to `0.2`): Share of forest stories in [0, 1]; exactly
            `number * forest_fraction` of them, rounded to the nearest whole number, at random places in the list.

    Returns:
        `list[str]`: Stories of 60 to 150 words, one to three paragraphs separated by a newline. A forest story holds at
        least two of `FOREST_WORDS` (whole words); no other story holds any.

    Raises:
        ValueError: If `number`, `seed` or `forest_fraction` is out of its range, or more stories are asked for than the
            generator makes; the message says how many that is.

    Example:
        >>> stories = generate_stories(5, seed=0, forest_fraction=0.2)
        >>> sum("forest" in story or "tree" in story or "woodland" in story for story in stories)
        1
    """
    _check(number, seed, forest_fraction)
    source = random.Random(seed)
    forest = _topics(FOREST)["forest"]
    retain = list(_topics(RETAIN_TOPICS).values())
    stories: dict[str, None] = {}  # insertion order kept; a set would not be deterministic
    for is_forest in _forest_positions(number, forest_fraction, source):
        scenes = forest if is_forest else retain[int(source.random() * len(retain))]
        story = _Storyteller(source, _shared()).tell(scenes)
        while story in stories or not MINIMUM_WORDS <= len(story.split()) <= MAXIMUM_WORDS:
            story = _Storyteller(source, _shared()).tell(scenes)
        stories[story] = None
    return list(stories)
