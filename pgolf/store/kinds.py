"""The table of stage kinds: the kinds of their inputs, the payload they hold, and the names of their files.

Everything that lists kinds or names a stage's files reads it from here. A new kind is a new row.
"""

from dataclasses import dataclass

from pgolf.store import records

TOKENIZER, WEIGHTS, QUANTIZED, PACKED, SCRIPT = (
    "tokenizer.model",
    "model.safetensors",
    "quantized.safetensors",
    "model.pgz",
    "train_gpt.py",
)
TRAIN_SHARDS, VAL_SHARDS = "fineweb_train", "fineweb_val"
"""Prefixes of the names of shards: `<prefix>_000000.bin`."""
VAL_BYTES, CASEOPS_VAL_BYTES = "val_bytes", "fineweb_val_bytes"
"""Prefixes of the byte counts of val tokens. The second is the published name for CaseOps shards. The challenge's other
scripts and llm.c read `fineweb_val_*.bin` as tokens, so only CaseOps stages have it, and stages of older versions."""
METRICS_LOG, TRAIN_LOG, LOSS_CURVE = "metrics.jsonl", "train.log", "loss.png"
AVERAGE, HESSIANS = "average-", "hessians.safetensors"
SCORES, CLAIMS, REQUIREMENTS = "scores.safetensors", "claims.json", "requirements.txt"
ROUND_TRIPS, ORDER = "tokenizer_proof.json", "order.csv"
AUDIT, AUDIT_TEXT, PAGE, PROOF = "report.json", "report.md", "report.html", "proof.pgt"


@dataclass(frozen=True)
class Kind:
    name: str
    after: tuple[str, ...] = ()
    """Kinds of its input, of which the newest stage is chosen."""
    also: tuple[str, ...] = ()
    """Kinds accepted with `--from` only."""
    holds: str = ""
    """`tokens`, `float` or `integers` (a model), `score`, `audit`, `proof` or `page`."""
    files: tuple[str, ...] = ()
    """Names of its files, or prefixes of them."""
    metrics: type = records.NoRecord
    details: type = records.NoRecord
    """Types of `metrics` and `details` in its manifest."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "tokenize",
            (),
            (),
            "tokens",
            (TOKENIZER, TRAIN_SHARDS, VAL_SHARDS, VAL_BYTES, CASEOPS_VAL_BYTES, ROUND_TRIPS),
            records.TokenizeMetrics,
            records.TokenizeDetails,
        ),
        Kind(
            "train",
            ("tokenize",),
            (),
            "float",
            (WEIGHTS, AVERAGE, HESSIANS, METRICS_LOG, TRAIN_LOG, LOSS_CURVE, "tensorboard"),
            records.TrainMetrics,
            records.TrainDetails,
        ),
        Kind("ema-finalize", ("train",), (), "float", (WEIGHTS,), records.FinalizeMetrics, records.FinalizeDetails),
        Kind(
            "quantize",
            ("ema-finalize", "train"),
            (),
            "integers",
            (QUANTIZED,),
            records.QuantizeMetrics,
            records.QuantizeDetails,
        ),
        Kind(
            "package",
            ("quantize",),
            (),
            "integers",
            (PACKED, SCRIPT, TOKENIZER, REQUIREMENTS, CLAIMS),
            records.PackageMetrics,
            records.PackageDetails,
        ),
        Kind(
            "eval-sliding",
            ("quantize", "ema-finalize", "train"),
            ("package",),
            "score",
            (SCORES, ORDER),
            records.ScoreMetrics,
            records.ScoreDetails,
        ),
        Kind(
            "eval-ttt",
            ("quantize", "ema-finalize", "train"),
            ("package",),
            "score",
            (SCORES, ORDER),
            records.ScoreMetrics,
            records.ScoreDetails,
        ),
        Kind(
            "audit",
            ("package", "quantize", "ema-finalize", "train"),
            (),
            "audit",
            (AUDIT, AUDIT_TEXT),
            records.AuditMetrics,
            records.AuditDetails,
        ),
        Kind(
            "prove",
            ("eval-ttt", "eval-sliding"),
            ("package",),
            "proof",
            (PROOF,),
            records.ProveMetrics,
            records.ProveDetails,
        ),
        Kind("report", (), (), "page", (PAGE,), records.NoRecord, records.NoRecord),
    )
}


def holding(*holds: str) -> tuple[str, ...]:
    """Names of the kinds that hold one of these, the last of the chain first."""
    return tuple(name for name in reversed(KINDS) if KINDS[name].holds in holds)


MODELS, FLOATS, SCORED = holding("float", "integers"), holding("float"), holding("score")


def comes_after(kind: str | None, other: str) -> bool:
    """True if a stage of `kind` has one of kind `other` in its lineage."""
    row = KINDS.get(kind or "")
    return row is not None and any(one == other or comes_after(one, other) for one in (*row.after, *row.also))
