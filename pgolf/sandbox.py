"""Run a program behind a wall made of the kernel's own means, with bounded memory, time, processes and output.

Two levels, the strongest that this system allows (docs/SECURITY.md lists what each stops):

- `namespaces`: user, mount, process, network and IPC namespaces (Linux 5.12). The program sees a read-only root that
  holds Python, the system's libraries and the named inputs, a private in-memory folder, no network, and no other
  process; every process it leaves behind ends with it.
- `landlock`: where namespaces are forbidden (most containers). Landlock (Linux 6.2) limits files to the same set, and a
  seccomp filter denies sockets, signals, new processes and changes of file metadata.

This file is also the launcher: `python -I -S sandbox.py SPEC` builds the wall around itself and executes the program.
The launcher imports the standard library only.
"""

import contextlib
import ctypes
import errno
import functools
import json
import os
import platform
import selectors
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

NAMESPACES, LANDLOCK, NOTHING = "namespaces", "landlock", "nothing"
LEVELS = (NAMESPACES, LANDLOCK)
# The user's own choices of GPU and of libraries, without which CUDA finds no driver in many containers, and of the
# instruction set, without which a proof decodes to other bits.
_PASSED_ON = (
    "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH",
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR",
)  # fmt: skip
_GPU_FILES = (
    "/dev/nvidia*",
    "/dev/dxg",
    "/proc/driver/nvidia",
    "/sys/module/nvidia*",
    "/run/nvidia*",
)
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/sbin", "/etc/ld.so.cache", "/etc/ld.so.conf",
           "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/sys/devices/system")  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_START = "import json,runpy,sys; sys.path[:]=json.loads(sys.argv.pop(1)); del sys.argv[0]; \
runpy.run_{}(sys.argv[0],run_name='__main__'{})"
_NOBODY = 65534  # the overflow id of Linux: owns nothing


@dataclass(frozen=True)
class Limits:
    """Resource limits of a program. The defaults are several times the needs of a packaged model of the challenge's
    size."""

    seconds: float = 3600.0
    memory_bytes: int = 16 << 30
    """Resident memory of all processes together. Each may reserve 8 GiB of addresses more than that (threads do),
    or any number with a GPU: CUDA reserves hundreds of GB."""
    file_bytes: int = 256 << 20
    processes: int = 512
    output_bytes: int = 16 << 20
    """Of stdout, and of stderr; a program that writes more is ended."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a sandboxed program."""

    status: int
    """Exit status; minus the signal's number after a signal."""
    stdout: str
    stderr: str
    ended: str
    """Empty when it ended by itself, else the limit that ended it: `time`, `memory` or `output`."""
    level: str

    @property
    def last_line(self) -> str:
        return (self.stderr.strip().splitlines() or ["no message"])[-1][:300]


class Unavailable(Exception):
    """The wall cannot be built on this system; the message is the reason."""


def run(
    arguments: Sequence[str],
    readable: Sequence[Path] = (),
    limits: Limits | None = None,
    gpu: bool = False,
    level: str | None = None,
    executable: str = sys.executable,
) -> Outcome:
    """Run this Python with `arguments` in an empty private folder, which is also its HOME and TMPDIR.

    readable: files and folders it may read besides Python and the system's libraries; each keeps its path. gpu: show it
    the NVIDIA devices. level: None takes the strongest one here, `NOTHING` if there is none; the caller decides whether
    that is acceptable.

    Raises Unavailable when the wall of the given level cannot be built.
    """
    limits = limits or Limits()
    chosen = level or available()
    with tempfile.TemporaryDirectory(prefix="pgolf-wall-", ignore_cleanup_errors=True) as base:
        work, root = Path(base) / "work", Path(base) / "root"
        work.mkdir()
        root.mkdir(mode=0o755)
        passed = {name: os.environ[name] for name in os.environ if name in _PASSED_ON or name.startswith("NVIDIA_")}
        libraries = passed.get("LD_LIBRARY_PATH", "").split(":")
        spec = {
            "argv": [executable, *arguments],
            "work": str(work),
            "root": str(root),
            "readable": [str(path) for path in _existing([*python_files(), *libraries, *map(str, readable)])],
            "gpu": gpu and bool(_gpu_files()),
            "level": chosen,
            "limits": asdict(limits),
        }
        environment = passed | {
            "HOME": str(work),
            "TMPDIR": str(work),
            "PATH": os.defpath,
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        }
        reader, writer = os.pipe()
        try:
            launcher = subprocess.Popen(
                [executable, "-I", "-S", __file__, str(writer), json.dumps(spec)],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=[writer],
            )
        finally:
            os.close(writer)
        with launcher, os.fdopen(reader, "rb") as answer:
            stdout, stderr, ended = _collect(launcher, limits)
            reported = json.loads(answer.read() or b"{}")
    if "unavailable" in reported:
        raise Unavailable(str(reported["unavailable"]))
    text = (stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))
    return Outcome(int(reported.get("status", -signal.SIGKILL)), *text, ended or str(reported.get("ended", "")), chosen)


