"""Verification of a package. The folder may come from a stranger: none of its own claims is evidence.

The answer is `pass`, `fail` (a claim is wrong) or `cannot check` (something is missing: the text, time, a wall). What
this pgolf computes decides: bytes are counted from documents or by the verifier's own tokenizer, the size limit and
the counted files are the verifier's choice, `train_gpt.py` and `requirements.txt` are compared with those that pgolf
makes for the same settings. Checks that need no text come first. Files are copied once, so that all checks see the same
bytes; the process that decodes and scores them runs in the sandbox (docs/SECURITY.md). `run_code` also runs the
package's script.
"""

import contextlib
import functools
import json
import re
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pgolf
from pgolf import config as configs
from pgolf import data, sandbox
from pgolf.audit import record
from pgolf.audit.text import LOSSY_SHARE, round_trips
from pgolf.errors import PgolfError
from pgolf.program.ledger import MODEL, README, SCRIPT, TOKENIZER
from pgolf.progress import Reporter
from pgolf.sandbox import Limits, Outcome
from pgolf.store import kinds
from pgolf.store import manifest as manifests
from pgolf.store.manifest import Manifest
from pgolf.store.records import PackageDetails
from stages import package as packages
from stages.context import git_commit
from stages.views import claims
from stages.views.token_files import VAL

PASS, FAIL, CANNOT, NOT_ASKED, SHOWN = "pass", "fail", "cannot check", "not asked", "shown"
REQUIREMENTS = kinds.REQUIREMENTS
CAP_BYTES = 16_000_000
"""The challenge's limit for code and model together."""
TOLERANCES = {("sliding", True): 1e-6, ("ttt", True): 1e-5, ("sliding", False): 1e-4, ("ttt", False): 1e-3}
"""Bits per byte by score and by whether both sides computed in fp32 on a CPU. In bf16 the demo model's sliding score
moved by 1.3e-5; learning at test time amplifies rounding, also between two processors."""
_LARGEST = {
    manifests.FILE_NAME: 4 << 20,
    claims.FILE: 1 << 20,
    MODEL: 1 << 30,
    SCRIPT: 512 << 10,
    TOKENIZER: 16 << 20,
    REQUIREMENTS: 1 << 12,
    README: 1 << 16,
}
"""The files of a package, and how many bytes of each are read: parsing takes several hundred times as much memory."""
_INERT = (".md", ".txt", ".log", ".json")  # may be in a package's folder; Python imports none of them
_MEMORY_BYTES = 8 << 30
_REQUIREMENT = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.!-]*")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    answer: str
    """`pass`, `fail`, `cannot check`, or what decides nothing: `not asked`, `shown`."""
    detail: str

    @property
    def failed(self) -> bool:
        return self.answer == FAIL


@dataclass(frozen=True)
class Options:
    """The verifier's own choices."""

    val: Path | None = None
    """The text that the scores are of: documents, or a folder of shards. None: the documents that the tokenize stage
    beside the package was made from, where they are still there."""
    tokenizer: Path | None = None
    """The tokenizer of the shards `val`; None: the only `.model` file next to them."""
    text_field: str = "text"
    cap_bytes: int = CAP_BYTES
    count_tokenizer: bool = False
    tolerance: float | None = None
    """Bits per byte that a score may differ by; None: `TOLERANCES`."""
    audit: bool = False
    """Audit every score; the audits that a package claims are repeated in any case."""
    run_code: bool = False
    trust: bool = False
    """Run the package's script even where no sandbox works."""
    device: str = "auto"
    threads: int = 0
    seconds: float = 3600.0
    """For each process that scores."""


class _Untrue(Exception):
    """A claim that is wrong; the message is the reason."""


class _Unknown(Exception):
    """A check could not be made; the message names the missing input."""


class _Shown(Exception):
    """Facts that the verifier must judge."""


@dataclass(frozen=True)
class _Text:
    """The text to score: documents (files, `split` of them by hash, or the embedded corpus) or shards."""

    documents: tuple[Path, ...] = ()
    embedded: bool = False
    split: float | None = None
    text_field: str = "text"
    shards: Path | None = None
    reference: Path | None = None
    folder: Path | None = None
    """The shards of the documents, for the package's script, which reads no documents."""
    name: str = ""

    @property
    def files(self) -> list[Path]:
        return [path for path in (*self.documents, self.shards, self.reference) if path is not None]


