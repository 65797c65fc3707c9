"""Checks of a run's files and manifests: size, clocks, calibration, the reported score.

Audit tests A4, A14, A16 and A20. Where the field's judges disagree on the reading (which code counts, which clock),
every reading is given.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, SHOWN, Finding
from pgolf.config.evaluate import EvaluateConfig
from pgolf.evaluate import scoring_order as table_order
from pgolf.evaluate.evaluator import Trace

CAP_SECONDS = 600.0  # the challenge's limit, for training and for evaluation


def budget(files: Sequence[Mapping[str, Any]], sizes: Mapping[str, int], cap: int) -> Finding:
    """A14: the files of a package match the ledger, and the counted bytes are within the cap.

    files: `file`, `bytes`, `counted` of each ledger line; sizes: bytes on disk by name; cap: 0 for none.
    """
    counted = sum(sizes[str(row["file"])] for row in files if row["counted"] and str(row["file"]) in sizes)
    numbers: dict[str, Any] = {"counted_bytes": counted, "cap_bytes": cap, "files": dict(sizes)}
    numbers["not_counted"] = sorted(str(row["file"]) for row in files if not row["counted"])
    for row in files:
        found = sizes.get(str(row["file"]))
        if found != row["bytes"]:
            text = f"{row['file']} has {found} bytes on disk, {row['bytes']} in the ledger"
            return Finding("budget", "A14", FAILED, text, numbers, {"file": str(row["file"])})
    if not cap:
        return Finding("budget", "A14", SHOWN, f"{counted:,} bytes count; no cap was set", numbers)
    if counted > cap:
        where = {"bytes_over": counted - cap}
        return Finding("budget", "A14", FAILED, f"{counted:,} bytes, over the cap of {cap:,}", numbers, where)
    text = f"{counted:,} of {cap:,} bytes ({cap - counted:,} left)"
    return Finding("budget", "A14", PASSED, text, numbers)


def clocks(
    train_seconds: float | None,
    step_seconds: float,
    other: Mapping[str, float],
    evaluation: Mapping[str, float],
    limit: float,
) -> Finding:
    """A16: seconds of training and of each full evaluation on record, against the limit; the last step may overshoot.

    other: seconds of stages between training and evaluation, which some readings count to the training.
    """
    numbers: dict[str, Any] = {"limit_seconds": limit, "train_seconds": train_seconds, **other, **evaluation}
    if train_seconds is None and not evaluation:
        return Finding("time", "A16", NOT_RUN, "neither a training nor a full evaluation is on record", numbers)
    if train_seconds is not None:
        numbers["train_and_all_until_evaluation_seconds"] = train_seconds + sum(other.values())
    late = {name: seconds for name, seconds in evaluation.items() if seconds > limit}
    if train_seconds is not None and train_seconds > limit + 2 * step_seconds:
        late["train"] = train_seconds
    shown = {"train": train_seconds, **evaluation}
    text = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in shown.items() if seconds is not None)
    if late:
        name = next(iter(late))
        where = {"stage": name, "seconds": late[name]}
        return Finding("time", "A16", FAILED, f"{name} took {late[name]:.0f} s of {limit:.0f} s", numbers, where)
    return Finding("time", "A16", PASSED, f"{text}; limit {limit:.0f} s each", numbers)


def calibration(source: str | None, hashes: Mapping[str, str], val_hashes: Mapping[str, str]) -> Finding:
    """A20: the quantizer was not calibrated on val text.

    source: name of the calibration text in the manifest, None without calibration; hashes: SHA-256 by file read;
    val_hashes: the same of the val shards.
    """
    numbers: dict[str, Any] = {"source": source, "files": sorted(hashes)}
    if source is None:
        return Finding(
            "calibration", "A20", NOT_RUN, "no quantized model in this lineage was calibrated on text", numbers
        )
    known = {digest: name for name, digest in val_hashes.items()}
    for name, digest in hashes.items():
        if digest in known:
            text = f"the quantizer was calibrated on val: {name} is {known[digest]}"
            return Finding("calibration", "A20", FAILED, text, numbers, {"file": name})
    return Finding("calibration", "A20", PASSED, f"calibrated on {source}, none of it a val shard", numbers)


def reported_score(
    name: str,
    metrics: Mapping[str, Any],
    nll: np.ndarray,
    token_bytes: np.ndarray,
    expected_bytes: np.ndarray,
    base: np.ndarray | None,
    noise: float,
) -> Finding:
    """A4 on the record: a reported score is the sum of its own per-token scores, over all of val, and those are the
    audit's where both scored the same text.

    nll, token_bytes: (N-1,) of the evaluation on record; expected_bytes: (M-1,) of the whole val stream; base: (n-1,)
    the audit's scores of the stream's beginning, None when those depend on the stream's length.
    """
    rule = "A4"
    nats, total = float(nll.sum(dtype=np.float64)), int(token_bytes.sum(dtype=np.int64))
    numbers: dict[str, Any] = {
        "stage": name,
        "tokens_scored": len(nll),
        "bytes_scored": total,
        "bits_per_byte_reported": metrics["bits_per_byte"],
        "bits_per_byte_from_scores": nats / np.log(2) / max(total, 1),
    }
    if len(nll) != len(expected_bytes) or metrics["tokens_scored"] != len(nll):
        text = f"{name} scored {len(nll):,} targets, val has {len(expected_bytes):,}"
        return Finding("reported score", rule, FAILED, text, numbers, {"stage": name})
    wrong = np.flatnonzero(token_bytes != expected_bytes)
    if len(wrong) or metrics["bytes_scored"] != total:
        text = f"{name} counts {total:,} bytes, val has {int(expected_bytes.sum()):,}"
        where: dict[str, Any] = {"position": int(wrong[0]) + 1 if len(wrong) else 0}
        return Finding("reported score", rule, FAILED, text, numbers, where)
    gap = abs(metrics["bits_per_byte"] / numbers["bits_per_byte_from_scores"] - 1)
    if gap > 1e-5:  # the scores are kept in float32
        text = f"{name} reports {metrics['bits_per_byte']:.6f} bits per byte, its scores sum to "
        text += f"{numbers['bits_per_byte_from_scores']:.6f}"
        return Finding("reported score", rule, FAILED, text, numbers, {"stage": name})
    text = f"{name}: {metrics['bits_per_byte']:.4f} bits per byte is the sum of its {len(nll):,} scores"
    if base is None:
        return Finding("reported score", rule, PASSED, text, numbers)
    # A shorter stream ends in another window: leave its last tokens out, they may have seen less.
    difference = np.abs(nll[: len(base)] - base)
    numbers["largest_difference_to_audit_nats"] = float(difference.max())
    if difference.max() > max(noise, 1e-3):
        at = int(np.argmax(difference))
        text = f"{name} has another score than the audit for the same token"
        where = {"position": at + 1, "reported": -float(nll[at]), "audited": -float(base[at])}
        return Finding("reported score", rule, FAILED, text, numbers, where)
    return Finding("reported score", rule, PASSED, f"{text}, the first {len(base):,} as audited", numbers)


def scoring_order(
    name: str, table: Path | None, nll: np.ndarray, updates: int | None, observed: Trace | None, until: int
) -> Finding:
    """A9 on the record: the table of the order of scoring and learning has every target of the scores once, none after
    an update that learned from it, and is the order that the audit saw.

    table: `order.csv`; None: the evaluation has none. The rest as in `evaluate.scoring_order.faults`.
    """
    check, rule = "order on record", "A9"
    if table is None:
        return Finding(check, rule, NOT_RUN, f"{name} has no table of its order")
    numbers = {"targets": len(nll), "updates": updates, "compared_with_the_audit": until if observed else 0}
    if found := table_order.faults(table, len(nll), updates, observed, until):
        return Finding(check, rule, FAILED, f"{name}: {found[0]}", numbers, {"table": table.name})
    same = f", the first {until:,} as the audit saw it" if observed else ""
    text = f"{name}: each of {len(nll):,} targets is scored once, before any update that learned from it{same}"
    return Finding(check, rule, PASSED, text, numbers)


def disputes(
    evaluator: str, adapts: bool, settings: EvaluateConfig, crosses: bool, stream_order: bool, mixing: bool
) -> list[dict[str, str]]:
    """Questions on which the field's judges disagree, with this evaluation's answers; reported, never decided."""
    counts = settings.mixture or settings.tilt_boost > 0
    track = "B (adaptive: learns from scored tokens)" if adapts or counts else "A (a fixed predictor)"
    rows = [
        {"question": "track of the score", "here": f"{track}; compare it with scores of the same track"},
        {
            "question": "context across documents",
            "here": "contexts cross documents, as in the challenge's own evaluator"
            if crosses
            else "contexts begin anew at every document",
        },
        {
            "question": "scoring order",
            "here": "in stream order" if stream_order else "documents are scored out of stream order",
        },
        {"question": "unit and margin of a claim", "here": "pgolf compare prints every reading"},
    ]
    if settings.tilt_boost:
        here = "an n-gram tilt from exact counts of scored tokens, normalized over the vocabulary (as #1514, #2135)"
        rows.append({"question": "statistics built at evaluation", "here": here})
    if settings.mixture or mixing:
        here = "a full distribution from exact counts of scored tokens; some judges allow it, some do not"
        rows.append({"question": "statistics built at evaluation", "here": here})
    if evaluator == "ttt":
        here = "compilation, loading and warm-up are not in the evaluation's seconds"
        rows.append({"question": "scope of the evaluation's time limit", "here": here})
    return rows
