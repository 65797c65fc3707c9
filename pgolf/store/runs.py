"""A run as a whole: its finished stages."""

from pathlib import Path

from pgolf.store import stage_directory
from pgolf.store.stage_directory import Stage


def stages_of(run: Path) -> list[Stage]:
    """Every finished stage of a run, oldest first."""
    found = [stage_directory.open_stage(folder) for folder in stage_directory.stage_folders(run)]
    return sorted(found, key=lambda stage: (stage.manifest.started, stage.label))
