"""Working folders, the lock of a run, and the rules of removal.

A stage is written in a working folder next to its destination and moved into place at the end. Only working folders are
ever removed, and only when they are provably pgolf's own: the name has pgolf's prefix and a checksum, or the folder
holds a marker file that was written first and names the folder, its destination and the process; that process is gone;
and only the parts that pgolf puts there are deleted. Everything else in a run directory belongs to its owner.

    .pgolf-train-4711-3f0c9a1b2d4e/      or `train.partial` for a stage that can be resumed
        .pgolf-work.json                 the marker
        stage/                           the payload; after an exchange, the stage that was replaced
        .scratch/                        files that only serve to resume
        previous/                        the replaced stage, where the system cannot exchange two folders
        commit                           SHA-256 of the manifest that is being moved into place
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError

MARKER, PAYLOAD, SCRATCH, PREVIOUS, COMMIT = ".pgolf-work.json", "stage", ".scratch", "previous", "commit"
PARTIAL = ".partial"
_PREFIX, _LOCK, _SOFT_LOCK, _MANIFEST = ".pgolf-", ".lock", ".pgolf-lock.json", "manifest.json"
_LARGEST_MARKER = 1 << 16
_WAIT_SECONDS = 2.0  # for another process between the two renames of a replacement; they take microseconds
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class WorkFolder:
    """The working folder of one stage. `resumable` names it `<destination>.partial` and keeps it between attempts."""

    def __init__(self, destination: Path, resumable: bool = False) -> None:
        self.destination = destination
        self._hidden = destination.with_name(_own_name(destination.name))
        self.path = destination.with_name(destination.name + PARTIAL) if resumable else self._hidden
        self._ready = False

    def create(self) -> None:
        """Make the folder with its marker, or adopt a resumable one of an earlier attempt.

        Raises PgolfError when something that pgolf did not make has the name.
        """
        if self._ready:
            return
        if self.path.is_symlink() or self.path.exists():
            if _owner(self.path) is None:
                raise PgolfError(
                    f"{self.path} is in the way and was not made by this pgolf; move it away, or choose another --name"
                )
            _write_marker(self.path, self.path.name, self.destination.name)
        else:
            self._hidden.mkdir(parents=True)
            _write_marker(self._hidden, self.path.name, self.destination.name)
            if self.path != self._hidden:
                self._hidden.rename(self.path)
        (self.path / PAYLOAD).mkdir(exist_ok=True)
        self._ready = True

    def publish(self, manifest_sha256: str) -> None:
        """Move the payload to the destination; a stage that is there goes into this folder, in one atomic step where
        the system has one. The caller has checked that it may be replaced."""
        (self.path / COMMIT).write_text(manifest_sha256, "ascii")
        flush(self.path / COMMIT)
        flush(self.path)
        payload = self.path / PAYLOAD
        if not os.path.lexists(self.destination):
            move(payload, self.destination)
        elif not _exchange(payload, self.destination):
            previous = self.path / PREVIOUS
            move(self.destination, previous)
            try:
                move(payload, self.destination)
            except BaseException:
                move(previous, self.destination)
                raise
        with suppress(OSError):  # the stage is in place whether or not the folder's entry can be flushed
            flush(self.destination.parent)

    def take_back(self) -> None:
        """Undo `publish` after an exchange."""
        replaced = self.path / (PREVIOUS if (self.path / PREVIOUS).exists() else PAYLOAD)
        if not _exchange(replaced, self.destination):
            move(self.destination, self.path / PAYLOAD)
            move(replaced, self.destination)

    def replaced(self) -> Path | None:
        """The stage that `publish` replaced; None when there was none."""
        return next((self.path / name for name in (PREVIOUS, PAYLOAD) if (self.path / name).exists()), None)

    def take(self, stage: Path) -> None:
        """Move a finished stage in here, to be deleted with this folder."""
        (self.path / PAYLOAD).rmdir()
        move(stage, self.path / PAYLOAD)

    def remove(self) -> None:
        """Delete the folder; files that cannot be deleted now are left for the next command's sweep."""
        self._ready = False
        if _owner(self.path) is not None:
            _remove(self.path)