def answer_of(checks: Sequence[Check]) -> str:
    """`fail` when a check failed, else `cannot check` when one could not be made, else `pass`."""
    answers = [check.answer for check in checks]
    return next((answer for answer in (FAIL, CANNOT) if answer in answers), PASS)


def verify(folder: Path, options: Options, reporter: Reporter) -> list[Check]:
    """Check the package in `folder`, or the only package of the run in `folder`; ends with the first check that fails.

    Raises PgolfError when the folder does not exist or holds no package.
    """
    folder = _package_in(folder)
    done: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="pgolf-verify-") as place:
        package = _Package(Path(place), folder, options)
        for what, step in package.steps():
            with reporter.progress(what):
                try:
                    found = step()
                    answer, detail = (PASS, found) if found else (NOT_ASKED, "--audit audits the scores")
                except _Unknown as error:
                    answer, detail = CANNOT, str(error)
                except _Shown as error:
                    answer, detail = SHOWN, str(error)
                except (_Untrue, PgolfError) as error:
                    answer, detail = FAIL, str(error)
                except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
                    answer, detail = FAIL, f"{claims.FILE} or {manifests.FILE_NAME} is malformed ({error!r})"
            done.append(Check(what, answer, printable(detail)))
            if answer == FAIL:
                break
    return done


