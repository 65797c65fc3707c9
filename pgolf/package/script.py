"""One Python file that carries a program: modules compressed into a string, loaded from memory by a few lines.

The file is Latin-1, in which every byte is a character: the compressed bytes stand in a string literal as they are,
and only five byte values need an escape (2% of the bytes, where the records' base85 costs 25%). Modules are found by
an importer on `sys.meta_path`; their source goes to `linecache`, so that tracebacks and `inspect` show real lines.
"""

import ast
import functools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pgolf.errors import PgolfError

SETTINGS = "settings.json"
"""Name among the sources under which the entry point finds what it needs to know about the run."""
_SEPARATOR = "\0"
_MAX_UNPACKED = 16 << 20
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\0": "\\0"}

_HEAD = """\
# coding: latin-1
# Made by pgolf package. python train_gpt.py --help; python train_gpt.py source DIR writes the code out.
import linecache,{module},ast,sys,traceback
from importlib import util
P='"""
_TAIL = """'
S={module}.decompress(P.encode('latin-1')).decode().split('\\0')
S=dict(zip(S[::2],S[1::2]))
class Packed:
 def find_spec(n,*_):
  o='packed/'+n.replace('.','/')+'.py'
  if n in S:return util.spec_from_loader(n,Packed,origin=o,is_package=any(m.startswith(n+'.')for m in S))
 def create_module(_):pass
 def exec_module(m):
  f=m.__file__=m.__spec__.origin
  s=ast.unparse(ast.parse(S[m.__name__]))
  linecache.cache[f]=len(s),None,s.splitlines(1),f
  exec(compile(s,f,'exec'),m.__dict__)
sys.meta_path.insert(0,Packed)
sys.excepthook=traceback.print_exception
if __name__=='__main__':
 from {entry} import main
 main(S)
"""


@dataclass(frozen=True)
class Packed:
    """A script and how it came about."""

    data: bytes
    module: str
    """The library that unpacks it: `lzma` or `brotli`."""
    compress: Callable[[bytes], bytes]
    """How its text was compressed."""


def pack(sources: Mapping[str, str], entry: str, settings: Mapping[str, Any], libraries: Collection[str]) -> Packed:
    """The self-extracting file of the modules `sources`, which calls `main(sources)` of the module `entry`.

    `settings` is handed on as JSON under the name `settings.json` among the sources. `libraries` are the third-party
    modules that will be there; the compressor that makes the smallest file is taken.
    """
    text = _join(sources, settings)
    attempts = (_fill(entry, module, compress, text) for module, compress in _compressors(libraries))
    return min(attempts, key=lambda one: len(one.data))


def unpack(data: bytes) -> dict[str, str]:
    """The sources in a script made by `pack`, by module name; nothing of it is run.

    Raises PgolfError for anything else, and for more than 16 MiB of text.
    """
    try:
        tree = ast.parse(data)
        module = next(
            node.names[1].name
            for node in tree.body
            if isinstance(node, ast.Import) and node.names[0].name == "linecache"
        )
        literal = next(
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "P"
        )
        payload = literal.encode("latin-1")
        if module == "lzma":
            text = lzma.LZMADecompressor(memlimit=64 << 20).decompress(payload, max_length=_MAX_UNPACKED)
        elif module == "brotli":
            text = _unbrotli(payload)
        else:
            raise ValueError(f"it is packed with {module}")
        parts = text.decode("utf-8").split(_SEPARATOR)
        return dict(zip(parts[::2], parts[1::2], strict=True))
    except Exception as error:
        raise PgolfError(
            f"this is not a script made by pgolf package ({' '.join(str(error).split())[:120]})"
        ) from error


def sizes(sources: Mapping[str, str], settings: Mapping[str, Any], packed: Packed) -> dict[str, int]:
    """What each source adds to the script, in bytes; the values and `loader` sum to its size.

    The compressed bytes are shared out by what each module adds to a compressed stream of them all. What the string
    literal's escapes and the lines around it take is the loader's.
    """
    compressor = zlib.compressobj(9)
    weights: dict[str, int] = {}
    texts = dict(sources) | {SETTINGS: _json(settings)}
    for name, source in texts.items():
        data = compressor.compress(f"{name}{_SEPARATOR}{source}{_SEPARATOR}".encode())
        weights[name] = len(data) + len(compressor.flush(zlib.Z_SYNC_FLUSH))
    total = len(packed.compress(_join(sources, settings)))
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


def _fill(entry: str, module: str, compress: Callable[[bytes], bytes], text: bytes) -> Packed:
    literal = compress(text).decode("latin-1")
    literal = re.sub(r"[\\'\n\r]|\x00(?![0-7])", lambda found: _ESCAPES[found[0]], literal)
    literal = literal.replace("\0", "\\000")  # before a digit the short form would swallow it
    script = _HEAD.replace("{module}", module) + literal + _TAIL.replace("{module}", module).replace("{entry}", entry)
    return Packed(script.encode("latin-1"), module, compress)


def _compressors(libraries: Collection[str]) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    # Text wants no position bits; what else is best differs a little from program to program, so it is tried out.
    for lc in (0, 3):
        for nice_len in (64, 273):
            yield "lzma", functools.partial(_lzma, lc=lc, nice_len=nice_len)
    if "brotli" in libraries:
        import brotli

        yield "brotli", functools.partial(brotli.compress, mode=brotli.MODE_TEXT, quality=11, lgwin=24)


def _lzma(text: bytes, lc: int, nice_len: int) -> bytes:
    options = {"id": lzma.FILTER_LZMA1, "lc": lc, "lp": 0, "pb": 0, "nice_len": nice_len, "dict_size": 1 << 22}
    return lzma.compress(text, format=lzma.FORMAT_ALONE, filters=[options])


def _unbrotli(payload: bytes) -> bytes:
    import brotli

    decompressor = brotli.Decompressor()
    text = decompressor.process(payload, output_buffer_limit=_MAX_UNPACKED)
    if not decompressor.is_finished():
        raise ValueError("it unpacks to more than 16 MiB or is cut off")
    return bytes(text)
