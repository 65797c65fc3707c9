"""Prove a score: code the scored tokens with the evaluated model, and let a fresh process get them back.

That process sees pgolf and the stage that holds the model (with `evaluate.canonical` the tokenizer as well), nothing
else: no text, no run, no network. Where the system has no means to build such a wall, the process is only fresh, and
`details.wall` says so. What comes back must be the tokens, and the code must have the claimed length. The score is that
of an evaluation, or the claim of a package, whose own script is never run.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from pgolf import config as configs
from pgolf import sandbox
from pgolf.compress import proof
from pgolf.compress.proof import Evaluation
from pgolf.errors import CheckFailed, PgolfError
from pgolf.evaluate import canonical
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import load_model
from pgolf.store import kinds
from pgolf.store.records import PackageDetails, ProveDetails, ProveMetrics, ScoreDetails, ScoreMetrics
from pgolf.store.stage_directory import Stage
from pgolf.tokens.sentencepiece_model import Pieces
from stages.context import StageContext
from stages.views import claims, evaluation, proofs
from stages.views.evaluation import VAL, Documents, Text


@dataclass(frozen=True)
class _Claim:
    """The score to prove."""

    name: str
    """`sliding` or `ttt`."""
    model: Stage
    evaluation: Evaluation
    bits_per_byte: float
    """Of the whole text."""
    scored: Stage | None
    """The evaluation with a score per token; None for a package without its run."""
    text: Mapping[str, Any] | None = None
    """Hashes of the text in a package's claims (`claims.identity`)."""


def prove(context: StageContext, source: Stage, tokens: int = 0, score: str = "", documents: Documents = VAL) -> Stage:
    """Write a `prove` stage for an evaluation or package: the proof, its coded and the claimed bits per byte.

    tokens: of the beginning of the text; 0: all. score: which claim of a package, `sliding` or `ttt`; empty: its best.
    documents: the text, for a package without its run. The stage is called `prove`, `prove@ttt`, `prove@package` or
    `prove@package-ttt` unless the context names a variant. Raises CheckFailed when other tokens come back or the
    lengths differ by more than `proof.TOLERANCE`, PgolfError for an evaluation that cannot be followed token by token.
    """
    packaged = source.manifest.stage == "package"
    claim = _of_package(source, score) if packaged else _of_evaluation(source)
    variant = "-".join(["package"] * packaged + ["ttt"] * (claim.name == "ttt"))
    context = context.replace(name=context.name or variant or None)
    options = {"tokens": tokens, **({"score": claim.name} if packaged else {}), **documents.options}
    with context.build("prove", documents.inputs(source, "score"), (), options) as build:
        if build.existing is None:
            text = _text(claim, documents)
            count = min(tokens + 1, len(text.tokens)) if tokens else len(text.tokens)
            ttt = claim.evaluation.ttt
            if ttt is not None and ttt.schedule != "constant" and count < len(text.tokens):
                raise PgolfError("rates that fall over the text cannot be proved on a part of it; leave --tokens out")
            stated = _claimed_of(claim, text, count)
            part, text_bytes = text.tokens[:count], int(text.token_bytes[1:count].sum())
            # The process that decodes has no GPU, so nothing is coded with one.
            runtime = dataclasses.replace(
                context.runtime, device=torch.device("cpu"), dtype=torch.float32, compile=False
            )
            model, tokenizer = load_model(claim.model, runtime), None
            if claim.evaluation.evaluate.canonical:
                tokenizer = token_stages.tokenizer_file(claim.model)
                model.barred = canonical.barred(Pieces.open(tokenizer), runtime.device)
            data, code_bytes = proof.encode(model, claim.evaluation, part, context.reporter)
            build.writer.path(kinds.PROOF).write_bytes(data)
            with context.reporter.progress("decode in a fresh process"):
                digest, wall = _decoded_elsewhere(build.writer.path(kinds.PROOF), claim.model, tokenizer)
            came_back = digest == proof.digest(part)
            coded = proof.bits_per_byte(code_bytes, text_bytes)
            build.metrics |= ProveMetrics(
                bits_per_byte=coded,
                claimed_bits_per_byte=stated,
                tokens_scored=count - 1,
                bytes_scored=text_bytes,
                code_bytes=code_bytes,
                file_bytes=len(data),
            )
            whole = count == len(text.tokens)
            build.details |= ProveDetails(
                score=claim.name, text=text.source, whole=whole, came_back=came_back, wall=wall
            )
            rows = proofs.rows(build.metrics, build.details)
            context.reporter.result(
                f"proof of {source.label}: {text_bytes:,} bytes became {code_bytes:,}, {coded:.4f} bits per byte "
                f"(claimed {stated:.4f}), and {rows[-1][0]} {rows[-1][1]}"
            )
            context.reporter.table("", ("measure", "value"), rows, detail=True)
            if not came_back:
                raise CheckFailed("the proof decodes to other tokens: this model does not give the claimed score")
            if not proof.agrees(coded, stated, code_bytes):
                raise CheckFailed(f"the code takes {coded:.5f} bits per byte, the score claims {stated:.5f}")
    return build.stage


