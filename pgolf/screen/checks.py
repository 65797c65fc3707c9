"""Check a record's claims against each other, against its logs, and against constants of the challenge.

Every check ends in `agrees`, `contradicts` or `cannot tell`, with the lines that show it. A contradiction is one
between two figures, for example a score in submission.json that no log prints. Where the community disagrees about a
rule (what code counts, which clock, which margin), the figures of each reading are shown and the check does not decide.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pgolf.screen import artifact, byte_table, rulings, runs, scores, text_bytes
from pgolf.screen.claims import Check
from pgolf.screen.folder import Record, read_record

CHECKS: tuple[Callable[[Record], Iterator[Check]], ...] = (
    scores.seed_scores,
    scores.headline,
    scores.readme,
    scores.deviation,
    byte_table.byte_table,
    text_bytes.implied_bytes,
    text_bytes.coverage,
    text_bytes.other_text,
    text_bytes.overlap,
    artifact.artifact_bytes,
    artifact.code_bytes,
    artifact.cap,
    runs.clocks,
    runs.seeds,
    rulings.significance,
    rulings.gates,
    rulings.features,
)


def screen_folder(path: Path) -> list[Check]:
    """All checks on the record in the folder `path`, which is read and never run.

    Raises PgolfError for anything but a folder with a record.
    """
    record = read_record(path)
    return [found for check in CHECKS for found in check(record)]
