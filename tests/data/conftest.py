"""What the data tests share: a cache of their own, files of stories, a small tokenizer, and GPT-2's where it is at hand."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from hf_era.data.generator import generate_stories
from hf_era.data.tokenizer import train_tokenizer


@pytest.fixture(scope="session", autouse=True)
def data_set_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tests neither read nor fill the user's cache."""
    cache = tmp_path_factory.mktemp("data_set_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield cache


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes a file: rows as JSON lines, text or bytes as they are."""

    def write(name: str, content: list[Any] | str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture(scope="session")
def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(generate_stories(300, seed=0), vocab_size=600)


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(shared_folder / "data" / "gpt2_tokenizer")
