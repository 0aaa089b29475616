"""A launch that would not do what it says is refused; one process is left as it was."""

from pathlib import Path
from typing import Any

import pytest

from hf_era.data import PaddedSampler, RoutingCollator


def make_trainer(launched: Any, folder: Path, **options: Any) -> Any:
    return launched.GradientRoutingTrainer(
        launched.make_model(),
        launched.arguments(folder, {"per_device_train_batch_size": 4}),
        train_dataset=launched.make_stories(9),
        **options,
    )


def test_fsdp_on_a_cpu_is_refused(launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` with an FSDP config and `use_cpu` sets it; without the check it would train, unsharded."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP was asked for .* on the device `cpu` accelerate would run NO"):
        make_trainer(launched, tmp_path)


def test_one_process_gets_no_filler_rows(launched: Any, tmp_path: Path) -> None:
    collator = RoutingCollator(pad_token_id=0)
    trainer = make_trainer(launched, tmp_path, data_collator=collator)
    loader = trainer.get_train_dataloader()
    assert trainer.data_collator is collator
    assert not isinstance(loader.sampler, PaddedSampler)
    assert [len(batch["input_ids"]) for batch in loader] == [4, 4, 1]
