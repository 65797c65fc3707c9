"""Removable parts of an artifacts folder: variants that no stage was made from, and abandoned attempts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgolf.errors import PgolfError, did_you_mean
from pgolf.store import kinds, runs, stage_directory, work_folder


@dataclass(frozen=True)
class Leftover:
    path: Path
    bytes: int
    kept_for: str = ""
    """Why it is not removed; empty: it may be."""


def leftovers(artifacts: Path, run: Path, only: Sequence[str] = ()) -> list[Leftover]:
    """The variants of a run and its unfinished attempts, each with the reason if it has to stay.

    only: variants (`int5`) or labels (`quantize@int5`, `train.partial`); none: all. A stage stays while any stage in
    `artifacts` that is not removed with it was made from it, and when anything in it is not pgolf's own. A report
    shows every stage, but its page is whole without them, so it keeps none. Raises PgolfError for a name that is
    none of them.
    """
    variants = {path: path.name.partition("@") for path in stage_directory.stage_folders(run) if "@" in path.name}
    partial = work_folder.abandoned(run)
    known = {*(name for parts in variants.values() for name in (parts[2], "".join(parts))), *(p.name for p in partial)}
    if unknown := [name for name in only if name not in known]:
        raise PgolfError(
            f"{run} has no variant {unknown[0]!r}{did_you_mean(unknown[0], sorted(known))}; plain stages stay"
        )
    chosen = [path for path, parts in variants.items() if not only or {parts[2], "".join(parts)} & {*only}]
    reasons = {path: _foreign(path) for path in chosen}
    stages = {path: stage_directory.open_stage(path) for path in chosen}
    everything = (stage for name in runs.names(artifacts) for stage in runs.stages_of(artifacts / name))
    others = [stage for stage in everything if stage.manifest.stage not in kinds.holding("page")]
    while True:
        stay = [stage for stage in others if reasons.get(stage.path, "stays")]
        made_from = {entry.sha256: stage for stage in stay for entry in stage.manifest.inputs.values()}
        held = [path for path in chosen if not reasons[path] and stages[path].manifest_sha256 in made_from]
        if not held:
            break
        for path in held:
            child = made_from[stages[path].manifest_sha256]
            reasons[path] = f"{child.path.relative_to(artifacts)} was made from it"
    gone = [path for path in partial if not only or path.name in only]
    return [Leftover(path, _size(path), reasons.get(path, "")) for path in (*chosen, *gone)]


def remove(run: Path, paths: Sequence[Path]) -> None:
    """Remove folders that `leftovers` lists. Raises PgolfError when the run is in use."""
    with work_folder.locked(run):
        for path in paths:
            if path.suffix == work_folder.PARTIAL:
                work_folder.WorkFolder(path.with_suffix(""), resumable=True).remove()
            else:
                stage_directory.refuse_foreign(path)
                work = work_folder.WorkFolder(path)
                work.create()
                work.take(path)
                work.remove()


def _foreign(path: Path) -> str:
    try:
        stage_directory.refuse_foreign(path)
    except PgolfError as error:
        return str(error)
    return ""


def _size(path: Path) -> int:
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file() and not item.is_symlink())
