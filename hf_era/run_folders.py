"""Where the models of a run are."""

from __future__ import annotations

from hf_era.configuration import RunConfig


class RunFolders:
    """The folders of a run, as `hf_era.pipeline` describes them.

    Attributes:
        base (`Path`): the base, or base control, that was trained here. expanded, contracted, final (`Path`): models.
        checkpoints (`Path`): of the phase that is running. phases (`Path`): what is finished.
    """

    def __init__(self, config: RunConfig) -> None:
        output = config.output_path
        self.base = config.base_path / "model"
        self.expanded, self.contracted, self.final = output / "expanded", output / "contracted", output / "model"
        self.checkpoints, self.phases = output / "checkpoints", output / "phases"
