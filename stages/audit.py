"""Audit an evaluation: is the score of this model, by this evaluator, one that counts?

The evaluator is tested as a black box on the beginning of the run's own val text; manifests and files (bytes,
budget, clocks, calibration, the score on record) are tested as well. The stage holds the evidence, `report.json` and
`report.md`, whether the audit passed or failed; after that, a failure is raised.
"""

import base64
import hashlib
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf import audit as audits
from pgolf import config as configs
from pgolf import sandbox
from pgolf.audit import AuditSettings, Finding, evaluators, record, watch
from pgolf.audit import text as text_checks
from pgolf.audit.subject import FLOOR_FP32, ISOLATES_NOTHING
from pgolf.config import Config
from pgolf.errors import CheckFailed, PgolfError
from pgolf.evaluate import canonical
from pgolf.evaluate.bpb import Score
from pgolf.evaluate.compare import by_document
from pgolf.evaluate.evaluator import Trace
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import PACKED, QUANTIZED, WEIGHTS, load_model, training_length
from pgolf.store import kinds
from pgolf.store.records import (
    AuditDetails,
    PackageDetails,
    QuantizeDetails,
    ScoreDetails,
    ScoreMetrics,
    TokenizeDetails,
    TrainMetrics,
)
from pgolf.store.stage_directory import Stage
from pgolf.tokens.shards import write_shards
from stages.context import StageContext
from stages.reports.audit_report import markdown, show
from stages.views import claims, evaluation

SECTIONS = ("evaluate", "ttt")
SCRIPT, REPORT, READABLE = kinds.SCRIPT, kinds.AUDIT, kinds.AUDIT_TEXT
_TRAIN_PIECE = 1 << 22
_DOCUMENTS = 2000  # whose bytes are compared one by one


@dataclass(frozen=True)
class AuditOptions:
    """Settings of the audit's extent and limits."""

    evaluator: str = evaluators.SLIDING
    tokens: int = 0
    """Length of the audited stream, from the beginning of val; 0: enough for several windows or chunks."""
    probes: int = AuditSettings.probes
    """Changes of the text, one evaluation each."""
    seconds: float = 300.0
    """Seconds after which no further probe is started (at least 8 are made); 0: no limit."""
    limit_seconds: float = record.CAP_SECONDS
    """Limit in seconds of training and of evaluation."""
    seed: int | None = None
    """Of places and replacements, to repeat an audit; None: drawn from the system's randomness."""


@dataclass(frozen=True)
class _Case:
    """Everything that the checks look at."""

    context: StageContext
    source: Stage
    tokenized: Stage
    config: Config
    options: AuditOptions
    tokens: np.ndarray
    token_bytes: np.ndarray


def audit(context: StageContext, source: Stage, options: AuditOptions) -> Stage:
    """Write an `audit` stage for the model of `source`; its name carries the evaluator unless one was given.

    Raises CheckFailed with the first counterexample when a check fails, after the stage has been written.
    """
    if options.evaluator not in evaluators.EVALUATORS:
        raise PgolfError(f"--evaluator {options.evaluator}: choose {' or '.join(evaluators.EVALUATORS)}")
    if context.name is None and options.evaluator != evaluators.SLIDING:
        context = context.replace(name=options.evaluator)
    tokenized = source.ancestor("tokenize")
    train_length = training_length(source)
    config = evaluators.resolve(context.config, train_length)
    stream = token_stages.open_split(tokenized, "val")
    bos = int(tokenized.manifest.details_as(TokenizeDetails)["bos_id"])
    count = min(options.tokens, len(stream)) or evaluators.audited_tokens(stream, bos, options.evaluator, config)
    recorded = {"evaluator": options.evaluator, "tokens": count, "probes": options.probes, "seed": options.seed}
    with context.build("audit", inputs={"model": source}, sections=SECTIONS, options=recorded) as build:
        if build.existing is None:
            tokens = np.asarray(stream[0:count])
            token_bytes = np.asarray(token_stages.token_bytes(tokenized))
            case = _Case(context, source, tokenized, config, options, tokens, token_bytes)
            found = _run(case)
            build.writer.path(REPORT).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
            build.writer.path(READABLE).write_text(markdown(found), "utf-8")
            build.metrics |= found["metrics"]
            names = [row["check"] for row in found["findings"] if _failed(row)]
            build.details |= AuditDetails(text="val", failed=names)
    report = json.loads(build.stage.file(REPORT).read_text("utf-8"))
    show(context.reporter, build.stage, report)
    failed = [Finding(**row) for row in report["findings"] if _failed(row)]
    if failed:
        raise CheckFailed(f"{audits.explain(failed[0])} (report: {build.stage.path / READABLE})")
    return build.stage


