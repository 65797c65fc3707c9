"""What a program touches while it runs: files, network, other programs (audit test A17).

The program runs in a process of its own, in an empty folder that is also its home, without a network where the system
can take it away (`unshare`, Linux). A hook installed before anything else (`sys.addaudithook`, PEP 578) writes down
what Python code opens, connects to and starts; it forbids nothing, so that the list is complete. Native code can act
unseen by it, which the report says.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, Finding
from pgolf.errors import PgolfError
from pgolf.sandbox import can_unshare

# Runs before any other import of the child. Events are kept as plain tuples in a set and written at the end.
_HOOK = """
import json, os, runpy, sys
seen = set()
def hook(event, arguments):
    if event == "open":
        path, mode, flags = (tuple(arguments) + (None, None, None))[:3]
        if isinstance(path, (str, bytes, os.PathLike)):
            writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            seen.add(("write" if writes else "read", os.path.realpath(os.fsdecode(path))))
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind",
                   "urllib.Request", "http.client.connect", "socket.gethostbyaddr"):
        seen.add(("network", event + " " + " ".join(repr(item) for item in arguments[-2:])[:200]))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"):
        seen.add(("program", os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else repr(arguments)))
    elif event == "ctypes.dlopen" and arguments[0]:
        seen.add(("library", os.path.realpath(str(arguments[0])) if os.sep in str(arguments[0]) else str(arguments[0])))
log, kind, target = sys.argv[1:4]
sys.argv = [target, *sys.argv[4:]]
out = os.open(log, os.O_WRONLY | os.O_CREAT)
sys.addaudithook(hook)
try:
    (runpy.run_path if kind == "path" else runpy.run_module)(target, run_name="__main__")
finally:
    os.write(out, json.dumps(sorted(seen)).encode())
    os.close(out)
"""


@dataclass(frozen=True)
class Watched:
    """What a process did, by kind; paths are real paths."""

    status: int
    stdout: str
    stderr: str
    network_off: bool
    """Whether it had no network to reach in the first place."""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    folder: Path = field(default_factory=Path)


def run(kind: str, target: str, arguments: Sequence[str], folder: Path, seconds: float = 3600.0) -> Watched:
    """Run a module (`kind` "module") or a script ("path") in `folder` and write down what it touches.

    Raises PgolfError when it does not end in time or leaves no record.
    """
    with tempfile.TemporaryDirectory(prefix="pgolf-watch-") as place:
        log = Path(place) / "events.json"
        environment = {
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(Path(__file__).parents[3]) if kind == "module" else "",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        prefix = ["unshare", "--map-root-user", "--net", "--"] if can_unshare() else []
        try:
            done = subprocess.run(
                [*prefix, sys.executable, "-P", "-c", _HOOK, str(log), kind, target, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PgolfError(f"the watched evaluation did not end within {seconds:.0f} s") from error
        if not log.is_file() or not log.stat().st_size:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PgolfError(f"the watched evaluation left no record (exit status {done.returncode}): {last}")
        events: list[tuple[str, str]] = [(what, name) for what, name in json.loads(log.read_text("utf-8"))]
    found: dict[str, Any] = {
        field_name: tuple(name for what, name in events if what == kind_name)
        for field_name, kind_name in (
            ("reads", "read"),
            ("writes", "write"),
            ("network", "network"),
            ("programs", "program"),
            ("libraries", "library"),
        )
    }
    return Watched(done.returncode, done.stdout, done.stderr, bool(prefix), folder=folder, **found)


def isolation(watched: Watched, inputs: Sequence[Path]) -> Finding:
    """A17: no network, and no file read but the inputs, Python with its packages, and the system's own facts."""
    allowed = _roots([*inputs, watched.folder])
    strange = [path for path in watched.reads if not _below(path, allowed)]
    written = [
        path for path in watched.writes if not _below(path, _roots([watched.folder, Path("/dev"), Path("/proc")]))
    ]
    given = {os.path.realpath(path) for path in inputs}
    read = sorted(given & set(watched.reads))
    numbers = {
        "inputs_read": read,
        "other_files_read": strange,
        "files_written_elsewhere": written,
        "network": list(watched.network),
        "programs_started": list(watched.programs),
        "libraries_loaded_by_hand": [path for path in watched.libraries if not _below(path, _python_roots())],
        "network_taken_away": watched.network_off,
    }
    if watched.status != 0:
        last = (watched.stderr.strip().splitlines() or ["no message"])[-1]
        text = f"in an empty folder the evaluation ends with status {watched.status}: {last}"
        return Finding("isolation", "A17", FAILED, text, numbers, {"status": watched.status})
    if watched.network:
        text = f"it reaches for the network: {watched.network[0]}"
        return Finding("isolation", "A17", FAILED, text, numbers, {"event": watched.network[0]})
    if strange:
        text = f"it reads {len(strange)} file{'s' if len(strange) > 1 else ''} that are no inputs"
        return Finding("isolation", "A17", FAILED, text, numbers, {"file": strange[0]})
    if written:
        text = f"it writes outside its own folder: {len(written)} files"
        return Finding("isolation", "A17", FAILED, text, numbers, {"file": written[0]})
    text = f"alone in an empty folder: {len(read)} inputs read, no other file, no network"
    if watched.programs:
        text += f"; programs started: {', '.join(sorted({Path(name).name for name in watched.programs}))}"
    return Finding("isolation", "A17", PASSED, text, numbers)


def not_watched(reason: str) -> Finding:
    return Finding("isolation", "A17", NOT_RUN, reason)


def _python_roots() -> tuple[str, ...]:
    own = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *_packages()]
    return tuple(os.path.realpath(path) for path in own)


def _packages() -> list[str]:
    root = Path(__file__).parents[3]
    own = [root / name for name in ("pgolf", "stages", "cli")]
    return [str(path) for path in [*own, *root.glob("*.egg-info"), *root.glob("*.dist-info")]]


def _roots(more: Sequence[Path]) -> tuple[str, ...]:
    system = [Path(path) for path in ("/proc", "/sys", "/dev", "/etc", "/usr")]
    return (*_python_roots(), *(os.path.realpath(path) for path in [*system, *more]))


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip(os.sep) + os.sep) for root in roots)