def module(name: str, *arguments: str) -> list[str]:
    """Arguments for `run` that run module `name` with this process's module search path.

    An isolated Python takes neither PYTHONPATH nor the user's own site-packages from the environment.
    """
    return ["-I", "-c", _START.format("module", ",alter_sys=True"), search_path(), name, *arguments]


def script(path: Path, *arguments: str) -> list[str]:
    """The same for the Python file `path`."""
    return ["-I", "-c", _START.format("path", ""), search_path(), str(path), *arguments]


def search_path() -> str:
    """The import path of this process as JSON, without its working folder."""
    return json.dumps([*_import_path(), str(Path(__file__).parents[1])])


def _import_path() -> list[str]:
    """`sys.path` without the folder of the running script and the working folder, which may hold anything."""
    here = {os.getcwd(), os.path.dirname(os.path.abspath(sys.argv[0]))} if sys.argv else {os.getcwd()}
    paths = [os.path.abspath(entry) for entry in sys.path if entry and os.path.exists(entry)]
    return [path for path in paths if path not in here or path in os.environ.get("PYTHONPATH", "").split(os.pathsep)]


@functools.cache
def available() -> str:
    """The strongest level that works on this system."""
    return next((level for level in LEVELS if why_not(level) is None), NOTHING)


@functools.cache
def why_not(level: str) -> str | None:
    """Why a level does not work here, None when it does: found out by running an empty program behind it."""
    try:
        outcome = run(["-I", "-S", "-c", "print(7)"], limits=Limits(seconds=30.0), level=level)
    except Unavailable as error:
        return str(error)
    return None if outcome.stdout == "7\n" else f"an empty program failed: {outcome.last_line}"


def reasons() -> str:
    """Why no level works here, in one line."""
    return "; ".join(f"{level}: {why_not(level)}" for level in LEVELS)


def _collect(launcher: "subprocess.Popen[bytes]", limits: Limits) -> tuple[bytes, bytes, str]:
    """Both outputs, each cut at its bound, and the limit that ended the program."""
    assert launcher.stdout is not None
    assert launcher.stderr is not None
    streams = {launcher.stdout.fileno(): bytearray(), launcher.stderr.fileno(): bytearray()}
    deadline, ended = time.monotonic() + limits.seconds, ""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and not ended:
            left = deadline - time.monotonic()
            if left <= 0:
                ended = "time"
            for key, _ in selector.select(max(0.0, min(left, 1.0))):
                block = os.read(key.fd, 1 << 16)
                streams[key.fd] += block
                if not block:
                    selector.unregister(key.fd)
                elif len(streams[key.fd]) > limits.output_bytes:
                    ended = "output"
    if not ended:
        try:
            launcher.wait(max(0.1, deadline - time.monotonic()))  # it may go on with its output closed
        except subprocess.TimeoutExpired:
            ended = "time"
    if ended:
        launcher.kill()  # the sandboxed processes die with their launcher
    launcher.wait()
    stdout, stderr = streams.values()
    return bytes(stdout), bytes(stderr), ended


