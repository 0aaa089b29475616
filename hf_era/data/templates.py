"""The template language of the built-in texts: `hf_era.data.story_grammar` says how templates are written."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TOKEN = re.compile(r"\[(?:\w+=)?|[\]|/]|\{\w+(?:\.\d)?\}|[^\[\]|/{}]+")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU][a-z])")
_SPACE_BEFORE_MARK = re.compile(r" +(?=[.,!?])")


@dataclass(frozen=True)
class Reference:
    """``{name.field}``: a remembered choice, a character's field or a shared entry."""

    name: str
    field: int
    capital: bool


@dataclass(frozen=True)
class Choice:
    """``[name=a/b|c/d]``: alternatives, each a tuple of fields; an unnamed choice has one field each."""

    name: str | None
    alternatives: "tuple[tuple[Template, ...], ...]"


Template = tuple[str | Reference | Choice, ...]


def _parse(tokens: list[str], name: str | None) -> Choice:
    """Read alternatives up to the closing bracket (or the end) and take them off the front of `tokens`."""
    alternatives: list[tuple[Template, ...]] = []
    fields: list[Template] = []
    current: list[str | Reference | Choice] = []
    while tokens:
        token = tokens.pop(0)
        if token == "]":
            break
        if token == "|":
            alternatives.append((*fields, tuple(current)))
            fields, current = [], []
        elif token == "/" and name is not None:
            fields.append(tuple(current))
            current = []
        elif token.startswith("["):
            current.append(_parse(tokens, token[1:-1] or None))
        elif token.startswith("{"):
            key, _, field = token[1:-1].partition(".")
            current.append(Reference(key[0].lower() + key[1:], int(field or 0), key[0].isupper()))
        else:
            current.append(token)
    return Choice(name, (*alternatives, (*fields, tuple(current))))


def entries(block: str) -> list[tuple[str, Choice, str]]:
    """Entries of a grammar block in their order: key, parsed template, and the template's text."""
    entries: list[tuple[str, str]] = []
    for line in block.strip("\n").split("\n"):
        if line.startswith(" "):
            key, text = entries[-1]
            entries[-1] = (key, text + line)
        else:
            key, _, text = line.partition(": ")
            entries.append((key, text))
    return [(key, _parse(_TOKEN.findall(text), None), text) for key, text in entries]


class TemplateWriter:
    """Writes one text. Only `Random.random` is drawn on: its sequence is fixed across Python versions.

    `shared` holds the entries that `{name}` means where no choice of that name is remembered.
    """

    def __init__(self, source: random.Random, shared: Mapping[str, Choice]) -> None:
        self.source, self._shared = source, shared
        self.remembered: dict[str, tuple[str, ...]] = {}
        self.used: dict[str, set[int]] = {}

    def index(self, size: int) -> int:
        return int(self.source.random() * size)

    def pick(self, items: Sequence[str]) -> str:
        return items[self.index(len(items))]

    def write(self, template: Template) -> str:
        parts = []
        for node in template:
            if isinstance(node, str):
                parts.append(node)
            elif isinstance(node, Choice):
                parts.append(self.choose(node))
            else:
                parts.append(self.refer(node))
        return "".join(parts)

    def choose(self, choice: Choice) -> str:
        fields = tuple(self.write(field) for field in choice.alternatives[self.index(len(choice.alternatives))])
        if choice.name is not None:
            self.remembered[choice.name] = fields
        return fields[0]

    def refer(self, reference: Reference) -> str:
        if reference.name in self.remembered:
            text = self.remembered[reference.name][reference.field]
        else:
            text = self.shared(reference.name)
        return text[0].upper() + text[1:] if reference.capital else text

    def shared(self, key: str) -> str:
        """A shared entry, without saying the same thing twice in one text while there is something else to say."""
        alternatives = self._shared[key].alternatives
        used = self.used.setdefault(key, set())
        free = [index for index in range(len(alternatives)) if index not in used] or list(range(len(alternatives)))
        chosen = free[self.index(len(free))]
        used.add(chosen)
        return self.write(alternatives[chosen][0])


def tidy(text: str) -> str:
    """Single spaces, no space before a mark, "an" before a vowel, no space around a paragraph's end."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n"))
    text = "\n".join(paragraph for paragraph in paragraphs if paragraph)
    return _ARTICLE.sub(r"\1n ", _SPACE_BEFORE_MARK.sub("", text))
