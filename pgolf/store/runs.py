"""A run as a whole: which stages stand in it, and the configuration they were made with."""

from pathlib import Path

from pgolf import config as configs
from pgolf.config import Config
from pgolf.store import stage_directory
from pgolf.store.stage_directory import Stage


def stages_of(run: Path) -> list[Stage]:
    """Every finished stage of a run, oldest first."""
    found = [stage_directory.open_stage(folder) for folder in stage_directory.stage_folders(run)]
    return sorted(found, key=lambda stage: (stage.manifest.started, stage.label))


def recorded_config(where: Path) -> Config | None:
    """The configuration of a stage directory, or of the newest stage of a run; None where there is neither."""
    if stage_directory.exists(where):
        newest = stage_directory.open_stage(where)
    else:
        finished = stages_of(where)
        if not finished:
            return None
        newest = finished[-1]
    values = {key: value for key, value in newest.manifest.config.items() if key != "options"}
    return configs.recorded(values)
