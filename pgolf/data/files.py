"""Documents out of `.txt`, `.jsonl` and `.parquet` files, plain or compressed, local or behind an fsspec URL.

A document is bytes, kept as they are: line ends, invalid UTF-8 and all. A `.txt` file is one document; a long one is
cut into several at line ends, so that any file streams.
"""

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pgolf.data.decompress import COMPRESSIONS, FREE_BYTES, MAX_RATIO, compression_of, decompressed
from pgolf.errors import PgolfError
from pgolf.store import manifest as manifests

FORMATS = (".txt", ".jsonl", ".parquet")
TEXT_BYTES = 1 << 16  # a longer text file is cut near there; some 30 training contexts
LINE_BYTES = 32 << 20  # of JSON; the longest novels have 7 MB, and parsing takes up to 25 times the memory
UNPACKED_PARQUET_BYTES = 8 << 30  # of a parquet file that is compressed once more, copied to the temporary folder


@dataclass(frozen=True)
class Source:
    """An argument of the command line, resolved to its files and a hash of their content."""

    name: str
    kind: str  # "file", "folder" or "url"
    files: tuple[str, ...]
    sha256: str
    bytes: int
    skipped: int = 0
    """Folders inside that are hidden or that pgolf made; their files are not among `files`."""

    def describe(self) -> str:
        """Summary of the documents found in a folder or URL, as text."""
        kinds = Counter(_format_of(file) for file in self.files)
        text = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        left = f"; left out {self.skipped} folders that are hidden or made by pgolf" if self.skipped else ""
        return f"{self.name}: {len(self.files)} files read ({text}){left}"

    def file_system(self) -> Any:
        return file_system(self.name)[0] if self.kind == "url" else None


def source(name: str | Path) -> Source:
    """Resolve a file, a folder of files or an fsspec URL. Raises PgolfError when it is missing or holds no documents.

    A URL's hash is that of the names and properties its file system gives (size, time, checksum), not of the content.
    """
    if "://" in str(name):
        return _url_source(str(name))
    if name == "":  # Path("") is the working folder
        raise PgolfError("the name of a document file is empty; give a file, a folder or a URL")
    path = Path(name)
    if path.is_file():
        _format_of(str(path))
        hashed = manifests.hash_file(path)
        return Source(str(path), "file", (str(path),), hashed.sha256, hashed.bytes)
    if not path.is_dir():
        raise PgolfError(f"{path} {'is neither a file nor a folder' if path.exists() else 'does not exist'}")
    names, skipped = _inside(path)
    if not names:
        raise PgolfError(f"{path} holds no documents: no {', '.join(FORMATS)} file, plain or {', '.join(COMPRESSIONS)}")
    digest, size = hashlib.sha256(), 0
    for file in names:
        hashed = manifests.hash_file(path / file)
        digest.update(f"{file}\0{hashed.sha256}\n".encode())
        size += hashed.bytes
    return Source(str(path), "folder", tuple(str(path / file) for file in names), digest.hexdigest(), size, skipped)


def documents(source: Source, text_field: str = "text") -> Iterator[bytes]:
    """Every document of a source, in order. Raises PgolfError with file and line for one that cannot be read."""
    files = source.file_system()
    for file in source.files:
        with reading(file) if files else _reading_local(file), _opened(file, files) as stream:
            kind = _format_of(file)
            if kind == ".txt":
                yield from text_documents(stream)
            elif kind == ".jsonl":
                yield from json_documents(stream, file, text_field)
            else:
                yield from _parquet(stream, file, text_field)


