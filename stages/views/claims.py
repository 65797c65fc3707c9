"""The claims of a package: its scores, their settings and text, their audits, and the hashes of its files.

`claims.json` is part of the package, so that anybody can check the claims (`pgolf verify`). Every
figure comes out of the manifests of the evaluation stages.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import pgolf
from pgolf import config as configs
from pgolf.config import Config, EvaluateConfig
from pgolf.errors import PgolfError
from pgolf.saved import tokens as token_stages
from pgolf.store import kinds, runs
from pgolf.store.records import QuantizeDetails, ScoreDetails
from pgolf.store.stage_directory import Stage

FILE = kinds.CLAIMS
FORMAT = 1
SCORES = {"eval-sliding": "sliding", "eval-ttt": "ttt"}
"""Name of each evaluation stage's score in the claims."""
METRICS = ("bits_per_byte", "nats_per_token", "tokens_scored", "bytes_scored")


def scores_of(model: Stage, run: Path) -> dict[str, Stage]:
    """The run's evaluations of `model` on its val text by kind of stage: the plainly named one, else the newest."""
    found: dict[str, Stage] = {}
    for stage in runs.stages_of(run):
        kind, scored = stage.manifest.stage, stage.manifest.inputs.get("model")
        if kind not in SCORES or scored is None or scored.sha256 != model.manifest_sha256:
            continue
        if any(role.startswith("documents:") for role in stage.manifest.inputs):
            continue
        if kind not in found or found[kind].label != kind:
            found[kind] = stage
    return found


def scored_model(stage: Stage) -> Stage:
    """The stage that scores refer to: the packaged model's stage for a package, otherwise the stage itself."""
    return stage.parent("model") if stage.manifest.stage == "package" else stage


def audits_of(model: Stage, run: Path, scores: Mapping[str, Stage]) -> dict[str, Stage]:
    """The run's newest audits of `model`, by the score whose evaluator and settings they are of."""
    found: dict[str, Stage] = {}
    for stage in runs.stages_of(run):
        audited = stage.manifest.inputs.get("model")
        if stage.manifest.stage != "audit" or audited is None or audited.sha256 != model.manifest_sha256:
            continue
        evaluator = stage.manifest.config["options"]["evaluator"]
        scored = next((score for kind, score in scores.items() if SCORES[kind] == evaluator), None)
        sections = ("evaluate", "ttt") if evaluator == "ttt" else ("evaluate",)
        if scored and all(stage.manifest.config[key] == scored.manifest.config[key] for key in sections):
            found[evaluator] = stage
    return found


def claim(
    model: Stage, scores: Mapping[str, Stage], audits: Mapping[str, Stage], files: Mapping[str, bytes]
) -> dict[str, Any]:
    """The content of `claims.json` for the package's files, by name."""
    return {
        "format": FORMAT,
        "pgolf": pgolf.__version__,
        "text": text_identity(model.ancestor("tokenize")),
        "scores": {SCORES[kind]: _score(stage) for kind, stage in sorted(scores.items())},
        "audits": {name: _audit(stage) for name, stage in sorted(audits.items())},
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
    }


def text_identity(tokens: Stage) -> dict[str, Any]:
    """Identity of the val text, independent of its shards: hashes of the tokens and of their byte counts."""
    stream = token_stages.open_split(tokens, "val")
    ids = np.ascontiguousarray(stream[0 : len(stream)], dtype="<u2")
    return identity(ids, np.asarray(token_stages.token_bytes(tokens)))


def identity(ids: np.ndarray, token_bytes: np.ndarray) -> dict[str, Any]:
    """SHA-256 over the tokens (uint16) and over their byte counts (int64), little-endian."""
    return {
        "tokens": len(ids),
        "tokens_sha256": hashlib.sha256(np.asarray(ids, dtype="<u2").tobytes()).hexdigest(),
        "bytes_sha256": hashlib.sha256(np.asarray(token_bytes, dtype="<i8").tobytes()).hexdigest(),
    }


def same_scoring(one: EvaluateConfig, other: EvaluateConfig) -> bool:
    """True if two settings give the same claimed figures; batches, proofs and the mixture are reported apart."""
    first, second = (replace(item, batch_windows=1, prove_tokens=0, mixture=False) for item in (one, other))
    return first == second


