"""A run as a whole: its finished stages."""

from pathlib import Path

from pgolf.errors import PgolfError, did_you_mean
from pgolf.store import kinds, stage_directory
from pgolf.store.stage_directory import Stage


def stages_of(run: Path) -> list[Stage]:
    """Every finished stage of a run, oldest first."""
    found = [stage_directory.open_stage(folder) for folder in stage_directory.stage_folders(run)]
    return sorted(found, key=age)


def find(artifacts: Path, name: str) -> Path:
    """The folder that a user means by `name`: a run in `artifacts`, or a path to a run or a stage directory.

    Raises PgolfError, naming the nearest run, when there is none.
    """
    for place in (artifacts / name, Path(name)):
        if name and (stage_directory.exists(place) or stage_directory.stage_folders(place)):
            return place
    known = names(artifacts)
    shown = f"; its runs: {', '.join(known)}" if known else ", which holds no run: pgolf run makes one"
    raise PgolfError(f"no run {name!r} in {artifacts}{did_you_mean(name, known) or shown}")


def missing(run: Path) -> str:
    """Error text for a run directory without a finished stage: where it was looked for and which runs exist."""
    known = names(run.parent)
    if run.name in known or not known:
        return f"{run} holds no finished stage"
    return f"there is no run {run.name!r} in {run.parent}{did_you_mean(run.name, known)}; its runs: {', '.join(known)}"


def names(artifacts: Path) -> list[str]:
    """The runs in a folder: those of its folders that hold a finished stage, sorted."""
    folders = sorted(path for path in artifacts.iterdir() if path.is_dir()) if artifacts.is_dir() else []
    return [path.name for path in folders if path.name[0] != "." and stage_directory.stage_folders(path)]


def last_stage(place: Path) -> Stage:
    """The stage in a stage directory, or the plain stage of a run that comes last in the chain."""
    if stage_directory.exists(place):
        return stage_directory.open_stage(place)
    found = {stage.label: stage for stage in stages_of(place)}
    return next((found[kind] for kind in kinds.MODELS if kind in found), [*found.values()][-1])


def age(stage: Stage) -> tuple[str, int, str]:
    """What orders stages, oldest first; those of one second stand in the order of the chain."""
    kind = stage.manifest.stage
    return (
        stage.manifest.started,
        list(kinds.KINDS).index(kind) if kind in kinds.KINDS else len(kinds.KINDS),
        stage.label,
    )