def python_files() -> list[str]:
    """Every place that this Python imports from, and pgolf itself."""
    own = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), os.path.dirname(sys.executable)]
    package = Path(__file__).parents[1]
    pgolf = [str(package / name) for name in ("pgolf", "stages", "cli")]
    paths = [entry for entry in _import_path() if Path(entry).resolve() != package]
    # Packages that are links to another place, as some installers make them.
    linked = [item.path for path in paths if os.path.isdir(path) for item in os.scandir(path) if item.is_symlink()]
    return [*own, os.path.realpath(sys.executable), *paths, *map(os.path.realpath, linked), *pgolf]


def _existing(paths: Sequence[str]) -> list[Path]:
    """Real absolute paths without those inside another; a link is kept together with its target."""
    found: set[Path] = set()
    for path in filter(None, paths):
        if os.path.exists(path):
            found |= {Path(os.path.abspath(path)), Path(path).resolve()}
    return sorted(path for path in found if not any(other in path.parents for other in found) and path != Path("/"))


# The launcher. Everything below runs in the process that becomes the program.

_NEWUSER, _NEWNS, _NEWPID, _NEWNET, _NEWIPC, _NEWUTS = 0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 28, 38
_SYSCALLS = {
    # name: x86-64, aarch64. Denied at every level: ways to reach the kernel or other processes that no model needs.
    "x86_64": (
        0xC000003E,
        "101 310 311 165 166 155 161 272 308 248 249 250 321 298 323 425 426 427 246 320 175 313 176 304 303 169 167"
        " 168 179 163 164 227 159 305 428 429 430 431 432 433 442 438 103 312 172 173",
        # Denied with Landlock alone: sockets, signals, shared memory, processes, and the metadata that Landlock leaves.
        "41 62 200 234 424 434 129 297 29 64 68 240 57 58 90 91 268 452 92 93 94 260 132 235 280 261 188 189 190 197"
        " 198 199",
        (56, 435),
    ),
    "aarch64": (
        0xC00000B7,
        "117 270 271 40 39 41 51 97 268 217 218 219 280 241 282 425 426 427 104 294 105 273 106 265 264 142 224 225 60"
        " 89 170 112 171 266 428 429 430 431 432 433 442 438 116 272",
        "198 129 130 131 424 434 138 240 194 190 186 180 52 53 452 55 54 88 5 6 7 14 15 16",
        (220, 435),
    ),
}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    """A function of the C library; raises OSError when it returns a negative number."""
    wrapped = [ctypes.c_ulong(value) if isinstance(value, int) and value >= 0 else value for value in arguments]
    value = int(getattr(_libc(), name)(*wrapped))
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return value


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


def _bind(source: str, root: str, writable: bool = False, device: bool = False) -> None:
    """Show `source` (file, folder or link) at the same path below `root`."""
    target = root + source
    if os.path.islink(target) or os.path.isfile(target):
        return
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, "", _MS_BIND | _MS_REC)
    attributes = struct.pack("QQQQ", (0 if writable else 1) | 2 | (0 if device else 4), 0, 0, 0)
    at_fdcwd, recursive, number = -100, 0x8000, 442  # mount_setattr
    _call("syscall", number, ctypes.c_long(at_fdcwd), target.encode(), recursive, attributes, len(attributes))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _enter_user_namespace(flags: int) -> bool:
    """Unshare with a user namespace; whether an id besides the user's own (nobody) could be mapped into it.

    Only a process outside may map more than one id, and only root may: a helper forked before does it.
    """
    uid, gid = os.geteuid(), os.getegid()
    mine, ready = os.getpid(), os.pipe()
    helper = os.fork()
    if helper == 0:
        os.read(ready[0], 1)
        code = 1
        with contextlib.suppress(OSError):
            for kind, own in (("uid", uid), ("gid", gid)):
                _write(f"/proc/{mine}/{kind}_map", f"0 {own} 1\n1000 {_NOBODY} 1\n")
            code = 0
        os._exit(code)
    _call("unshare", flags)
    os.write(ready[1], b"x")
    _, code = os.waitpid(helper, 0)
    for end in ready:
        os.close(end)
    if uid == 0 and code == 0:
        return True
    inside = 0 if uid == 0 else 1000
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{inside} {uid} 1\n")
    _write("/proc/self/gid_map", f"{inside} {gid} 1\n")
    return False


