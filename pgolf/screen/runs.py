"""Checks of the runs behind a record: their clocks and their seeds."""

import re
from collections.abc import Iterator

from pgolf.screen import reference
from pgolf.screen.claims import (
    Check,
    agrees,
    cannot_tell,
    claims_by_seed,
    contradicts,
    final_scores,
    headline_claim,
    last_scores,
    listed_seeds,
)
from pgolf.screen.folder import Record
from pgolf.screen.log import same

_CLOCKS = {
    "train_seconds": "training",
    "eval_seconds": "evaluation",
    "production_seconds": "making the artifact",
}


def clocks(record: Record) -> Iterator[Check]:
    """The longest time of each kind in each log; it decides for logs of a claimed run under the challenge's limit."""
    unlimited = bool(re.search(r"non[-_]record|unlimited", f"{record.claims.get('track', '')} {record.path.resolve()}"))
    seeds = {str(seed) for seed in (*claims_by_seed(record), *listed_seeds(record))}
    claim, lasts = headline_claim(record), [float(score.bits_per_byte) for _, score in last_scores(record)]
    # No seeds are named, and the logs' mean is the score: those are the runs.
    all_of_them = bool(not seeds and claim and lasts and same(claim[1], f"{sum(lasts) / len(lasts):.9f}"))
    for log in record.logs:
        for kind, what in _CLOCKS.items():
            values = log.values.get(kind)
            if not values:
                continue
            most = max(values, key=lambda value: value.value)
            text = f"{most.value:,.3f} s of {reference.SECONDS:.0f}"
            scores = [score for score in final_scores(log) if claim and same(claim[1], score.bits_per_byte)]
            claimed = log.seed in seeds or bool(scores) or len(record.logs) == 1 or all_of_them
            verdict = contradicts if claimed and not unlimited and kind != "production_seconds" else cannot_tell
            if most.value <= reference.SECONDS:
                verdict = agrees
            elif kind == "train_seconds" and most.value < reference.SECONDS + 0.5:
                verdict, text = cannot_tell, f"{text}: the last step ended after the clock"
            yield verdict(f"time of {what}", text, log.where(most))


def seeds(record: Record) -> Iterator[Check]:
    """Seeds named against seeds logged, the seed in a log's name against the one it states, copied figures."""
    entries, name = claims_by_seed(record), record.claims_name
    claimed = sorted(entries) or sorted(listed_seeds(record))
    if not claimed:
        yield cannot_tell("seeds", f"submission.json names no seeds; {len(record.logs)} logs", name)
        return
    logged = {log.seed for log in record.logs if log.seed}
    missing = [seed for seed in claimed if seed not in logged]
    further = sorted(logged - set(claimed))
    text = f"{len(claimed)} named, {len(logged)} in logs"
    text += f"; logs of further seeds: {', '.join(further)}" if further else ""
    if missing:
        yield cannot_tell("seeds", f"{text}; no log of {', '.join(missing)}", name)
    else:
        yield agrees("seeds", text, name)
    for log in record.logs:
        named, stated = re.search(r"seed_?(\d+)", log.name), log.values.get("seed")
        if named and stated and int(named[1]) != int(stated[0].value):
            yield contradicts("seed of a log", f"{log.name} states seed {stated[0].value:.0f}", log.where(stated[0]))
    for key in ("artifact_bytes", "val_bpb", "val_loss"):
        values = [entry[key] for entry in entries.values() if entry.get(key) is not None]
        if len(values) > 1 and len(set(values)) == 1:
            yield cannot_tell("copies", f"{key} is {values[0]} for every seed", record.claim_line("seed_results"))
