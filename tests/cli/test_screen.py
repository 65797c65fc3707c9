"""What reaches the terminal: every text as it is, whole figures, one line for every failure."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import typed
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli import activity, common, interrupts, screen
from pgolf import caches
from pgolf.errors import CheckFailed, PgolfError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shown(monkeypatch):
    """Function that gives what was printed so far, on a console of a given width."""
    file = io.StringIO()

    def use(width=80):
        for name in ("console", "results"):
            made = Console(file=file, highlight=False, markup=False, emoji=False, width=width)
            monkeypatch.setattr(screen, name, made)
        monkeypatch.setattr(sys, "stdout", file)
        return file.getvalue

    return use


def test_every_text_is_shown_as_it_is(shown):
    printed = shown()
    odd = "runs [v2]/[bold]x[/bold] :fire: [/] \\[a]"
    screen.Screen().message(odd)
    screen.Screen().table(odd, ("name", "bytes"), [(odd, "1")])
    screen.say_error(odd)
    assert printed().count(odd) == 4


def test_results_go_to_stdout_and_words_about_the_work_to_stderr(capsys):
    for as_json in (False, True):
        told = screen.Screen(as_json)
        told.message("working")
        told.result("1.25 bits per byte")
        told.table("scores", ("what", "where", "bytes"), [("a", "here", "1,000"), ("b", "there", "10")])
        told.table("more", ("what",), [("detail",)], detail=True)
        out, err = capsys.readouterr()
        lines = (err if as_json else out).splitlines()
        assert [line for line in lines if "1.25" in line] == ["1.25 bits per byte"]
        # Words are aligned to the left, numbers to the right.
        assert "│ a    │ here  │ 1,000 │" in lines
        assert "│ b    │ there │    10 │" in lines
        assert "working" in err
        assert ("working" in out, bool(out)) == (False, not as_json)
        assert "detail" not in out + err


@given(st.text(), st.sampled_from("\x1b\x07\x00\x9b\r\u202e\ud800\x7f"))
def test_nothing_that_a_terminal_obeys_is_shown(text, control):
    found = screen.plain(text + control)
    assert all(letter == "\n" or letter.isprintable() or ord(letter) >= 0xA0 for letter in found)
    assert "\x1b" not in found
    assert found.encode()


@pytest.mark.parametrize("width", [20, 80])
def test_figures_are_never_broken(shown, width):
    printed = shown(width)
    figures = [f"{number},389,{number}" for number in range(101, 109)]
    screen.Screen().table("", ("role", *figures), [("attention.query", *figures)])
    last = next(line for line in printed().splitlines() if "attention.query" in line)
    assert last.replace("│", " ").split() == ["attention.query", *figures]


def test_a_table_loses_its_frame_before_it_is_too_wide_and_its_title_is_whole(shown):
    printed = shown(80)
    cells = ["default@float", "11-29", "demo", "2,158,592", "68,297", "4.2545", "3.5944", "waterfill", "4.2392"]
    screen.Screen().table("eval-sliding@gptq of quantize@gptq, artifacts/default", cells, [cells])
    lines = printed().splitlines()
    assert lines[0] == "eval-sliding@gptq of quantize@gptq, artifacts/default"
    assert [line.split() for line in lines[1:]] == [cells, cells]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused_by_name(value, tmp_path):
    result = typed.pgolf("audit", "--limit-seconds", value, "--artifacts", tmp_path)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("pgolf: ")
    assert f"'--limit-seconds': '{value}' is not a time; write it as 600 (seconds)" in line


def failed(error, capsys, **options):
    def work():
        raise error

    with pytest.raises(typer.Exit) as ended:
        common.guarded(work, debug=False, as_json=True, **options)
    found = capsys.readouterr()
    assert len(found.err.strip().splitlines()) == 1
    return ended.value.exit_code, found.err, json.loads(found.out)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PgolfError("what\nwhere"), 2, "what where"),
        (CheckFailed("over"), 1, "over"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "a/b"), 2, "a/b: No space left on device; free some space"),
        (MemoryError(), 2, "lower train.micro_tokens"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "lower train.micro_tokens"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "lower train.micro"),
        (ZeroDivisionError("division by zero"), 2, "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_every_failure_is_one_line_and_a_code(error, code, says, capsys):
    found, text, told = failed(error, capsys)
    assert found == code
    assert says in text
    assert told["exit_code"] == code
    assert says in told["error"]


def test_an_unexpected_error_leaves_its_traceback_in_a_private_file(capsys):
    _, text, _ = failed(ZeroDivisionError("division by zero"), capsys)
    path = Path(text.split()[-1])
    try:
        assert "Traceback" in path.read_text()
        assert "raise error" in path.read_text()
        assert path.stat().st_mode & 0o77 == 0
    finally:
        path.unlink()


@pytest.mark.parametrize("end", ["return", "raise SystemError('returned a result with an exception set')"])
def test_an_interrupt_that_compiled_code_lost_ends_the_command(end, monkeypatch, capsys):
    def work():
        try:
            interrupts._handle(signal.SIGINT, None)
        except KeyboardInterrupt:
            if end != "return":
                raise SystemError("returned a result with an exception set") from None

    monkeypatch.setattr(interrupts, "asked", False)
    with pytest.raises(typer.Exit) as ended:
        common.guarded(work, debug=False, as_json=False)
    assert ended.value.exit_code == 130


def run(code, *, cwd=None, **options):
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli import common, main, screen; {code}"
    return subprocess.run([sys.executable, "-c", start], cwd=cwd, timeout=60, check=False, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_130(number):
    # Whatever started the tests: nohup has SIGHUP ignored in all that it starts.
    start = f"import os, signal, typer; signal.signal({int(number)}, signal.SIG_DFL); main.interrupts.listen()"
    guarded = f"common.guarded(lambda: os.kill(os.getpid(), {int(number)}), debug=False, as_json=False)"
    code = f"{start}\ntry:\n {guarded}\nexcept typer.Exit as end:\n sys.exit(end.exit_code)"
    done = run(code, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "pgolf: interrupted; everything finished so far is kept\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
def test_stdout_that_is_full_or_ascii():
    with Path("/dev/full").open("w") as full:
        done = run("screen.say_json({'a': 1})", stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr.strip().endswith("PgolfError: cannot write to stdout: No space left on device")
    done = run(
        "screen.say_json({'a': 'café \\udc80'})",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert json.loads(done.stdout) == {"a": "café \udc80"}


def test_a_closed_pipe_is_not_an_error():
    reading, writing = os.pipe()
    os.close(reading)
    start = "import typer\ntry:\n common.guarded(lambda: screen.say_json({'a': 1}), debug=False, as_json=True)"
    done = run(f"{start}\nexcept typer.Exit as end:\n sys.exit(end.exit_code)", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems have users without a home")
@pytest.mark.parametrize("home", [None, "/nonexistent", "relative"])
def test_without_a_home_there_is_a_private_one(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    caches.ensure_home()
    made = Path(os.environ["HOME"])
    assert made.is_absolute()
    assert made.stat().st_mode & 0o777 == 0o700
    assert os.environ["USER"]
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_can_be_used_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    caches.ensure_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert "XDG_CACHE_HOME" not in os.environ
    (tmp_path / ".cache").write_text("no folder")
    caches.ensure_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert Path(os.environ["XDG_CACHE_HOME"]).is_dir()


@pytest.fixture
def clock(monkeypatch):
    """Sets the time that is shown progress by."""
    now = [0.0]
    monkeypatch.setattr(activity.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_progress_into_a_file_is_a_line_soon_and_then_now_and_then(shown, clock, monkeypatch):
    printed = shown()
    made = activity.Activity(lambda: screen.console, screen.plain)
    monkeypatch.setattr(made, "_start", lambda: None)  # without its thread, on this clock
    with made.task("working"), made.task("train", 600.0, "s") as bar:
        for now in (1.0, 1.9, 2.1, 31.0, 32.5, 45.0, 63.0):
            clock(now)
            if now > 2.5:  # nothing is known of its progress before
                bar.update(now, note="step 7  loss 3.210  1,900 tokens/s")
            made.line()
        with made.task("pack"):
            clock(64.0)
            made.line()
            clock(65.5)
            made.line()
    assert printed().splitlines() == [
        "train  0 s of 600 s",
        "train  32 s of 600 s  step 7  loss 3.210  1,900 tokens/s  9:28 left",
        "train  63 s of 600 s  step 7  loss 3.210  1,900 tokens/s  8:57 left",
        "pack",
    ]


def test_a_long_call_that_reports_nothing_is_not_silent(shown, monkeypatch):
    monkeypatch.setattr(activity, "FIRST_SECONDS", 0.1)
    printed = shown()
    with screen.Screen().progress("pack"):
        threading.Event().wait(0.6)
        assert printed() == "pack\n"


def test_time_left_is_by_the_clock_or_by_the_pace(clock):
    clock(100.0)
    steps = activity.Task("train", 4000.0, "steps")
    assert steps.left() == ""
    steps.update(1000)  # a resumed run: what was done before tells nothing about the pace
    assert steps.left() == ""
    clock(110.0)
    steps.update(1010)
    assert (steps.done(), steps.left()) == ("1,010 steps of 4,000 steps", "49:50 left")
    by_clock = activity.Task("train", 7300.0, "s")
    by_clock.update(100)
    assert (by_clock.done(), by_clock.left()) == ("100 s of 7,300 s", "2:00:00 left")
    tokens = activity.Task("read", None, "tokens")
    assert tokens.done() == ""
    tokens.update(5)
    assert (tokens.done(), tokens.left()) == ("5 tokens", "")


def test_the_bar_of_a_terminal_shows_units_and_time_left(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(activity, "_DELAY", 0.0)
    monkeypatch.setattr(screen, "console", Console(file=file, force_terminal=True, markup=False, width=100))
    with screen.Screen().progress("train", 600.0, "s") as bar:
        bar.update(150.0, note="step [7]")
        with screen.activity.hidden():
            shown = file.getvalue()
        threading.Event().wait(0.2)
    for words in ("train", "150 s of 600 s", "step [7]", "7:30 left"):
        assert words in shown
        assert words in file.getvalue()[len(shown) :]  # drawn once more after it was hidden
