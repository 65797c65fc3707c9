"""A run's lineage in one small JSON file: manifests and logs to the byte, no tensors.

    {"pgolf_lineage": 1, "run": "demo", "stages": {"train": {"manifest": "...", "files": {"metrics.jsonl": "..."}}}}

`opened` lays it out as a run directory again, so that everything that reads manifests reads it. Manifests keep their
hashes, so the lineage can be checked as in the run itself.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError, explain
from pgolf.store import manifest as manifests
from pgolf.store import runs

SUFFIX = ".lineage.json"
_SCHEMA = 1
_LARGEST = 64 << 20
_TEXTS = (".json", ".jsonl", ".log", ".md")  # outputs of these kinds are kept


def write(run: Path, target: Path) -> None:
    """Write the lineage of a run. Raises PgolfError when it holds no finished stage, a log of it was changed, or the
    file cannot be written."""
    stages = runs.stages_of(run)
    if not stages:
        raise PgolfError(f"{runs.missing(run)}; pgolf run makes a run")
    found: dict[str, Any] = {}
    for stage in stages:
        names = [name for name in stage.manifest.outputs if name.endswith(_TEXTS)]
        texts = {name: stage.file(name).read_text("utf-8") for name in names}
        manifest = (stage.path / manifests.FILE_NAME).read_text("utf-8")
        found[stage.label] = {"manifest": manifest, "files": texts}
    text = json.dumps({"pgolf_lineage": _SCHEMA, "run": run.resolve().name, "stages": found})
    write_new(target, text, "choose another --out")


def write_new(target: Path, text: str, remedy: str) -> None:
    """Write a file of a name that nothing has, whole or not at all. Raises PgolfError; `remedy` is for a taken name."""
    try:
        with target.open("x", encoding="utf-8", newline="\n") as file:
            try:
                file.write(text)
                file.flush()
            except BaseException:
                target.unlink()
                raise
    except FileExistsError as error:
        raise PgolfError(f"{target} exists; {remedy}") from error
    except OSError as error:
        raise PgolfError(f"cannot write {explain(error, target)}") from error


@contextmanager
def opened(file: Path) -> Iterator[Path]:
    """A folder that holds the run of a lineage file, for the time of the `with` block.

    Raises PgolfError when the file is none, or names anything outside that folder.
    """
    run, stages = _read(file)
    with tempfile.TemporaryDirectory(prefix="pgolf-lineage-") as folder:
        for label, (manifest, texts) in stages.items():
            place = Path(folder) / run / label
            place.mkdir(parents=True)
            (place / manifests.FILE_NAME).write_text(manifest, "utf-8", newline="")
            for name, text in texts.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text, "utf-8", newline="")
        yield Path(folder) / run


def _read(file: Path) -> tuple[str, dict[str, tuple[str, dict[str, str]]]]:
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        values = json.loads(file.read_text("utf-8"))
        if values["pgolf_lineage"] != _SCHEMA:
            raise ValueError(f"schema {values['pgolf_lineage']!r}, this pgolf reads {_SCHEMA}: use a newer pgolf")
        found = {}
        for label, item in values["stages"].items():
            if not re.fullmatch(r"\w[\w.@+-]*", label):
                raise ValueError(f"{label!r} is no stage's name")
            manifest = manifests.parse(item["manifest"], file)
            texts = {str(name): item["files"][name] for name in item["files"] if name in manifest.outputs}
            if manifest.name != label:
                raise ValueError(f"stage {label!r} does not bear that name")
            if not all(isinstance(text, str) for text in (item["manifest"], *texts.values())):
                raise TypeError("a file in it is no text")
            found[label] = item["manifest"], texts
        if not found or not re.fullmatch(r"\w[\w.+-]*", values["run"]):
            raise ValueError("it names no run")
        return values["run"], found
    except OSError as error:
        raise PgolfError(f"cannot read {explain(error, file)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PgolfError(f"{file} is no lineage file ({reason}); pgolf share makes one") from error