def _failed(row: dict[str, Any]) -> bool:
    return bool(row["outcome"] == audits.FAILED)


def _run(case: _Case) -> dict[str, Any]:
    context, options, config = case.context, case.options, case.config
    runtime = context.runtime
    model = load_model(case.source, runtime)
    adapts = options.evaluator == evaluators.TTT
    tokenizer = token_stages.tokenizer_of(case.tokenized)
    if config.evaluate.canonical:
        model.barred = canonical.barred(tokenizer, runtime.device)
    expected_runs = options.probes + 24
    with context.reporter.progress("audit", total=expected_runs) as bar:
        black_box, subjects = evaluators.black_box(
            options.evaluator,
            model,
            config,
            case.tokens,
            tokenizer,
            runtime,
            AuditSettings(probes=options.probes, seconds=options.seconds, seed=options.seed),
            lambda runs: bar.update(min(runs, expected_runs), note=f"{runs} evaluations"),
            token_stages.open_split(case.tokenized, "val"),
        )
    noise = next(item.numbers["noise_nats"] for item in black_box.findings if item.check == "repeatability")
    findings = [
        *black_box.findings,
        *_of_the_text(case, black_box.base.nll),
        *_of_the_record(case, black_box.base, noise),
        _isolation(case, black_box.base.nll, noise),
    ]
    runs, spent = sum(one.runs for one in subjects), sum(one.seconds for one in subjects)
    score = Score.from_nll(black_box.base.nll, case.token_bytes[1 : len(case.tokens)])
    crosses = subjects[0].claims.documents == ISOLATES_NOTHING
    in_order = bool((np.diff(black_box.base.order) >= 0).all())
    mixing = adapts and config.ttt.mixing_lr > 0
    named = [_with_text(finding, tokenizer.pieces) for finding in findings]
    return {
        "source": case.source.label,
        "evaluator": options.evaluator,
        "settings": {section: configs.to_dict(config)[section] for section in SECTIONS},
        "text": f"val, the first {len(case.tokens):,} tokens"
        + (f" and {len(subjects) - 1} stretches drawn from all of it" if len(subjects) > 1 else ""),
        "seed": black_box.seed,
        "power": black_box.power,
        "findings": [finding.to_dict() for finding in named],
        "disputes": record.disputes(options.evaluator, adapts, config.evaluate, crosses, in_order, mixing),
        "metrics": score.metrics()
        | {
            "checks_passed": sum(finding.outcome == audits.PASSED for finding in findings),
            "checks_failed": sum(finding.failed for finding in findings),
            "checks_not_run": sum(finding.outcome == audits.NOT_RUN for finding in findings),
            "evaluations": runs,
            "seconds": round(spent, 3),
            "tokens_per_second": round(sum(one.runs * len(one.tokens) for one in subjects) / max(spent, 1e-9), 1),
        },
    }


