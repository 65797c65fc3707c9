"""Stage directories: written whole or not at all, verified when read.

A directory is written as a hidden sibling, flushed to disk and renamed. Once renamed it is never changed.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pgolf.errors import PgolfError
from pgolf.store import manifest as manifests
from pgolf.store.manifest import Input, Manifest, Output


@dataclass(frozen=True)
class Stage:
    """A finished stage directory with its manifest read; payload files are verified as they are asked for."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    @property
    def label(self) -> str:
        """How a person refers to it: `quantize`, or `quantize@int5`."""
        return self.manifest.name

    def file(self, name: str) -> Path:
        """Path of a payload file after checking its size and hash against the manifest.

        Raises PgolfError when the file is missing, was changed, or is none of this stage's outputs.
        """
        expected = self.manifest.outputs.get(name)
        path = self.path / name
        if expected is None:
            raise PgolfError(f"{self.path} has no output {name}: it is a {self.manifest.stage} stage")
        if not path.is_file():
            raise PgolfError(f"{path} is missing, though its manifest lists it; rerun {self.manifest.stage}")
        found = manifests.hash_file(path)
        if found != expected:
            raise PgolfError(
                f"{path} was changed: expected {expected.bytes} bytes with SHA-256 {expected.sha256[:12]}…, found "
                f"{found.bytes} bytes with {found.sha256[:12]}…; restore it or rerun {self.manifest.stage}"
            )
        return path

    def files(self, prefix: str) -> list[Path]:
        """Verified paths of the outputs whose names start with `prefix`, sorted by name."""
        return [self.file(name) for name in sorted(self.manifest.outputs) if name.startswith(prefix)]

    def as_input(self, relative_to: Path) -> Input:
        """The entry that a stage made from this one, in the directory `relative_to`, keeps in its manifest."""
        return Input(
            kind="stage",
            path=_relative(self.path, relative_to),
            sha256=self.manifest_sha256,
            stage=self.manifest.stage,
            name=self.manifest.name,
        )

    def parent(self, role: str) -> "Stage":
        """The stage directory that this one names as its input `role`, verified by the hash of its manifest."""
        entry = self.manifest.inputs.get(role)
        if entry is None or entry.kind != "stage":
            raise PgolfError(f"{self.path} names no input stage {role!r}")
        path = Path(os.path.normpath(self.path / entry.path))
        if not (path / manifests.FILE_NAME).is_file():
            raise PgolfError(f"{self.path} was made from {path}, which is not there; put it back or name another")
        stage = open_stage(path)
        if stage.manifest_sha256 != entry.sha256:
            raise PgolfError(
                f"{path} is not the {entry.stage} that {self.path} was made from: its manifest's SHA-256 is "
                f"{stage.manifest_sha256[:12]}…, expected {entry.sha256[:12]}…"
            )
        return stage

    def ancestor(self, kind: str) -> "Stage":
        """The nearest stage of that kind (`tokenize`, `train`, ...) up the lineage, this one included."""
        if self.manifest.stage == kind:
            return self
        for role, entry in self.manifest.inputs.items():
            if entry.kind == "stage" and (entry.stage == kind or _leads_to(entry.stage, kind)):
                return self.parent(role).ancestor(kind)
        raise PgolfError(f"{self.path} has no {kind} stage in its lineage")


_MANIFEST = Path(manifests.FILE_NAME)
_LOCK = ".lock"
_ORDER = ("tokenize", "train", "ema-finalize", "quantize", "package")


def _leads_to(stage: str | None, kind: str) -> bool:
    return stage in _ORDER and kind in _ORDER and _ORDER.index(stage) > _ORDER.index(kind)


