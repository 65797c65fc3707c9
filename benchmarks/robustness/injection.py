"""Fail or kill a program at its n-th file operation.

Operations are opens, renames, removals, new folders, links and flushes below one folder, seen through Python's audit
events (PEP 578), which can raise before the operation happens. Writes by native code are reached with `file_limit`:
beyond a file size, every write in the process fails (setrlimit(2), EFBIG).
"""

import errno
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILL = -1
"""In place of an error number: end the process by SIGKILL."""
_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.fsync")


@dataclass(frozen=True)
class Ending:
    """Outcome of a child process: `done`, `killed`, or `failed` with the class and text of its exception."""

    how: str
    error: str
    text: str
    operations: int


class _Plan:
    root: str | None = None
    at = 0
    action = 0
    count = 0


_plan = _Plan()
_installed: list[bool] = []


def run(
    work: Callable[[], Any], root: Path, at: int = 0, action: int = errno.EIO, file_limit: int | None = None
) -> Ending:
    """Run `work` in a forked child whose operation number `at` (from 1; 0: none) below `root` meets `action`.

    action: an error number, or KILL. file_limit: bytes beyond which writes to a file fail.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        how, error, text = "done", "", ""
        try:
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
            _arm(root, at, action)
            work()
        except BaseException as caught:
            how, error, text = "failed", type(caught).__name__, str(caught) or traceback.format_exc()
        _plan.root = None
        os.write(writing, pickle.dumps((how, error, text[:2000], _plan.count)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    return Ending(*pickle.loads(data)) if data else Ending("killed", "", "", at)


def _arm(root: Path, at: int, action: int) -> None:
    if not _installed:
        _installed.append(True)
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            _on_event("os.fsync", (f"/proc/self/fd/{descriptor}", -1))
            flush(descriptor)

        os.fsync = fsync  # type: ignore[assignment]
        sys.addaudithook(_on_event)
    _plan.root, _plan.at, _plan.action, _plan.count = os.path.realpath(root), at, action, 0


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _plan.root is None or event not in _EVENTS or not _below(event, arguments):
        return
    _plan.count += 1
    if _plan.count == _plan.at:
        if _plan.action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(_plan.action, os.strerror(_plan.action), str(arguments[0]))


def _below(event: str, arguments: tuple[Any, ...]) -> bool:
    path = arguments[0]
    if isinstance(path, int) or event == "os.fsync":
        return True
    if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] not in (-1, None):
        return True  # relative to an open folder, as shutil.rmtree does
    root, _plan.root = _plan.root, None  # later code may open files itself
    try:
        return os.path.realpath(os.fsdecode(path)).startswith(str(root))
    finally:
        _plan.root = root