def _of_the_text(case: _Case, nll: np.ndarray) -> list[Finding]:
    """Bytes of val documents, their overlap with train, and documents that cost next to nothing."""
    tokenizer = token_stages.tokenizer_of(case.tokenized)
    bos = tokenizer.bos_id
    stream = token_stages.open_split(case.tokenized, "val")
    whole = np.asarray(stream[0 : len(stream)])
    starts = np.flatnonzero(whole == bos)
    end = int(starts[_DOCUMENTS]) if len(starts) > _DOCUMENTS else len(whole)
    originals = _originals(case, min(len(starts), _DOCUMENTS))
    train = token_stages.open_split(case.tokenized, "train")
    pieces = (np.asarray(train[at : at + _TRAIN_PIECE]) for at in range(0, len(train), _TRAIN_PIECE))
    manifest = case.tokenized.manifest
    facts = {"tokens": len(whole), "bytes": int(case.token_bytes.sum()), "documents": len(starts)}
    facts |= {"changed_documents": manifest.details_as(TokenizeDetails).get("val", {}).get("lossy_documents", 0)}
    proof = case.tokenized.file(kinds.ROUND_TRIPS) if kinds.ROUND_TRIPS in manifest.outputs else None
    return [
        text_checks.byte_accounting(tokenizer, whole[:end], case.token_bytes[:end], originals),
        text_checks.round_trips(proof, hashlib.sha256(tokenizer.proto).hexdigest(), facts),
        text_checks.overlap(whole, pieces, bos),
        text_checks.memorized(by_document(nll, case.token_bytes[1 : len(case.tokens)], case.tokens, bos)),
    ]


def _originals(case: _Case, count: int) -> list[bytes] | None:
    """The first documents of val, read from their files; None when the files are missing, changed or not recorded."""
    try:
        found = list(itertools.islice(token_stages.recorded_documents(case.tokenized, "val"), count))
    except PgolfError:
        return None
    return found if len(found) == count else None


def _of_the_record(case: _Case, observed: Trace, noise: float) -> list[Finding]:
    """Budget, clocks, calibration, and the score that the run reports for this model and evaluator."""
    nll, source, config = observed.nll, case.source, case.config
    lineage = {stage.manifest.stage: stage for stage in [source, *claims.ancestors(source)]}
    scores = _scores(case)
    findings = []
    if (reported := _reported(case)) is not None:
        from safetensors.numpy import load_file

        payload = load_file(reported.file(evaluation.SCORES_FILE))
        fixed = case.options.evaluator == evaluators.SLIDING and config.evaluate.context == "windowed"
        alike = fixed and reported.manifest.environment["device"] == case.context.runtime.device.type
        base = nll[: max(1, len(nll) - config.evaluate.seq_len)] if alike else None
        expected = case.token_bytes[1:]
        metrics, theirs = reported.manifest.metrics, payload["nll"]
        if config.evaluate.mixture:
            metrics = metrics | {"bits_per_byte": metrics["mixture_bits_per_byte"]}
            theirs = payload["nll_mixture"]
        findings.append(
            record.reported_score(reported.label, metrics, theirs, payload["token_bytes"], expected, base, noise)
        )
        if case.options.evaluator == evaluators.TTT or kinds.ORDER in reported.manifest.outputs:
            findings.append(_order(case, reported, payload["nll"], observed))
    else:
        text = f"the run holds no eval-{case.options.evaluator} of {source.label} with these settings"
        findings.append(Finding("reported score", "A4", audits.NOT_RUN, text))
    findings.append(_budget(source))
    trained = lineage.get("train")
    training = trained.manifest.metrics_as(TrainMetrics) if trained else TrainMetrics()
    seconds = training.get("seconds")
    findings.append(
        record.clocks(
            seconds,
            (seconds or 0.0) / max(1, training.get("iterations", 1)),
            {kind: lineage[kind].manifest.seconds for kind in ("ema-finalize", "quantize") if kind in lineage},
            {stage.label: stage.manifest.metrics_as(ScoreMetrics)["seconds"] for stage in scores.values()},
            case.options.limit_seconds,
        )
    )
    return [*findings, _calibration(case, lineage.get("quantize"))]


