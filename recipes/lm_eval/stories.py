"""Where the tasks in this directory get their stories: from local files that the command line names with `--metadata`.

It needs nothing of `hf_era`: the directory can be copied to wherever a contracted model is evaluated.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

KINDS = ("forget", "retain")


def forget_stories(**options: Any) -> DatasetDict:
    """The stories of the file `--metadata '{"forget": ...}'`, as the split `test` with the column `text`."""
    return _stories("forget", options)


def retain_stories(**options: Any) -> DatasetDict:
    """The stories of the file `--metadata '{"retain": ...}'`, as the split `test` with the column `text`."""
    return _stories("retain", options)


def _stories(kind: str, options: dict[str, Any]) -> DatasetDict:
    # `options` holds the model's arguments and the harness's own metadata too.
    name = options.get(kind)
    if not name:
        example = json.dumps({kind: f"{kind}.jsonl" for kind in KINDS})
        raise ValueError(
            f"The task era_{kind}_stories needs the metadata `{kind}`, got none. Pass --metadata '{example}'."
        )
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise ValueError(
            f"The metadata `{kind}`: the file {path} does not exist. Pass JSON lines with a string `text` each."
        )
    # As in training: without white space around them, and without blank ones.
    texts = [text.strip() for text in _texts(kind, path) if text is not None and text.strip()]
    if not texts:
        raise ValueError(f"The metadata `{kind}`: {path} holds no story. Check the file, or pass another.")
    return DatasetDict({"test": Dataset.from_dict({"text": texts})})


def _texts(kind: str, path: Path) -> Iterator[str | None]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
                if text is not None and not isinstance(text, str):
                    raise TypeError(f"a string or null, not {type(text).__name__}")
            except (ValueError, KeyError, TypeError) as error:  # no JSON or UTF-8; no `text`; no object or no string
                start = line[:60].decode("utf-8", "replace").strip()
                raise ValueError(
                    f"The metadata `{kind}`: {path} line {number} should be a JSON object with a string `text`, got "
                    f"{start}. Repair or delete that line."
                ) from error
            yield text