@contextmanager
def _reading_local(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PgolfError(f"cannot read {file}: {error.strerror or error}") from error


def _format_of(name: str) -> str:
    """`.txt`, `.jsonl` or `.parquet`. Raises PgolfError for any other name."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    if stem.suffix not in FORMATS:
        raise PgolfError(
            f"{name} is not a document file: use {', '.join(FORMATS)}, plain or with {', '.join(COMPRESSIONS)}"
        )
    return stem.suffix


def _is_document_file(name: str) -> bool:
    if any(part.startswith(".") for part in name.split("/")):
        return False
    try:
        return bool(_format_of(name))
    except PgolfError:
        return False


def _inside(root: Path) -> tuple[list[str], int]:
    """Document files below a folder, relative and sorted, and how many folders were left out.

    Linked folders are entered like any other, but no folder twice, so a circle of links ends.
    """
    names: list[str] = []
    skipped = 0
    seen = {os.path.realpath(root)}

    def refuse(error: OSError) -> None:
        raise PgolfError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        entered = []
        for name in sorted(folders):
            path = Path(folder) / name
            real = os.path.realpath(path)
            if name.startswith(".") or _made_by_pgolf(path):
                skipped += 1
            elif real not in seen:
                seen.add(real)
                entered.append(name)
        folders[:] = entered
        names += ((Path(folder) / name).relative_to(root).as_posix() for name in files)
    return sorted(name for name in names if _is_document_file(name) and (root / name).is_file()), skipped


def _made_by_pgolf(folder: Path) -> bool:
    """True if a folder is a stage directory, an unfinished one, or a records folder, whose texts are logs."""
    if folder.name.endswith(".partial") or (folder / "submission.json").is_file():
        return True
    try:
        manifests.parse((folder / manifests.FILE_NAME).read_text("utf-8"), folder)
    except (OSError, UnicodeDecodeError, PgolfError):
        return False
    return True


_PACKAGES = {"http": "aiohttp requests", "https": "aiohttp requests", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_PACKAGES |= {"hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Convert errors of remote files to one line; clients pass on exceptions of many network libraries."""
    try:
        yield
    except PgolfError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PgolfError(f"cannot read {what}: {reason}") from error


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL or local path, and the path inside it. Raises PgolfError naming what to install."""
    try:
        import fsspec

        found, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        packages = _PACKAGES.get(url.partition("://")[0], "'pgolf[hub]'")
        raise PgolfError(f"cannot open {url}: {error}; pip install fsspec {packages}") from error
    except Exception as error:  # of the file system's own client, before it has connected
        raise PgolfError(f"cannot open {url}: {error}") from error
    return found, path


def _url_source(url: str) -> Source:
    files, root = file_system(url)
    with reading(url):
        if files.isfile(root):
            _format_of(root)
            names = [root]
        else:
            names = sorted(file for file in files.find(root) if _is_document_file(file[len(root) :].lstrip("/")))
        if not names:
            raise PgolfError(f"no documents at {url}")
        digest, size = hashlib.sha256(), 0
        for name in names:
            properties = files.info(name)
            digest.update(f"{name}\0{files.ukey(name)}\n".encode())
            size += int(properties.get("size") or 0)
    return Source(url, "url", tuple(names), digest.hexdigest(), size)


@contextmanager
def _opened(name: str, file_system: Any) -> Iterator[IO[bytes]]:
    """The decompressed content of a file."""
    with file_system.open(name, "rb") if file_system else Path(name).open("rb") as raw:
        yield decompressed(raw, name)


def text_documents(stream: IO[bytes]) -> Iterator[bytes]:
    """A plain text as one document, or several cut at line ends when it is long."""
    rest = b""
    yielded = False
    while block := stream.read(TEXT_BYTES - len(rest)):
        rest += block
        if len(rest) == TEXT_BYTES:
            cut = _place_to_cut(rest)
            yield rest[:cut]
            yielded, rest = True, rest[cut:]
    if rest or not yielded:
        yield rest


def _place_to_cut(text: bytes) -> int:
    """Behind the last line end; in a text without one, behind the last whole character."""
    cut = text.rfind(b"\n") + 1
    if not cut:
        cut = len(text)
        while cut > len(text) - 4 and text[cut - 1] & 0xC0 == 0x80:
            cut -= 1
        if text[cut - 1] >= 0xC0:
            cut -= 1
    return cut


def json_documents(stream: IO[bytes], name: str, text_field: str) -> Iterator[bytes]:
    """A document per JSON line. Raises PgolfError with the line number for one without it; `name` is the file's."""
    number = 0
    while line := stream.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise PgolfError(f"{name}:{number} is longer than {LINE_BYTES >> 20} MiB; split this document")
        if not line.strip():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            yield _with_invalid_bytes(line, name, number, text_field)
        else:
            yield _field(text, name, number, text_field).encode("utf-8", "surrogatepass")


# The values of numbers are never looked at, and Python refuses to read long ones.
_DECODER = json.JSONDecoder(parse_int=lambda digits: 0, parse_float=lambda digits: 0.0)


def _field(line: str, name: str, number: int, text_field: str) -> str:
    """The text of one line of JSON; lone surrogates in it come from escapes such as \\ud800."""
    try:
        value = _DECODER.decode(line.removeprefix("\ufeff"))
    except RecursionError as error:
        raise PgolfError(f"{name}:{number} is nested too deeply; take its other fields away") from error
    except ValueError as error:
        raise PgolfError(f"{name}:{number} is not JSON: {error}") from error
    text = value.get(text_field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        found = f"fields: {', '.join(sorted(value)[:8])}" if isinstance(value, dict) else "not an object"
        raise PgolfError(f"{name}:{number} has no text field {text_field!r} ({found}); choose one with --text-field")
    return text


def _with_invalid_bytes(line: bytes, name: str, number: int, text_field: str) -> bytes:
    """The text of a line that is not UTF-8: its invalid bytes pass through the parser as unused code points."""
    escaped = line.decode("utf-8", "surrogateescape")
    used = set(_field(escaped, name, number, text_field))
    # Private use, planes 15 and 16; a file that uses each of these 500 blocks is not text.
    base = next(first for first in range(0xF0000, 0x10FF00, 256) if not used & set(map(chr, range(first, first + 256))))
    stand_ins = {0xDC00 + value: base + value for value in range(128, 256)}
    text = _field(escaped.translate(stand_ins), name, number, text_field)
    parts = re.split(f"([{chr(base)}-{chr(base + 255)}])", text)
    return b"".join(
        bytes([ord(part) - base]) if index % 2 else part.encode("utf-8", "surrogatepass")
        for index, part in enumerate(parts)
    )


def _parquet(stream: IO[bytes], name: str, text_field: str) -> Iterator[bytes]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PgolfError(f"{name}: reading parquet needs an extra: pip install 'pgolf[parquet]'") from error
    with tempfile.TemporaryFile() as copy:
        if compression_of(name):  # parquet is read from its end; a compressed file cannot be
            while block := stream.read(1 << 20):
                if copy.tell() > UNPACKED_PARQUET_BYTES:
                    raise PgolfError(f"{name} unpacks to more than {UNPACKED_PARQUET_BYTES >> 30} GiB; unpack it first")
                copy.write(block)
            stream = copy
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            columns = {field.name: field.type for field in table.schema_arrow}
            if text_field not in columns or not _is_text(columns[text_field]):
                shown = f"columns: {', '.join(f'{key} ({kind})' for key, kind in sorted(columns.items())[:8])}"
                raise PgolfError(f"{name} has no text column {text_field!r} ({shown}); choose one with --text-field")
            size = stream.seek(0, 2)
            # Only whole groups are asked for: pyarrow ends the process when a damaged column's facts are.
            unpacked = sum(table.metadata.row_group(index).total_byte_size for index in range(table.num_row_groups))
            if unpacked > max(FREE_BYTES, MAX_RATIO * size):
                raise PgolfError(f"{name} unpacks to {unpacked:,} bytes from {size:,}, as no text does")
            # Kept as a dictionary where it is one: a long text that repeats is in memory once.
            table = pyarrow.parquet.ParquetFile(stream, read_dictionary=[text_field])
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for value in _cells(batch.column(0)):
                    row += 1
                    if value is None:
                        raise PgolfError(f"{name}: row {row} has no text in {text_field!r}")
                    yield value
        except PgolfError:
            raise
        except Exception as error:  # pyarrow's own and, for damage it meets in Python, half of Python's
            reason = " ".join(str(error).split())[:160]
            raise PgolfError(f"cannot read {name} as parquet: {reason}") from error


def _cells(column: Any) -> Iterator[bytes | None]:
    """The values of a column of texts as bytes, valid UTF-8 or not."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        words = column.dictionary.cast(pyarrow.large_binary())
        for index in column.indices:
            yield words[index.as_py()].as_py() if index.is_valid else None
        return
    for value in column.cast(pyarrow.large_binary()):
        yield value.as_py()


def _is_text(kind: Any) -> bool:
    """True if a column's type holds strings, or bytes, which are read as text like those of a .txt file."""
    import pyarrow

    inner = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return str(inner) in names