def _new_root(spec: dict, memory: int) -> bool:
    """Build the root that the program sees and enter it; whether it has a /proc."""
    root, work = spec["root"], spec["work"]
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=16m")
    size = min(memory, 2 << 30)

    def in_memory(folder: str) -> None:
        os.makedirs(root + folder, exist_ok=True)
        _mount("tmpfs", root + folder, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=1777,size={size}")

    in_memory("/tmp")
    in_memory("/dev/shm")
    for source in [path for path in _SYSTEM if os.path.exists(path)] + spec["readable"]:
        _bind(source, root)
    gpu = _gpu_files() if spec["gpu"] else []
    for source in _DEVICES:
        _bind(source, root, writable=True, device=True)
    for source in gpu:
        if not source.startswith("/proc/"):
            _bind(source, root, writable=True, device=True)
    in_memory(work)
    os.mkdir(root + "/proc")
    proc = True
    try:
        _mount("proc", root + "/proc", "proc", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError:  # a container that masks parts of /proc does not allow another one
        proc = False
    os.chdir(root)
    number = 155 if platform.machine() == "x86_64" else 41  # pivot_root(".", "."), after which the old root lies on top
    _call("syscall", number, b".", b".")
    _call("umount2", b".", 2)
    os.chdir("/")
    _mount("none", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(work)
    return proc


def _gpu_files() -> list[str]:
    import glob

    return [path for pattern in _GPU_FILES for path in sorted(glob.glob(pattern))]


def _become_nobody(readable: Sequence[str]) -> None:
    """As root: take nobody's id where nobody can read all that is shown; else stay, without any capability."""
    tester = os.fork()
    if tester == 0:
        os.setgroups([])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        os._exit(0 if all(_can_read(path) for path in readable) else 1)
    if os.waitpid(tester, 0)[1] == 0:
        os.setgroups([])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)


def _can_read(path: str) -> bool:
    if os.path.isdir(path):
        return os.access(path, os.R_OK | os.X_OK) and all(
            os.access(entry.path, os.R_OK | (os.X_OK if entry.is_dir() else 0)) for entry in os.scandir(path)
        )
    return os.access(path, os.R_OK)


def _restrict_files(spec: dict) -> None:
    """Landlock: read the named paths, write the work folder; no TCP, no signals to and no sockets of other programs."""
    create, add, restrict = 444, 445, 446
    abi = _call("syscall", create, None, 0, 1)
    if abi < 3:
        raise OSError(errno.ENOSYS, f"Landlock version {abi} does not cover truncation; Linux 6.2 does")
    everything = (1 << (16 if abi >= 5 else 15)) - 1
    attributes = struct.pack("QQQ", everything, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    attributes = attributes[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _call("syscall", create, attributes, len(attributes), 0)
    execute, write_file, read_file, read_dir, truncate, ioctl = 1, 2, 4, 8, 1 << 14, 1 << 15
    read = execute | read_file | read_dir
    files = read_file | write_file | execute | truncate | ioctl
    rules = [(path, read) for path in [*_SYSTEM, *spec["readable"], "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"]]
    rules += [(path, read_file | write_file | ioctl) for path in (*_DEVICES, *(_gpu_files() if spec["gpu"] else ()))]
    rules.append((spec["work"], everything))
    for path, rights in rules:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this system
        allowed = rights & everything & (-1 if os.path.isdir(path) else files)
        _call("syscall", add, ruleset, 1, struct.pack("=Qi", allowed, opened), 0)
        os.close(opened)
    _call("syscall", restrict, ruleset, 0)


def _filter_calls(alone: bool) -> None:
    """seccomp: deny the calls above; `alone`: those too that only Landlock's level has to deny."""
    known = _SYSCALLS.get(platform.machine())
    if known is None:
        if alone:
            raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
        return
    machine, always, landlock, (clone, clone3) = known
    load, equal, at_least, any_of, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent, kill = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, kill), (load, 0, 0, 0)]
    if machine == 0xC000003E:
        program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 calls: other numbers
    for number in map(int, f"{always} {landlock if alone else ''}".split()):
        program += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    program += [(equal, 0, 1, clone3), (give, 0, 0, absent)]  # its flags lie in memory; glibc then takes clone
    program += [(equal, 0, 5 if alone else 3, clone), (load, 0, 0, 16)]
    new_namespaces, thread = 0x7E020080, 0x10000
    program += [(any_of, 0, 1, new_namespaces), (give, 0, 0, refuse)]
    if alone:
        program += [(any_of, 1, 0, thread), (give, 0, 0, refuse)]
    program.append((give, 0, 0, allow))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _call("prctl", _PR_SET_SECCOMP, 2, header)


def _limit(limits: Limits, gpu: bool) -> None:
    import resource

    values = {
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_NOFILE: 4096,
        resource.RLIMIT_CPU: int(limits.seconds * (os.cpu_count() or 1)) + 10,
    }
    if not gpu:
        values[resource.RLIMIT_AS] = limits.memory_bytes + (8 << 30)
    for kind, value in values.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _supervise(child: int, limits: Limits, proc: bool) -> dict:
    """Wait for the program and reap its children; end it when all processes together use too much memory."""
    page, pause = os.sysconf("SC_PAGE_SIZE"), 0.005
    while True:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done == child:
            return {"status": os.waitstatus_to_exitcode(status)}
        if done:
            continue
        held = 0
        for name in [entry for entry in os.listdir("/proc") if entry.isdigit()] if proc else [str(child)]:
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/statm") as file:
                held += int(file.read().split()[1]) * page
        if held > limits.memory_bytes:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
            return {"status": -signal.SIGKILL, "ended": "memory"}
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)


def _launch(writer: int, spec: dict) -> None:
    """Build the wall of the requested level around a child, execute the program in it, and report the outcome."""
    limits, level = Limits(**spec["limits"]), spec["level"]
    answer: dict = {}
    try:
        if sys.platform == "linux":
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
        if level == NAMESPACES:
            mapped = _enter_user_namespace(_NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
            first = os.fork()  # process 1 of its namespace: when it ends, the kernel ends all others there
            if first:
                os.waitpid(first, 0)
                os._exit(0)
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
            _call("prctl", _PR_SET_DUMPABLE, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            proc = _new_root(spec, limits.memory_bytes)
        os.set_inheritable(writer, False)
        failed, fail = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                if level == NAMESPACES and os.geteuid() == 0:
                    _call("prctl", _PR_SET_SECUREBITS, 3)  # executing as root gives no capabilities, locked
                    if mapped:
                        _become_nobody(spec["readable"])
                if sys.platform == "linux":
                    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of id, which clears it
                    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                _limit(limits, spec["gpu"])
                if level == LANDLOCK:
                    _restrict_files(spec)
                if level != NOTHING:
                    _filter_calls(alone=level == LANDLOCK)
                os.execv(spec["argv"][0], spec["argv"])
            except BaseException as error:
                os.write(fail, str(error).encode())
            os._exit(125)
        os.close(fail)
        os.close(1)
        os.close(2)
        reason = os.read(failed, 4096).decode("utf-8", "replace")
        answer = {"unavailable": reason} if reason else _supervise(child, limits, level == NAMESPACES and proc)
    except (OSError, AttributeError, ValueError) as error:
        answer = {"unavailable": str(error)}
    os.write(writer, json.dumps(answer).encode())
    os._exit(0)


if __name__ == "__main__":
    _launch(int(sys.argv[1]), json.loads(sys.argv[2]))
