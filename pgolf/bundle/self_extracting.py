"""One Python file that carries a whole program: `bundle` writes it, `unpack` reads it without running anything.

The modules are minified, their frequent words replaced by codes (`word_codes`), compressed together with brotli (3%
smaller than LZMA on such text) and written into a string literal of a Latin-1 source file, in base 251: a literal can
hold every character of Latin-1 but five, so that 279 bytes take 280 characters (base85, which records of the challenge
use, costs 25%; escapes cost 2%). Data stays readable at the top of the file. An import hook serves the modules from
memory; their source, one statement per line, goes to `linecache`, so that tracebacks and `inspect` show real lines.
"""

import ast
import functools
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import brotli

from pgolf.bundle import word_codes
from pgolf.bundle.minify import is_private, minify
from pgolf.bundle.module_graph import BundleError, third_party
from pgolf.bundle.tree_shaking import shake

_BLOCK = 280  # characters of base 251 for 279 bytes: 251**280 >= 256**279
_SPECIAL = b"\n\r'\\"  # with NUL, the bytes that a string literal cannot hold as they are
_MAX_TEXT, _MAX_DATA = 2 << 20, 1 << 16  # bytes of source, and of data: `unpack` reads files that may be hostile
_MODULE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
# What the file runs: it unpacks the texts, and runs the first of them, the hook.
_LOADER = r"""import brotli,functools
def digits(s):return functools.reduce(lambda n,c:n*251+ord(c)-1-sum(c>x for x in'\n\r\'\\'),s,0).to_bytes(len(s)-1)
w,_,t=brotli.decompress(b''.join(digits(P[i:i+280])for i in range(0,len(P),280))).decode().partition('\n')
t=t.translate(dict(zip([*range(1,9),*range(14,32),*range(127,2048)],w.split(' ')))).split('\0')
F|=zip(t[1::2],t[2::2])
exec(t[0])
"""
_HOOK = r"""import ast,importlib.util,linecache,sys,traceback
class Loader:
	def find_spec(self,name,*_):
		for end in'.py','/__init__.py':
			f=name.replace('.','/')+end
			if f in F:return importlib.util.spec_from_loader(name,self,origin=f,is_package=end>'/')
	def create_module(self,spec):0
	def exec_module(self,m):
		f=m.__spec__.origin;s=ast.unparse(ast.parse(F[f]));f=__file__+'/'+f
		linecache.cache[f]=len(s),None,s.splitlines(1),f;exec(compile(s,f,'exec'),m.__dict__)
sys.meta_path.insert(0,Loader())
sys.excepthook=traceback.print_exception
if __name__=='__main__':
	for n in[*sys.modules]:
		if n.split('.')[0]in ROOTS:del sys.modules[n]
	importlib.import_module('ENTRY').main(F)
"""


@dataclass(frozen=True)
class Module:
    """A module of the program; the last one is `loader`, everything else in the file."""

    module: str
    source_bytes: int
    minified_bytes: int
    packed_bytes: int
    """Its share of the file: compressed bytes are attributed by each module's growth of a zlib stream of all
    modules."""


@dataclass(frozen=True)
class Bundle:
    script: bytes
    modules: tuple[Module, ...]
    """Largest share first; `packed_bytes` sum to the length of `script`."""
    libraries: tuple[str, ...]
    """Top-level names that the program and its loader import from outside the standard library, sorted."""


def bundle(
    entry: str,
    roots: Collection[str],
    data: Mapping[str, str] | None = None,
    title: str = "",
    without_methods: Collection[str] = (),
    without_modules: Collection[str] = (),
    on_module: Callable[[int, int], None] = lambda done, total: None,
) -> Bundle:
    """Bundle the program `main(files)` of the module `entry` with every module of the packages `roots` it can reach.

    `files` is all that the file holds: minified modules by path, and `data`, texts by name. title: comments on top.
    without_methods: names of methods that are removed, such as checks of settings that have been checked.
    without_modules: modules that this use of the program never needs; using one raises ImportError.
    on_module: called with the number of modules minified so far and of all.

    Raises BundleError when the entry does not exist, or a module cannot be bundled.
    """
    shaken = shake(entry, ["main"], roots, without_methods, without_modules)
    files = {}
    elsewhere = {module.name: _private_names(tree) for module, tree in shaken}
    for number, (module, tree) in enumerate(shaken, 1):
        path = module.name.replace(".", "/") + ("/__init__.py" if module.is_package else ".py")
        source = ast.unparse(tree)
        used = {name for other, names in elsewhere.items() if other != module.name for name in names}
        files[path] = minify(source, frozenset(name for name in used if name in source))
        if "\0" in files[path]:
            raise BundleError(f"{module.name} contains a NUL character; write it as an escape")
        on_module(number, len(shaken))
    hook = _hook(entry, roots)
    text = "\0".join([hook, *(part for item in files.items() for part in item)])
    coded = word_codes.encode(text).encode("utf-8")
    source_bytes = max(len(text.encode("utf-8")), len(coded))
    values = ascii(dict(data or {}))
    for what, size, limit in (("source", source_bytes, _MAX_TEXT), ("data", len(values), _MAX_DATA)):
        if size > limit:
            raise BundleError(f"the program has {size:,} bytes of {what}; a bundle holds at most {limit:,}")
    modes = brotli.MODE_GENERIC, brotli.MODE_TEXT, brotli.MODE_FONT  # hints; which one is best is not known beforehand
    literal = _to_literal(min((brotli.compress(coded, mode=mode, quality=11, lgwin=24) for mode in modes), key=len))
    head = ["# coding: latin-1", *(f"# {line}" for line in title.splitlines())]
    lines = [*head, f"F={values}", f"P='{literal}'", _LOADER]
    script = "\n".join(lines).encode("latin-1")
    sizes = {module.name: len(module.source.encode("utf-8")) for module, _ in shaken}
    libraries = third_party((tree for _, tree in shaken), roots)
    return Bundle(script, _shares(sizes, hook, files, len(literal), len(script)), tuple(sorted({*libraries, "brotli"})))


