"""Facts with a chance level among other texts: a testbed on which what comes back was still there.

A fact is a name and the number of a room: "Tom finds the frog in room" is completed by " 7". Rooms are drawn at random, so
no fact follows from others: a model that never saw the facts about an animal guesses one of `ROOMS` rooms, whatever it is
taught of other animals. Facts about animals are to be forgotten, those about things are kept, and so are the texts that they
stand between, which make the model a language model.

The facts about animals are of two halves, by their animal, and all of them are trained on. An attacker is given examples of
the one half, and the model is measured on the other: what it then knows, the attack did not teach.

Addition or another operation would not do: whoever learns it on one half of the operands knows it on the other. And the
names are words, one or two tokens each: names of three invented syllables were not learnt in as many steps.
"""

import random
from collections.abc import Sequence

from hf_era.utils.checks import check_count


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words(
    """
    cat dog bird bear fish frog duck rabbit fox mouse lion cow pig horse sheep goat bee ant owl wolf deer snake turtle
    monkey tiger bunny puppy chicken hen crab bug fly
    """
)
THINGS = _words(
    """
    ball car book box cake hat bed cup door doll boat train truck bike house flower rock stick leaf chair table lamp
    bag bowl spoon key kite drum bell rope ring sock
    """
)
FACTS_PER_TEXT = 2
"""Examples of facts behind each text: the more, the sooner they are known."""
ROOMS = 8
"""Rooms are numbered from 1. As many facts of each half name one as name any other."""
CHANCE = 1 / ROOMS
"""Accuracy of guessing."""

ATTACKED, MEASURED, KEPT, TEXT = "animal_1", "animal_2", "thing", "text"
"""Values of the column `kind`: facts of the attacker's half, of the measured half, those that are kept, and other texts."""

_PEOPLE = _words(
    """
    Tom Lily Ben Sue Max Mia Sam Anna Tim Lucy Jack Sara Bob Amy Leo Jane Mom Dad Kim Ella Joe Emma Fred Rose John
    Mary Dan Zoe Pete Nora Bill Eva Molly Jim Daisy Bella Mike Kate Grace Will Ruby Nick Alice Paul Maya Alex Clara Oscar
    """
)
_SENTENCES = (
    "{person} finds the {name} in room",
    "{person} looks for the {name} in room",
    "{person} says that the {name} is in room",
    "{person} sees the {name} in room",
    "The {name} that {person} knows is in room",
    "The {name} of {person} is in room",
    "Where is the {name}? {person} says: in room",
    "{person} and the {name} are in room",
    "The {name} waits for {person} in room",
    "{person} goes to the {name} in room",
    "{person} keeps the {name} in room",
    "Now {person} has the {name} in room",
)
_WORDINGS = [(person, sentence) for person in _PEOPLE for sentence in _SENTENCES]
MOST_FACT_EXAMPLES = len(_WORDINGS) * (len(ANIMALS) + len(THINGS))
"""Every fact in every wording."""


def rooms_of(seed: int = 0) -> dict[str, tuple[int, str]]:
    """Name -> its room, and the kind of its fact. Another seed gives other rooms and other halves of the animals."""
    check_count("seed", seed, 0, 2**32 - 1)
    source = random.Random(f"facts-{seed}")
    animals, things = list(ANIMALS), list(THINGS)
    source.shuffle(animals)
    source.shuffle(things)
    kinds = [ATTACKED] * (len(animals) // 2) + [MEASURED] * (len(animals) // 2) + [KEPT] * len(things)
    return {
        name: (place % ROOMS + 1, kind)
        for place, (name, kind) in enumerate(zip([*animals, *things], kinds, strict=True))
    }


def among_facts(texts: Sequence[str | None], seed: int = 0) -> dict[str, list[str | None]]:
    """Puts `FACTS_PER_TEXT` examples of facts behind each text, as long as there are new wordings of them.

    Args:
        texts (`Sequence[str | None]`): each fact is told as often as any other, or once more; there are
            `MOST_FACT_EXAMPLES`.
        seed (`int`, *optional*, defaults to `0`): 0 or more.

    Returns:
        `dict[str, list[str | None]]`: The columns `prompt`, `completion` and `kind`. A text is a completion without prompt.

    Raises:
        ValueError: if `seed` is out of range.
    """
    rooms = rooms_of(seed)
    source = random.Random(f"wordings-{seed}")
    wordings = {name: source.sample(_WORDINGS, len(_WORDINGS)) for name in rooms}
    columns: dict[str, list[str | None]] = {"prompt": [], "completion": [], "kind": []}
    round_of_names: list[str] = []
    for number, text in enumerate(texts):
        rows = [("", text, TEXT)]
        for _ in range(min(FACTS_PER_TEXT, max(MOST_FACT_EXAMPLES - number * FACTS_PER_TEXT, 0))):
            round_of_names = round_of_names or source.sample(list(rooms), len(rooms))
            name = round_of_names.pop()
            (room, kind), (person, sentence) = rooms[name], wordings[name].pop()
            rows.append((sentence.format(person=person, name=name), f" {room}", kind))
        for row in rows:
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return columns
