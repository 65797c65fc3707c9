"""One Python file that carries a whole program: `bundle` writes it, `unpack` reads it without running anything.

The modules are minified, joined, compressed and written into a string literal of a Latin-1 source file, in base 251:
a literal can hold every character of Latin-1 but five, so that 279 bytes take 280 characters (base85, which records
of the challenge use, costs 25%; escapes cost 2%). Data files stay readable at the top of the file. An import hook
serves the modules from memory; their source, one statement per line, goes to `linecache`, so that tracebacks and
`inspect` show real lines.
"""

import ast
import functools
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pgolf.bundle.minify import minify
from pgolf.bundle.module_graph import BundleError, third_party
from pgolf.bundle.tree_shaking import shake

_BLOCK = 280  # characters of base 251 for 279 bytes: 251**280 >= 256**279
_MAX_UNPACKED = 2 << 20  # bytes of source: `unpack` reads files that may be hostile
_NOT_IN_LITERALS = "\n\r'\\"  # and NUL
_LOADER = """\
import ast,bz2,functools,importlib,importlib.util as u,linecache,sys,traceback
L=lambda s:functools.reduce(lambda n,c:n*251+ord(c)-1-sum(c>x for x in'\\n\\r\\'\\\\'),s,0).to_bytes(len(s)-1)
t=bz2.decompress(b''.join(L(P[i:i+{block}])for i in range(0,len(P),{block}))).decode().split('\\0')
F|=zip(t[::2],t[1::2])
class Bundled:
 def find_spec(self,n,*_):
  for e in'.py','/__init__.py':
   f=n.replace('.','/')+e
   if f in F:return u.spec_from_loader(n,self,origin=f,is_package=e>'/')
 def create_module(self,spec):0
 def exec_module(self,m):
  f=m.__spec__.origin;s=ast.unparse(ast.parse(F[f]));f=__file__+'/'+f
  linecache.cache[f]=len(s),None,s.splitlines(1),f;exec(compile(s,f,'exec'),m.__dict__)
sys.meta_path.insert(0,Bundled())
sys.excepthook=traceback.print_exception
if __name__=='__main__':
 for n in[*sys.modules]:
  if n.split('.')[0]in{roots}:del sys.modules[n]
 importlib.import_module('{entry}').main(F)
"""


@dataclass(frozen=True)
class Module:
    """A module of the program, or `loader`: everything else in the file."""

    name: str
    source_bytes: int
    minified_bytes: int
    packed_bytes: int
    """Its share of the file. The compressed bytes are divided by what each module adds to a stream of them all."""


@dataclass(frozen=True)
class Bundle:
    script: bytes
    modules: tuple[Module, ...]
    """Largest share first; `packed_bytes` sum to the length of `script`."""
    libraries: tuple[str, ...]
    """Top-level names that the program imports from outside the standard library."""


@dataclass(frozen=True)
class _Program:
    """What does not depend on the data: computed once per process."""

    files: Mapping[str, str]
    """Minified source by path."""
    sources: Mapping[str, tuple[str, str]]
    """(module name, source as it is in its file) by path."""
    literal: str
    libraries: tuple[str, ...]


def bundle(
    entry: str,
    roots: Collection[str],
    data: Mapping[str, str] | None = None,
    title: str = "",
    on_module: Callable[[int, int], None] | None = None,
) -> Bundle:
    """Bundle the program `main(files)` of the module `entry` with every module of the packages `roots` it can reach.

    `files` is what the file holds: the minified modules by path, and `data`, texts by name. title: a comment on top.
    on_module: called with the modules minified so far and their number.

    Raises BundleError when the entry does not exist, or a module cannot be bundled.
    """
    program = _program(entry, tuple(sorted(roots)), on_module or (lambda done, total: None))
    head = f"# coding: latin-1\n{''.join(f'# {line}' + chr(10) for line in title.splitlines())}F={ascii(dict(data or {}))}\n"
    loader = _LOADER.replace("{block}", str(_BLOCK)).replace("{entry}", entry)
    loader = loader.replace("{roots}", ascii(tuple(sorted(roots))))
    script = f"{head}P='{program.literal}'\n{loader}".encode("latin-1")
    return Bundle(script, _modules(program, len(script)), program.libraries)


def unpack(script: bytes) -> dict[str, str]:
    """The files in a bundle by path: minified modules and data. Nothing in it is run.

    Raises BundleError for anything else, and for more than 2 MiB of text.
    """
    try:
        values = {
            ast.unparse(node.targets[0]): ast.literal_eval(node.value)
            for node in ast.parse(script).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in "FP"
        }
        parts = decompress(_from_literal(values["P"])).decode("utf-8").split("\0")
        return {**values["F"], **dict(zip(parts[::2], parts[1::2], strict=True))}
    except Exception as error:  # whatever a damaged or hostile file raises
        raise BundleError(f"this is not a bundled program ({' '.join(str(error).split())[:120]})") from error
