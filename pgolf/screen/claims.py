"""Figures of a record: the claims of submission.json per seed and in total, and the last scores of the logs."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pgolf.screen.folder import Record
from pgolf.screen.log import Log, ScoreLine

Verdict = Literal["agrees", "contradicts", "cannot tell"]
AGREES: Verdict = "agrees"
CONTRADICTS: Verdict = "contradicts"
CANNOT_TELL: Verdict = "cannot tell"


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    finding: str
    evidence: tuple[str, ...] = ()
    """Places as `file:line`, or names of files."""


def agrees(name: str, finding: str, *evidence: str) -> Check:
    return Check(name, AGREES, finding, evidence)


def contradicts(name: str, finding: str, *evidence: str) -> Check:
    return Check(name, CONTRADICTS, finding, evidence)


def cannot_tell(name: str, finding: str, *evidence: str) -> Check:
    return Check(name, CANNOT_TELL, finding, evidence)


def claims_by_seed(record: Record) -> dict[str, dict[str, Any]]:
    """The entry of each seed, from the first object in submission.json whose keys are seeds (`42`, `seed_42`); in one
    called after bits per byte a bare number will do."""
    for name, found in record.claims.items():
        entries = found.items() if isinstance(found, dict) else ()
        seeds = {key[0]: value for text, value in entries if (key := re.findall(r"^(?:seed_?)?(\d+)$", str(text)))}
        if "bpb" in name:
            seeds = {seed: {"val_bpb": value} if as_number(value) else value for seed, value in seeds.items()}
        if seeds and all(isinstance(value, dict) for value in seeds.values()):
            return seeds
    return {}


def listed_seeds(record: Record) -> list[str]:
    found = record.claims.get("seeds")
    return [str(seed) for seed in found if isinstance(seed, int)] if isinstance(found, list) else []


def as_number(value: Any) -> Decimal | None:
    return Decimal(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else None


def logs_of(record: Record, seed: str) -> list[Log]:
    found = [log for log in record.logs if log.seed == seed]
    return found or (list(record.logs) if len(record.logs) == 1 else [])


def final_scores(log: Log) -> list[ScoreLine]:
    return [score for score in log.scores if score.is_final]


def last_scores(record: Record) -> list[tuple[Log, ScoreLine]]:
    return [(log, final_scores(log)[-1]) for log in record.logs if final_scores(log)]


def headline_claim(record: Record) -> tuple[str, Decimal] | None:
    for key in ("val_bpb", "mean_val_bpb", "mean_bpb"):
        value = as_number(record.claims.get(key))
        if value is not None:
            return key, value
    return None


def seed_values(record: Record) -> list[float]:
    """Bits per byte per seed: as claimed, else each log's last score."""
    claimed = [seed_score(entry) for entry in claims_by_seed(record).values()]
    values = [float(value) for value in claimed if value is not None]
    return values or [float(score.bits_per_byte) for _, score in last_scores(record)]


def seed_score(entry: dict[str, Any]) -> Decimal | None:
    for key in ("val_bpb", "ttt_bpb", "sliding_bpb", "bpb"):
        value = as_number(entry.get(key))
        if value is not None:
            return value
    return None