def abandoned(run: Path) -> list[Path]:
    """The resumable folders of a run whose process is gone, sorted."""
    found = sorted(run.glob(f"*{PARTIAL}")) if run.is_dir() else []
    return [folder for folder in found if (owner := _owner(folder)) is not None and not _alive(owner)]


def sweep(run: Path) -> None:
    """Remove leftovers of killed processes in a run directory, and restore a stage that one was replacing.

    Called with the run's lock held. A resumable folder stays, unless its stage was committed.
    """
    try:
        entries = sorted(run.iterdir())
    except OSError:
        return
    for folder in entries:
        if _checked(folder.name) and folder.is_file():  # a lock that was being taken over
            with suppress(OSError):
                folder.unlink()
        if not folder.name.startswith(_PREFIX) and folder.suffix != PARTIAL:
            continue
        owner = _owner(folder)
        if owner is None or (_alive(owner) and owner.get("pid") != os.getpid()):
            continue
        destination = folder.with_name(owner["destination"])
        with suppress(OSError):
            if (folder / PREVIOUS / _MANIFEST).is_file() and not os.path.lexists(destination):
                move(folder / PREVIOUS, destination)
            if folder.suffix != PARTIAL or _committed(folder, destination):
                _remove(folder)


def await_replacement(path: Path) -> bool:
    """True if anything is at `path`, once no other process is between the two renames of replacing it.

    Only systems without an atomic exchange have that moment. When the process was killed in it, the replaced stage is
    put back.
    """
    until = time.monotonic() + _WAIT_SECONDS
    while not os.path.lexists(path) and (owner := _replacer(path)) is not None:
        if not _alive(owner):
            with locked(path.parent):
                break
        if time.monotonic() > until:
            raise PgolfError(f"{path} is being replaced by process {owner['pid']}; run the command again")
        time.sleep(0.01)
    return os.path.lexists(path)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run directory for this process. Raises PgolfError when another process holds it.

    The folders made for it go again when an exception leaves them empty: a mistyped command leaves no run behind.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    descriptor = _open_lock(run)
    soft = None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(run) from error
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            soft = _soft_lock(run)
        sweep(run)
        yield
    except BaseException:
        _release(descriptor, soft)
        _remove_empty(made)
        raise
    _release(descriptor, soft)


