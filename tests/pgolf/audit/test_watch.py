"""A watched program's reads, writes and connections are all seen, and judged."""

from pathlib import Path

import pytest

from pgolf.audit import watch
from pgolf.errors import PgolfError


def watched(tmp_path, source, *arguments, inputs=()):
    script = tmp_path / "script.py"
    script.write_text(source, "utf-8")
    return watch.run("path", str(script), [str(item) for item in arguments], [script, *inputs], seconds=60)


def test_a_program_that_keeps_to_its_inputs_passes(tmp_path):
    data = tmp_path / "input.txt"
    data.write_text("7")
    seen = watched(
        tmp_path, "import sys; print(open(sys.argv[1]).read()); open('note', 'w').write('x')", data, inputs=[data]
    )
    finding = watch.isolation(seen, [data, tmp_path / "script.py"])
    assert finding.outcome == "passed"
    assert seen.stdout == "7\n"
    assert str(data.resolve()) in finding.numbers["inputs_read"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys; open(sys.argv[2]).read()", "not inputs"),
        ("import sys; open(sys.argv[2], 'a').write('x')", "writes outside"),
        ("import socket\ntry:\n  socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass", "the network"),
        ("import socket\ntry:\n  socket.getaddrinfo('localhost', 9)\nexcept OSError: pass", "the network"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
def test_forbidden_accesses_are_found(tmp_path, source, words):
    data, other = tmp_path / "input.txt", tmp_path / "secret.txt"
    data.write_text("7")
    other.write_text("8")
    finding = watch.isolation(watched(tmp_path, source, data, other, inputs=[data]), [data, tmp_path / "script.py"])
    assert finding.failed
    assert words in finding.summary
    assert finding.counterexample


def test_programs_are_listed(tmp_path):
    seen = watched(tmp_path, "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])")
    assert [Path(name).name[:6] for name in seen.programs] == ["python"]


def test_no_record_is_an_error(tmp_path):
    with pytest.raises(PgolfError, match="no record"):
        watched(tmp_path, "import os; os._exit(0)")
