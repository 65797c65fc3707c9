"""Facts of the challenge that a record's own figures are compared with.

Sources: README and `records/` of openai/parameter-golf at commit 4908dc46f; counts of targets are in the records'
logs, bytes follow from them as `nats / ln 2 * targets / bits per byte`, and #1916 and #2138 state them.
"""

from dataclasses import dataclass

CAP_BYTES = 16_000_000
SECONDS = 600.0
VAL_DOCUMENTS = 50_000
VAL_BYTES = 151_080_500
"""UTF-8 bytes of the whole validation split, whatever the tokenizer; known to about 2 kB."""
VAL_BYTES_SLACK = 2_500
LONGEST_CONTEXT = 32_768
"""The evaluators drop up to this many targets at the end of the stream, less one."""
MARGIN_NATS = 0.005
LEVEL = 0.01


@dataclass(frozen=True)
class Split:
    """Token and byte counts of the validation split under one published tokenizer."""

    name: str
    targets: int
    bytes_per_token: float
    """Bytes over targets as the evaluator in `train_gpt.py` counts both."""


SPLITS = (
    Split("sp1024", 62_021_632, 2.435930),
    Split("sp4096", 45_508_608, 3.319681),
    Split("sp8192", 40_540_160, 3.726631),
    Split("sp8192 CaseOps", 47_851_520, 3.157152),
    Split("byte260", 151_130_112, 0.999669),
    Split("sp1024, the split before 19 March (other text than every later row)", 63_779_840, 2.442304),
)
SPACE_TWICE = (1.16, 1.19)
"""Range of implied over true bytes when the byte of a leading space is counted twice (#1719, #1804)."""
SENTINELS_COUNTED = 164_594_398
"""Bytes of the CaseOps split when its four operators count three bytes each (#2071, #2138)."""


@dataclass(frozen=True)
class Row:
    """A merged row of the leaderboard: date of the record's folder, mean of its seeds."""

    date: str
    pull_request: str
    bits_per_byte: float
    deviation: float | None
    """Sample standard deviation of the seeds in submission.json; None where the file lists no seeds."""
    seeds: int


ROWS = (
    Row("2026-03-18", "baseline", 1.2243657, None, 1),
    Row("2026-03-19", "SlidingWindowEval", 1.19250007, None, 1),
    Row("2026-03-20", "Int6 MLP3x + SmearGate", 1.14581692, 0.000833, 3),
    Row("2026-03-25", "#1019", 1.11473509, 0.000354, 3),
    Row("2026-03-31", "#1204", 1.10625353, 0.001678, 3),
    Row("2026-04-01", "#1218", 1.09785, 0.00037, 3),
    Row("2026-04-04", "#1334", 1.08971631, 0.000288, 3),
    Row("2026-04-05", "#1394", 1.085626, 0.000717, 5),
    Row("2026-04-06", "#1413", 1.08279384, 0.000603, 3),
    Row("2026-04-08", "#1477", 1.08217956, 0.000459, 3),
    Row("2026-04-09", "#1514", 1.07983273, 0.000496, 3),
    Row("2026-04-11", "#1530", 1.07336388, 0.000846, 3),
    Row("2026-04-13", "#1610", 1.07280628, 0.000569, 3),
    Row("2026-04-14", "#1626", 1.071927, 0.000771, 3),
    Row("2026-04-16", "#1667", 1.07139, 0.00082, 3),
    Row("2026-04-18", "#1729", 1.06780094, 0.000452, 3),
    Row("2026-04-19", "#1736", 1.065487, 0.000696, 3),
    Row("2026-04-22", "#1769", 1.064526, 0.000676, 5),
    Row("2026-04-23", "#1787", 1.06335, 0.000566, 3),
    Row("2026-04-27", "#1855", 1.06107587, 0.001106, 3),
    Row("2026-04-29", "#1945", 1.05943, None, 3),
    Row("2026-04-30", "#2014", 1.05759, None, 3),
    Row("2026-05-01", "#2135", 1.05651, None, 3),
)
