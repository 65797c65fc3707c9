"""Following imports, leaving out what is unused, linking, and a file that carries what is left."""

import lzma
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pgolf.package.link import link
from pgolf.package.minify import minify
from pgolf.package.terse import terse

from pgolf.errors import PgolfError
from pgolf.package import imports, mixing, script, shake

SOURCES = {
    "app": "",
    "app.start": '''
"""Docstring."""
from typing import TYPE_CHECKING
from app import parts
from app.parts import used

if TYPE_CHECKING:
    from app.heavy import Thing

def main(sources: "Thing"):
    print(used(parts.LEVEL))
    if "--fail" in __import__("sys").argv:
        parts.fail()
''',
    "app.parts": '''
import json
from app.heavy import Thing
LEVEL = 3
UNUSED = 4

def used(level: int) -> int:
    """Adds."""
    return Kept().value() + level

def unused():
    return Thing(), json

def fail():
    raise ValueError("on purpose")

class Kept:
    def value(self):
        return 39

    def other(self):
        return UNUSED
''',
    "app.heavy": "import nothing\nclass Thing: ...\n",
}


def run(data: bytes, folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "train_gpt.py").write_bytes(data)
    command = [sys.executable, "-I", str(folder / "train_gpt.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_shake_keeps_what_the_entry_reaches():
    left = shake.shake(SOURCES, "app.start", ["main"])
    assert set(left) == {"app", "app.start", "app.parts"}
    assert "def used" in left["app.parts"]
    assert "def value" in left["app.parts"]
    for gone in ("unused", "UNUSED", "def other", "json", "Thing", "Docstring"):
        assert gone not in left["app.parts"] + left["app.start"].replace("__import__", "")


def test_shake_refuses_imports_it_cannot_follow():
    with pytest.raises(PgolfError, match="absolute imports"):
        shake.shake({"app": "", "app.a": "from . import b\ndef main():\n    b"}, "app.a", ["main"])


def test_packed_script_runs_and_its_tracebacks_show_lines(tmp_path):
    left = link(shake.shake(SOURCES, "app.start", ["main"]), "app.start")
    left = {name: minify(text) for name, text in left.items()}
    recorded = {"a": "\u00e9\\'\n"}
    packed = script.pack(left, recorded)
    assert packed.data.startswith(b"# coding: latin-1")
    assert script.unpack(packed.data) == {**left, "settings.json": '{"a":"\u00e9\\\\\'\\n"}'}
    assert sum(script.sizes(left, recorded, packed).values()) == len(packed.data)
    done = run(packed.data, tmp_path)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    failed = run(packed.data, tmp_path, "--fail")
    assert "raise ValueError('on purpose')" in failed.stderr
    assert "packed/app/parts.py" in failed.stderr


@given(st.binary(max_size=3000))
@settings(max_examples=30)
def test_mixing_gives_every_text_back(text):
    digits = mixing.encode(text)
    assert max(digits) < mixing.BASE
    assert mixing.decode(digits, len(text)) == text


def test_mixing_is_smaller_than_lzma_on_source():
    text = Path(script.__file__).read_bytes()
    assert len(mixing.encode(text)) < 0.9 * len(lzma.compress(text))


def test_every_byte_survives_the_literal():
    for seed in range(20):
        text = "".join(chr(33 + (index * index * (seed + 3) + seed) % 90) for index in range(700))
        packed = script.pack({"app": f"X = {text!r}\n"}, {})
        assert script.unpack(packed.data)["app"].startswith(f"X = {text!r}")


@pytest.mark.parametrize(
    "data", [b"", b"print(1)", b"\0\1", b"N=9\nP='abc'", b"N=1<<40\nP=''", b"N=10000000000000\nP=''", b"N='a'\nP=1"]
)
def test_other_files_are_no_script(data):
    with pytest.raises(PgolfError, match="not a script made by pgolf"):
        script.unpack(data)


def test_minify_keeps_names():
    small = minify('def f(a):\n    """Doc."""\n    # why\n    value = a + 1\n    return value\n')
    assert small == "def f(a):value=a+1;return value"


def test_errors_keep_their_class_and_lose_their_text():
    source = "def f(x):\n    if x:\n        raise PgolfError(f'bad {x}') from x\n    raise KeyError(x)\n"
    assert "raise PgolfError from x" in terse("app", source)
    assert "raise KeyError(x)" in terse("app", source)
    assert "bad" in terse("stages.script", source)


def test_c_keeps_its_lines_without_their_indentation():
    source = 'S = """\n#define A \\\\\n    1\n/* why */\n    int x;\n"""\ny = cast(int, 2)\n'
    found = {}
    exec(terse("pgolf.model.kernel", source), found)
    assert found["S"] == "\n#define A \\\n1\nint x;\n"
    assert found["y"] == 2


def test_follow_and_third_party_leave_out_what_is_optional():
    found = imports.follow(["pgolf.errors"], ["pgolf"])
    assert set(found) == {"pgolf", "pgolf.errors"}
    source = "import numpy\ntry:\n    import rare\nexcept ImportError:\n    pass\nimport json\n"
    assert imports.third_party({"app": source}) == ["numpy"]
