"""Stage directories: written whole or not at all, verified when read.

A stage is written in a working folder next to its destination (`work_folder`), flushed to disk and moved into place.
After that it is never changed, and only ever replaced as a whole by a newer stage of the same name.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pgolf.errors import PgolfError, explain
from pgolf.store import kinds
from pgolf.store import manifest as manifests
from pgolf.store.manifest import Input, Manifest, Output
from pgolf.store.work_folder import PARTIAL, PAYLOAD, SCRATCH, WorkFolder, await_replacement, flush, locked, move, sweep

__all__ = [
    "Stage",
    "StageWriter",
    "exists",
    "locked",
    "open_stage",
    "refuse_foreign",
    "stage_folders",
    "sweep",
]


_TRIES = 20  # at a stage that another process replaces, for systems where it is absent for a moment


@dataclass(frozen=True)
class Stage:
    """A finished stage directory with its manifest read; payload files are verified as they are asked for."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    @property
    def label(self) -> str:
        """Label for messages: `quantize`, or `quantize@int5`."""
        return self.manifest.name

    def file(self, name: str) -> Path:
        """Path of a payload file after checking its size and hash against the manifest.

        Raises PgolfError when the file is missing, was changed, or is none of this stage's outputs.
        """
        expected = self.manifest.outputs.get(name)
        path = self.path / name
        if expected is None:
            raise PgolfError(f"{self.path} has no output {name}: it is a {self.manifest.stage} stage")
        found = manifests.hash_file(path) if path.is_file() else None
        if found != expected:
            if _manifest_hash(self.path) != self.manifest_sha256:
                raise PgolfError(f"{self.path} was replaced by another pgolf process; repeat the command")
            if found is None:
                raise PgolfError(f"{path} is missing, though its manifest lists it; rerun {self.manifest.stage}")
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
        path = locate(self.path, entry)
        if not exists(path):
            raise PgolfError(f"{self.path} was made from {path}, which is not there; put it back or name another")
        stage = open_stage(path)
        if stage.manifest_sha256 != entry.sha256:
            raise PgolfError(
                f"{path} is not the {entry.stage} that {self.path} was made from: it was made again since; make "
                f"{self.label} again, too, or name another input"
            )
        return stage

    def ancestor(self, kind: str) -> "Stage":
        """The nearest stage of that kind (`tokenize`, `train`, ...) up the lineage, this one included."""
        if self.manifest.stage == kind:
            return self
        for role, entry in self.manifest.inputs.items():
            if entry.kind == "stage" and (entry.stage == kind or kinds.comes_after(entry.stage, kind)):
                return self.parent(role).ancestor(kind)
        raise PgolfError(f"{self.path} has no {kind} stage in its lineage")


def exists(path: Path) -> bool:
    """True if there is a finished stage at `path`, or one that is being replaced just now."""
    for _ in range(_TRIES):
        if (path / manifests.FILE_NAME).is_file():
            return True
        if not await_replacement(path):
            return False
    return False


def stage_folders(run: Path) -> list[Path]:
    """The folders of a run that hold a finished stage, sorted by name; hidden and partial ones are none."""
    names = {path.name for path in run.iterdir() if path.is_dir()} if run.is_dir() else set()
    return [
        run / name for name in sorted(names) if name[0] != "." and not name.endswith(PARTIAL) and exists(run / name)
    ]


def open_stage(path: Path, wanted: tuple[str, ...] = ()) -> Stage:
    """Open a finished stage directory; with `wanted`, refuse every other kind of stage.

    Raises PgolfError when there is no manifest, or it is unreadable, of an unknown schema or of the wrong kind.
    """
    file = path / manifests.FILE_NAME
    data = None
    for _ in range(_TRIES):
        if not exists(path):
            raise PgolfError(f"{path} is not a stage directory: it has no {manifests.FILE_NAME}")
        try:
            data = file.read_bytes()  # read once: the hash is that of the text that is parsed
            break
        except FileNotFoundError:
            continue  # replaced since
        except OSError as error:
            raise PgolfError(f"cannot read {explain(error)}") from error
    try:
        manifest = manifests.parse((data or b"").decode("utf-8"), file)
    except UnicodeDecodeError as error:
        raise PgolfError(f"cannot read {file}: {error}") from error
    if wanted and manifest.stage not in wanted:
        raise PgolfError(f"{path} holds a {manifest.stage} stage; this needs {' or '.join(wanted)}")
    return Stage(path=path, manifest=manifest, manifest_sha256=hashlib.sha256(data or b"").hexdigest())


def locate(folder: Path, entry: Input) -> Path:
    """Where an input of the stage in `folder` is: its path counted from the folder as it was named, or, where symbolic
    links lead to another place, from the folder's real path. The place with the right manifest comes first."""
    places = [Path(os.path.normpath(base / entry.path)) for base in (folder, folder.resolve())]
    right = [place for place in places if _manifest_hash(place) == entry.sha256]
    return next((place for place in (*right, *places) if place.exists()), places[0])