def _order(case: _Case, reported: Stage, nll: np.ndarray, observed: Trace) -> Finding:
    """The order on record, against the scores and, where the method follows the stream, against the audit's run."""
    details, config = reported.manifest.details_as(ScoreDetails), case.config
    table = reported.file(kinds.ORDER) if kinds.ORDER in reported.manifest.outputs else None
    follows = case.options.evaluator == evaluators.TTT and config.ttt.method in ("sgd", "in-place")
    # A shorter stream ends in another window, and its last chunk is another one.
    until = max(0, len(observed.nll) - config.evaluate.seq_len - config.ttt.chunk_tokens)
    seen = observed if follows and not details.get("out_of_time") else None
    updates = details.get("steps") if follows else None
    return record.scoring_order(reported.label, table, nll, updates, seen, until)


def _scores(case: _Case) -> dict[str, Stage]:
    """The run's evaluations of the audited model; a package's are those of the model that it packs."""
    scored = claims.scored_model(case.source)
    return claims.scores_of(scored, scored.path.parent)


def _reported(case: _Case) -> Stage | None:
    """The score on record that was made with the settings under audit, None when there is none."""
    reported = _scores(case).get(f"eval-{case.options.evaluator}")
    if reported is None:
        return None
    manifest, mine = reported.manifest, configs.to_dict(case.config)
    lengths = {key: manifest.details[key] for key in ("seq_len", "stride") if key in manifest.details}
    theirs = {"evaluate": manifest.config["evaluate"] | lengths}
    if case.options.evaluator == evaluators.TTT:
        theirs["ttt"] = manifest.config["ttt"]
    free = {"batch_windows", "seconds"}  # changes no score; is lifted for the audit
    same = all(
        mine[section].get(key) == value
        for section, values in theirs.items()
        for key, value in values.items()
        if key not in free
    )
    return reported if same else None


def _budget(source: Stage) -> Finding:
    if source.manifest.stage != "package":
        return Finding("budget", "A14", audits.NOT_RUN, f"{source.label} is not a package: there are no files to count")
    ledger = source.manifest.details_as(PackageDetails).get("ledger")
    if not isinstance(ledger, dict):
        raise PgolfError(f"{source.path} has no ledger of its files in its manifest; rerun package")
    sizes = {name: source.file(name).stat().st_size for name in source.manifest.outputs}
    return record.budget(ledger["files"], sizes, int(ledger["cap_bytes"]))


def _calibration(case: _Case, quantized: Stage | None) -> Finding:
    if quantized is None:
        return record.calibration(None, {}, {})
    inputs, details = quantized.manifest.inputs, quantized.manifest.details_as(QuantizeDetails)
    val = case.tokenized.manifest.outputs
    hashes = {role: entry.sha256 for role, entry in inputs.items() if role.startswith("calibration")}
    source = ", ".join(Path(inputs[role].path).name for role in hashes)
    if not hashes and details.get("calibration_tokens"):
        tokens = quantized.parent("tokens") if "tokens" in inputs else case.tokenized
        shards = {
            name: out.sha256 for name, out in tokens.manifest.outputs.items() if name.startswith(kinds.TRAIN_SHARDS)
        }
        hashes, source = shards, f"{details['calibration_tokens']:,} train tokens of {tokens.label}"
    val_hashes = {name: output.sha256 for name, output in val.items() if name.startswith(f"{kinds.VAL_SHARDS}_")}
    return record.calibration(source or None, hashes, val_hashes)


def _isolation(case: _Case, nll: np.ndarray, noise: float) -> Finding:
    """Score the same stream once more in a separate process in the sandbox, and compare."""
    with tempfile.TemporaryDirectory(prefix="pgolf-audit-") as given:
        inputs = Path(given)
        inputs.chmod(0o755)  # the sandbox's user is another one
        if case.source.manifest.stage == "package" and SCRIPT in case.source.manifest.outputs:
            if sandbox.available() == sandbox.NOTHING:
                return watch.not_watched(f"no sandbox for the package's script works here ({sandbox.reasons()})")
            return _script_alone(case, nll, inputs)
        return _child_alone(case, nll, noise, inputs)


