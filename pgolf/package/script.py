"""One Python file that carries a program: modules compressed into a string, loaded from memory by a few lines.

The file is Latin-1, in which every byte is a character: the compressed text (`mixing`) stands in a string literal,
written with the 251 characters that need no escape there (the records' base85 costs 25%). Modules run one after the
other in one namespace (`link`); their source goes to `linecache`, so that tracebacks and `inspect` show real lines. The
lines that do this are compressed by zlib.
"""

import ast
import functools
import inspect
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgolf.errors import PgolfError
from pgolf.package import mixing
from pgolf.package.minify import minify
from pgolf.package.reduce import reduce

SETTINGS = "settings.json"
"""Name among the sources under which the entry point finds what it needs to know about the run."""
LIBRARIES = ("numba", "numpy")
"""What the file itself needs to unpack its text."""
_SEPARATOR = "\0"
_MAX_UNPACKED = 2 << 20
_FIRST = 256 - mixing.BASE
# Digits are shifted to the end of the alphabet, and those on characters that a literal cannot hold go to its beginning.
_MOVED = {1: "\n", 2: "\r", 3: "'", 4: "\\"}
_TO_LITERAL = str.maketrans({character: chr(place) for place, character in _MOVED.items()})
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\0": "\\0"}
_FROM_LITERAL = {place: ord(character) for place, character in _MOVED.items()}

_HEAD = """\
# coding: latin-1
# Made by pgolf package. python train_gpt.py --help; python train_gpt.py source DIR writes the code out.
import zlib
"""
_LOADER = """\
import ast,linecache,sys,traceback
{decoder}
S=decode(bytes(ord(c)-5 for c in P.translate({moved})),N).decode().split('\\0')
S=dict(zip(S[::2],S[1::2]))
G={'__name__':__name__}
for n,s in S.items():
 if n!='{settings}':
  f='packed/'+n.replace('.','/')+'.py'
  s=ast.unparse(ast.parse(s))
  linecache.cache[f]=len(s),None,s.splitlines(1),f
  exec(compile(s,f,'exec'),G)
sys.excepthook=traceback.print_exception
if __name__=='__main__':G['main'](S)
"""


@dataclass(frozen=True)
class Packed:
    """A script and what its text takes in it."""

    data: bytes
    text_bytes: int


def pack(sources: Mapping[str, str], settings: Mapping[str, Any]) -> Packed:
    """The self-extracting file of the modules `sources`, run in their order in one namespace; then `main(sources)` is.

    `settings` is handed on as JSON under the name `settings.json` among the sources.
    """
    text = _join(sources, settings)
    if len(text) > _MAX_UNPACKED:
        raise PgolfError(f"{len(text):,} bytes of source are more than a script may unpack to, {_MAX_UNPACKED:,}")
    literal = "".join(chr(digit + _FIRST) for digit in mixing.encode(text)).translate(_TO_LITERAL)
    values = {"decoder": _decoder(), "moved": repr(_FROM_LITERAL).replace(" ", ""), "settings": SETTINGS}
    loader = _LOADER
    for name, value in values.items():
        loader = loader.replace(f"{{{name}}}", value)
    packed = _escaped(zlib.compress(loader.encode(), 9, -15).decode("latin-1"))
    script = f"{_HEAD}N={len(text)}\nP='{literal}'\nexec(zlib.decompress('{packed}'.encode('latin-1'),-15))\n"
    return Packed(script.encode("latin-1"), len(literal))


def unpack(data: bytes) -> dict[str, str]:
    """The sources in a script made by `pack`, by module name; nothing of it is run.

    Raises PgolfError for anything else, and for more than 2 MiB of text.
    """
    try:
        values = {
            ast.unparse(node.targets[0]): node.value for node in ast.parse(data).body if isinstance(node, ast.Assign)
        }
        literal, size = ast.literal_eval(values["P"]), ast.literal_eval(values["N"])
        if not 0 <= size <= _MAX_UNPACKED:
            raise ValueError(f"it unpacks to {size} bytes")
        digits = bytes(ord(character) - _FIRST for character in literal.translate(_FROM_LITERAL))
        parts = mixing.decode(digits, size).decode("utf-8").split(_SEPARATOR)
        return dict(zip(parts[::2], parts[1::2], strict=True))
    except Exception as error:
        raise PgolfError(
            f"this is not a script made by pgolf package ({' '.join(str(error).split())[:120]})"
        ) from error


def sizes(sources: Mapping[str, str], settings: Mapping[str, Any], packed: Packed) -> dict[str, int]:
    """What each source adds to the script, in bytes; the values and `loader` sum to its size.

    The compressed bytes are shared out by what each module adds to a compressed stream of them all. What the lines
    around it take is the loader's.
    """
    compressor = zlib.compressobj(9)
    weights: dict[str, int] = {}
    texts = dict(sources) | {SETTINGS: _json(settings)}
    for name, source in texts.items():
        data = compressor.compress(f"{name}{_SEPARATOR}{source}{_SEPARATOR}".encode())
        weights[name] = len(data) + len(compressor.flush(zlib.Z_SYNC_FLUSH))
    total = packed.text_bytes
    found: dict[str, int] = {}
    before = given = 0
    for name, weight in weights.items():
        before += weight
        share = round(total * before / sum(weights.values()))
        found[name], given = share - given, share
    return found | {"loader": len(packed.data) - total}


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, separators=(",", ":"), ensure_ascii=False)


def _join(sources: Mapping[str, str], settings: Mapping[str, Any]) -> bytes:
    entries = dict(sources) | {SETTINGS: _json(settings)}
    for name, source in entries.items():
        if _SEPARATOR in source:
            raise PgolfError(f"{name} contains a NUL character and cannot be packed; write it as an escape")
    return _SEPARATOR.join(part for entry in entries.items() for part in entry).encode("utf-8")


def _escaped(text: str) -> str:
    """The content of a literal for Latin-1 text."""
    text = re.sub(r"[\\'\n\r]|\0(?![0-7])", lambda found: _ESCAPES[found[0]], text)
    return text.replace("\0", "\\000")  # before a digit the short form would swallow it


@functools.cache
def _decoder() -> str:
    """`mixing.decode` and what it calls, in as few characters as python-minifier can."""
    name = mixing.__name__
    return minify(reduce({name: inspect.getsource(mixing)}, name, ["decode"])[name], rename=True)
