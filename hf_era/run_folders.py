"""Where the models of a run are."""

from __future__ import annotations

from pathlib import Path

from hf_era.configuration import RunConfig


class RunFolders:
    """The folders of a run, as `hf_era.pipeline` describes them.

    Attributes:
        base (`Path`): the base, or base control, that was trained here. expanded, contracted, final (`Path`): models.
        phases (`Path`): what is finished.
    """

    def __init__(self, config: RunConfig) -> None:
        output = config.output_path
        self.base = config.base_path / "model"
        self.expanded, self.contracted, self.final = output / "expanded", output / "contracted", output / "model"
        self.phases = output / "phases"
        self._checkpoints = {"base": config.base_path / "checkpoints"}
        self._other_checkpoints = output / "checkpoints"

    def checkpoints(self, phase: str, key: str) -> Path:
        """Where an unfinished phase keeps its checkpoints. key: the fingerprint of its inputs, so that a phase never goes on
        from a checkpoint that was made with other settings."""
        return self._checkpoints.get(phase, self._other_checkpoints) / f"{phase}-{key}"
