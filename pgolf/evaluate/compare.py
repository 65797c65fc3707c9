"""Statistical comparison of two sets of scores, as the challenge's rules ask for it.

The challenge requires "better by at least 0.005 nats at p < 0.01", usually over three seeds. Published records read
that
in several ways (nats per token or per byte, margin or no margin, population or sample deviation, best seeds of more);
here every seed given counts, the deviation is the sample's, and each reading is a separate row. Over seeds: Welch's
unequal-variance t-test (B. L. Welch, Biometrika 34, 1947), one-sided. Over documents, for one pair of evaluations of
the same text: a paired bootstrap (P. Koehn, EMNLP 2004), which measures how far the choice of documents explains the
difference and nothing about seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.errors import PgolfError

MARGIN_NATS = 0.005  # the challenge's margin for a new record
LEVEL = 0.01  # and its level of significance
_RESAMPLES = 10_000
_BLOCK = 250  # resamples drawn at once, so that 50,000 documents stay below 100 MB


@dataclass(frozen=True)
class Sample:
    """The scores of one side, one per seed, of the same text."""

    bits_per_byte: tuple[float, ...]
    bytes_per_token: float
    """Of the side's tokenizer on the scored text; turns nats per token into bits per byte."""

    @property
    def mean(self) -> float:
        return math.fsum(self.bits_per_byte) / len(self.bits_per_byte)

    @property
    def deviation(self) -> float:
        """Sample standard deviation (n - 1); nan for a single value."""
        return float(np.std(self.bits_per_byte, ddof=1)) if len(self.bits_per_byte) > 1 else math.nan

    def nats_per_token(self, bits_per_byte: float) -> float:
        return bits_per_byte * math.log(2) * self.bytes_per_token

    def margin_bits_per_byte(self, nats_per_token: float) -> float:
        return nats_per_token / math.log(2) / self.bytes_per_token


@dataclass(frozen=True)
class Welch:
    """One-sided test of "the candidate's mean is lower than the reference's by more than `margin`"."""

    margin: float
    t: float
    degrees: float
    p: float


def welch(reference: Sequence[float], candidate: Sequence[float], margin: float = 0.0) -> Welch:
    """Welch's test on per-seed scores, lower being better; all in one unit.

    Raises PgolfError with fewer than two values on a side, or when neither side varies at all: then there is no
    estimate of the noise and no test.
    """
    if min(len(reference), len(candidate)) < 2:
        raise PgolfError("a test over seeds needs at least two seeds on each side")
    first, second = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    parts = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    total = float(sum(parts))
    if total == 0.0:
        raise PgolfError(
            "all seeds of each side have the same score, so nothing estimates the noise: were they copies?"
        )
    t = float(first.mean() - second.mean() - margin) / math.sqrt(total)
    degrees = total**2 / float(parts[0] ** 2 / (len(first) - 1) + parts[1] ** 2 / (len(second) - 1))
    return Welch(margin=margin, t=t, degrees=degrees, p=student_tail(t, degrees))


def student_tail(t: float, degrees: float) -> float:
    """P(T > t) for Student's t with `degrees` of freedom, to about 1e-12: a tail of the incomplete beta function."""
    if degrees <= 0:
        raise ValueError(f"degrees of freedom must be positive, not {degrees}")
    half = 0.5 * _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)
    return half if t >= 0 else 1.0 - half


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularized I_x(a, b) by Lentz's continued fraction (Abramowitz and Stegun 26.5.8)."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on this side of the mean only
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 500):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + step * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + step / c
            c = c if abs(c) > tiny else tiny
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(scale) * fraction / a


@dataclass(frozen=True)
class Documents:
    """One evaluation, summed by document."""

    nats: np.ndarray
    """(D,) float64: negative log-likelihood of each document's scored tokens."""
    bytes: np.ndarray
    """(D,) int64: bytes they decode to."""
    tokenizer: str = ""
    """Hash of the tokenizer, where known."""
    tokens: str = ""
    """Hash of the token stream, where known."""

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())


def by_document(nll: np.ndarray, token_bytes: np.ndarray, tokens: np.ndarray, bos_id: int) -> Documents:
    """Sum the scores of a stream by document; a document's own BOS counts to it where it is scored.

    nll: (N-1,) nats of targets 1..N-1; token_bytes: (N-1,) bytes of those targets; tokens: (N,) the whole stream.
    """
    owner = np.maximum(np.cumsum(tokens == bos_id)[1:] - 1, 0)  # (N-1,) text before a first BOS goes to document 0
    count = int(owner[-1]) + 1
    return Documents(
        nats=np.bincount(owner, weights=nll, minlength=count),
        bytes=np.bincount(owner, weights=token_bytes, minlength=count).astype(np.int64),
    )


def same_text(one: Documents, other: Documents) -> bool:
    """True unless two evaluations scored different documents, or the same ones in another order.

    Under one tokenizer the tokens decide. Tables of two tokenizers may count a lossy character differently, so there
    the documents' lengths may differ by a hundredth of the text in all.
    """
    if one.tokenizer and one.tokenizer == other.tokenizer:
        return one.tokens == other.tokens
    alike = len(one.bytes) == len(other.bytes)
    return alike and int(np.abs(one.bytes - other.bytes).sum()) <= 0.01 * int(one.bytes.sum())


