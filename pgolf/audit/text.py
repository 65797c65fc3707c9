"""The text under a score: its bytes, whether it comes back, whether it was known (audit tests A2, A3, A13, A15)."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, SHOWN, Finding
from pgolf.evaluate.compare import Documents
from pgolf.tokens.byte_counts import changed_bytes
from pgolf.tokens.tokenizer import Tokenizer

ODD_TEXTS = (
    "",
    " ",
    " a",
    "a ",
    "a  b",
    "tab\there",
    "line\r\nline",
    "\n\n\n",
    "nul\0nul",
    "ﬁ½²ß İ",
    "e\u0301 cafe\u0301",
    "👩‍👩‍👧‍👦 👍🏽",
    "漢字かな交じり文",
    "\u2581 \u2581a",
    "\ue001\ue002\ue003\ue004",
    "0123456789",
    "<s> </s> <unk> <0x41>",
    "The NASA iPhone",
    "x" * 70_000,
)
"""Texts at which tokenizers and byte counts of the field broke; the last is one long run."""
ORDINARY_TEXT = (
    b'The quick brown Fox, said NASA\'s Dr. W. Zyx ("at 3:45 am"), jumps over 1,267 lazy dogs & 89% of V-keys!'
)
"""Comes back from every tokenizer of the challenge; not from one whose normalizer does more than their NFKC."""
LOSSY_SHARE = 1e-3  # of the text's bytes; the challenge's own normalizer changes fewer than 1e-4 (issue 1604 there)
_OVERLAP_LIMIT = 0.05  # of val documents: chance duplicates of short texts stay below, a wrong split is far above
_MEMORIZED = 0.1  # of the mean bits per byte: a document this cheap was known before


def stream_documents(tokens: np.ndarray, bos_id: int) -> Iterator[tuple[int, np.ndarray]]:
    """(position of its BOS, its tokens without BOS) of every document of a stream."""
    starts = np.flatnonzero(tokens == bos_id)
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        yield int(start), tokens[start + 1 : stop]


def byte_accounting(
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    originals: Sequence[bytes] | None,
) -> Finding:
    """A2: the bytes counted for each document are the document's own; A3: its tokens decode to it.

    tokens: (N,) whole documents; token_bytes: (N,) bytes that the score counts for each; originals: the same documents
    as they were read, in order, or None where they are not available: then the decoded tokens are the documents.
    """
    wrong, lossy, changed, difference, total, where = 0, 0, 0, 0, 0, None
    documents = list(stream_documents(tokens, tokenizer.bos_id))
    ends = [start for start, _ in documents[1:]] + [len(tokens)]
    for index, ((start, _), end) in enumerate(zip(documents, ends, strict=True)):
        decoded = tokenizer.decode(tokens[start:end])  # with its BOS: a tokenizer may put a space after that
        if originals is None and tokenizer.caseops is None and not tokenizer.lossless:
            continue  # the text is not available, and its length does not follow from the tokens
        original = decoded if originals is None else originals[index]
        counted = int(token_bytes[start:end].sum())
        total += counted
        lossy += decoded != original
        changed += changed_bytes(original, decoded)
        if counted != len(original):
            wrong += 1
            difference += counted - len(original)
            where = where or {
                "document": index,
                "position": start,
                "bytes_counted": counted,
                "bytes_of_the_text": len(original),
                "text": original[:80].decode("utf-8", "replace"),
            }
    odd = [text for text in ODD_TEXTS if tokenizer.decode(tokenizer.encode([text.encode()])[0]) != text.encode()]
    numbers: dict[str, Any] = {
        "documents": len(documents),
        "bytes": total,
        "documents_with_wrong_bytes": wrong,
        "bytes_too_many": difference,
        "documents_that_do_not_come_back": lossy,
        "changed_bytes": changed,
        "compared_with": "documents" if originals is not None else "decoded tokens",
        "odd_texts_that_do_not_come_back": [text[:20] for text in odd],
    }
    if wrong:
        text = f"{wrong} of {len(documents)} documents have a wrong number of bytes, {difference:+,} in all"
        return Finding("bytes", "A2", FAILED, text, numbers, where)
    if changed > LOSSY_SHARE * total or tokenizer.decode(tokenizer.encode([ORDINARY_TEXT])[0]) != ORDINARY_TEXT:
        text = f"the tokenizer is lossy: {lossy} of {len(documents)} documents, {changed:,} of {total:,} bytes, "
        text += "do not come back from their tokens, nor does ordinary text" if not changed else "do not come back"
        return Finding("bytes", "A3", FAILED, text, numbers, {"documents": lossy, "changed_bytes": changed})
    if not total:
        text = "the documents are not available and the tokenizer is lossy: their bytes cannot be checked"
        return Finding("bytes", "A2", NOT_RUN, text, numbers)
    text = f"{total:,} bytes of {len(documents):,} documents are exact"
    if lossy:
        text += f"; not comparable with other scores: {lossy} documents do not come back from their tokens"
        return Finding("bytes", "A2", SHOWN, text, numbers)
    return Finding("bytes", "A2", PASSED, f"{text}; all come back from their tokens", numbers)


def round_trips(file: Path | None, tokenizer_sha256: str, facts: Mapping[str, int]) -> Finding:
    """A3 on the record: the tokenizer's proof file is of this tokenizer and this val text, and its counts agree.

    file: `tokenizer_proof.json`, None where the text was registered and there is none; facts: any of `documents`,
    `bytes`, `tokens`, `changed_documents` and `changed_bytes` of val, counted by the caller.
    """
    check, rule = "tokenizer's proof", "A3"
    if file is None:
        return Finding(check, rule, NOT_RUN, "the tokens were registered without documents: there is no proof file")
    try:
        proof = json.loads(file.read_bytes())
        val, splits = proof["splits"]["val"], proof["splits"].values()
        wrong = [
            f"{name.replace('_', ' ')} of val are {val[name]!r}, counted are {value:,}"
            for name, value in facts.items()
            if val[name] != value
        ]
        if proof["sha256"] != tokenizer_sha256:
            wrong.append("it is of another tokenizer")
        if any(split["round_trips"] != split["documents"] for split in splits):
            wrong.append("not every document was decoded")
        if proof["lossless"] != (not any(split["changed_documents"] for split in splits)):
            wrong.append("it says lossless against its own counts")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        wrong = [f"it makes no sense ({error!r})"]
    if wrong:
        return Finding(check, rule, FAILED, f"tokenizer_proof.json: {wrong[0]}", {}, {"contradictions": len(wrong)})
    text = f"{val['round_trips']:,} val documents were decoded, {val['changed_documents']:,} came back changed"
    return Finding(check, rule, PASSED, text, dict(facts))


def overlap(val: np.ndarray, train: Iterator[np.ndarray], bos_id: int) -> Finding:
    """A13: val documents that occur verbatim in train. train: pieces of its stream, whole documents or not."""
    marks = {_mark(ids): start for start, ids in stream_documents(val, bos_id) if len(ids)}
    found: dict[bytes, int] = {}
    held = np.zeros(0, val.dtype)
    for piece in train:
        held = np.concatenate([held, piece])
        starts = np.flatnonzero(held == bos_id)
        if not len(starts):
            continue
        found |= {mark: marks[mark] for mark in _marks(held[: starts[-1]], bos_id) if mark in marks}
        held = held[starts[-1] :]
    found |= {mark: marks[mark] for mark in _marks(held, bos_id) if mark in marks}
    share = len(found) / max(1, len(marks))
    numbers = {"val_documents": len(marks), "also_in_train": len(found), "share": share}
    text = f"{len(found):,} of {len(marks):,} distinct val documents occur verbatim in train ({share:.2%})"
    if share > _OVERLAP_LIMIT:
        return Finding("overlap", "A13", FAILED, text, numbers, {"position_in_val": min(found.values())})
    return Finding("overlap", "A13", PASSED if not found else SHOWN, text, numbers)


def memorized(documents: Documents) -> Finding:
    """A15: a document that costs next to nothing was in the artifact, or in training. Sums are of whole documents."""
    usable = documents.bytes >= 200
    if usable.sum() < 2:
        return Finding("memorized text", "A15", NOT_RUN, "too few documents of 200 bytes or more")
    each = documents.nats[usable] / math.log(2) / documents.bytes[usable]  # bits per byte
    mean = float(documents.nats[usable].sum() / math.log(2) / documents.bytes[usable].sum())
    cheap = np.flatnonzero(each < _MEMORIZED * mean)
    numbers = {
        "documents": int(usable.sum()),
        "bits_per_byte": mean,
        "lowest_bits_per_byte": float(each.min()),
        "documents_below_a_tenth_of_the_mean": len(cheap),
    }
    text = f"cheapest of {int(usable.sum()):,} documents: {each.min():.3f} bits per byte, mean {mean:.3f}"
    if len(cheap):
        where = {"document": int(np.flatnonzero(usable)[cheap[0]]), "bits_per_byte": float(each[cheap[0]])}
        return Finding("memorized text", "A15", FAILED, text, numbers, where)
    return Finding("memorized text", "A15", PASSED, text, numbers)


def _marks(tokens: np.ndarray, bos_id: int) -> Iterator[bytes]:
    return (_mark(ids) for _, ids in stream_documents(tokens, bos_id) if len(ids))


def _mark(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(ids).tobytes(), digest_size=16).digest()