def open_stage(path: Path, kinds: tuple[str, ...] = ()) -> Stage:
    """Open a finished stage directory; with `kinds`, refuse every other kind of stage.

    Raises PgolfError when there is no manifest, or it is unreadable, of an unknown schema or of the wrong kind.
    """
    file = path / manifests.FILE_NAME
    if not file.is_file():
        raise PgolfError(f"{path} is not a stage directory: there is no {manifests.FILE_NAME} in it")
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PgolfError(f"cannot read {file}: {error}") from error
    manifest = manifests.parse(text, file)
    if kinds and manifest.stage not in kinds:
        raise PgolfError(f"{path} holds a {manifest.stage} stage; this needs {' or '.join(kinds)}")
    return Stage(path=path, manifest=manifest, manifest_sha256=manifests.hash_file(file).sha256)


class StageWriter:
    """Where a stage puts its payload: a sibling of the final directory, until `commit` renames it.

    The sibling is hidden and thrown away with a failed attempt, or, for a resumable stage, named
    `<destination>.partial` and kept for the next one. `scratch` is inside it for files that are no output.
    """

    def __init__(self, destination: Path, resumable: bool = False) -> None:
        self.destination = destination
        hidden = destination.parent / f".{destination.name}.{os.getpid()}"
        self.folder = destination.with_name(destination.name + ".partial") if resumable else hidden

    @property
    def scratch(self) -> Path:
        """Folder for files that only serve to resume; removed at `commit`. Made on first use."""
        folder = self.folder / ".scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def path(self, name: str) -> Path:
        """Path to write the payload file `name` at; subfolders are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def outputs(self) -> dict[str, Output]:
        """Size and hash of every file written so far, by name."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        names = (path.relative_to(self.folder) for path in found)
        # A manifest is there already when an earlier attempt was killed between writing it and the rename.
        files = sorted(self.folder / name for name in names if ".scratch" not in name.parts and name != _MANIFEST)
        return {path.relative_to(self.folder).as_posix(): manifests.hash_file(path) for path in files}

    def commit(self, manifest: Manifest) -> Stage:
        """Write the manifest, flush everything to disk and rename the directory into place.

        An older directory of the same name is moved aside first and removed last, so that at every moment one of
        the two exists whole.
        """
        self.path(manifests.FILE_NAME).write_text(manifest.to_json(), "utf-8")
        for path in sorted(self.folder.rglob("*")):
            _flush(path)
        _flush(self.folder)
        aside = self.destination.with_name(f".{self.destination.name}.{os.getpid()}.old")
        if self.destination.exists():
            self.destination.rename(aside)
        self.folder.rename(self.destination)
        _flush(self.destination.parent)
        # Only now: killed before the rename, a resumable stage still has what it goes on from.
        shutil.rmtree(self.destination / ".scratch", ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        return open_stage(self.destination)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run directory for this process. Raises PgolfError when another process holds it.

    The folders made for it go again when an exception leaves them empty: a mistyped command leaves no run behind.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PgolfError(f"{run} is in use by another pgolf process; wait for it or choose another --run") from error
    try:
        _sweep(run)
        yield
    except BaseException:
        lock.release()
        _remove_empty(made)
        raise
    finally:
        lock.release()


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # stops at the first folder that holds something
        for folder in folders:
            if [path.name for path in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
            folder.rmdir()


def same_inputs(left: Mapping[str, Input], right: Mapping[str, Input]) -> bool:
    """Whether two stages were made from the same things, wherever those stand on disk."""
    return {key: item.sha256 for key, item in left.items()} == {key: item.sha256 for key, item in right.items()}


def _sweep(run: Path) -> None:
    """Remove what processes that were killed left behind; called with the run's lock held."""
    for path in run.glob(".*"):
        if not path.is_dir():
            continue
        final = run / path.name.removeprefix(".").removesuffix(".old").rpartition(".")[0]
        if path.name.endswith(".old") and not final.exists():
            path.rename(final)  # killed between the two renames of a commit: the older one is still whole
        else:
            shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():
            raise  # some systems cannot flush a folder; a file's failure is a real one
    finally:
        os.close(descriptor)


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()
