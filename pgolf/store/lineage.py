"""A run seen from above: its stages, what each was made from and whether that still stands, and what they scored."""

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
    """One input of a stage as it stands today."""

    role: str
    label: str
    state: str
    """`ok`, `changed` (its hash is another one now) or `missing`."""


def ancestors(stage: Stage) -> list[Ancestor]:
    """The inputs that a stage names, each checked against the hash it was read with."""
    return [
        Ancestor(role, entry.name or Path(entry.path).name, _state(stage, entry))
        for role, entry in stage.manifest.inputs.items()
    ]


def input_hashes(stage: Stage) -> set[str]:
    """Hashes of the manifests of every stage up the lineage, as far as the stages are where their children say."""
    found = set()
    for role, entry in stage.manifest.inputs.items():
        if entry.kind == "stage":
            found.add(entry.sha256)
            with suppress(PgolfError):
                found |= input_hashes(stage.parent(role))
    return found


def changed_outputs(stage: Stage) -> list[str]:
    """What is wrong with the payload of a stage: one line per file that is missing or was changed."""
    found = []
    for name in sorted(stage.manifest.outputs):
        try:
            stage.file(name)
        except PgolfError as error:
            found.append(str(error))
    return found


def _state(stage: Stage, entry: Input) -> str:
    path = stage_directory.locate(stage.path, entry)
    if entry.kind == "stage":
        if not stage_directory.exists(path):
            return "missing"
        return "ok" if stage_directory.open_stage(path).manifest_sha256 == entry.sha256 else "changed"
    if not path.is_file():
        return "missing"
    return "ok" if manifests.hash_file(path).sha256 == entry.sha256 else "changed"
