"""Checks of the runs behind a record: their clocks and their seeds."""

import re
from collections.abc import Iterator

from pgolf.screen import reference
from pgolf.screen.claims import (
    AGREES,
    CANNOT_TELL,
    CONTRADICTS,
    Check,
    claims_by_seed,
    final_scores,
    headline_claim,
    listed_seeds,
    same,
)
from pgolf.screen.folder import Record


def clocks(record: Record) -> Iterator[Check]:
    unlimited = bool(re.search(r"non[-_]record|unlimited", f"{record.claims.get('track', '')} {record.path.resolve()}"))
    seeds = {str(seed) for seed in (*claims_by_seed(record), *listed_seeds(record))}
    claim = headline_claim(record)
    for log in record.logs:
        for kind, what in (
            ("train_seconds", "training"),
            ("eval_seconds", "evaluation"),
            ("production_seconds", "making the artifact"),
        ):
            values = log.values.get(kind)
            if not values:
                continue
            most = max(values, key=lambda value: value.value)
            within = most.value <= reference.SECONDS
            text = f"{most.value:,.3f} s of {reference.SECONDS:.0f}"
            scores = [score for score in final_scores(log) if claim and same(claim[1], score.bits_per_byte)]
            claimed = log.seed in seeds or bool(scores) or len(record.logs) == 1
            decides = claimed and not unlimited and kind != "production_seconds"
            verdict = AGREES if within else CONTRADICTS if decides else CANNOT_TELL
            if not within and kind == "train_seconds" and most.value < reference.SECONDS + 0.5:
                verdict, text = CANNOT_TELL, f"{text}: the last step ended after the clock"
            yield Check(f"time of {what}", verdict, text, (log.where(most),))


def seeds(record: Record) -> Iterator[Check]:
    claimed = sorted(claims_by_seed(record)) or sorted(listed_seeds(record))
    if not claimed:
        yield Check(
            "seeds", CANNOT_TELL, f"submission.json names no seeds; {len(record.logs)} logs", (record.claims_name,)
        )
        return
    logged = {log.seed for log in record.logs if log.seed}
    missing = [seed for seed in claimed if seed not in logged]
    further = sorted(logged - set(claimed))
    text = f"{len(claimed)} named, {len(logged)} in logs"
    if further:
        text += f"; logs of further seeds: {', '.join(further)}"
    if missing:
        yield Check("seeds", CANNOT_TELL, f"{text}; no log of {', '.join(missing)}", (record.claims_name,))
    else:
        yield Check("seeds", AGREES, text, (record.claims_name,))
    for log in record.logs:
        named = re.search(r"seed_?(\d+)", log.name)
        stated = log.values.get("seed")
        if named and stated and int(named.group(1)) != int(stated[0].value):
            yield Check(
                "seed of a log", CONTRADICTS, f"{log.name} states seed {stated[0].value:.0f}", (log.where(stated[0]),)
            )
    entries = claims_by_seed(record)
    for key in ("artifact_bytes", "val_bpb", "val_loss"):
        values = [entry[key] for entry in entries.values() if entry.get(key) is not None]
        if len(values) > 1 and len(set(values)) == 1:
            yield Check(
                "copies", CANNOT_TELL, f"{key} is {values[0]} for every seed", (record.claim_line("seed_results"),)
            )