@dataclass(frozen=True)
class Bootstrap:
    """Paired resampling of documents: the candidate's bits per byte minus the reference's."""

    difference: float
    low: float
    high: float
    """Ends of the central 95% of the resampled differences."""
    better: float
    """Share of the resamples in which the candidate is better."""
    better_by_margin: float
    """Share in which it is better by more than the margin."""
    documents: int
    documents_better: int


def bootstrap(
    reference: Documents,
    candidate: Documents,
    margin: float,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Resample documents with replacement, both sides alike, and compare bits per byte. `margin` in bits per byte.

    Raises PgolfError when the two evaluations did not score the same documents.
    """
    if len(reference.nats) != len(candidate.nats):
        raise PgolfError(
            f"the two evaluations scored {len(reference.nats):,} and {len(candidate.nats):,} documents; "
            "a paired comparison needs the same ones"
        )
    count = len(reference.nats)
    generator = np.random.default_rng(seed)
    columns = np.stack([reference.nats, reference.bytes, candidate.nats, candidate.bytes], axis=1).astype(np.float64)
    drawn = []
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        weights = generator.multinomial(count, np.full(count, 1.0 / count), size=size).astype(np.float64)
        drawn.append(weights @ columns)  # (size, D) @ (D, 4) -> (size, 4)
    sums = np.concatenate(drawn)
    differences = (sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]) / math.log(2)
    low, high = np.quantile(differences, [0.025, 0.975])
    per_document = candidate.nats * reference.bytes - reference.nats * candidate.bytes
    return Bootstrap(
        difference=candidate.bits_per_byte - reference.bits_per_byte,
        low=float(low),
        high=float(high),
        better=float((differences < 0).mean()),
        better_by_margin=float((differences < -margin).mean()),
        documents=count,
        documents_better=int((per_document < 0).sum()),
    )


@dataclass(frozen=True)
class Reading:
    """One reading of "significantly better" and its outcome."""

    name: str
    margin_bits_per_byte: float
    test: Welch | None
    """None: too few seeds to test."""

    @property
    def holds(self) -> bool:
        return self.test is not None and self.test.p < LEVEL


def readings(reference: Sample, candidate: Sample) -> list[Reading]:
    """Every reading of the challenge's rule that its participants used, strictest last."""
    own, other = (side.margin_bits_per_byte(MARGIN_NATS) for side in (candidate, reference))
    margins = {"better at all": 0.0}
    if math.isclose(own, other, rel_tol=1e-3):
        margins[f"better by {MARGIN_NATS} nats per token"] = own
    else:
        margins[f"better by {MARGIN_NATS} nats per token of A's tokenizer"] = other
        margins[f"better by {MARGIN_NATS} nats per token of B's tokenizer"] = own
    margins[f"better by {MARGIN_NATS} nats per byte"] = MARGIN_NATS / math.log(2)
    enough = min(len(reference.bits_per_byte), len(candidate.bits_per_byte)) >= 2
    return [
        Reading(name, margin, welch(reference.bits_per_byte, candidate.bits_per_byte, margin) if enough else None)
        for name, margin in margins.items()
    ]


def verdict(reference: Sample, candidate: Sample, found: Sequence[Reading], paired: Bootstrap | None) -> list[str]:
    """The supported conclusions, in plain sentences."""
    gain = reference.mean - candidate.mean
    sizes = f"{len(reference.bits_per_byte)} and {len(candidate.bits_per_byte)} seeds"
    lines = [f"B is {abs(gain):.5f} bits per byte {'better' if gain > 0 else 'worse'} than A on the mean ({sizes})."]
    tested = [reading for reading in found if reading.test is not None]
    if not tested:
        lines.append("Nothing can be claimed about seeds: with fewer than two on a side, their spread is unknown.")
    elif holding := [reading for reading in tested if reading.holds]:
        strongest = max(holding, key=lambda reading: reading.margin_bits_per_byte)
        assert strongest.test is not None
        lines.append(f'At p < {LEVEL} it can be claimed that B is "{strongest.name}" (p = {strongest.test.p:.2g}).')
        for reading in tested:
            if reading not in holding and reading.test is not None:
                lines.append(f'It cannot be claimed that B is "{reading.name}" (p = {reading.test.p:.2g}).')
    else:
        least = min((reading.test.p for reading in tested if reading.test is not None), default=1.0)
        lines.append(f"No difference can be claimed at p < {LEVEL} (smallest p = {least:.2g}).")
        if gain < 0:
            lines.append("A is the better one here; compare B A asks whether it is significantly so.")
    if paired is not None:
        lines.append(
            f"On other documents of the same kind the difference would lie between {paired.low:+.5f} and "
            f"{paired.high:+.5f} (95%, paired bootstrap over {paired.documents:,} documents); not over seeds."
        )
    return lines
