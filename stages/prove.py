"""Prove a score: code the scored tokens with the evaluated model, and let a fresh process get them back.

That process sees pgolf and the stage that holds the model, nothing else: no text, no run, no network. Where the system
has no means to build such a wall, the process is only fresh, and `details.wall` says so. What comes back must be the
tokens, and the code must have the claimed length.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pgolf import config as configs
from pgolf import sandbox
from pgolf.compress import proof
from pgolf.compress.proof import Evaluation
from pgolf.errors import CheckFailed, PgolfError
from pgolf.saved.models import load_model
from pgolf.store import kinds
from pgolf.store.records import ProveDetails, ProveMetrics, ScoreDetails
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.views import evaluation
from stages.views.evaluation import VAL


def prove(context: StageContext, source: Stage, tokens: int = 0) -> Stage:
    """Write a `prove` stage for the evaluation stage `source`: the proof, its coded and the claimed bits per byte.

    tokens: of the beginning of the text; 0: all. Raises CheckFailed when other tokens come back or the lengths differ
    by more than `proof.TOLERANCE`, PgolfError for an evaluation that cannot be followed token by token.
    """
    model_stage = source.parent("model")
    claimed = _evaluation(source)
    with context.build("prove", {"score": source}, (), {"tokens": tokens}) as build:
        if build.existing is None:
            text = evaluation.load_text(model_stage, VAL)
            nats = load_file(source.file(kinds.SCORES))["nll"].astype(np.float64)
            if len(nats) != len(text.tokens) - 1:
                raise PgolfError(f"{source.path} scores {len(nats):,} tokens, the text has {len(text.tokens) - 1:,}")
            count = min(tokens + 1, len(text.tokens)) if tokens else len(text.tokens)
            if claimed.ttt is not None and claimed.ttt.schedule != "constant" and count < len(text.tokens):
                raise PgolfError("rates that fall over the text cannot be proved on a part of it; leave --tokens out")
            part, text_bytes = text.tokens[:count], int(text.token_bytes[1:count].sum())
            model = load_model(model_stage, context.runtime)
            data, code_bytes = proof.encode(model, claimed, part, context.reporter)
            build.writer.path(kinds.PROOF).write_bytes(data)
            with context.reporter.progress("decode in a fresh process"):
                digest, wall = _decoded_elsewhere(build.writer.path(kinds.PROOF), model_stage)
            came_back = digest == proof.digest(part)
            coded = proof.bits_per_byte(code_bytes, text_bytes)
            stated = float(nats[: count - 1].sum()) / math.log(2) / text_bytes
            build.metrics |= ProveMetrics(
                bits_per_byte=coded,
                claimed_bits_per_byte=stated,
                tokens_scored=count - 1,
                bytes_scored=text_bytes,
                code_bytes=code_bytes,
                file_bytes=len(data),
            )
            whole = count == len(text.tokens)
            build.details |= ProveDetails(text=text.source, whole=whole, came_back=came_back, wall=wall)
            _report(context, source, build.metrics, came_back, wall)
            if not came_back:
                raise CheckFailed("the proof decodes to other tokens: this model does not give the claimed score")
            if not proof.agrees(coded, stated, code_bytes):
                raise CheckFailed(f"the code takes {coded:.5f} bits per byte, the score claims {stated:.5f}")
    return build.stage


def _evaluation(source: Stage) -> Evaluation:
    """The settings that `source` was scored with. Raises PgolfError when the text alone cannot repeat the score."""
    manifest, details = source.manifest, source.manifest.details_as(ScoreDetails)
    if any(role.startswith("documents") for role in manifest.inputs):
        raise PgolfError(f"{source.path} scores other documents than val; score val and prove that")
    if details.get("out_of_time"):
        raise PgolfError(f"{source.path} ran out of time to learn, which nobody can repeat; raise ttt.seconds")
    recorded: dict[str, Any] = {key: manifest.config[key] for key in ("evaluate", "ttt") if key in manifest.config}
    config = configs.recorded(recorded)
    settings = dataclasses.replace(config.evaluate, seq_len=details["seq_len"], stride=details["stride"])
    if settings.tilt_boost:
        raise PgolfError("a proof codes with the model alone; score with evaluate.tilt_boost = 0 and prove that")
    if manifest.stage != "eval-ttt":
        return Evaluation(settings, None)
    ttt = configs.recorded({"ttt": details["ttt"]}).ttt if "ttt" in details else config.ttt
    return Evaluation(settings, ttt)


def _decoded_elsewhere(file: Path, model: Stage) -> tuple[str, str]:
    """SHA-256 of the tokens that a fresh process gets from the file and the model's stage, and the wall around it."""
    job = json.dumps({"file": str(file.resolve()), "model": str(model.path.resolve())})
    arguments = sandbox.module("stages.workers.proof_worker", job)
    try:
        outcome = sandbox.run(arguments, [file.resolve(), model.path.resolve()], sandbox.Limits(seconds=24 * 3600.0))
    except sandbox.Unavailable as error:
        raise PgolfError(f"the fresh process could not be walled in: {error}") from error
    if outcome.ended or outcome.status:
        raise PgolfError(f"the fresh process ended early ({outcome.ended or outcome.last_line})")
    answer = json.loads(outcome.stdout)
    if "error" in answer:
        raise PgolfError(str(answer["error"]))
    return str(answer["tokens_sha256"]), outcome.level


def _report(context: StageContext, source: Stage, metrics: dict[str, Any], came_back: bool, wall: str) -> None:
    where = "a fresh process" if wall == sandbox.NOTHING else "a fresh process without the text"
    rows = [
        ("text", f"{metrics['bytes_scored']:,} bytes"),
        ("code", f"{metrics['code_bytes']:,} bytes, {metrics['bits_per_byte']:.5f} bits per byte"),
        ("claimed score", f"{metrics['claimed_bits_per_byte']:.5f} bits per byte"),
        ("the file, with header and checks", f"{metrics['file_bytes']:,} bytes"),
        (where, "got the text back" if came_back else "got another text"),
    ]
    context.reporter.table(f"proof of {source.label}", ("measure", "value"), rows)