def move(source: Path, target: Path) -> None:
    """Rename a folder to a name that nothing has. Raises OSError when something has it."""
    done = _renameat2(source, target, 1, 4)  # RENAME_NOREPLACE; RENAME_EXCL on macOS
    if not done:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk. Raises OSError, except for folders that the system cannot flush."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF) or path.is_file():
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders atomically; False where the system cannot."""
    return _renameat2(left, right, 2, 2)  # RENAME_EXCHANGE; RENAME_SWAP on macOS


def _renameat2(source: Path, target: Path, linux: int, macos: int) -> bool:
    """rename(2) with flags, which Python does not have. False where the system or the file system lacks it."""
    library = ctypes.CDLL(None, use_errno=True)
    sys.audit("os.rename", str(source), str(target), -1, -1)
    left, right = os.fsencode(source), os.fsencode(target)
    if hasattr(library, "renameat2"):
        result = library.renameat2(-100, left, -100, right, ctypes.c_uint(linux))  # -100: AT_FDCWD
    elif hasattr(library, "renamex_np"):
        result = library.renamex_np(left, right, ctypes.c_uint(macos))
    else:
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def _own_name(label: str) -> str:
    stem = f"{_PREFIX}{label}-{os.getpid()}-{secrets.token_hex(4)}"
    return f"{stem}-{_checksum(stem)}"


def _checksum(stem: str) -> str:
    return hashlib.sha256(f"pgolf working folder {stem}".encode()).hexdigest()[:12]


def _write_marker(folder: Path, name: str, destination: str) -> None:
    values = {"made_by": "pgolf", "folder": name, "destination": destination, **_me()}
    new = folder / (MARKER + ".new")
    new.write_text(json.dumps(values) + "\n", "utf-8")
    new.replace(folder / MARKER)


def _owner(folder: Path) -> dict[str, Any] | None:
    """The owning process of a working folder and its `destination`; None for a folder without pgolf's marker.

    A process that was killed before it had written the marker leaves an own name with its checksum.
    """
    if folder.is_symlink() or not folder.is_dir():
        return None
    found = _read(folder / MARKER)
    if found is not None and found.get("made_by") == "pgolf" and isinstance(found.get("destination"), str):
        hidden = folder.name.startswith(_PREFIX) and _checked(folder.name)
        if (found.get("folder") == folder.name or hidden) and Path(found["destination"]).name == found["destination"]:
            return found
    if not (folder / MARKER).exists() and _checked(folder.name):
        label, pid, _, _ = folder.name.removeprefix(_PREFIX).rsplit("-", 3)
        return {"destination": label, "pid": int(pid), "host": socket.gethostname()}
    return None


def _checked(name: str) -> bool:
    stem, _, checksum = name.rpartition("-")
    return name.startswith(_PREFIX) and stem.count("-") >= 3 and checksum == _checksum(stem)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST_MARKER:
            return None
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _start_time(os.getpid())}


def _start_time(pid: int) -> str:
    """Start time of a process in clock ticks since boot, which distinguishes it from a later one of the same number;
    empty where the system has no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(owner: dict[str, Any]) -> bool:
    """True if the owning process may still run; also for a process on another host, which cannot be checked."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int) or pid < 1:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not owner.get("started") or owner["started"] == _start_time(pid)


def _remove(folder: Path) -> None:
    """Delete the known parts of a working folder, the marker last; a folder with anything else in it stays.

    A resumable folder is renamed first: from then on its name proves that it is pgolf's, marker or not.
    """
    if not _checked(folder.name):
        try:
            folder = folder.rename(folder.with_name(_own_name(folder.name.removesuffix(PARTIAL))))
        except OSError:
            return
    parts = [folder / name for name in (PAYLOAD, SCRATCH, PREVIOUS)]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    with suppress(OSError):
        if not any(map(os.path.lexists, parts)):
            for name in (COMMIT, MARKER + ".new", MARKER):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def _committed(folder: Path, destination: Path) -> bool:
    try:
        wanted = (folder / COMMIT).read_text("ascii")
        return hashlib.sha256((destination / _MANIFEST).read_bytes()).hexdigest() == wanted
    except (OSError, ValueError):
        return False


def _replacer(path: Path) -> dict[str, Any] | None:
    """The owner of a working folder that holds the stage which stood at `path`."""
    for name in [*path.parent.glob(f"{_PREFIX}*"), path.with_name(path.name + PARTIAL)]:
        if (name / PREVIOUS / _MANIFEST).is_file():
            owner = _owner(name)
            if owner is not None and owner["destination"] == path.name:
                return owner
    return None


def _in_use(run: Path) -> PgolfError:
    return PgolfError(f"{run} is in use by another pgolf process; wait for it or choose another --run")


def _open_lock(run: Path) -> int:
    """A descriptor to lock: of `.lock`, or of the folder itself where that cannot be opened (a read-only run)."""
    with suppress(OSError):
        return os.open(run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.open(run, os.O_RDONLY | os.O_CLOEXEC)


def _soft_lock(run: Path) -> Path:
    """A lock by a file's existence, for file systems without flock; taken over from a process that is gone."""
    path = run / _SOFT_LOCK
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            owner = _read(path)
            if owner is None or _alive(owner):
                raise PgolfError(
                    f"{run} is in use by another pgolf process ({path}); wait for it, or delete that file if no pgolf "
                    "is running here"
                ) from None
            aside = run / _own_name("lock")
            with suppress(FileNotFoundError):
                path.rename(aside)
                if _read(aside) != owner:  # another process took over in between: that file is its lock
                    os.link(aside, path)
                aside.unlink()
        else:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(_me()) + "\n")
            return path
    raise _in_use(run)


def _release(descriptor: int, soft: Path | None) -> None:
    if soft is not None:
        with suppress(OSError):
            soft.unlink()
    os.close(descriptor)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that this command made for a run, as far as they are empty but for the lock."""
    with suppress(OSError):  # stops at the first folder that holds something
        for folder in folders:
            if [path.name for path in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
            folder.rmdir()
