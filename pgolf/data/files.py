"""Documents out of `.txt`, `.jsonl` and `.parquet` files, plain or compressed, local or behind an fsspec URL.

A document is bytes, kept as they are: line ends, invalid UTF-8 and all. A `.txt` file is one document; a long one is
cut into several at line ends, so that any file streams.
"""

import gzip
import hashlib
import io
import json
import lzma
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pgolf.errors import PgolfError
from pgolf.store import manifest as manifests

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
TEXT_BYTES = 1 << 16  # a longer text file is cut near there; some 30 training contexts


@dataclass(frozen=True)
class Source:
    """Something named on the command line, resolved to the files it stands for and a hash of their content."""

    name: str
    kind: str  # "file", "folder" or "url"
    files: tuple[str, ...]
    sha256: str
    bytes: int

    def file_system(self) -> Any:
        return _file_system(self.name)[0] if self.kind == "url" else None


def source(name: str | Path) -> Source:
    """Resolve a file, a folder of files or an fsspec URL. Raises PgolfError when it is missing or holds no documents.

    A URL's hash is that of the names and properties its file system gives (size, time, checksum), not of the content.
    """
    if "://" in str(name):
        return _url_source(str(name))
    path = Path(name)
    if path.is_file():
        _format_of(str(path))
        hashed = manifests.hash_file(path)
        return Source(str(path), "file", (str(path),), hashed.sha256, hashed.bytes)
    if not path.is_dir():
        raise PgolfError(f"no such file: {path}")
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    names = sorted(file.as_posix() for file in inside if _is_document_file(file.as_posix()))
    if not names:
        raise PgolfError(f"{path} holds no documents: no {', '.join(FORMATS)} file, plain or {', '.join(COMPRESSIONS)}")
    digest, size = hashlib.sha256(), 0
    for file in names:
        hashed = manifests.hash_file(path / file)
        digest.update(f"{file}\0{hashed.sha256}\n".encode())
        size += hashed.bytes
    return Source(str(path), "folder", tuple(str(path / file) for file in names), digest.hexdigest(), size)


def documents(source: Source, text_field: str = "text") -> Iterator[bytes]:
    """Every document of a source, in order. Raises PgolfError with file and line for one that cannot be read."""
    file_system = source.file_system()
    for file in source.files:
        try:
            with _opened(file, file_system) as stream:
                kind = _format_of(file)
                if kind == ".txt":
                    yield from text_documents(stream)
                elif kind == ".jsonl":
                    yield from json_documents(stream, file, text_field)
                else:
                    yield from _parquet(stream, file, text_field)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise PgolfError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def _format_of(name: str) -> str:
    """`.txt`, `.jsonl` or `.parquet`. Raises PgolfError for any other name."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    if stem.suffix not in FORMATS:
        raise PgolfError(
            f"{name} is no document file: use {', '.join(FORMATS)}, plain or with {', '.join(COMPRESSIONS)}"
        )
    return stem.suffix


def _is_document_file(name: str) -> bool:
    if any(part.startswith(".") for part in name.split("/")):
        return False
    try:
        return bool(_format_of(name))
    except PgolfError:
        return False


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise PgolfError(f"{url}: reading URLs needs an extra: pip install 'pgolf[hub]'") from error
    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise PgolfError(f"cannot open {url}: {error}") from error
    return file_system, path


def _url_source(url: str) -> Source:
    file_system, root = _file_system(url)
    try:
        if file_system.isfile(root):
            _format_of(root)
            names = [root]
        else:
            names = sorted(file for file in file_system.find(root) if _is_document_file(file[len(root) :].lstrip("/")))
        if not names:
            raise PgolfError(f"no documents at {url}")
        digest, size = hashlib.sha256(), 0
        for name in names:
            properties = file_system.info(name)
            digest.update(f"{name}\0{file_system.ukey(name)}\n".encode())
            size += int(properties.get("size") or 0)
    except (OSError, ValueError) as error:
        raise PgolfError(f"cannot read {url}: {error}") from error
    return Source(url, "url", tuple(names), digest.hexdigest(), size)


@contextmanager
def _opened(name: str, file_system: Any) -> Iterator[IO[bytes]]:
    """The decompressed content of a file."""
    with file_system.open(name, "rb") if file_system else Path(name).open("rb") as raw:
        suffix = PurePosixPath(name.replace("\\", "/")).suffix
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield io.BufferedReader(stream, 1 << 20)
        elif suffix == ".xz":
            with lzma.LZMAFile(raw) as unpacked:
                yield io.BufferedReader(unpacked, 1 << 20)
        elif suffix == ".zst":
            import zstandard

            try:
                with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
                    yield io.BufferedReader(reader, 1 << 20)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
        else:
            yield raw


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
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        # Invalid bytes pass through as lone surrogates and come out as the bytes they were.
        decoded = line.decode("utf-8", "surrogateescape")
        try:
            value = json.loads(decoded.removeprefix("\ufeff"))
        except ValueError as error:
            raise PgolfError(f"{name}:{number} is not JSON: {error}") from error
        text = value.get(text_field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            found = f"fields: {', '.join(sorted(value)[:8])}" if isinstance(value, dict) else "it is no object"
            raise PgolfError(
                f"{name}:{number} has no text field {text_field!r} ({found}); choose one with --text-field"
            )
        yield _utf8(text, escaped=not decoded.isascii())


def _utf8(text: str, escaped: bool) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates: from "\ud800" in the JSON, or an invalid byte of the file
        first = "surrogateescape" if escaped else "surrogatepass"
        parts = []
        for character in text:
            try:
                parts.append(character.encode("utf-8", first))
            except UnicodeEncodeError:
                parts.append(character.encode("utf-8", "surrogatepass"))
        return b"".join(parts)


def _parquet(stream: IO[bytes], name: str, text_field: str) -> Iterator[bytes]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PgolfError(f"{name}: reading parquet needs an extra: pip install 'pgolf[parquet]'") from error
    with tempfile.TemporaryFile() as copy:
        if name.endswith(
            COMPRESSIONS
        ):  # parquet is read from its end; seeking in a compressed file is slow or impossible
            while block := stream.read(1 << 20):
                copy.write(block)
            stream = copy
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            kinds = {field.name: field.type for field in table.schema_arrow}
            if text_field not in kinds or not _is_text(kinds[text_field]):
                raise PgolfError(
                    f"{name} has no text column {text_field!r} (columns: {', '.join(sorted(kinds)[:8])}); "
                    "choose one with --text-field"
                )
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for value in batch.column(0).cast(pyarrow.large_binary()):
                    row += 1
                    if not value.is_valid:
                        raise PgolfError(f"{name}: row {row} has no text in {text_field!r}")
                    yield value.as_py()
        except pyarrow.ArrowException as error:
            raise PgolfError(f"{name} is no readable parquet file: {error}") from error


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
