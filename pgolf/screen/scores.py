"""Checks of the claimed scores against the logs, the README and each other."""

import re
import statistics
from collections.abc import Iterator
from decimal import Decimal

from pgolf.screen import reference
from pgolf.screen.claims import (
    Check,
    agrees,
    as_number,
    cannot_tell,
    claims_by_seed,
    contradicts,
    final_scores,
    headline_claim,
    last_scores,
    logs_of,
    seed_score,
)
from pgolf.screen.folder import Record
from pgolf.screen.log import same


def seed_scores(record: Record) -> Iterator[Check]:
    """Each figure that submission.json gives for a seed against every score in that seed's logs."""
    for seed, entry in claims_by_seed(record).items():
        logs = logs_of(record, seed)
        for key, attribute in (("val_bpb", "bits_per_byte"), ("val_loss", "loss")):
            value, name = as_number(entry.get(key)), f"seed {seed}: {key}"
            if value is None:
                continue
            if not any(log.scores for log in logs):
                yield cannot_tell(name, f"claims {value}; no log of this seed with a score", record.claims_name)
                continue
            hits = [log.where(score) for log in logs for score in log.scores if same(value, getattr(score, attribute))]
            if hits:
                yield agrees(name, f"{value} is in the log", hits[-1])
                continue
            if other := next((found for log in logs if (found := log.printed(value))), None):
                yield _other_form(name, value, *other)
                continue
            last = [(log, final_scores(log)[-1]) for log in logs if final_scores(log)]
            printed = ", ".join(f"{getattr(score, attribute)} ({score.tag})" for _, score in last)
            places = (record.claims_name, *(log.where(score) for log, score in last))
            yield contradicts(name, f"claims {value}; its log ends with {printed or 'no score'}", *places)


def headline(record: Record) -> Iterator[Check]:
    """The one score of the record: the mean of its seeds, or one of them."""
    name, claim, lasts = "headline score", headline_claim(record), last_scores(record)
    if claim is None:
        loss, bits = as_number(record.claims.get("val_loss")), [float(score.bits_per_byte) for _, score in lasts]
        if loss is not None and bits and abs(float(loss) - statistics.mean(bits)) < 0.001:
            text = f"val_loss {loss} is the logs' bits per byte; their losses are {lasts[-1][1].loss} nats per token"
            places = (record.claim_line("val_loss"), *(log.where(score) for log, score in lasts))
            yield contradicts(name, text, *places)
        else:
            yield cannot_tell(name, "submission.json has no val_bpb", record.claims_name)
        return
    key, value = claim
    here = record.claim_line(key)
    seeds = [score for score in map(seed_score, claims_by_seed(record).values()) if score is not None]
    printed = [Decimal(score.bits_per_byte) for _, score in lasts]
    bare = _bare(record)
    means = {"the seeds in submission.json": seeds, "the logs' last scores": printed, **bare}
    found = next(
        (f"the mean of {what}" for what, some in means.items() if len(some) > 1 and same(value, f"{_mean(some):.9f}")),
        None,
    )
    if found is None and any(same(value, str(number)) for number in seeds):
        found = "one seed's score, not the mean"
    if found:
        yield agrees(name, f"{key} {value} is {found}", here)
        return
    hits = [log.where(score) for log in record.logs for score in log.scores if same(value, score.bits_per_byte)]
    one = next((what for what, some in bare.items() if any(same(value, str(number)) for number in some)), None)
    if hits or one:
        yield agrees(name, f"{key} {value} is one of {one or 'the logs'}' scores", here, *hits[:1])
    elif line := next((place for log in record.logs if (place := log.printed(value))), None):
        yield _other_form(name, value, *line)
    elif not seeds and not printed and not bare:
        yield cannot_tell(name, f"{key} {value}: no log prints a final score", here)
    else:
        others = seeds or printed or [number for some in bare.values() for number in some]
        yield contradicts(name, f"{key} {value} is neither a mean nor one of {', '.join(map(str, others))}", here)


def _other_form(name: str, value: Decimal, place: str, size: int | None) -> Check:
    """A claimed score that the log prints otherwise than as a score with its loss, perhaps of a part of the text."""
    if size is not None and abs(size / reference.VAL_BYTES - 1) > 0.005:
        return contradicts(name, f"{value} is of {size:,} bytes; the split has {reference.VAL_BYTES:,}", place)
    return cannot_tell(name, f"{value} is in the log, but not as the score of the whole text", place)


def _mean(numbers: list[Decimal]) -> Decimal:
    return sum(numbers, Decimal()) / len(numbers)


def _bare(record: Record) -> dict[str, list[Decimal]]:
    """Scores that logs print without a loss, the last of each log, by what they are called."""
    found: dict[str, list[Decimal]] = {}
    for log in record.logs:
        for tag, values in log.bare.items():
            found.setdefault(f"the logs' {tag!r}", []).append(Decimal(str(values[-1].value)))
    return found


def readme(record: Record) -> Iterator[Check]:
    """Check that README.md states the score of submission.json, to four decimals or more."""
    claim = headline_claim(record)
    if claim is None or not record.readme:
        return
    for number, line in enumerate(record.readme.splitlines(), 1):
        if any(same(claim[1], found) for found in re.findall(r"\b\d\.\d{4,}\b", line)):
            yield agrees("README", f"names the score {claim[1]}", f"README.md:{number}")
            return
    yield cannot_tell("README", f"does not name the score {claim[1]}", "README.md")


def deviation(record: Record) -> Iterator[Check]:
    """The claimed deviation over seeds is that of their scores, in the sample or the population form."""
    value, seeds = as_number(record.claims.get("val_bpb_std")), claims_by_seed(record)
    scores = [float(score) for score in map(seed_score, seeds.values()) if score is not None]
    if value is None or len(scores) < 2:
        return
    sample, population = statistics.stdev(scores), statistics.pstdev(scores)
    rounding = 10.0 ** int(value.as_tuple().exponent)
    text = f"claims {value}; the seeds give {sample:.6f} (sample form) and {population:.6f} (population form)"
    verdict = agrees if any(abs(form - float(value)) <= rounding for form in (sample, population)) else contradicts
    yield verdict("deviation over seeds", text, record.claim_line("val_bpb_std"))
