"""Compare two sides of evaluations: several seeds each, or one pair document by document. Writes nothing."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pgolf.errors import PgolfError
from pgolf.evaluate import compare as statistics
from pgolf.evaluate import general_compressors
from pgolf.evaluate.compare import LEVEL, Bootstrap, Documents, Reading, Sample
from pgolf.progress import Reporter
from pgolf.saved import tokens as token_stages
from pgolf.store import kinds, runs, stage_directory
from pgolf.store import manifest as manifests
from pgolf.store.records import ScoreDetails, ScoreMetrics
from pgolf.store.stage_directory import Stage
from stages.reports import summary
from stages.views import evaluation, proofs

KINDS = kinds.SCORED
"""Evaluations, the one that a run is judged by first."""
_SAME_BYTES = 1e-3  # relative: the same text under another tokenizer differs by the first token's bytes


@dataclass(frozen=True)
class Comparison:
    reference: list[Stage]
    candidate: list[Stage]
    samples: tuple[Sample, Sample]
    readings: list[Reading]
    paired: Bootstrap | None
    verdict: list[str]
    named: Callable[[Stage], str]
    """How a stage is shown."""

    def to_dict(self) -> dict[str, Any]:
        sides = []
        for stages, sample in zip((self.reference, self.candidate), self.samples, strict=True):
            sides.append(
                {
                    "stages": [self.named(stage) for stage in stages],
                    "seeds": [stage.manifest.seed for stage in stages],
                    "bits_per_byte": list(sample.bits_per_byte),
                    "nats_per_token": [sample.nats_per_token(value) for value in sample.bits_per_byte],
                    "mean": sample.mean,
                    "sample_deviation": None if math.isnan(sample.deviation) else sample.deviation,
                    "n": len(sample.bits_per_byte),
                }
            )
        return {
            "a": sides[0],
            "b": sides[1],
            "readings": [dataclasses.asdict(reading) | {"holds": reading.holds} for reading in self.readings],
            "paired_bootstrap": None if self.paired is None else dataclasses.asdict(self.paired),
            "verdict": self.verdict,
        }


def find(names: str, artifacts: Path, label: str | None) -> list[Stage]:
    """The evaluation stages that one side names: stage directories or runs, comma-separated, `*` allowed.

    label: which evaluation of a run (`eval-sliding`, `eval-ttt@lora`); None: its eval-ttt, else its eval-sliding.
    Raises PgolfError for a name that leads to no evaluation.
    """
    found: list[Stage] = []
    whole = [names] if names and (Path(names).is_dir() or (artifacts / names).is_dir()) else []
    for name in whole or filter(None, (part.strip() for part in names.split(","))):
        paths = _matching(Path(), name) or _matching(artifacts, name)
        if not paths:
            raise PgolfError(f"{name}: no stage directory and no run of that name in {artifacts}")
        found += [_evaluation(path, label) for path in paths]
    if not found:
        raise PgolfError(f"{names!r} names no evaluation; name stage directories or runs")
    return found


def _matching(folder: Path, name: str) -> list[Path]:
    """The folder of that name; only where there is none, and `*` is in it, the folders that it matches.

    Brackets and question marks are literal: runs may be called `[v2]`.
    """
    if (folder / name).is_dir():
        return [folder / name]
    if "*" not in name:
        return []
    path = Path(name)
    start = Path(path.anchor) if path.is_absolute() else folder
    pattern = re.sub(r"([\[?])", r"[\1]", str(path.relative_to(path.anchor)))
    return sorted(found for found in start.glob(pattern) if found.is_dir())


def _evaluation(path: Path, label: str | None) -> Stage:
    if (path / manifests.FILE_NAME).is_file():
        return stage_directory.open_stage(path, KINDS)
    stages = {stage.label: stage for stage in runs.stages_of(path)}
    for name in (label,) if label else KINDS:
        if name in stages:
            return stage_directory.open_stage(stages[name].path, KINDS)
    raise PgolfError(f"{path} holds no {label or ' and no '.join(KINDS)}; evaluate it first or name a stage directory")


def compare(
    reporter: Reporter,
    reference: Sequence[Stage],
    candidate: Sequence[Stage],
    named: Callable[[Stage], str] = lambda stage: str(stage.path),
) -> Comparison:
    """Test whether `candidate` (B) beats `reference` (A). Raises PgolfError when they did not score the same text."""
    stages = [*reference, *candidate]
    if len({stage.manifest_sha256 for stage in stages}) < len(stages):
        raise PgolfError("an evaluation is named twice, and each counts once: name two stage directories or two runs")
    kinds = {stage.manifest.stage for stage in stages}
    if len(kinds) > 1:
        reporter.message(
            f"note: {' and '.join(sorted(kinds))} are compared; one adapts to the text, the other does not"
        )
    sizes = [stage.manifest.metrics_as(ScoreMetrics)["bytes_scored"] for stage in stages]
    if max(sizes) > min(sizes) * (1 + _SAME_BYTES):
        shown = ", ".join(f"{named(stage)} {size:,} bytes" for stage, size in zip(stages, sizes, strict=True))
        raise PgolfError(f"these evaluations did not score the same text: {shown}")
    samples = _sample(reference), _sample(candidate)
    found = statistics.readings(*samples)
    paired = None
    if all((stage.path / evaluation.SCORES_FILE).exists() for stage in stages):
        scored = [documents_of(stage) for stage in stages]
        for stage, documents in zip(stages, scored, strict=True):
            if not statistics.same_text(scored[0], documents):
                raise PgolfError(
                    f"{named(stages[0])} and {named(stage)} did not score the same documents in the same order"
                )
        if len(reference) == len(candidate) == 1:
            margin = samples[1].margin_bits_per_byte(statistics.MARGIN_NATS)
            paired = statistics.bootstrap(scored[0], scored[1], margin)
    else:
        reporter.message("note: no scores per document are here (a lineage file has none): only means are compared")
    verdict = statistics.verdict(*samples, found, paired)
    result = Comparison(list(reference), list(candidate), samples, found, paired, verdict, named)
    _show(reporter, result)
    return result


def compressors(reporter: Reporter, stage: Stage) -> list[general_compressors.Reading]:
    """Show what general compressors make of the val text that an evaluation scored; nothing for another text."""
    if stage.manifest.details_as(ScoreDetails).get("text", "val") != "val":
        return []
    size = stage.manifest.metrics_as(ScoreMetrics)["bytes_scored"]
    if size > general_compressors.SLOW_BYTES:
        reporter.message(f"note: no compressors are shown: they would take minutes for a text of {size:,} bytes")
        return []
    try:
        found = summary.compressors(stage.parent("model").ancestor("tokenize"))
    except PgolfError as error:  # a lineage file has no texts, and inputs may have been deleted
        reporter.message(f"note: no compressors are shown, as the text is not here: {error}")
        return []
    rows = [(row.what, f"{row.bits_per_byte:.4f}") for row in summary.shown(found)]
    reporter.table("the same text under general compressors", ("stored by", "bits per byte"), rows)
    if reason := general_compressors.left_out(size):
        reporter.message(reason)
    return found


def _sample(stages: Sequence[Stage]) -> Sample:
    metrics = [stage.manifest.metrics for stage in stages]
    ratios = [item["bytes_scored"] / item["tokens_scored"] for item in metrics]
    if max(ratios) > min(ratios) * (1 + _SAME_BYTES):
        raise PgolfError(
            f"the seeds of one side use different tokenizers ({min(ratios):.4f} to {max(ratios):.4f} bytes)"
        )
    return Sample(tuple(float(item["bits_per_byte"]) for item in metrics), float(np.mean(ratios)))


def documents_of(stage: Stage) -> Documents:
    """Per-token scores of an evaluation, summed by document."""
    payload = load_file(stage.file(evaluation.SCORES_FILE))
    tokenized = stage.parent("model").ancestor("tokenize")
    encoded = token_stages.encode_documents(tokenized, token_stages.recorded_documents(stage, "documents"))
    if encoded is not None:
        tokens = encoded[0]
    else:
        stream = token_stages.open_split(tokenized, "val")
        tokens = np.asarray(stream[0 : len(stream)])
    tokenizer = token_stages.tokenizer_of(tokenized)
    if len(tokens) != len(payload["nll"]) + 1:
        raise PgolfError(f"{stage.path} scored {len(payload['nll'])} targets of a text of {len(tokens)} tokens")
    found = statistics.by_document(payload["nll"].astype(np.float64), payload["token_bytes"], tokens, tokenizer.bos_id)
    hashes = [hashlib.sha256(part).hexdigest() for part in (tokenizer.proto, tokens.astype("<u2").tobytes())]
    return dataclasses.replace(found, tokenizer=hashes[0], tokens=hashes[1])


def _show(reporter: Reporter, result: Comparison) -> None:
    rows = []
    for name, stages, sample in zip("AB", (result.reference, result.candidate), result.samples, strict=True):
        for stage, value in zip(stages, sample.bits_per_byte, strict=True):
            label = f"{name}  {result.named(stage)}"
            rows.append((label, str(stage.manifest.seed), f"{value:.5f}", f"{sample.nats_per_token(value):.5f}"))
        spread = sample.deviation
        rows.append(
            (
                f"{name}  mean ± sample deviation, n = {len(stages)}",
                "",
                f"{sample.mean:.5f}" + ("" if math.isnan(spread) else f" ± {spread:.5f}"),
                f"{sample.nats_per_token(sample.mean):.5f}"
                + ("" if math.isnan(spread) else f" ± {sample.nats_per_token(spread):.5f}"),
            )
        )
    reporter.table("scores", ("evaluation", "seed", "bits per byte", "nats per token"), rows)
    reporter.table(
        f"one-sided Welch test that B is better (p < {LEVEL} to claim it)",
        ("claim", "margin, bits per byte", "t", "degrees", "p", "holds"),
        [
            (
                reading.name,
                f"{reading.margin_bits_per_byte:.5f}",
                *(("-", "-", "-") if reading.test is None else _cells(reading.test)),
                "untested" if reading.test is None else "yes" if reading.holds else "no",
            )
            for reading in result.readings
        ],
    )
    if result.paired is not None:
        paired = result.paired
        reporter.table(
            "paired bootstrap over documents, B minus A in bits per byte",
            ("difference", "95% from", "to", "better", "better by the margin", "documents better"),
            [
                (
                    f"{paired.difference:+.5f}",
                    f"{paired.low:+.5f}",
                    f"{paired.high:+.5f}",
                    f"{paired.better:.2%}",
                    f"{paired.better_by_margin:.2%}",
                    f"{paired.documents_better:,} of {paired.documents:,}",
                )
            ],
        )
    for line in result.verdict:
        reporter.message(line)
    for name, stages in zip("AB", (result.reference, result.candidate), strict=True):
        for stage in stages:
            found = [proof for proof in proofs.proofs_of(runs.stages_of(stage.path.parent)) if proof.of == stage.label]
            for proof in found:
                held = proof.stale or "; ".join(f"{what}: {value}" for what, value in proof.rows()[:3])
                reporter.message(f"{name}: {proof.stage.label} of {stage.path}: {held}")
    settings = {json.dumps(_settings(stage), sort_keys=True) for stage in result.candidate}
    if len(settings) > 1:
        reporter.message(
            "note: the runs of B do not share one configuration, so their spread is not that of seeds alone"
        )


def _cells(test: statistics.Welch) -> tuple[str, str, str]:
    return f"{test.t:.3f}", f"{test.degrees:.2f}", f"{test.p:.3g}"


def _settings(stage: Stage) -> dict[str, Any]:
    return {key: value for key, value in stage.manifest.config.items() if key not in ("seed", "options")}