def printable(text: str) -> str:
    """Untrusted text on one line without control characters, which could rewrite the terminal's contents."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:2000])


def _package_in(folder: Path) -> Path:
    if not folder.is_dir():
        raise PgolfError(f"{printable(str(folder))} does not exist")
    folder = folder.resolve()  # "." has no parent beside which a text could lie
    if (folder / claims.FILE).is_file() or (folder / MODEL).is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"package*/{claims.FILE}"))
    if len(found) == 1:
        return found[0]
    where = printable(str(folder))
    if found:
        raise PgolfError(f"{where} holds {len(found)} packages: name one of {printable(', '.join(map(str, found)))}")
    raise PgolfError(f"cannot check {where}: it is not a package of pgolf (no {claims.FILE}) and not a run with one")


class _Package:
    """A private copy of the package's files, and each check of them."""

    def __init__(self, place: Path, source: Path, options: Options) -> None:
        self.folder, self.source, self.options = place, source, options
        self.folder.chmod(0o755)  # the sandbox's user is another one

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        steps: list[tuple[str, Callable[[], str]]] = [
            ("files", self.files),
            ("hashes", self.hashes),
            ("claims", self.claims),
            ("size", self.size),
            ("code", self.code),
            ("bytes", self.bytes),
            ("scores", self.scores),
            ("time", self.time),
            ("audit", self.audits),
        ]
        return [*steps, ("script", self.script)] if self.options.run_code else steps

    def files(self) -> str:
        names, beside = set(), []
        for path in sorted(self.source.iterdir()):
            mode = path.lstat()
            plain = stat.S_ISREG(mode.st_mode)
            if path.name not in _LARGEST:
                if not plain or path.suffix not in _INERT:
                    raise _Untrue(f"{path.name!r} does not belong in a package: Python could import or follow it")
                beside.append(path.name)
                continue
            if not plain:
                raise _Untrue(f"{path.name!r} is not a plain file")
            if mode.st_size > _LARGEST[path.name]:
                raise _Untrue(f"{path.name} has {mode.st_size:,} bytes; at most {_LARGEST[path.name]:,} are read")
            with path.open("rb") as file:
                (self.folder / path.name).write_bytes(file.read(_LARGEST[path.name]))
            names.add(path.name)
        if missing := sorted(set(_LARGEST) - names - {README}):  # packages of version 0.1 have none
            raise _Untrue(f"{', '.join(missing)} missing")
        return f"{len(names)} files, no links" + (f"; not looked at: {', '.join(beside)}" if beside else "")

    def hashes(self) -> str:
        expected = {path.name for path in self.folder.iterdir()} - {manifests.FILE_NAME}
        if set(self.manifest.outputs) != expected:
            raise _Untrue(f"the manifest lists {sorted(self.manifest.outputs)[:8]}, a package has {sorted(expected)}")
        for name in sorted(expected):
            found = manifests.hash_file(self.folder / name)
            if found != self.manifest.outputs[name]:
                raise _Untrue(f"{name} was changed: its SHA-256 is {found.sha256[:12]}…, not the manifest's")
        return "every file has its manifest's SHA-256"

    def claims(self) -> str:
        manifest, claimed = self.manifest, self.claimed
        if manifest.stage != "package" or claimed["format"] != claims.FORMAT:
            raise _Untrue(f"a {manifest.stage} stage with claims of format {claimed['format']}, unknown to this pgolf")
        if manifest.details_as(PackageDetails)["claims"] != claimed:
            raise _Untrue(f"the claims in {manifests.FILE_NAME} are not those of {claims.FILE}")
        for name, entry in claimed["files"].items():
            if name not in manifest.outputs or manifest.outputs[name].sha256 != entry["sha256"]:
                raise _Untrue(f"the claims are of another {name}")
        if not claimed["scores"]:
            raise _Untrue("no score is claimed: evaluate the model, then package it")
        for name, score in claimed["scores"].items():
            sections = {"sliding": {"evaluate"}, "ttt": {"evaluate", "ttt"}}.get(name)
            if set(score["settings"]) != sections:
                raise _Untrue(f"a {name} score with the settings {sorted(score['settings'])}: not what {name} means")
            configs.from_dict(score["settings"])
        if strange := set(claimed.get("audits", {})) - set(claimed["scores"]):
            raise _Untrue(f"an audit of {min(strange)} is claimed, and no such score")
        shown = ", ".join(f"{name} {float(score['bits_per_byte']):.6f}" for name, score in claimed["scores"].items())
        return f"bits per byte, not yet checked: {shown}"

    def size(self) -> str:
        """Bytes on disk against the verifier's cap; the package's own ledger must agree with the files."""
        sizes = {name: (self.folder / name).stat().st_size for name in (MODEL, SCRIPT, TOKENIZER)}
        for row in self.manifest.details_as(PackageDetails)["ledger"]["files"]:
            if sizes.get(row["file"]) != row["bytes"]:
                raise _Untrue(f"the ledger has {row['bytes']} bytes for {row['file']}, not {sizes.get(row['file'])}")
        total = sizes[MODEL] + sizes[SCRIPT]
        found = {"model_bytes": sizes[MODEL], "code_bytes": sizes[SCRIPT], "total_bytes": total}
        for name, value in found.items():
            if self.manifest.metrics[name] != value:
                raise _Untrue(f"{name} is claimed to be {self.manifest.metrics[name]}, it is {value}")
        counted = total + (sizes[TOKENIZER] if self.options.count_tokenizer else 0)
        what = "model, code and tokenizer" if self.options.count_tokenizer else "model and code"
        if counted > self.options.cap_bytes:
            raise _Untrue(f"{what} have {counted:,} bytes, over your cap of {self.options.cap_bytes:,} (--cap)")
        return f"{what}: {counted:,} of {self.options.cap_bytes:,} bytes"

    def code(self) -> str:
        """Compare the script and its requirements with those that this pgolf makes for the settings in the script."""
        try:
            remade, libraries, settings = packages.remake((self.folder / SCRIPT).read_bytes())
        except PgolfError as error:
            raise self._other_code(f"{SCRIPT}: {error}") from error
        own = configs.from_dict(settings)
        for name, score in self.claimed["scores"].items():
            claimed = configs.from_dict(score["settings"])
            if not claims.same_scoring(claimed.evaluate, own.evaluate) or (name == "ttt" and claimed.ttt != own.ttt):
                raise _Untrue(f"the script is set to evaluate otherwise than the {name} score was measured")
        lines = (self.folder / REQUIREMENTS).read_text("utf-8").splitlines()
        for line in lines:
            if not _REQUIREMENT.fullmatch(line):
                raise _Untrue(f"{REQUIREMENTS} holds {line[:80]!r}: only NAME==VERSION is made by pgolf")
        names, ours = ({line.partition("==")[0] for line in some} for some in (lines, libraries.splitlines()))
        if other := sorted(names ^ ours):
            text = f"{REQUIREMENTS} and pgolf's own differ in {', '.join(other[:3])}"
        elif not remade:
            text = f"{SCRIPT} differs from the script that this pgolf makes for these settings"
        else:
            return f"{SCRIPT} and {REQUIREMENTS} equal those that this pgolf makes for these settings"
        raise self._other_code(text)

    def _other_code(self, text: str) -> Exception:
        made = self.manifest.pgolf
        if made == {"version": pgolf.__version__, "commit": git_commit()}:
            return _Untrue(text)
        return _Unknown(f"{text}; pgolf {made.get('version')} at {made.get('commit')} made it: verify with that one")

    def bytes(self) -> str:
        """The text is the claimed one, comes back from its tokens, and its bytes are counted right."""
        answer, outcome = self._scored_text()
        claimed = self.claimed
        if answer["text"]["bytes_sha256"] != claimed["text"]["bytes_sha256"]:
            raise _Untrue(f"other bytes per token were counted than {answer['counted']}")
        lossless = all(score["lossless"] for score in claimed["scores"].values())
        lossy, changed, total = answer["lossy_documents"], answer["changed_bytes"], answer["bytes"]
        if lossy:
            text = (
                f"the tokenizer is lossy: {lossy} of {answer['documents']} documents, {changed:,} of {total:,} bytes, "
            )
            text += "do not come back from their tokens"
            if lossless or changed > LOSSY_SHARE * total:
                raise _Untrue(text + (", though it is claimed to be lossless" if lossless else ""))
            raise _Unknown(f"not comparable with other scores: {text}")
        shown = self._tokenizer_proof(answer)
        return f"{total:,} bytes of {self._text().name}, {answer['counted']}{shown}" + _alone(outcome)

    def _tokenizer_proof(self, answer: Mapping[str, Any]) -> str:
        """Compare the proof file of the tokenize stage that names the text with what came back here.

        Raises _Untrue when it says otherwise; it is evidence for nothing else.
        """
        file = self.source.parent / "tokenize" / kinds.ROUND_TRIPS
        if self.options.val or not file.is_file() or file.stat().st_size > _LARGEST[claims.FILE]:
            return ""
        facts = {"documents": answer["documents"], "bytes": answer["bytes"], "tokens": answer["text"]["tokens"]}
        facts |= {"changed_documents": answer["lossy_documents"], "changed_bytes": answer["changed_bytes"]}
        digest = manifests.hash_file(self.folder / TOKENIZER).sha256
        found = round_trips(file, digest, facts)
        if found.failed:
            raise _Untrue(f"beside the package, {found.summary}")
        return ", as tokenizer_proof.json says"

    def scores(self) -> str:
        answer, outcome = self._scored_text()
        return "computed by this pgolf from the weights: " + self._compare(answer["scores"], outcome)

    def time(self) -> str:
        """The seconds of each evaluation, claimed and here, against the challenge's limit.

        A score is computed here without a clock, whatever the cap was that it was made under, so that it is the same on
        every machine. Whether it can be made in time is another question, and no other machine answers it.
        """
        answer, shown = self._scored_text()[0], []
        for name, score in self.claimed["scores"].items():
            took = score.get("seconds")
            machine = f"{int(score.get('world_size', 1))} x {score.get('device_name', score.get('device', 'unknown'))}"
            theirs = "no time is claimed" if took is None else f"claimed {float(took):,.0f} s on {machine}"
            if took is not None and float(took) > record.CAP_SECONDS:
                theirs += f", over the challenge's {record.CAP_SECONDS:.0f} s"
            if score.get("out_of_time"):
                theirs += ", where the clock ended its learning"
            shown.append(f"{name}: {theirs}, {float(answer['scores'][name]['seconds']):,.0f} s here without a clock")
        raise _Shown(
            "; ".join(shown) + f". The challenge's limit, {record.CAP_SECONDS:.0f} s on 8 H100, needs a run there"
        )

    def audits(self) -> str:
        """The audits' findings; empty when there is none."""
        answer, _ = self._scored_text()
        for name, entry in self.claimed.get("audits", {}).items():
            if entry["checks_failed"]:
                raise _Untrue(f"{name}: {entry['checks_failed']} checks failed by the package's own account")
        for name, found in answer["audits"].items():
            if found["failed"]:
                raise _Untrue(f"{name}: {found['failed']}")
        return "; ".join(
            f"{name}: {found['passed']} checks passed on {found['tokens']:,} tokens ({found['power']})"
            for name, found in answer["audits"].items()
        )

    def script(self) -> str:
        """Run the package's own script; its output proves nothing alone and must agree with `scores`."""
        if sandbox.available() == sandbox.NOTHING and not self.options.trust:
            raise _Unknown(f"no sandbox works here ({sandbox.reasons()}); --trust runs the script without one")
        text, beside, found = self._text(), self.source.parent / "tokenize", {}
        val = text.shards or text.folder or (beside if beside.is_dir() else text.files[0] if text.files else None)
        if val is None:
            raise _Unknown("the script needs the text as a file: name one with --val")
        for name in self.claimed["scores"]:
            arguments = ["eval", "--val", str(val), "--device", self.options.device]
            arguments += ["--threads", str(self.options.threads), *(["--ttt"] if name == "ttt" else [])]
            outcome = self._isolated(sandbox.script(self.folder / SCRIPT, *arguments), [val])
            found[name] = _answer(outcome)
        compared = self._compare(found, outcome)
        return f"the package's own script prints the claimed numbers (`scores` was computed without it): {compared}"

    # What the checks share.

    @functools.cached_property
    def manifest(self) -> Manifest:
        path = self.folder / manifests.FILE_NAME
        return manifests.parse(path.read_text("utf-8"), path)

    @functools.cached_property
    def claimed(self) -> dict[str, Any]:
        claimed = json.loads((self.folder / claims.FILE).read_text("utf-8"))
        if not isinstance(claimed, dict):
            raise TypeError("no object")
        return claimed

    @functools.cache  # noqa: B019 (lives as long as one verification)
    def _text(self) -> _Text:
        val = self.options.val
        if val is None:
            return _documents_beside(self.source.parent / "tokenize")
        if not val.exists():
            raise _Unknown(f"{val} is not there: name the text that the scores are of with --val")
        val = val.resolve()
        if not val.is_dir() or not any(val.glob(f"{VAL}_*.bin")):
            return _Text(documents=(val,), text_field=self.options.text_field, name=str(val))
        if (val / manifests.FILE_NAME).is_file():
            with contextlib.suppress(_Unknown):  # documents show more than shards: whether they come back
                return replace(_documents_beside(val), folder=val)
        models = [self.options.tokenizer.resolve()] if self.options.tokenizer else sorted(val.glob("*.model"))
        return _Text(shards=val, reference=models[0] if len(models) == 1 else None, name=str(val))

    @functools.cache  # noqa: B019
    def _scored(self) -> tuple[dict[str, Any], Outcome]:
        """The answer of the process that scores and audits."""
        claimed, text = self.claimed, self._text()
        audited = claimed["scores"] if self.options.audit else claimed.get("audits", {})
        job = {
            "folder": str(self.folder),
            "model": MODEL,
            "tokenizer": TOKENIZER,
            "documents": [str(path) for path in text.documents],
            "embedded": text.embedded,
            "split": text.split,
            "text_field": text.text_field,
            "shards": str(text.shards) if text.shards else None,
            "reference": str(text.reference) if text.reference else None,
            "device": self.options.device,
            "threads": self.options.threads,
            "scores": {name: score["settings"] for name, score in claimed["scores"].items()},
            "audits": sorted(audited),
        }
        arguments = sandbox.module("stages.workers.verify_worker", json.dumps(job))
        outcome = self._isolated(arguments, text.files)
        return _answer(outcome), outcome

    def _scored_text(self) -> tuple[dict[str, Any], Outcome]:
        """The same, where the text is the one that the scores are claimed of."""
        answer, outcome = self._scored()
        if answer["text"]["tokens_sha256"] != self.claimed["text"]["tokens_sha256"]:
            raise _Unknown(f"{self._text().name} is not the text that the scores are claimed of (other tokens)")
        return answer, outcome

    def _isolated(self, arguments: Sequence[str], more: Sequence[Path]) -> Outcome:
        limits = Limits(seconds=self.options.seconds, memory_bytes=_MEMORY_BYTES)
        try:
            return sandbox.run(arguments, [self.folder, *more], limits, gpu=self.options.device != "cpu")
        except sandbox.Unavailable as error:
            raise _Unknown(f"the sandbox could not be built: {error}") from error

    def _compare(self, found: Mapping[str, Any], outcome: Outcome) -> str:
        shown = []
        for name, score in self.claimed["scores"].items():
            mine = found[name]
            for count in ("tokens_scored", "bytes_scored"):
                if mine[count] != score[count]:
                    raise _Untrue(f"{name}: {count} is {mine[count]}, not {score[count]} as claimed")
            sides = ((score.get("device", "cpu"), score.get("dtype", "float32")),
                     (mine.get("device", "cpu"), mine.get("dtype", "float32")))  # fmt: skip
            alike = all(side == ("cpu", "float32") for side in sides)
            limit = TOLERANCES[name, alike] if self.options.tolerance is None else self.options.tolerance
            gap = abs(mine["bits_per_byte"] - score["bits_per_byte"])
            if not gap <= limit:
                text = f"{name}: {mine['bits_per_byte']:.8f} bits per byte, claimed are {score['bits_per_byte']:.8f}"
                cap = score["settings"].get("ttt", {}).get("seconds", 0)
                if cap:
                    raise _Unknown(
                        f"{text}; learning was capped at {cap:g} s of wall time, so the score depends on the machine"
                    )
                raise _Untrue(text)
            shown.append(f"{name} {mine['bits_per_byte']:.6f}, {gap:.1e} from the claim (at most {limit:.0e})")
        return "; ".join(shown) + _alone(outcome)