def refuse_foreign(folder: Path) -> None:
    """Raise PgolfError unless nothing is at `folder`, or exactly a stage that pgolf wrote under this name.

    Any file, folder or link in it that its manifest does not list is somebody else's, as is everything without a
    manifest. Contents are not hashed: a damaged stage may be replaced.
    """
    if not os.path.lexists(folder):
        return
    remedy = "move it away, or choose another --run or --name"
    if folder.is_symlink() or not folder.is_dir():
        raise PgolfError(f"{folder} was not made by pgolf, so it is not replaced: {remedy}")
    found = _foreign(folder, folder.name)
    if found is not None:
        raise PgolfError(f"{folder} is not replaced: {found}; {remedy}")


def _foreign(folder: Path, label: str) -> str | None:
    """Why a folder is not just the stage `label` that pgolf wrote; None when it is."""
    try:
        manifest = manifests.parse((folder / manifests.FILE_NAME).read_text("utf-8"), folder / manifests.FILE_NAME)
    except (FileNotFoundError, UnicodeDecodeError):
        return f"it has no {manifests.FILE_NAME}, so pgolf did not make it"
    except PgolfError as error:
        return str(error).partition(";")[0]
    if manifest.name != label:
        return f"it holds a copy of {manifest.name}"
    ours = {manifests.FILE_NAME, *manifest.outputs}
    folders = {parent.as_posix() for name in ours for parent in Path(name).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        plain = not path.is_symlink()
        if not (plain and (name in folders if path.is_dir() else name in ours)):
            return f"{path.relative_to(folder)} in it is not pgolf's"
    return None


class StageWriter:
    """Writer of a stage's payload: a working folder next to the final directory, until `commit` moves it there.

    The working folder is deleted with a failed attempt, or, for a resumable stage, named `<destination>.partial` and
    kept for the next one. Only files asked for with `path` or named with `add` become outputs. With `writes` false (a
    process that only computes) nothing is made.
    """

    def __init__(self, destination: Path, resumable: bool = False, writes: bool = True) -> None:
        self.destination = destination
        self._work = WorkFolder(destination, resumable)
        self._writes = writes
        self._names: set[str] = set()

    @property
    def folder(self) -> Path:
        """The working folder."""
        return self._work.path

    @property
    def scratch(self) -> Path:
        """Folder for files that only serve to resume; removed at `commit`. Made on first use."""
        return self._made(self.folder / SCRATCH)

    @property
    def has_scratch(self) -> bool:
        """True if there are files to resume from."""
        folder = self.folder / SCRATCH
        return folder.is_dir() and any(folder.iterdir())

    @property
    def payload(self) -> Path:
        """Folder of the payload, made on first use; files in it become outputs only with `add`."""
        return self._made(self.folder / PAYLOAD)

    def path(self, name: str) -> Path:
        """Path to write the payload file `name` at; subfolders are made, and the file becomes an output."""
        self._names.add(name)
        path = self.folder / PAYLOAD / name
        self._made(path.parent)
        return path

    def add(self, path: Path) -> None:
        """Make an output of a file in the payload folder that something else named, or of all files of a folder."""
        files = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path]
        self._names |= {file.relative_to(self.folder / PAYLOAD).as_posix() for file in files}

    def outputs(self) -> dict[str, Output]:
        """Size and hash of every output, by name."""
        return {name: manifests.hash_file(self.folder / PAYLOAD / name) for name in sorted(self._names)}

    def commit(self, manifest: Manifest) -> Stage:
        """Write the manifest, flush everything to disk and move the payload to the destination.

        An older stage of the same name is replaced in the same step, so that one of the two is there at every moment.
        Raises PgolfError when anything in the destination is not pgolf's; OSError leaves the older stage in place.
        """
        refuse_foreign(self.destination)
        data = manifest.to_json().encode("utf-8")
        payload = self.payload
        self._drop_unregistered(payload)
        (payload / manifests.FILE_NAME).write_bytes(data)
        for path in sorted(payload.rglob("*")):
            flush(path)
        flush(payload)
        digest = hashlib.sha256(data).hexdigest()
        self._work.publish(digest)
        replaced = self._work.replaced()
        try:
            found = replaced and _foreign(replaced, self.destination.name)  # put into it at the last moment
            if found:
                raise PgolfError(f"{self.destination} is not replaced: {found}; move it away")
        except BaseException:
            self._work.take_back()
            raise
        self._work.remove()
        return Stage(self.destination, manifests.parse(data.decode("utf-8"), self.destination), digest)

    def publish(self) -> None:
        """Move the payload to the destination, which must not exist, without a manifest: for folders that are no stage.

        Raises OSError when something is there.
        """
        move(self.folder / PAYLOAD, self.destination)

    def discard(self) -> None:
        """Delete the working folder."""
        self._work.remove()

    def _made(self, folder: Path) -> Path:
        if self._writes:
            self._work.create()
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _drop_unregistered(self, payload: Path) -> None:
        """Remove temporary files that a killed write of this or an earlier attempt left in the payload folder."""
        for path in sorted(payload.rglob("*"), reverse=True):
            name = path.relative_to(payload).as_posix()
            if path.is_symlink() or path.is_file():
                if name not in self._names:
                    path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def _manifest_hash(folder: Path) -> str | None:
    try:
        return manifests.hash_file(folder / manifests.FILE_NAME).sha256
    except OSError:
        return None


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()
