"""Read a record's folder: submission.json, logs and scripts as text, sizes of all files. Nothing in it is run."""

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.screen.log import Log, parse_log

_MAX_FILES = 2_000
_MAX_TEXT = 32 * 1024 * 1024  # bytes of one text file that are read; logs of records have at most 1 MB
_LOG_NAMES = ("*.log", "train*.txt", "*log*.txt", "logs/*.txt")


@dataclass(frozen=True)
class Text:
    name: str
    """Path inside the folder, with forward slashes."""
    text: str


@dataclass(frozen=True)
class Record:
    """A record's folder. `sizes`: bytes on disk of every file by name."""

    path: Path
    sizes: dict[str, int]
    claims: dict[str, Any]
    """submission.json; numbers with a decimal point are Decimal, so that their digits are kept."""
    claims_name: str
    logs: tuple[Log, ...]
    scripts: tuple[Text, ...]
    readme: str

    def claim_line(self, key: str) -> str:
        """Evidence for a claim: the file and the first line that holds the key."""
        text = (self.path / self.claims_name).read_text("utf-8", "replace") if self.claims_name else ""
        for number, line in enumerate(text.splitlines(), 1):
            if f'"{key}"' in line:
                return f"{self.claims_name}:{number}"
        return self.claims_name


def read_record(path: Path) -> Record:
    """Raises PgolfError when the folder is none, holds no record, or holds more than a record can."""
    if not path.is_dir():
        raise PgolfError(f"{path} is not a folder; name the folder of a record (README.md, submission.json, logs)")
    files = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.is_symlink():
            files.append(file)
        if len(files) > _MAX_FILES:
            raise PgolfError(f"{path} holds more than {_MAX_FILES:,} files: it is not a single record's folder")
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
    names = [name for name in sizes if Path(name).name.startswith("submission") and name.endswith(".json")]
    logs = [name for pattern in _LOG_NAMES for name in sizes if Path(name).match(pattern)]
    scripts = [name for name in sizes if name.endswith(".py")]
    if not names and not logs:
        raise PgolfError(f"{path} holds neither submission.json nor a log; name the folder of one record")
    claims_name = min(names, key=lambda name: (name.count("/"), len(name))) if names else ""
    return Record(
        path=path,
        sizes=sizes,
        claims=_claims(path / claims_name) if claims_name else {},
        claims_name=claims_name,
        logs=tuple(parse_log(name, _text(path / name)) for name in sorted(set(logs))),
        scripts=tuple(Text(name, _text(path / name)) for name in scripts),
        readme=next((_text(path / name) for name in sizes if name.lower() == "readme.md"), ""),
    )


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_TEXT).decode("utf-8", "replace")


def _claims(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path), parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise PgolfError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise PgolfError(f"{path} holds no JSON object, so it claims nothing")
    return found
