"""Checks of the claimed scores against the logs, the README and each other."""

import re
import statistics
from collections.abc import Iterator
from decimal import Decimal

from pgolf.screen.claims import (
    AGREES,
    CANNOT_TELL,
    CONTRADICTS,
    Check,
    as_number,
    claims_by_seed,
    final_scores,
    headline_claim,
    last_scores,
    logs_of,
    same,
    seed_score,
)
from pgolf.screen.folder import Record


def seed_scores(record: Record) -> Iterator[Check]:
    """Each figure that submission.json gives for a seed against every score in that seed's logs."""
    for seed, entry in claims_by_seed(record).items():
        logs = logs_of(record, seed)
        for key, attribute in (("val_bpb", "bits_per_byte"), ("val_loss", "loss")):
            value = as_number(entry.get(key))
            if value is None:
                continue
            name = f"seed {seed}: {key}"
            if not logs or not any(log.scores for log in logs):
                yield Check(
                    name, CANNOT_TELL, f"claims {value}; no log of this seed with a score", (record.claims_name,)
                )
                continue
            hits = [log.where(score) for log in logs for score in log.scores if same(value, getattr(score, attribute))]
            if hits:
                yield Check(name, AGREES, f"{value} is in the log", (hits[-1],))
            else:
                last = [(log, final_scores(log)[-1]) for log in logs if final_scores(log)]
                printed = ", ".join(f"{getattr(score, attribute)} ({score.tag})" for _, score in last)
                yield Check(
                    name,
                    CONTRADICTS,
                    f"claims {value}; its log ends with {printed or 'no score'}",
                    (record.claims_name, *(log.where(score) for log, score in last)),
                )


def headline(record: Record) -> Iterator[Check]:
    """The one score of the record: the mean of its seeds, or one of them."""
    claim = headline_claim(record)
    lasts = last_scores(record)
    loss = as_number(record.claims.get("val_loss"))
    if claim is None:
        text, verdict = "submission.json has no val_bpb", CANNOT_TELL
        places = [record.claims_name]
        bits = [float(score.bits_per_byte) for _, score in lasts]
        if loss is not None and bits and abs(float(loss) - statistics.mean(bits)) < 0.001:
            text = f"val_loss {loss} is the logs' bits per byte; their losses are {lasts[-1][1].loss} nats per token"
            verdict, places = CONTRADICTS, [record.claim_line("val_loss"), *(log.where(score) for log, score in lasts)]
        yield Check("headline score", verdict, text, tuple(places))
        return
    key, value = claim
    here = record.claim_line(key)
    seeds = [score for score in map(seed_score, claims_by_seed(record).values()) if score is not None]
    printed = [Decimal(score.bits_per_byte) for _, score in lasts]
    for numbers, what in ((seeds, "the seeds in submission.json"), (printed, "the logs' last scores")):
        if len(numbers) > 1 and same(value, f"{sum(numbers) / len(numbers):.9f}"):
            yield Check("headline score", AGREES, f"{key} {value} is the mean of {what}", (here,))
            return
    for number in seeds:
        if same(value, str(number)):
            yield Check("headline score", AGREES, f"{key} {value} is one seed's score, not the mean", (here,))
            return
    for log in record.logs:
        for score in log.scores:
            if same(value, score.bits_per_byte):
                yield Check("headline score", AGREES, f"{key} {value} is one log's score", (here, log.where(score)))
                return
    if not seeds and not printed:
        yield Check("headline score", CANNOT_TELL, f"{key} {value}: no log prints a final score", (here,))
        return
    yield Check(
        "headline score",
        CONTRADICTS,
        f"{key} {value} is neither a mean nor one of {', '.join(str(number) for number in seeds or printed)}",
        (here,),
    )


def readme(record: Record) -> Iterator[Check]:
    """Check that README.md states the score of submission.json, to four decimals or more."""
    claim = headline_claim(record)
    if claim is None or not record.readme:
        return
    for number, line in enumerate(record.readme.splitlines(), 1):
        if any(same(claim[1], found) for found in re.findall(r"\b\d\.\d{4,}\b", line)):
            yield Check("README", AGREES, f"names the score {claim[1]}", (f"README.md:{number}",))
            return
    yield Check("README", CANNOT_TELL, f"does not name the score {claim[1]}", ("README.md",))


def deviation(record: Record) -> Iterator[Check]:
    value, seeds = as_number(record.claims.get("val_bpb_std")), claims_by_seed(record)
    scores = [float(score) for score in map(seed_score, seeds.values()) if score is not None]
    if value is None or len(scores) < 2:
        return
    sample, population = statistics.stdev(scores), statistics.pstdev(scores)
    forms = {"sample": sample, "population": population}
    rounding = 10.0 ** int(value.as_tuple().exponent)
    matching = [name for name, form in forms.items() if abs(form - float(value)) <= rounding]
    text = f"claims {value}; the seeds give {sample:.6f} (sample form) and {population:.6f} (population form)"
    verdict = AGREES if matching else CONTRADICTS
    yield Check("deviation over seeds", verdict, text, (record.claim_line("val_bpb_std"),))
