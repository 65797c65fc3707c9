"""Record of a program's accesses: files, network, other programs (audit test A17).

The program runs in the sandbox (`pgolf.sandbox`): an empty folder, no network, no files but Python's and its inputs. An
audit hook installed before anything else (`sys.addaudithook`, PEP 578) records what its Python code opens, connects to
and starts, so that the report can name an attempt. Native code acts unseen by the hook, not by the sandbox.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf import sandbox
from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, Finding
from pgolf.errors import PgolfError
from pgolf.sandbox import Limits

_MARK = "pgolf-watch-events "
# Runs before any other import of the child. Events are kept as plain tuples in a set and written at the end.
_HOOK = """
import json, os, runpy, sys
seen = {("home", os.path.realpath(os.environ["HOME"]))}
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
mark, path, kind, target = sys.argv[1:5]
sys.path[:] = json.loads(path)
sys.argv = [target, *sys.argv[5:]]
sys.addaudithook(hook)
try:
    (runpy.run_path if kind == "path" else runpy.run_module)(target, run_name="__main__")
finally:
    sys.stdout.flush()
    os.write(1, ("\\n" + mark + json.dumps(sorted(seen)) + "\\n").encode())
"""


@dataclass(frozen=True)
class Watched:
    """Accesses of a process, by kind; paths are real paths."""

    status: int
    stdout: str
    stderr: str
    level: str
    """The level of `pgolf.sandbox` that it ran at."""
    home: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


def run(
    kind: str, target: str, arguments: Sequence[str], inputs: Sequence[Path], seconds: float = 3600.0, gpu: bool = False
) -> Watched:
    """Run a module (`kind` "module") or a script ("path") in an empty folder and record its accesses.

    inputs: paths that it may read. Raises PgolfError when it does not end in time or leaves no record.
    """
    command = ["-I", "-c", _HOOK, _MARK, sandbox.search_path(), kind, target, *arguments]
    try:
        outcome = sandbox.run(command, inputs, Limits(seconds=seconds), gpu=gpu)
    except sandbox.Unavailable as error:
        raise PgolfError(f"the sandbox for the watched evaluation could not be built: {error}") from error
    if outcome.ended:
        raise PgolfError(f"the watched evaluation was ended at its limit of {outcome.ended}")
    stdout, mark, recorded = outcome.stdout.rpartition(_MARK)
    if not mark:
        raise PgolfError(f"the watched evaluation left no record (exit status {outcome.status}): {outcome.last_line}")
    events: list[tuple[str, str]] = [(what, name) for what, name in json.loads(recorded)]
    found: dict[str, Any] = {
        field: tuple(name for what, name in events if what == kind_name)
        for field, kind_name in (
            ("reads", "read"),
            ("writes", "write"),
            ("network", "network"),
            ("programs", "program"),
            ("libraries", "library"),
        )
    }
    home = next((name for what, name in events if what == "home"), "")
    return Watched(outcome.status, stdout.removesuffix("\n"), outcome.stderr, outcome.level, home, **found)


def isolation(watched: Watched, inputs: Sequence[Path]) -> Finding:
    """A17: no network, and no file read but the inputs, Python with its packages, and the system's own facts."""
    home = Path(watched.home)
    allowed = _roots([*inputs, home])
    strange = [path for path in watched.reads if not _below(path, allowed)]
    written = [path for path in watched.writes if not _below(path, _roots([home, Path("/dev"), Path("/proc")]))]
    given = {os.path.realpath(path) for path in inputs}
    read = sorted(given & set(watched.reads))
    numbers = {
        "inputs_read": read,
        "other_files_read": strange,
        "files_written_elsewhere": written,
        "network": list(watched.network),
        "programs_started": list(watched.programs),
        "libraries_loaded_by_hand": [path for path in watched.libraries if not _below(path, _python_roots())],
        "sandbox": watched.level,
    }
    if watched.network:
        text = f"it reaches for the network: {watched.network[0]}"
        return Finding("isolation", "A17", FAILED, text, numbers, {"event": watched.network[0]})
    if strange:
        text = f"it reads {len(strange)} file{'s' if len(strange) > 1 else ''} that are not inputs"
        return Finding("isolation", "A17", FAILED, text, numbers, {"file": strange[0]})
    if written:
        text = f"it writes outside its own folder: {len(written)} files"
        return Finding("isolation", "A17", FAILED, text, numbers, {"file": written[0]})
    if watched.status != 0:
        last = (watched.stderr.strip().splitlines() or ["no message"])[-1]
        text = f"in an empty folder the evaluation ends with status {watched.status}: {last}"
        return Finding("isolation", "A17", FAILED, text, numbers, {"status": watched.status})
    text = f"alone in an empty folder: {len(read)} inputs read, no other file, no network"
    if watched.programs:
        text += f"; programs started: {', '.join(sorted({Path(name).name for name in watched.programs}))}"
    return Finding("isolation", "A17", PASSED, text, numbers)


def not_watched(reason: str) -> Finding:
    return Finding("isolation", "A17", NOT_RUN, reason)


def _python_roots() -> tuple[str, ...]:
    return tuple(os.path.realpath(path) for path in sandbox.python_files())


def _roots(more: Sequence[Path]) -> tuple[str, ...]:
    system = [Path(path) for path in ("/proc", "/sys", "/dev", "/etc", "/usr")]
    return (*_python_roots(), *(os.path.realpath(path) for path in [*system, *more]))


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip(os.sep) + os.sep) for root in roots)