def refuse_mixed(scores: Mapping[str, Stage]) -> None:
    """Raise PgolfError for scores under different settings of `evaluate`: a package's script has one of each."""
    made = [
        (stage, configs.recorded({"evaluate": stage.manifest.config["evaluate"] | _resolved(stage)}).evaluate)
        for stage in scores.values()
    ]
    for (one, first), (other, second) in itertools.combinations(made, 2):
        if not same_scoring(first, second):
            different = [key for key, value in asdict(first).items() if value != asdict(second)[key]]
            shown = ", ".join(f"{key} {getattr(first, key)} and {getattr(second, key)}" for key in different)
            raise PgolfError(
                f"{one.label} and {other.label} were made with different settings (evaluate: {shown}), and a package "
                "has one: rerun one of them with the other's, or name the one that only compares with --name"
            )


def recorded_config(model: Stage, scores: Mapping[str, Stage], config: Config) -> dict[str, Any]:
    """The configuration that the package's model was made and scored with, section by section from the manifests.

    Only values that are not the defaults: the script carries the same defaults. A byte target is what it left for the
    model, since the script does not know its own size when it retrains.
    """
    made: dict[str, Any] = {key: value for key, value in model.manifest.config.items() if key != "options"}
    made["quantize"] = made["quantize"] | model.manifest.details_as(QuantizeDetails).get("model_target", {})
    for kind, stage in scores.items():
        made["evaluate"] = stage.manifest.config["evaluate"] | _resolved(stage)
        if kind == "eval-ttt":
            made["ttt"] = stage.manifest.config["ttt"]
    made["package"] = configs.to_dict(config)["package"]
    return _with_lineage(made, ancestors(model))


def planned_config(source: Stage, config: Config) -> dict[str, Any]:
    """The future `recorded_config` of the float model of `source`, quantized and scored with `config`."""
    return _with_lineage(configs.to_dict(config), [source, *ancestors(source)])


def _with_lineage(made: dict[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    lineage = {stage.manifest.stage: stage for stage in stages}
    sources = (
        ("tokenize", ("tokenizer",)),
        ("train", ("train", "optim", "average", "seed")),
        ("ema-finalize", ("average",) if "train" in lineage else ("average", "train", "seed")),  # imported: it alone
    )
    for kind, sections in sources:
        if kind in lineage:
            made |= {section: lineage[kind].manifest.config[section] for section in sections}
    return _changed(configs.to_dict(configs.recorded(made)), configs.to_dict(Config()))


def ancestors(stage: Stage) -> list[Stage]:
    """All ancestors that are still at their recorded paths, nearest first."""
    found: list[Stage] = []
    for role, entry in stage.manifest.inputs.items():
        if entry.kind == "stage":
            parent = stage.parent(role)
            found += [parent, *ancestors(parent)]
    return found


def _score(stage: Stage) -> dict[str, Any]:
    manifest = stage.manifest
    settings = {"evaluate": manifest.config["evaluate"] | _resolved(stage)}
    if manifest.stage == "eval-ttt":
        settings["ttt"] = manifest.config["ttt"]
    return {
        **{name: manifest.metrics[name] for name in METRICS},
        "lossless": manifest.details_as(ScoreDetails)["lossless"],
        "device": manifest.environment["device"],
        "dtype": manifest.environment["dtype"],
        "seconds": manifest.metrics["seconds"],
        "world_size": manifest.environment["world_size"],
        "device_name": manifest.environment["device_name"],
        "out_of_time": manifest.details_as(ScoreDetails).get("out_of_time", False),
        "settings": settings,
    }


def _audit(stage: Stage) -> dict[str, Any]:
    options, metrics = stage.manifest.config["options"], stage.manifest.metrics
    counts = ("checks_passed", "checks_failed", "checks_not_run")
    return {key: options[key] for key in ("tokens", "probes")} | {key: metrics[key] for key in counts}


def _resolved(stage: Stage) -> dict[str, int]:
    """The lengths an evaluation really used, where its settings leave them to the model's training."""
    return {key: int(stage.manifest.details[key]) for key in ("seq_len", "stride")}


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            if inside := _changed(value, defaults[key]):
                found[key] = inside
        elif key not in defaults or value != defaults[key]:
            found[key] = value
    return found
