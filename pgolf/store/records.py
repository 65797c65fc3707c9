"""Types of `metrics` and `details` in the manifest of each kind of stage (docs/MANIFEST.md explains the fields).

All fields are optional: older versions wrote fewer, and some depend on settings. `KINDS` pairs them with the kinds.
"""

from typing import Any, TypedDict


class NoRecord(TypedDict, total=False):
    pass


class SplitCounts(TypedDict, total=False):
    documents: int
    bytes: int
    tokens: int
    lossy_documents: int
    changed_bytes: int
    invalid_documents: int
    bytes_per_token: float


class TokenizeMetrics(TypedDict, total=False):
    tokens_per_second: float


class TokenizeDetails(TypedDict, total=False):
    vocab_size: int
    bos_id: int
    caseops: str | None
    byte_fallback: bool
    faults: list[str]
    lossless: bool
    lossy_documents: int
    changed_bytes: int
    trained: bool
    corpus: str
    bytes_from: str
    variant: str
    train_shards_published: int
    train_documents_in_val: int
    documents_per_second: float
    train: SplitCounts
    val: SplitCounts


class TrainMetrics(TypedDict, total=False):
    iterations: int
    tokens: int
    parameters: int
    seconds: float
    tokens_per_second: float
    loss: float | None
    flops_utilization: float
    holdout_nats_per_token: float
    holdout_bits_per_byte: float


class TrainDetails(TypedDict, total=False):
    path: str
    matrix_flops_per_second: int
    restarts: int
    holdout_tokens: int
    train_tokens: int
    passes: float
    paused_seconds: float
    seq_len: int
    averages: list[str]
    choice: dict[str, Any]
    hessians: dict[str, Any]
    fast_paths: dict[str, Any]


class FinalizeMetrics(TypedDict, total=False):
    holdout_nats_per_token: float
    holdout_bits_per_byte: float
    parameters: int
    seconds: float


class FinalizeDetails(TypedDict, total=False):
    chosen: str
    chosen_inside_the_training_clock: bool
    candidates: list[dict[str, Any]]
    holdout_tokens: int
    seq_len: int
    imported_from: str
    imported_format: str
    imported_assumed: dict[str, Any]


class QuantizeMetrics(TypedDict, total=False):
    parameters: int
    model_bytes: int


class QuantizeDetails(TypedDict, total=False):
    tensors: list[dict[str, Any]]
    allocation: list[dict[str, Any]]
    calibration_tokens: int
    distill_steps: int
    reserved_bytes: dict[str, int]
    model_target: dict[str, int]


class PackageMetrics(TypedDict, total=False):
    model_bytes: int
    code_bytes: int
    total_bytes: int


class PackageDetails(TypedDict, total=False):
    ledger: dict[str, Any]
    claims: dict[str, Any]


class ScoreMetrics(TypedDict, total=False):
    bits_per_byte: float
    nats_per_token: float
    tokens_scored: int
    bytes_scored: int
    seconds: float
    tokens_per_second: float
    mixture_bits_per_byte: float
    mixture_seconds: float


class ScoreDetails(TypedDict, total=False):
    text: str
    lossless: bool
    seq_len: int
    stride: int
    context: str
    method: str
    chunks: int
    chunks_learned: int
    steps: int
    out_of_time: bool
    estimate_seconds: dict[str, float]
    tilt: dict[str, Any]
    ttt: dict[str, Any]
    tuned_on: str
    trials: list[dict[str, Any]]


class ProveMetrics(TypedDict, total=False):
    bits_per_byte: float
    claimed_bits_per_byte: float
    tokens_scored: int
    bytes_scored: int
    code_bytes: int
    file_bytes: int


class ProveDetails(TypedDict, total=False):
    score: str
    text: str
    whole: bool
    came_back: bool
    wall: str


class AuditMetrics(TypedDict, total=False):
    bits_per_byte: float
    nats_per_token: float
    tokens_scored: int
    bytes_scored: int
    checks_passed: int
    checks_failed: int
    checks_not_run: int
    evaluations: int
    seconds: float
    tokens_per_second: float


class AuditDetails(TypedDict, total=False):
    text: str
    failed: list[str]