def unpack(script: bytes) -> dict[str, str]:
    """The files in a bundle by path: minified modules and data. Nothing in it is run.

    Raises BundleError for a file that holds anything else than comments, data, modules and this version's loader, line
    by line, and for more than 2 MiB of text.
    """
    try:
        lines = iter(script.decode("latin-1").split("\n"))
        line = next(line for line in lines if not line.startswith("# "))
        if not line.startswith("F={") or len(line) > _MAX_DATA + 2:
            raise ValueError("no data follow the comments")
        data = ast.literal_eval(line[2:])
        literal = next(lines)
        if not (literal.startswith("P='") and literal.endswith("'")):
            raise ValueError("no modules follow the data")
        text = word_codes.decode(_decompress(_from_literal(literal[3:-1])).decode("utf-8"), _MAX_TEXT)
        hook, *parts = text.split("\0")
        found = re.search(rf"in (\([^()]*\)):del.*\n\timportlib\.import_module\('({_MODULE})'\)\.main\(F\)\n$", hook)
        if not found or hook != _hook(found[2], ast.literal_eval(found[1])) or "\n".join(lines) != _LOADER:
            raise ValueError("its loader is not this version's")
        return {**data, **dict(zip(parts[::2], parts[1::2], strict=True))}
    except Exception as error:  # whatever a damaged or hostile file raises
        raise BundleError(f"this is not a bundled program ({' '.join(str(error).split())[:120]})") from error


def _private_names(tree: ast.AST) -> set[str]:
    """Those that a module imports, or reads as attributes of something."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def _hook(entry: str, roots: Collection[str]) -> str:
    return _HOOK.replace("ENTRY", entry).replace("ROOTS", ascii(tuple(sorted(roots))))


def _shares(
    sizes: Mapping[str, int], hook: str, files: Mapping[str, str], literal: int, script: int
) -> tuple[Module, ...]:
    """The rows of `Bundle.modules`. sizes: of the source files by module, in the order of `files`."""
    compressor = zlib.compressobj(9)
    weights = []
    for path, text in [("", hook), *files.items()]:
        data = compressor.compress(f"{path}\0{text}\0".encode())
        weights.append(len(data) + len(compressor.flush(zlib.Z_SYNC_FLUSH)))
    ends = [round(literal * total / sum(weights)) for total in accumulate(weights)]
    rows = [
        Module(name, size, len(text.encode("utf-8")), end - start)
        for (name, size), text, (start, end) in zip(sizes.items(), files.values(), pairwise(ends), strict=True)
    ]
    rows.sort(key=lambda row: -row.packed_bytes)
    return (*rows, Module("loader", 0, 0, script - literal + ends[0]))


def _to_literal(data: bytes) -> str:
    """Blocks of 279 bytes as 280 digits of base 251; a shorter last block has one digit more than bytes, too."""
    alphabet = [chr(value) for value in range(1, 256) if value not in _SPECIAL]
    characters: list[str] = []
    for start in range(0, len(data), _BLOCK - 1):
        block = data[start : start + _BLOCK - 1]
        number, digits = int.from_bytes(block), []
        for _ in range(len(block) + 1):
            number, digit = divmod(number, len(alphabet))
            digits.append(alphabet[digit])
        characters += reversed(digits)
    return "".join(characters)


def _from_literal(text: str) -> bytes:
    values = {chr(value): value - 1 - sum(value > other for other in _SPECIAL) for value in range(1, 256)}
    found = []
    for start in range(0, len(text), _BLOCK):
        block = text[start : start + _BLOCK]
        number = functools.reduce(lambda total, character: total * 251 + values[character], block, 0)
        found.append(number.to_bytes(len(block) - 1))
    return b"".join(found)


def _decompress(data: bytes) -> bytes:
    """At most 2 MiB of text, however much the stream would unpack to."""
    decoder, text = brotli.Decompressor(), b""
    while True:
        text += decoder.process(b"" if text else data, output_buffer_limit=_MAX_TEXT + 1 - len(text))
        if len(text) > _MAX_TEXT:
            raise ValueError("it unpacks to more than 2 MiB")
        if decoder.is_finished():
            return text
        if decoder.can_accept_more_data():
            raise ValueError("its compressed text ends early")