def _of_evaluation(source: Stage) -> _Claim:
    """Raises PgolfError when the text alone cannot repeat the score."""
    manifest, details = source.manifest, source.manifest.details_as(ScoreDetails)
    if any(role.startswith("documents") for role in manifest.inputs):
        raise PgolfError(f"{source.path} scores other documents than val; score val and prove that")
    if details.get("out_of_time"):
        raise PgolfError(f"{source.path} ran out of time to learn, which nobody can repeat; raise ttt.seconds")
    recorded: dict[str, Any] = {key: manifest.config[key] for key in ("evaluate", "ttt") if key in manifest.config}
    if "ttt" in details:
        recorded["ttt"] = details["ttt"]
    config = configs.recorded(recorded)
    settings = dataclasses.replace(config.evaluate, seq_len=details["seq_len"], stride=details["stride"])
    name = claims.SCORES[manifest.stage]
    evaluation = Evaluation(settings, config.ttt if name == "ttt" else None)
    score = float(manifest.metrics_as(ScoreMetrics)["bits_per_byte"])
    return _Claim(name, source.parent("model"), evaluation, score, source)


def _of_package(source: Stage, score: str) -> _Claim:
    try:
        claimed = source.manifest.details_as(PackageDetails)["claims"]
        scores, text = dict(claimed["scores"]), dict(claimed["text"])
        name = score or next((one for one in ("ttt", "sliding") if one in scores), "")
        if name not in scores:
            shown = ", ".join(scores) or "nothing"
            raise PgolfError(f"{source.path} claims no {name or 'score'}; it claims {shown}")
        bits, config = float(scores[name]["bits_per_byte"]), configs.recorded(scores[name]["settings"])
        if not 0 < bits < math.inf or config.evaluate.seq_len < 1:
            raise ValueError(f"{bits} bits per byte in windows of {config.evaluate.seq_len} tokens")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PgolfError(f"{source.path} has claims that make no sense ({error!r}); pgolf verify checks it") from error
    try:
        scored = source.parent(f"eval-{name}")
    except PgolfError:  # it was sent without its run
        scored = None
    evaluation = Evaluation(config.evaluate, config.ttt if name == "ttt" else None)
    return _Claim(name, source, evaluation, bits, scored, text)


def _text(claim: _Claim, documents: Documents) -> Text:
    try:
        text = evaluation.load_text(claim.model, documents)
    except PgolfError as error:
        remedy = "" if documents.sources or claim.text is None else " (name the scored text with --documents)"
        raise PgolfError(f"{error}{remedy}") from error
    if claim.text is not None:
        found = claims.identity(text.tokens, text.token_bytes)
        if found["tokens_sha256"] != claim.text.get("tokens_sha256"):
            raise PgolfError(f"{text.source} is not the text that {claim.model.path} claims its score of")
        if found["bytes_sha256"] != claim.text.get("bytes_sha256"):
            raise CheckFailed(f"{claim.model.path} counts other bytes for {text.source} than it has")
    return text


def _claimed_of(claim: _Claim, text: Text, count: int) -> float:
    """The claimed bits per byte of the first `count` tokens; the whole claim must be the sum of its own scores."""
    if claim.scored is None:
        if count < len(text.tokens):
            raise PgolfError(f"{claim.model.path} is without its evaluation: only the whole text can be proved")
        return claim.bits_per_byte
    bits = load_file(claim.scored.file(kinds.SCORES))["nll"].astype(np.float64) / math.log(2)
    if len(bits) != len(text.tokens) - 1:
        raise PgolfError(f"{claim.scored.path} scores {len(bits):,} tokens, the text has {len(text.tokens) - 1:,}")
    total = float(bits.sum()) / int(text.token_bytes[1:].sum())
    if not abs(claim.bits_per_byte - total) <= 1e-5 * total:  # the scores are kept in float32
        raise CheckFailed(
            f"{claim.bits_per_byte:.5f} bits per byte are claimed, the scores per token sum to {total:.5f}"
        )
    return float(bits[: count - 1].sum()) / int(text.token_bytes[1:count].sum())


def _decoded_elsewhere(file: Path, model: Stage, tokenizer: Path | None) -> tuple[str, str]:
    """SHA-256 of the tokens that a fresh process gets from the file and the model's stage, and the wall around it.

    tokenizer: its file, which is readable too, if the evaluation rules out what it never writes.
    """
    given = {"file": file, "model": model.path} | ({} if tokenizer is None else {"tokenizer": tokenizer})
    paths = {name: path.resolve() for name, path in given.items()}
    job = json.dumps({name: str(path) for name, path in paths.items()})
    arguments = sandbox.module("stages.workers.proof_worker", job)
    try:
        outcome = sandbox.run(arguments, [*paths.values()], sandbox.Limits(seconds=24 * 3600.0))
    except sandbox.Unavailable as error:
        raise PgolfError(f"the fresh process could not be walled in: {error}") from error
    if outcome.ended or outcome.status:
        raise PgolfError(f"the fresh process ended early ({outcome.ended or outcome.last_line})")
    answer = json.loads(outcome.stdout)
    if "error" in answer:
        raise PgolfError(str(answer["error"]))
    return str(answer["tokens_sha256"]), outcome.level
