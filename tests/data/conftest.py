"""What the data tests share: a cache of their own, a small tokenizer, and the GPT-2 tokenizer where it is at hand."""

from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(generate_stories(300, seed=0), vocab_size=600)


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(shared_folder / "data" / "gpt2_tokenizer")