def _child_alone(case: _Case, nll: np.ndarray, noise: float, inputs: Path) -> Finding:
    tokens, job = inputs / "tokens.npy", inputs / "job.json"
    tokenizer = case.tokenized.file(kinds.TOKENIZER).resolve()
    np.save(tokens, case.tokens.astype(np.int64))
    values = {
        "stage": str(case.source.path.resolve()),
        "evaluator": case.options.evaluator,
        "config": configs.to_dict(case.config),
        "device": case.context.runtime.device.type,
        "threads": case.context.runtime.threads,
        "tokens": str(tokens),
        "tokenizer": str(tokenizer),
    }
    job.write_text(json.dumps(values))
    payload = [name for name in (WEIGHTS, QUANTIZED, PACKED) if name in case.source.manifest.outputs]
    allowed = [job, tokens, tokenizer, *(case.source.path.resolve() / name for name in ("manifest.json", *payload))]
    gpu = values["device"] != "cpu"
    watched = watch.run("module", "stages.workers.audit_child", [str(job)], allowed, gpu=gpu)
    finding = watch.isolation(watched, allowed)
    if finding.failed:
        return finding
    again = np.frombuffer(base64.b64decode(watched.stdout.split()[-1]))
    return _same(finding, float(np.abs(again - nll).max()), max(noise, 10 * FLOOR_FP32), "nats per token")


def _script_alone(case: _Case, nll: np.ndarray, inputs: Path) -> Finding:
    """The packaged script itself, with nothing but its package and shards of the audited text."""
    shards, files = inputs / "val", [case.source.file(name).resolve() for name in case.source.manifest.outputs]
    shards.mkdir()
    count = len(case.tokens)
    write_shards(shards, kinds.VAL_SHARDS, iter([case.tokens]), count)
    write_shards(shards, kinds.CASEOPS_VAL_BYTES, iter([case.token_bytes[:count].astype(np.uint16)]), count)
    arguments = ["eval", "--val", str(shards), "--device", case.context.runtime.device.type]
    arguments += ["--threads", str(case.context.runtime.threads)]
    if case.options.evaluator == evaluators.TTT:
        arguments.append("--ttt")
    script = str(case.source.file(SCRIPT).resolve())
    allowed = [shards, *files]
    watched = watch.run("path", script, arguments, allowed, gpu=case.context.runtime.device.type != "cpu")
    finding = watch.isolation(watched, [*allowed, *shards.iterdir()])
    if finding.failed:
        return finding
    if case.config.evaluate.mixture or _reported(case) is None:
        text = f"{finding.summary}; its score there is not compared, it was packaged with other settings"
        return Finding("isolation", "A17", audits.PASSED, text, finding.numbers)
    printed = json.loads(watched.stdout.strip().splitlines()[-1])
    mine = Score.from_nll(nll, case.token_bytes[1:count])
    gap = abs(printed["bits_per_byte"] - mine.bits_per_byte)
    return _same(finding, gap, 1e-4, f"bits per byte (the script: {printed['bits_per_byte']:.6f})")


def _same(finding: Finding, gap: float, tolerance: float, unit: str) -> Finding:
    numbers = finding.numbers | {"difference_to_audited_scores": gap}
    if gap > tolerance:
        text = f"alone in an empty folder it scores differently: by {gap:.2g} {unit}"
        return Finding("isolation", "A17", audits.FAILED, text, numbers, {"difference": gap})
    text = f"{finding.summary}; same scores there"
    return Finding("isolation", "A17", audits.PASSED, text, numbers)


def _with_text(finding: Finding, pieces: Sequence[bytes]) -> Finding:
    """Beside the ids in a counterexample, the text of the pieces."""
    where = finding.counterexample
    if not where:
        return finding
    named = dict(where)
    for key in ("token", "replaced_by"):
        if isinstance(where.get(key), int) and where[key] < len(pieces):
            named[f"{key}_text"] = pieces[where[key]].decode("utf-8", "replace")
    return Finding(finding.check, finding.rule, finding.outcome, finding.summary, finding.numbers, named)
