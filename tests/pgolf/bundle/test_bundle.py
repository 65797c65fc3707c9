"""The bundler on a program that is not pgolf: what is kept, what the file does, what is refused."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.bundle import BundleError, bundle, unpack, word_codes
from pgolf.bundle.minify import minify
from pgolf.bundle.self_extracting import _from_literal, _to_literal
from pgolf.bundle.tree_shaking import shake

TOY = {
    "toy/__init__.py": "",
    "toy/start.py": '''
"""Docstring."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toy.heavy import Thing

def main(files: "Thing"):
    import sys
    from toy import parts
    from .parts import used, _double
    from toy.optional import work
    print(_double(used(parts._half(2 * parts.LEVEL))) // 2, files["note"])
    if "--fail" in sys.argv:
        parts.fail()
    if "--absent" in sys.argv:
        work()
''',
    "toy/parts.py": '''
import json
from dataclasses import dataclass
from typing import ClassVar
from toy import heavy
LEVEL = 3
UNUSED = 4
_TABLE = {"\u00e9\\\\'": 1}

def used(level: int) -> int:
    """Adds."""
    return Kept().value() + level + len(_TABLE) - 1

def _double(value):
    return 2 * value

def _half(value):
    return value // 2

def unused():
    return heavy.Thing(), json

def fail():
    raise ValueError("on purpose")

@dataclass
class Kept:
    SHARED: ClassVar[int] = 9
    number: heavy.Thing = 30

    def value(self):
        return Kept(self.number).number + self.SHARED

    def other(self):
        return UNUSED

    def check(self):
        return UNUSED
''',
    "toy/heavy.py": "import nothing\nclass Thing: ...\n",
    "toy/optional.py": "import numpy\ndef work():\n    return numpy.ones(1)\n",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    for path, text in TOY.items():
        file = tmp_path / "src" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    return tmp_path


def run(script: bytes, folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "one.py").write_bytes(script)
    command = [sys.executable, "-I", str(folder / "one.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_tree_shaking_keeps_what_the_entry_reaches(toy):
    files = unpack(bundle("toy.start", ["toy"], {"note": "n"}).script)
    assert set(files) == {"toy/__init__.py", "toy/start.py", "toy/parts.py", "toy/optional.py", "note"}
    for kept in ("def used", "def value", "LEVEL"):
        assert kept in files["toy/parts.py"]
    for gone in ("unused", "UNUSED", "def other", "json", "heavy", "Docstring"):
        assert gone not in files["toy/parts.py"] + files["toy/start.py"]


def test_the_file_runs_alone_and_its_tracebacks_show_source_lines(toy):
    made = bundle("toy.start", ["toy"], {"note": "\u00e9'\\\n\U0001f600"}, "A title")
    assert made.script.startswith(b"# coding: latin-1\n# A title\nF={'note': ")
    done = run(made.script, toy)
    assert (done.returncode, done.stdout) == (0, "42 \u00e9'\\\n\U0001f600\n"), done.stderr
    failed = run(made.script, toy, "--fail")
    assert failed.returncode == 1
    assert "raise ValueError('on purpose')" in failed.stderr
    assert "one.py/toy/parts.py" in failed.stderr
    assert sum(module.packed_bytes for module in made.modules) == len(made.script)
    assert made.libraries == ("brotli", "numpy")


def test_modules_and_methods_that_are_left_out(toy):
    made = bundle("toy.start", ["toy"], {"note": "n"}, without_methods=["value"], without_modules=["toy.optional"])
    assert made.libraries == ("brotli",)
    assert "def value" not in unpack(made.script)["toy/parts.py"]
    made = bundle("toy.start", ["toy"], {"note": "n"}, without_modules=["toy.optional"])
    assert run(made.script, toy).stdout == "42 n\n"
    assert "ImportError: work was left out of this program" in run(made.script, toy, "--absent").stderr


def test_a_module_used_as_a_value_is_kept_whole(toy):
    (toy / "src/toy/value.py").write_text("from toy import parts\ndef main(files):\n    p = parts\n    p.unused()\n")
    kept = {module.name for module, _ in shake("toy.value", ["main"], ["toy"])}
    assert kept == {"toy", "toy.value", "toy.parts", "toy.heavy"}


def test_a_missing_entry_is_an_error(toy):
    with pytest.raises(BundleError, match=r"module toy\.none not found"):
        bundle("toy.none", ["toy"])


@given(st.binary(max_size=1200))
@settings(max_examples=60)
def test_every_byte_survives_the_literal(data):
    text = _to_literal(data)
    assert not set(text) & set("\0\n\r'\\")
    assert _from_literal(text) == data
    assert len(text) == len(data) + -(-len(data) // 279)


_WORDS = st.sampled_from(["value", "token_bytes", "self", "a", " ", "\n", "\t", "\0", "\1", "\x7f", "\u00b5", "\u07ff"])


@given(st.lists(_WORDS | st.characters(exclude_categories=["Cs"]), max_size=200).map("".join))
@settings(max_examples=200)
def test_every_text_survives_the_word_codes(text):
    coded = word_codes.encode(text * 3)  # three times: so that words are frequent
    assert word_codes.decode(coded, 3 * len(text)) == text * 3
    if text:
        with pytest.raises(ValueError, match="unpacks to more"):
            word_codes.decode(coded, 3 * len(text) - 1)


def test_frequent_words_become_one_character():
    text = "frequent, rare and frequent_names; " * 6 + "once"
    coded = word_codes.encode(text)
    assert coded.count("frequent") == 1
    assert coded.count("once") == 1
    assert len(coded.encode()) < len(text) * 2 / 3
    bomb = "a" * 1000 + "\n" + chr(word_codes.CODES[0]) * 1000
    with pytest.raises(ValueError, match="unpacks to more"):
        word_codes.decode(bomb, 999_999)


def test_anything_but_a_bundle_is_refused(toy):
    script = bundle("toy.start", ["toy"], {"note": "n"}).script
    wrong = [
        b"",
        b"print(1)",
        b"\0\1",
        script[:-1],
        script + b"import os\n",
        script.replace(b"import brotli", b"import os;", 1),
    ]
    wrong += [script.replace(b"F={", b"F=a={", 1), script.replace(b"\nP='", b"\nP='\x01\x02\x03", 1)]
    for data in wrong:
        with pytest.raises(BundleError, match="not a bundled program"):
            unpack(data)


def test_minify_shortens_c_in_strings_and_no_other_text():
    found = {}
    exec(minify('C = """#pragma omp\n  f(); /* a call */\n"""\nTEXT = """# pragma\n  f(); /* a call */\n"""'), found)
    assert found["C"] == "#pragma omp\nf(); \n"
    assert found["TEXT"] == "# pragma\n  f(); /* a call */\n"


def test_minify_keeps_parameters_and_public_names():
    source = (
        'def _g():\n    return 1\ndef f(value):\n    """Doc."""\n    other = value + _g()\n    return other * other\n'
    )
    small = minify(source)
    assert "def f(value):" in small
    assert "other" not in small
    assert "_g" not in small
    assert "Doc" not in small
    found = {}
    exec(small, found)
    assert found["f"](2) == 9