def _documents_beside(stage: Path) -> _Text:
    """The val documents that a tokenize stage was made from, where they are still there.

    The stage's own shards are the package maker's and no evidence of how many bytes the text has.
    """
    path = stage / manifests.FILE_NAME
    if not path.is_file() or path.stat().st_size > _LARGEST[manifests.FILE_NAME]:
        raise _Unknown(f"{stage} is not there: name the text that the scores are of with --val")
    try:
        manifest = manifests.parse(path.read_text("utf-8"), path)
    except PgolfError as error:
        raise _Unknown(str(error)) from error
    options = manifest.config.get("options", {})
    by_split: dict[str, list[Path]] = {"train": [], "val": []}
    for role, entry in manifest.inputs.items():
        if role.partition(":")[0] in by_split and entry.kind in ("file", "folder") and not options.get("shards"):
            by_split[role.partition(":")[0]].append((stage / entry.path).resolve())
    field, documents = str(options.get("text_field", "text")), by_split["val"] or by_split["train"]
    split = None if by_split["val"] else float(manifest.config["tokenizer"]["val_fraction"])
    if documents and all(path.exists() for path in documents):
        return _Text(documents=tuple(documents), split=split, text_field=field, name=str(documents[0]))
    if not manifest.inputs and options.get("corpus") == data.embedded_name():
        return _Text(embedded=True, split=split, name=data.embedded_name())
    raise _Unknown(f"the documents that {stage} was made from are not available: name the text with --val")


def _answer(outcome: Outcome) -> dict[str, Any]:
    """The last line of a scoring process as JSON."""
    if outcome.ended == "time":
        raise _Unknown("scoring took longer than --seconds allows")
    if outcome.ended:
        raise _Unknown(f"scoring was ended at its limit of {outcome.ended}")
    if outcome.status != 0:
        raise _Unknown(f"scoring ended with status {outcome.status}: {outcome.last_line}")
    try:
        answer = json.loads(outcome.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError) as error:
        raise _Unknown(f"scoring gave no answer: {outcome.last_line}") from error
    if not isinstance(answer, dict):
        raise _Unknown("scoring gave no answer")
    if "unknown" in answer:
        raise _Unknown(str(answer["unknown"]))
    if "untrue" in answer:
        raise _Untrue(str(answer["untrue"]))
    return answer


def _alone(outcome: Outcome) -> str:
    if outcome.level == sandbox.NOTHING:
        return " (no sandbox on this system)"
    return f" (sandbox: {outcome.level})"
