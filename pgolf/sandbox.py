"""Run Python where it can do no harm, as far as this system allows: no network, few files, bounded memory and time.

Three layers, of which the outer two depend on the system: a network namespace of its own (`unshare`, Linux), limits on
memory, file size and processor time (`resource`, Unix), and an audit hook inside the process, which sees what Python
code opens and starts. The hook is no wall against native code; it is why code is run on request only.
"""

import functools
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REFUSED = 77
"""Exit status of a process that the guard ended."""
MEMORY_BYTES = 24 << 30
FILE_BYTES = 256 << 20
# Anything that leaves the process: the network, other programs, native code by hand.
_FATAL = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "telnetlib.", "poplib.", "imaplib.", "nntplib.")
_DENIED = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pty.", "ctypes.dlopen")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.truncate",
    "os.utime",
    "os.setxattr",
    "shutil.",
)


@dataclass(frozen=True)
class Outcome:
    """What an isolated process did."""

    status: int
    stdout: str
    stderr: str
    timed_out: bool
    network_off: bool
    """Whether it ran in a network namespace of its own."""


def run(arguments: Sequence[str], folder: Path, seconds: float) -> Outcome:
    """Run this Python with `arguments` in `folder`, with an empty environment, for at most `seconds`."""
    prefix = ["unshare", "--map-root-user", "--net", "--"] if can_unshare() else []
    environment = {"HOME": str(folder), "TMPDIR": str(folder), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*prefix, sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            preexec_fn=_limit if os.name == "posix" else None,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return Outcome(-1, _text(error.stdout), _text(error.stderr), True, bool(prefix))
    return Outcome(done.returncode, _text(done.stdout), _text(done.stderr), False, bool(prefix))


@functools.cache
def can_unshare() -> bool:
    """Whether processes can be started without a network here."""
    if shutil.which("unshare") is None:
        return False
    test = ["unshare", "--map-root-user", "--net", "--", "true"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


def preload() -> None:
    """Import what scoring needs from elsewhere: libraries load native code, which `guard` forbids afterwards."""
    for name in ("torch", "numpy", "numba", "sentencepiece", "safetensors", "constriction", "brotli", "zstandard"):
        importlib.import_module(name)


def guard(readable: Sequence[Path], writable: Sequence[Path], programs: bool = False) -> None:
    """From now on and for good, keep this process to itself.

    Files are opened below `readable`, `writable` and Python's own folders only, written and changed below `writable`
    only; any other attempt raises PermissionError, as does starting a program or loading a library by hand unless
    `programs`. Touching the network ends the process with status `REFUSED`.
    """
    own = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).parents[2])]
    devices = ["/dev/null", "/dev/urandom", "/dev/shm", "/proc", "/sys"]
    may_write = tuple(_real(path) for path in [*map(str, writable), "/dev/null"])
    may_read = tuple(_real(path) for path in [*own, *devices, *map(str, readable)]) + may_write
    flags_that_write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_FATAL):
            os.write(2, f"refused: the network ({event} {_short(arguments)})\n".encode())
            os._exit(REFUSED)
        if not programs and event.startswith(_DENIED):
            raise PermissionError(f"refused: starting a program or library ({event} {_short(arguments)})")
        if event == "open":
            path, mode, flags = (*arguments, None, None, None)[:3]
            writes = bool(isinstance(flags, int) and flags & flags_that_write) or bool(
                isinstance(mode, str) and set(mode) & set("wax+")
            )
            _allow(path, may_write if writes else may_read, "writing" if writes else "reading")
        elif event.startswith(_CHANGES):
            for path in arguments:
                if isinstance(path, str | bytes | os.PathLike):
                    _allow(path, may_write, "changing")

    sys.addaudithook(hook)


def _allow(path: object, roots: tuple[str, ...], what: str) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # an open file descriptor
    real = _real(os.fsdecode(path))
    if not any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots):
        raise PermissionError(f"refused: {what} {real}")


def _real(path: str) -> str:
    return os.path.realpath(path)


def _short(arguments: tuple[object, ...]) -> str:
    return " ".join(repr(arguments).split())[:200]


def _text(output: bytes | None) -> str:
    return (output or b"").decode("utf-8", "replace")


def _limit() -> None:
    import resource

    for kind, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
