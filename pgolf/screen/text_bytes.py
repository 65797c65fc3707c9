"""Checks of the scored text: the bytes that a score implies, the targets and documents counted, the training text."""

import math
import re
from collections.abc import Iterator

from pgolf.screen import reference
from pgolf.screen.claims import Check, agrees, as_number, cannot_tell, contradicts, headline_claim, last_scores
from pgolf.screen.folder import Record
from pgolf.screen.log import Log


def implied_bytes(record: Record) -> Iterator[Check]:
    """Bytes per token implied by loss and bits per byte, compared with the published tokenizers."""
    name = "implied bytes"
    pairs = [(log.where(score), score.loss, score.bits_per_byte, log) for log, score in last_scores(record)]
    loss, claim = as_number(record.claims.get("val_loss")), headline_claim(record)
    if not pairs and loss and claim and claim[1] > 0:
        pairs = [(record.claim_line("val_loss"), str(loss), str(claim[1]), Log(""))]
    for where, loss_text, bits_text, log in pairs:
        nats, bits = float(loss_text), float(bits_text)
        if bits <= 0:
            yield contradicts(name, f"{bits_text} bits per byte is not a score", where)
            continue
        ratio = nats / math.log(2) / bits
        digits = min(len(loss_text.split(".")[1]), len(bits_text.split(".")[1]))
        tolerance = 10.0**-digits / min(nats, bits) + 1e-4
        tokens = log.last("tokens")
        if tokens is None:
            close = [split for split in reference.SPLITS if abs(ratio / split.bytes_per_token - 1) <= tolerance]
            known = ", ".join(f"{split.name} {split.bytes_per_token}" for split in reference.SPLITS[:4])
            yield (
                agrees(name, f"{ratio:.5f} bytes per token, as {close[0].name}", where)
                if close
                else cannot_tell(
                    name, f"{ratio:.5f} bytes per token; known are {known}; the log has no count of tokens", where
                )
            )
            continue
        counted, old = tokens.value * ratio, reference.SPLITS[-1]
        text = f"{tokens.value:,.0f} targets of {ratio:.5f} bytes: {counted:,.0f} bytes"
        places = (where, log.where(tokens))
        slack = counted * tolerance + reference.VAL_BYTES_SLACK
        lowest = reference.VAL_BYTES - reference.LONGEST_CONTEXT * ratio - slack
        if lowest <= counted <= reference.VAL_BYTES + slack:
            yield agrees(name, f"{text}, the whole validation split", *places)
        elif abs(counted / (old.targets * old.bytes_per_token) - 1) <= tolerance:
            yield agrees(name, f"{text}: {old.name}", *places)
        else:
            # A tokenizer that drops a little text counts too few bytes, to its own score's harm.
            verdict = cannot_tell if 0.99 < counted / reference.VAL_BYTES < 1 else contradicts
            yield verdict(name, f"{text}; the split has {reference.VAL_BYTES:,}{_why(counted, bits)}", *places)


def _why(counted: float, bits: float) -> str:
    factor = counted / reference.VAL_BYTES
    corrected = f"; on the split's bytes the score would be {bits * factor:.4f}"
    if reference.SPACE_TWICE[0] <= factor <= reference.SPACE_TWICE[1]:
        return f", {factor:.3f} times as many: as when leading spaces are counted twice{corrected}"
    if abs(counted / reference.SENTINELS_COUNTED - 1) < 0.002:
        return f": as when CaseOps operators count three bytes each{corrected}"
    other = ": a part of it, another text, or a tokenizer that changes it"
    return f" ({factor:.3f} times){corrected if factor > 1 else other}"


def coverage(record: Record) -> Iterator[Check]:
    """Targets and documents scored, against the published counts."""
    for log in record.logs:
        tokens, documents = log.last("tokens"), log.last("documents")
        if tokens is not None:
            # Evaluators drop less than one window at the end.
            near = [s for s in reference.SPLITS if 0 <= 1 - (tokens.value - 1) / s.targets < 0.0008]
            near += [s for s in reference.SPLITS if tokens.value == s.targets]
            text = f"{tokens.value:,.0f} targets: {near[0].name if near else 'no published tokenizer has so many'}"
            yield (agrees if near else cannot_tell)("targets", text, log.where(tokens))
        if documents is not None:
            text = f"{documents.value:,.0f} documents of {reference.VAL_DOCUMENTS:,}"
            verdict = agrees if int(documents.value) == reference.VAL_DOCUMENTS else contradicts
            yield verdict("documents", text, log.where(documents))


def other_text(record: Record) -> Iterator[Check]:
    """A README that counts other val tokens than the logs in the folder: the logs may be of another state (#2109)."""
    counted = {int(tokens.value) for log in record.logs if (tokens := log.last("tokens"))}
    for number, line in enumerate(record.readme.splitlines(), 1):
        named = {int(found.replace(",", "")) for found in re.findall(r"val_tokens[\W_]{1,5}(\d[\d,]{6,}\d)", line)}
        if counted and (others := named - counted):
            finding = f"README counts {min(others):,} val tokens, the logs here {min(counted):,}: of another state?"
            yield cannot_tell("val tokens in README", finding, f"README.md:{number}")


def overlap(record: Record) -> Iterator[Check]:
    """Signs in the files of training text inside the validation split; only the documents could prove either."""
    for text in record.scripts:
        for number, line in enumerate(text.text.splitlines(), 1):
            default = re.search(r"val[-_]docs\W+.*default\W+([\d_]+)", line)
            held = int(default[1].replace("_", "")) if default else reference.VAL_DOCUMENTS
            if held < reference.VAL_DOCUMENTS:
                finding = f"{held:,} documents held back by default, {reference.VAL_DOCUMENTS:,} scored (#2127)"
                yield cannot_tell("training text", finding, f"{text.name}:{number}")
    shards = [(log, found) for log in record.logs if (found := log.last("train_shards"))]
    if shards:
        counts = ", ".join(map(str, sorted({int(found.value) for _, found in shards})))
        place = shards[0][0].where(shards[0][1])
        yield cannot_tell("train shards", f"{counts} in the logs; shards carry no checksum", place)
