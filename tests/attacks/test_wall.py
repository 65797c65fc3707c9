"""Programs that try to leave the sandbox: nothing outside changes, nothing secret comes out, nothing stays behind.

Every attack runs as the program behind the wall, at each level that this system has. `OUT` is a folder outside that the
test's user may write to, `SECRET` a file in it, `PORT` a local server that anyone outside reaches.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from pgolf import sandbox
from pgolf.sandbox import NAMESPACES, Limits

WORD = "wall-secret-7261"
PRELUDE = """
import ctypes, json, mmap, os, pathlib, signal, socket, struct, subprocess, sys, time
OUT, SECRET, SOCKET, PORT, PARENT = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
libc = ctypes.CDLL(None, use_errno=True)
def native(name, *arguments):
    "A C function, without anything of Python's that could notice."
    value = getattr(libc, name)(*arguments)
    if value < 0: raise OSError(ctypes.get_errno(), name)
    return value
"""
# Each must do no harm; `print("won ...")` says that it did some that no file shows.
ATTACKS = {
    # Named in the issue.
    "os.open with dir_fd through /proc/self": """
        folder = os.open("/proc/self/root" + OUT, os.O_RDONLY)
        file = os.open("written", os.O_CREAT | os.O_WRONLY, dir_fd=folder); os.write(file, b"x")
    """,
    "os.rename with dir_fd": """
        folder = os.open(OUT, os.O_RDONLY | os.O_DIRECTORY)
        os.rename("secret", "moved", src_dir_fd=folder, dst_dir_fd=folder)
    """,
    "_posixsubprocess.fork_exec": """
        import _posixsubprocess as p
        r, w = os.pipe()
        p.fork_exec([b"/bin/touch", (OUT + "/written").encode()], [b"/bin/touch"], True, (w,), None, None, -1, -1, -1,
                    -1, -1, -1, r, w, True, False, -1, None, None, None, -1, None, False)
        time.sleep(0.2)
    """,
    "multiprocessing.util.spawnv_passfds": """
        from multiprocessing import util
        util.spawnv_passfds(b"/bin/touch", [b"touch", (OUT + "/written").encode()], ()); time.sleep(0.2)
    """,
    "ctypes.pythonapi.system": """
        ctypes.pythonapi.system(("echo x > " + OUT + "/written").encode())
    """,
    "a daemon that outlives the check": """
        native("setsid") if os.fork() == 0 else os._exit(0)
        if os.fork(): os._exit(0)
        for end in (0, 1, 2): os.close(end)
        pathlib.Path("/proc/self/comm").write_text("wall-daemon") if 0 else native("prctl", 15, b"wall-daemon", 0, 0, 0)
        time.sleep(60)
    """,
    # Of our own.
    "open for writing": "open(OUT + '/written', 'w').write('x')",
    "libc's open": "native('open', (OUT + '/written').encode(), os.O_CREAT | os.O_WRONLY, 0o666)",
    "reading a secret": "print(open(SECRET).read())",
    "reading through process 1's root": "print(open('/proc/1/root' + SECRET).read())",
    "reading through the launcher": "print(open(f'/proc/{os.getppid()}/root' + SECRET).read())",
    "another process's environment": "print(open(f'/proc/{PARENT}/environ', 'rb').read().decode())",
    "another process's memory": """
        local, target = ctypes.create_string_buffer(8), 0x400000
        own, other = struct.pack("PN", ctypes.addressof(local), 8), struct.pack("PN", target, 8)
        native("process_vm_readv", PARENT, own, 1, other, 1, 0); print("won memory")
    """,
    "ptrace": "native('ptrace', 16, PARENT, 0, 0); print('won ptrace')",
    "a signal to a process outside": "os.kill(PARENT, 0); print('won kill')",
    "truncating a file": "os.truncate(SECRET, 0)",
    "deleting a file": "native('unlink', SECRET.encode())",
    "a hard link into the private folder": "os.link(SECRET, 'mine'); print(open('mine').read())",
    "a symbolic link out of the private folder": "os.symlink(SECRET, 'mine'); print(open('mine').read())",
    "modes, times and attributes": """
        for act in (lambda: os.chmod(SECRET, 0o777), lambda: os.utime(SECRET, (1, 1)),
                    lambda: os.setxattr(SECRET, "user.x", b"x"), lambda: os.chown(SECRET, 12345, 12345)):
            try: act()
            except OSError: pass
    """,
    "a connection to a local server": """
        socket.create_connection(("127.0.0.1", PORT), 2).sendall(b"x"); print("won tcp")
    """,
    "a datagram": """
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"x", ("127.0.0.1", PORT))
    """,
    "a socket file outside": """
        s = socket.socket(socket.AF_UNIX); s.connect(SOCKET); print("won socket")
    """,
    "an abstract socket outside": """
        s = socket.socket(socket.AF_UNIX); s.connect("\\0wall-test-%d" % PARENT); print("won abstract socket")
    """,
    "a user namespace of its own": """
        native("unshare", 0x10000000 | 0x20000); print("won namespace")
    """,
    "clone3 into a namespace": """
        arguments = struct.pack("QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0)
        if native("syscall", 435, arguments, 64) == 0: os._exit(0)
        print("won clone3")
    """,
    "mounting and remounting": """
        for arguments in ((b"none", b"/", b"", 4096 | 32, b""), (b"none", b"/tmp", b"tmpfs", 0, b"")):
            try: native("mount", *arguments); print("won mount")
            except OSError: pass
    """,
    "a file by its handle": """
        handle = struct.pack("IiII", 8, 1, 2, 0)
        native("syscall", 304 if os.uname().machine == "x86_64" else 265, -100, handle, 0); print("won handle")
    """,
    "kernel settings": """
        for name in ("kernel/core_pattern", "kernel/modprobe", "vm/drop_caches"):
            try: open("/proc/sys/" + name, "a").write(""); print("won", name)
            except OSError: pass
    """,
    "io_uring": "native('syscall', 425, 8, ctypes.create_string_buffer(240)); print('won io_uring')",
    "the kernel's keyring": "native('syscall', 250 if os.uname().machine[0] == 'x' else 219, 0, -3, 1); print('won')",
    "bpf": "native('syscall', 321 if os.uname().machine == 'x86_64' else 280, 0, b'\\0' * 64, 64); print('won bpf')",
    "shared memory that stays": """
        print("segment", native("shmget", 0x7261, 4096, 0o1666))
    """,
    "becoming root": """
        for act in (lambda: os.setuid(0), lambda: native("setresuid", 0, 0, 0)):
            try:
                if os.getuid() != 0: act(); print("won root")
            except OSError: pass
        held = int([l for l in open("/proc/self/status") if l.startswith("CapEff")][0].split()[1], 16)
        if held: print("won capabilities", held)
    """,
    "descriptors left open": """
        for number in range(3, 200):
            try: print("won descriptor", number, os.readlink(f"/proc/self/fd/{number}") if os.fstat(number) else "")
            except OSError: pass
    """,
    "writing into pgolf and Python": """
        import json.decoder
        for path in (json.decoder.__file__, sys.executable, sys.argv[6]):
            try: open(path, "r+b"); print("won", path)
            except OSError: pass
    """,
}
LEVELS = [
    pytest.param(level, marks=pytest.mark.skipif(bool(why), reason=f"the {level} level does not work here: {why}"))
    for level, why in ((level, sandbox.why_not(level)) for level in sandbox.LEVELS)
]
levels = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """(arguments for an attack, a check that nothing happened)."""
    out = tmp_path / "outside"
    out.mkdir()
    secret = out / "secret"
    secret.write_text(WORD)
    monkeypatch.setenv("WALL_TEST", WORD)
    servers = []
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, str(tmp_path / "socket")),
        (socket.AF_UNIX, socket.SOCK_STREAM, f"\0wall-test-{os.getpid()}"),
    ):
        server = socket.socket(family, kind)
        server.bind(address)
        server.listen()
        server.setblocking(False)
        servers.append(server)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port = servers[0].getsockname()[1]
    datagrams.bind(("127.0.0.1", port))
    datagrams.setblocking(False)
    before = secret.stat()

    def unharmed(outcome):
        assert [path.name for path in out.iterdir()] == ["secret"]
        assert secret.read_text() == WORD
        after = secret.stat()
        for field in ("st_mode", "st_mtime_ns", "st_uid", "st_nlink"):
            assert getattr(after, field) == getattr(before, field), field
        assert WORD not in outcome.stdout
        assert "won" not in outcome.stdout
        for server in servers:
            with pytest.raises(BlockingIOError):
                server.accept()
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)

    yield [str(out), str(secret), str(tmp_path / "socket"), str(port), str(os.getpid()), sandbox.__file__], unharmed
    for server in (*servers, datagrams):
        server.close()


def attack(source, arguments, level, **limits):
    code = PRELUDE + textwrap.dedent(source)
    return sandbox.run(["-I", "-c", code, *arguments], limits=Limits(**{"seconds": 30.0} | limits), level=level)


def processes(name):
    """Ids of this system's processes of that name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [path.parent.name] if path.read_text().strip() == name else []
        except OSError:
            continue
    return found


@levels
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_nothing_outside(name, level, outside):
    arguments, unharmed = outside
    outcome = attack(ATTACKS[name], arguments, level)
    unharmed(outcome)
    assert not processes("wall-daemon")
    if "segment" in outcome.stdout:
        assert "00007261" not in Path("/proc/sysvipc/shm").read_text()


@pytest.mark.skipif(sandbox.available() == sandbox.NOTHING, reason=f"no wall here: {sandbox.reasons()}")
@pytest.mark.parametrize("name", ["open for writing", "ctypes.pythonapi.system", "a connection to a local server"])
def test_the_attacks_work_without_a_wall(name, outside):
    """Else the tests above would show nothing."""
    arguments, unharmed = outside
    outcome = attack(ATTACKS[name], arguments, sandbox.NOTHING)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        unharmed(outcome)


@levels
def test_libraries_that_write_natively(level, outside):
    """torch.save, safetensors, sqlite3 and the SentencePiece trainer open files in C++, unseen by Python's hooks."""
    arguments, unharmed = outside
    source = """
        import safetensors.torch, sentencepiece, sqlite3, torch
        open("text", "w").write("a b c d e f g\\n" * 50)
        done = {}
        for name, act in {
            "torch": lambda to: torch.save({"x": torch.ones(3)}, to),
            "safetensors": lambda to: safetensors.torch.save_file({"x": torch.ones(3)}, to),
            "sqlite3": lambda to: sqlite3.connect(to).execute("create table t (x)").connection.commit(),
            "sentencepiece": lambda to: sentencepiece.SentencePieceTrainer.train(
                input="text", model_prefix=to, vocab_size=12, minloglevel=9, hard_vocab_limit=False),
        }.items():
            for where in (OUT + "/written-", "mine-"):
                try: act(where + name); done[where[-5:] + name] = True
                except BaseException as error: done[where[-5:] + name] = False
        print(json.dumps(done))
    """
    start = f"import sys; sys.path[:] = {json.loads(sandbox.search_path())!r}\n"
    outcome = sandbox.run(
        ["-I", "-c", start + PRELUDE + textwrap.dedent(source), *arguments],
        limits=Limits(seconds=120.0), level=level,
    )  # fmt: skip
    unharmed(outcome)
    done = json.loads(outcome.stdout.splitlines()[-1])
    assert {name for name, worked in done.items() if worked} == {
        "mine-torch", "mine-safetensors", "mine-sqlite3", "mine-sentencepiece"
    }  # fmt: skip


@levels
def test_memory_is_bounded_over_all_processes(level):
    grow = """
        if sys.argv[1] == "many" and hasattr(os, "fork"):
            for _ in range(5):
                try:
                    if os.fork() == 0: break
                except OSError: pass
        held = []
        while True: held.append(bytearray(b"x" * (16 << 20)))
    """
    code = PRELUDE.replace("OUT, SECRET, SOCKET, PORT, PARENT", "_").replace(
        "sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])", "0"
    )
    outcome = sandbox.run(
        ["-I", "-c", code + textwrap.dedent(grow), "many"],
        limits=Limits(seconds=30, memory_bytes=300 << 20),
        level=level,
    )
    assert outcome.ended in ("memory", "")
    assert outcome.status != 0


@levels
def test_the_environment_holds_the_instruction_set_and_little_else(level, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    outcome = sandbox.run(
        ["-I", "-c", "import os; print(os.environ.get('ATEN_CPU_CAPABILITY'), 'SECRET_TOKEN' in os.environ)"],
        level=level,
    )
    assert outcome.stdout.split() == ["default", "False"], outcome.stderr


@levels
@pytest.mark.parametrize("stream", [1, 2])
def test_output_is_bounded_in_the_parent(level, stream):
    code = f"import os\nwhile True: os.write({stream}, b'x' * 65536)"
    outcome = sandbox.run(["-I", "-c", code], limits=Limits(seconds=60, output_bytes=1 << 20), level=level)
    assert outcome.ended == "output"
    assert len(outcome.stdout) + len(outcome.stderr) <= (1 << 20) + (1 << 16)


@levels
def test_time_processes_and_files_are_bounded(level):
    clock = time.monotonic()
    assert (
        sandbox.run(["-I", "-c", "import time; time.sleep(60)"], limits=Limits(seconds=0.7), level=level).ended
        == "time"
    )
    closed = "import os, time; os.close(1); os.close(2); time.sleep(60)"
    assert sandbox.run(["-I", "-c", closed], limits=Limits(seconds=0.7), level=level).ended == "time"
    assert time.monotonic() - clock < 20
    bomb = """if True:
        import os, time
        for n in range(200):
            try:
                if os.fork() == 0: time.sleep(20)
            except OSError: print(n); break"""
    outcome = sandbox.run(["-I", "-c", bomb], limits=Limits(seconds=20, processes=40), level=level)
    assert int(outcome.stdout.splitlines()[-1]) <= 40
    big = "open('big', 'wb').write(b'x' * (3 << 20))"
    assert sandbox.run(["-I", "-c", big], limits=Limits(seconds=20, file_bytes=1 << 20), level=level).status != 0


@levels
def test_sandboxed_processes_end_with_their_launcher(level, tmp_path):
    """A killed pgolf leaves nothing running."""
    code = (
        f"from pgolf import sandbox; sandbox.run(['-I', '-c', 'import ctypes, time; ctypes.CDLL(None)."
        f'prctl(15, b"wall-orphan", 0, 0, 0); time.sleep(60)\'], level={level!r})'
    )
    root = Path(sandbox.__file__).parents[1]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    deadline = time.monotonic() + 20
    while not processes("wall-orphan") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes("wall-orphan")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while processes("wall-orphan") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes("wall-orphan")


@levels
def test_named_inputs_are_readable_and_only_they(level, tmp_path):
    given, other = tmp_path / "given", tmp_path / "other"
    given.mkdir(mode=0o700)
    (given / "a").write_text("seven")
    (given / "a").chmod(0o600)
    other.write_text(WORD)
    code = "import sys; print(open(sys.argv[1] + '/a').read()); open(sys.argv[2])"
    outcome = sandbox.run(["-I", "-c", code, str(given), str(other)], readable=[given], level=level)
    assert outcome.stdout == "seven\n"
    assert outcome.status == 1
    assert "Error" in outcome.last_line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can try the wall as another user")
@levels
def test_an_unprivileged_user_has_the_same_wall(level):
    """Run by nobody, with the system's Python: this one may lie in a folder that nobody else can enter."""
    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(p).exists()), None)
    if python is None:
        pytest.skip("no Python of the system's that another user could run")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        place = Path(shutil.copy(sandbox.__file__, Path(folder) / "wall.py"))
        inner = "import os, sys; print(os.getuid()); open('x', 'w'); open(sys.argv[1])"
        code = f"import wall; print(wall.run(['-I', '-c', {inner!r}, '/etc/passwd'], level={level!r}))"
        done = subprocess.run(
            [python, "-c", code], cwd=folder, env={"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            user=65534, group=65534, extra_groups=[], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert place.exists()
    assert done.returncode == 0, done.stderr
    uid = "1000" if level == NAMESPACES else "65534"
    assert f"status=1, stdout='{uid}\\n'" in done.stdout
    assert "/etc/passwd" in done.stdout
