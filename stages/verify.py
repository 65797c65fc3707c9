"""Hold a package to what it claims. The folder is not trusted: nothing of it is run unless that is asked for.

Files are hashed, the ledger counted again and the script unpacked as data; a fresh process without a network reads the
container with pgolf's own code and scores the text again. `run_code` also runs the package's script, in a process that
is kept from the network and from other files as far as the system allows.
"""

import functools
import json
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf import config as configs
from pgolf import sandbox
from pgolf.errors import PgolfError
from pgolf.program import build as program
from pgolf.program.ledger import MODEL, README, SCRIPT, TOKENIZER
from pgolf.progress import Reporter
from pgolf.store import kinds
from pgolf.store import manifest as manifests
from pgolf.store.manifest import Manifest
from stages.views import claims

TOLERANCE = 1e-6
"""Bits per byte that a score may differ by on the same machine."""
REQUIREMENTS = kinds.REQUIREMENTS
_LARGEST = {
    manifests.FILE_NAME: 16 << 20,
    claims.FILE: 1 << 20,
    MODEL: 1 << 30,
    SCRIPT: 16 << 20,
    TOKENIZER: 64 << 20,
    REQUIREMENTS: 1 << 16,
    README: 1 << 16,
}
"""The files of a package, and how many bytes of each are looked at."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    passed: bool | None
    """None: there was nothing to look at, and the detail says why."""
    detail: str

    @property
    def failed(self) -> bool:
        return self.passed is False


_NO_AUDIT = "the package holds no audit; --audit makes one"


class _Untrue(Exception):
    """A check that failed; the message is the reason."""


def verify(
    folder: Path,
    val: Path | None,
    reporter: Reporter,
    device: str = "auto",
    threads: int = 0,
    run_code: bool = False,
    seconds: float = 3600.0,
    text_field: str = "text",
    tolerance: float = TOLERANCE,
    audit: bool = False,
) -> list[Check]:
    """Check after check, ending with the first that fails: the folder is true when all passed.

    val: the text that the scores are of: shards (a tokenize stage is a folder of them) or documents. None: the
    tokenize stage beside the folder. seconds: for each process that scores. audit: also audit scores that the package
    claims no audit of; those that it claims are made again in any case, with pgolf's own evaluator.

    Raises PgolfError when there is no folder, or no text to score.
    """
    if not folder.is_dir():
        raise PgolfError(f"no such folder: {folder}")
    val = _text(folder, val)
    done: list[Check] = []
    answer = functools.cache(lambda: _scored(folder, val, device, threads, seconds, text_field, audit))
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("files", lambda: _files(folder)),
        ("hashes", lambda: _hashes(folder)),
        ("claims", lambda: _claims(folder)),
        ("ledger", lambda: _ledger(folder)),
        ("code", lambda: _code(folder)),
        ("scores", lambda: _scores(folder, val, answer, tolerance)),
        ("audit", lambda: _audits(folder, answer)),
    )
    if run_code:
        steps = (*steps, ("script", lambda: _script(folder, val, device, threads, seconds, tolerance)))
    for what, step in steps:
        with reporter.progress(what):
            try:
                found = step()
                done.append(Check(what, True if found else None, found or _NO_AUDIT))
            except (_Untrue, PgolfError) as error:
                return [*done, Check(what, False, str(error))]
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                return [*done, Check(what, False, f"{claims.FILE} or {manifests.FILE_NAME} is malformed ({error!r})")]
    return done


def _text(folder: Path, val: Path | None) -> Path:
    found = val or folder.parent / "tokenize"
    if not found.exists():
        raise PgolfError(f"{found} is not there: name the text that the scores are of with --val")
    return found.resolve()


def _files(folder: Path) -> str:
    names = set()
    for path in sorted(folder.iterdir()):
        mode = path.lstat()
        if path.name not in _LARGEST or not stat.S_ISREG(mode.st_mode):
            raise _Untrue(f"{path.name!r} does not belong in a package: it holds plain files of known names only")
        if mode.st_size > _LARGEST[path.name]:
            raise _Untrue(f"{path.name} has {mode.st_size:,} bytes; at most {_LARGEST[path.name]:,} are looked at")
        names.add(path.name)
    if missing := sorted(set(_LARGEST) - names - {README}):  # packages of version 0.1 have none
        raise _Untrue(f"{', '.join(missing)} missing")
    return f"{len(names)} files, no links"


def _hashes(folder: Path) -> str:
    manifest = _manifest(folder)
    expected = {path.name for path in folder.iterdir()} - {manifests.FILE_NAME}  # `files` has passed
    if set(manifest.outputs) != expected:
        raise _Untrue(f"the manifest lists {sorted(manifest.outputs)[:8]}, a package has {sorted(expected)}")
    for name in sorted(expected):
        found = manifests.hash_file(folder / name)
        if found != manifest.outputs[name]:
            raise _Untrue(f"{name} was changed: its SHA-256 is {found.sha256[:12]}…, not the manifest's")
    return "every file has its manifest's SHA-256"


def _claims(folder: Path) -> str:
    manifest, claimed = _manifest(folder), _claimed(folder)
    if manifest.stage != "package" or claimed["format"] != claims.FORMAT:
        raise _Untrue(f"a {manifest.stage} stage with claims of format {claimed['format']}: nothing this pgolf knows")
    if manifest.details["claims"] != claimed:
        raise _Untrue(f"the claims in {manifests.FILE_NAME} are not those of {claims.FILE}")
    for name, entry in claimed["files"].items():
        if name not in manifest.outputs or manifest.outputs[name].sha256 != entry["sha256"]:
            raise _Untrue(f"the claims are of another {name}")
    if not claimed["scores"]:
        raise _Untrue("no score is claimed: evaluate the model, then package it")
    shown = ", ".join(f"{name} {float(score['bits_per_byte']):.6f}" for name, score in claimed["scores"].items())
    return f"bits per byte: {shown}"


def _ledger(folder: Path) -> str:
    manifest = _manifest(folder)
    ledger, metrics = manifest.details["ledger"], manifest.metrics
    sizes = {name: (folder / name).stat().st_size for name in (MODEL, SCRIPT, TOKENIZER)}
    for row in ledger["files"]:
        if sizes.get(row["file"]) != row["bytes"]:
            raise _Untrue(f"the ledger says {row['bytes']} bytes for {row['file']}, it has {sizes.get(row['file'])}")
    counted = sum(sizes[row["file"]] for row in ledger["files"] if row["counted"])
    found = {
        "model_bytes": sizes[MODEL],
        "code_bytes": sizes[SCRIPT],
        "total_bytes": sizes[MODEL] + sizes[SCRIPT],
    }
    for name, value in found.items():
        if metrics[name] != value:
            raise _Untrue(f"{name} is claimed to be {metrics[name]}, it is {value}")
    if ledger["counted_bytes"] != counted or MODEL not in {row["file"] for row in ledger["files"] if row["counted"]}:
        raise _Untrue(f"{ledger['counted_bytes']} bytes are claimed to count, it is {counted}")
    cap = ledger["cap_bytes"]
    if cap != manifest.config["package"]["cap_bytes"] or counted > cap:
        raise _Untrue(f"{counted:,} bytes count, over the cap of {cap:,}")
    return f"{counted:,} bytes count, the cap is {cap:,}"


def _code(folder: Path) -> str:
    sources, recorded = program.read((folder / SCRIPT).read_bytes())
    own = configs.from_dict(recorded)
    for name, score in _claimed(folder)["scores"].items():
        claimed = configs.from_dict(score["settings"])
        if claimed.evaluate != own.evaluate or (name == "ttt" and claimed.ttt != own.ttt):
            raise _Untrue(f"the script is set to evaluate otherwise than the {name} score was measured")
    return f"{len(sources)} modules, read and not run"


def _scored(
    folder: Path, val: Path, device: str, threads: int, seconds: float, text_field: str, audit: bool
) -> tuple[dict[str, Any], sandbox.Outcome]:
    """What the process that scores, and audits, answers."""
    claimed = _claimed(folder)
    audits = dict(claimed.get("audits", {}))
    if audit:
        audits = {name: audits.get(name, {}) for name in claimed["scores"]}
    job = {
        "folder": str(folder.resolve()),
        "val": str(val),
        "model": MODEL,
        "tokenizer": TOKENIZER,
        "device": device,
        "threads": threads,
        "text_field": text_field,
        "scores": {name: score["settings"] for name, score in claimed["scores"].items()},
        "audits": {name: {key: int(wanted[key]) for key in ("tokens", "probes") if key in wanted}
                   for name, wanted in audits.items() if name in claimed["scores"]},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as empty:
        outcome = sandbox.run(["-I", "-m", "stages.workers.verify_worker", json.dumps(job)], Path(empty), seconds)
    return _answer(outcome), outcome


def _scores(
    folder: Path, val: Path, ask: Callable[[], tuple[dict[str, Any], sandbox.Outcome]], tolerance: float
) -> str:
    claimed, (answer, outcome) = _claimed(folder), ask()
    if answer["text"] != claimed["text"]:
        raise _Untrue(f"{val} is not the text that the scores are claimed of")
    return _compare(claimed["scores"], answer["scores"], tolerance) + _alone(outcome)


def _audits(folder: Path, ask: Callable[[], tuple[dict[str, Any], sandbox.Outcome]]) -> str:
    """What the audits found; nothing when none was made."""
    claimed, (answer, _) = _claimed(folder).get("audits", {}), ask()
    for name, entry in claimed.items():
        if name not in answer["audits"]:
            raise _Untrue(f"an audit of {name} is claimed, and no such score")
        if entry["checks_failed"]:
            raise _Untrue(f"{name}: {entry['checks_failed']} checks failed by the package's own account")
    for name, found in answer["audits"].items():
        if found["failed"]:
            raise _Untrue(f"{name}: {found['failed']}")
    return "; ".join(
        f"{name}: {found['passed']} checks passed on {found['tokens']:,} tokens"
        for name, found in answer["audits"].items()
    )


def _script(folder: Path, val: Path, device: str, threads: int, seconds: float, tolerance: float) -> str:
    claimed = _claimed(folder)["scores"]
    found: dict[str, Any] = {}
    for name in claimed:
        with tempfile.TemporaryDirectory() as empty:
            for file in (SCRIPT, MODEL, TOKENIZER):
                shutil.copyfile(folder / file, Path(empty) / file)
            guarded = (
                "import sys, runpy; from pathlib import Path; from pgolf import sandbox; sandbox.preload(); "
                "here, val = map(Path, sys.argv[1:3]); sandbox.guard([here, val], [here]); sys.argv = sys.argv[3:]; "
                "runpy.run_path(sys.argv[0], run_name='__main__')"
            )
            arguments = [str(Path(empty) / SCRIPT), "eval", "--val", str(val), "--device", device]
            arguments += ["--threads", str(threads), *(["--ttt"] if name == "ttt" else [])]
            outcome = sandbox.run(["-I", "-c", guarded, empty, str(val), *arguments], Path(empty), seconds)
        found[name] = _answer(outcome)
    return _compare(claimed, found, tolerance) + _alone(outcome)


def _answer(outcome: sandbox.Outcome) -> dict[str, Any]:
    last = (outcome.stderr.strip().splitlines() or ["without a word"])[-1][:300]
    if outcome.timed_out:
        raise _Untrue("scoring took longer than it may; allow more with --seconds")
    if outcome.status == sandbox.REFUSED:
        raise _Untrue(last)
    if outcome.status != 0:
        raise _Untrue(f"scoring failed with status {outcome.status}: {last}")
    try:
        answer = json.loads(outcome.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise _Untrue(f"scoring gave no answer: {last}") from error
    if not isinstance(answer, dict) or "error" in answer:
        raise _Untrue(str(answer["error"]) if isinstance(answer, dict) else "scoring gave no answer")
    return answer


def _compare(claimed: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> str:
    worst = 0.0
    for name, score in claimed.items():
        for count in ("tokens_scored", "bytes_scored"):
            if found[name][count] != score[count]:
                raise _Untrue(f"{name}: {count} is {found[name][count]}, claimed are {score[count]}")
        difference = abs(found[name]["bits_per_byte"] - score["bits_per_byte"])
        if not difference <= tolerance:
            raise _Untrue(
                f"{name}: scored {found[name]['bits_per_byte']:.8f} bits per byte, claimed are "
                f"{score['bits_per_byte']:.8f}"
            )
        worst = max(worst, difference)
    return f"scored again, within {worst:.1e} bits per byte"


def _alone(outcome: sandbox.Outcome) -> str:
    return " (without a network)" if outcome.network_off else " (network watched, not cut off, on this system)"


def _manifest(folder: Path) -> Manifest:
    path = folder / manifests.FILE_NAME
    return manifests.parse(path.read_text("utf-8"), path)


def _claimed(folder: Path) -> dict[str, Any]:
    claimed = json.loads((folder / claims.FILE).read_text("utf-8"))
    if not isinstance(claimed, dict):
        raise TypeError("no object")
    return claimed
