"""The manifest of a stage: its inputs, settings, outputs with hashes, and scores.

`manifest.json` is pgolf's public interface (documented in docs/MANIFEST.md). Its schema carries a version; every
older version is read for ever.
"""

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError

SCHEMA = 1
FILE_NAME = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Output:
    """One payload file, by its path relative to the stage directory."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Input:
    """One thing a stage was made from.

    A stage directory has `stage`, `name` and the `sha256` of its manifest; a plain file has `bytes` and the
    `sha256` of its content, a folder or URL of documents the hash that `pgolf.data.source` gives it. `path` is
    relative to the directory that holds the manifest where that is possible.
    """

    kind: str  # "stage", "file", "folder" or "url"
    path: str
    sha256: str
    stage: str | None = None
    name: str | None = None
    bytes: int | None = None


_Record = typing.TypeVar("_Record")


@dataclass(frozen=True)
class Manifest:
    stage: str
    name: str
    pgolf: dict[str, Any]  # version and git commit
    command: list[str]
    config: dict[str, Any]
    inputs: dict[str, Input]
    outputs: dict[str, Output]
    metrics: dict[str, Any]
    environment: dict[str, Any]
    seed: int
    started: str  # ISO 8601, UTC
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)  # the stage's own tables, see docs/MANIFEST.md
    schema: int = SCHEMA

    def metrics_as(self, record: type[_Record]) -> _Record:
        """The metrics, with the types of a kind's record (`records`)."""
        return typing.cast(_Record, self.metrics)

    def details_as(self, record: type[_Record]) -> _Record:
        """The details, with the types of a kind's record (`records`)."""
        return typing.cast(_Record, self.details)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


_Kind = typing.TypeVar("_Kind")


def parse(text: str, where: Path) -> Manifest:
    """Read a manifest's JSON. Raises PgolfError, naming `where`, for anything but a known schema."""
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
        schema = values["schema"]
        # 1e999 overflows to infinity, and an unpaired surrogate cannot be part of a file name.
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PgolfError(
            f"{where} is not a pgolf manifest ({error}); restore it, or move the folder away and rerun the stage"
        ) from error
    if schema != SCHEMA:
        raise PgolfError(f"{where} has schema {schema!r}, this pgolf reads up to {SCHEMA}: use a newer pgolf")
    try:
        values["inputs"] = {key: _typed(Input, item) for key, item in values["inputs"].items()}
        values["outputs"] = {key: _typed(Output, item) for key, item in values["outputs"].items()}
        if odd := [name for name in values["outputs"] if not _inside(name)]:
            raise TypeError(f"its output {odd[0]!r} does not lie in it")
        return _typed(Manifest, values)
    except (KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PgolfError(
            f"{where} is damaged ({reason}); restore it, or move the folder away and rerun the stage"
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _inside(name: str) -> bool:
    """True if the name of an output is a path below its stage directory."""
    return "\0" not in name and not name.startswith("/") and ".." not in name.replace("\\", "/").split("/")


def _typed(kind: type[_Kind], values: dict[str, Any]) -> _Kind:
    """A dataclass from JSON. Raises TypeError for a field that is missing, unknown or of another type."""
    made = kind(**values)
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        allowed = tuple(typing.get_origin(option) or option for option in options)
        value = getattr(made, name)
        fits = isinstance(value, (*allowed, int) if float in allowed else allowed) and not isinstance(value, bool)
        if not fits:
            raise TypeError(f"{name} is {repr(value)[:80]}")
    return made


def hash_file(path: Path) -> Output:
    """Size and SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
            size += len(block)
    return Output(bytes=size, sha256=digest.hexdigest())
