"""Best weights of an unfinished coherence fine-tuning that are no longer as they were written are not used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_era import RunConfig, run_pipeline
from hf_era.run.context import Run
from hf_era.training.checkpoints import DamagedCheckpointWarning


class KilledError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("_no_localisation_warning")
def test_the_phase_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run_config: Callable[..., RunConfig]
) -> None:
    scratch = {"model": {"start": "scratch", "base_control": False}}
    whole = make_run_config(tmp_path / "whole", **scratch)
    expected = run_pipeline(whole)
    config = make_run_config(tmp_path / "killed", **scratch)
    original = Run.save

    def killed(self: Any, save: Any, folder: Path, **kwargs: Any) -> None:
        if folder == self.folder("model"):
            raise KilledError
        original(self, save, folder, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", killed)
        with pytest.raises(KilledError):
            run_pipeline(config)
    (best,) = (config.output_path / "checkpoints").glob("coherence-*/best/model.safetensors")
    with best.open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x7f\x7f\x7f\x7f\x7f")
    with pytest.warns(DamagedCheckpointWarning, match=r"damaged: model.safetensors is not as it .* begins anew"):
        result = run_pipeline(config)
    assert result.coherence["history"] == expected.coherence["history"]
    models = [path / "model" / "model.safetensors" for path in (whole.output_path, config.output_path)]
    assert models[0].read_bytes() == models[1].read_bytes()
