"""A stock model to expand, in memory and saved."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import GPTNeoForCausalLM


@pytest.fixture
def base(make_base: Callable[..., GPTNeoForCausalLM]) -> GPTNeoForCausalLM:
    return make_base().eval()


@pytest.fixture
def base_folder(base: GPTNeoForCausalLM, tmp_path: Path) -> Path:
    base.save_pretrained(tmp_path / "base")
    return tmp_path / "base"
