"""The inputs of a stage, and whether they are unchanged since the stage was made."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.store import manifest as manifests
from pgolf.store import stage_directory
from pgolf.store.manifest import Input
from pgolf.store.stage_directory import Stage


@dataclass(frozen=True)
class Ancestor:
    """One input of a stage in its present state."""

    role: str
    label: str
    state: str
    """`ok`, `changed` (its hash is another one now), `missing`, or `unchecked` (a URL, a folder)."""


def ancestors(stage: Stage, folder_hash: Callable[[Path], str] | None = None) -> list[Ancestor]:
    """The inputs that a stage names, each checked against the hash it was read with.

    folder_hash: hash of a folder of documents, `pgolf.data.files.source(path).sha256`; without, folders are unchecked.
    """
    return [
        Ancestor(role, entry.name or Path(entry.path).name, _state(stage, entry, folder_hash))
        for role, entry in stage.manifest.inputs.items()
    ]


def input_hashes(stage: Stage) -> set[str]:
    """Hashes of the manifests of all ancestors that are still at their recorded paths."""
    found = set()
    for role, entry in stage.manifest.inputs.items():
        if entry.kind == "stage":
            found.add(entry.sha256)
            with suppress(PgolfError):
                found |= input_hashes(stage.parent(role))
    return found


def outdated(stage: Stage) -> bool:
    """True if a stage of the same run that this one was made from, near or far, has been replaced since."""
    for role, entry in stage.manifest.inputs.items():
        if entry.kind == "stage" and stage_directory.locate(stage.path, entry).parent == stage.path.parent:
            state = _state(stage, entry)
            if state == "changed" or (state == "ok" and outdated(stage.parent(role))):
                return True
    return False


def changed_outputs(stage: Stage) -> list[str]:
    """Faults of a stage's payload: one line per file that is missing or was changed."""
    found = []
    for name in sorted(stage.manifest.outputs):
        try:
            stage.file(name)
        except PgolfError as error:
            found.append(str(error))
    return found


def _state(stage: Stage, entry: Input, folder_hash: Callable[[Path], str] | None = None) -> str:
    if entry.kind == "url":
        return "unchecked"
    path = stage_directory.locate(stage.path, entry)
    if entry.kind == "stage":
        if not stage_directory.exists(path):
            return "missing"
        try:
            return "ok" if stage_directory.open_stage(path).manifest_sha256 == entry.sha256 else "changed"
        except PgolfError:  # damaged, or made once more by a newer pgolf
            return "changed"
    if not path.exists():
        return "missing"
    if path.is_dir() and folder_hash is None:
        return "unchecked"
    try:
        found = folder_hash(path) if folder_hash is not None and path.is_dir() else manifests.hash_file(path).sha256
    except PgolfError:  # no documents are left in the folder
        return "changed"
    return "ok" if found == entry.sha256 else "changed"
