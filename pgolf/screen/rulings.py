"""Checks for the community's rulings: significance, gates that depend on the target, features of the code."""

import math
import statistics
from collections.abc import Iterator

from pgolf.evaluate.compare import student_tail
from pgolf.screen import reference, script
from pgolf.screen.claims import Check, cannot_tell, last_scores, seed_values
from pgolf.screen.folder import Record


def significance(record: Record) -> Iterator[Check]:
    """One-sided tests against the best merged row of an earlier day; which one counts is disputed, so none decides."""
    date, values = str(record.claims.get("date", ""))[:10], seed_values(record)
    rows = [row for row in reference.ROWS if row.date < date]
    if not values or not rows:
        return
    row = min(rows, key=lambda row: row.bits_per_byte)
    mean = statistics.mean(values)
    gain = row.bits_per_byte - mean
    ratio = next((float(s.loss) / math.log(2) / float(s.bits_per_byte) for _, s in last_scores(record)), None)
    parts = [f"{mean:.5f} against {row.bits_per_byte:.5f} ({row.pull_request}, {row.date}): {gain:+.5f} BPB"]
    if ratio:
        nats = gain * math.log(2) * ratio
        side = "at least" if nats >= reference.MARGIN_NATS else "under"
        parts.append(f"{nats:+.5f} nats per token ({side} {reference.MARGIN_NATS})")
    if len(values) > 1 and row.deviation is not None:
        own, other = statistics.variance(values) / len(values), row.deviation**2 / row.seeds
        if own + other > 0:
            degrees = (own + other) ** 2 / (own**2 / (len(values) - 1) + other**2 / (row.seeds - 1))
            parts.append(f"one-sided Welch p = {student_tail(gain / math.sqrt(own + other), degrees):.2g}")
    elif len(values) > 1 and statistics.variance(values) > 0:
        t = gain / math.sqrt(statistics.variance(values) / len(values))
        parts.append(f"one-sided p = {student_tail(t, len(values) - 1):.2g} against its mean alone")
    yield cannot_tell("against the row before", "; ".join(parts), record.claims_name)


def gates(record: Record) -> Iterator[Check]:
    for log in record.logs:
        for kind in ("within_gate", "word_gate"):
            value = log.last(kind)
            if value and value.value > 0:
                finding = f"{kind} fired {value.value:,.0f} times; invalid where the target decides (#1420, #2118)"
                yield cannot_tell("gates in the log", finding, log.where(value))


def features(record: Record) -> Iterator[Check]:
    for text in record.scripts:
        for layer in script.unpack(text):
            for found in script.features(layer):
                shown = found.lines[:3]
                more = f" and {len(found.lines) - 3} more" if len(found.lines) > 3 else ""
                finding = f"{found.feature.name} ({found.feature.ruling}){more}"
                yield cannot_tell("in the code", finding, *(f"{found.file}:{line}" for line in shown))
