"""Summary of a run for a newcomer: bits per byte of its model next to general compressors on the same text.

A model that gives each next byte of a text a probability can store that text in as many bits as its surprise adds up
to; so its bits per byte can be compared with those of general compressors on the same text.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from pgolf.errors import PgolfError
from pgolf.evaluate import general_compressors
from pgolf.evaluate.general_compressors import PRIMING_BYTES, Reading
from pgolf.runtime import Runtime
from pgolf.saved import front
from pgolf.saved.tokens import open_split, tokenizer_of
from pgolf.store.records import ScoreMetrics, TokenizeDetails
from pgolf.store.stage_directory import Stage
from stages.run import Chain
from stages.tokenize import original_documents


def readings(chain: Chain) -> list[Reading]:
    """The val text under general compressors and under the run's own model, from raw text to the best score."""
    scored = chain.sliding_score.manifest.metrics_as(ScoreMetrics)["bytes_scored"]
    rows = [Reading("raw", "the text as it is", 8.0, scored), *compressors(chain.tokens)]
    if chain.float_score is not None:
        rows.append(_scored("float", "this model, full precision", chain.float_score))
    rows.append(_scored("sliding", "this model, quantized (as packaged)", chain.sliding_score))
    rows.append(_scored("ttt", "the same, with test-time training", chain.ttt_score))
    return rows


def shown(rows: Sequence[Reading]) -> list[Reading]:
    """The rows of the table: of xz the better reading only, so that they are at most eight."""
    return [row for row in rows if row.key != "xz"]


def verdict(readings: Sequence[Reading]) -> str:
    """Explanation of the table for a newcomer, with commands to try next."""
    found = {reading.key: reading.bits_per_byte for reading in readings}
    model = min(found["sliding"], found["ttt"])
    best, rival = min((found[key], name) for key, name in (("xz_primed", "xz"), ("ppmd", "PPMd")) if key in found)
    if model < best:
        return f"The model needs {1 - model / best:.0%} less than {rival} that has read the same text."
    return (
        f"{rival} that has read the training text needs {1 - best / model:.0%} less than the model: the val text "
        "repeats the train text, or the model has seen too little. Try more text, --set train.iterations=N, or "
        "--preset mini."
    )


def proof(stage: Stage) -> str:
    """The proof in one sentence."""
    found = stage.manifest.metrics
    return (
        f"Proof: {found['bytes_scored']:,} bytes of that text became {found['code_bytes']:,} by this model's "
        "predictions, and a fresh process that has only the model got them back."
    )


def samples(chain: Chain, runtime: Runtime, tokens: int = 60) -> list[str]:
    """Three beginnings of val documents, each continued by the packaged model, a line each."""
    return continued(chain.packaged, chain.tokens, runtime, tokens)


def continued(holder: Stage, tokenized: Stage, runtime: Runtime, tokens: int = 60) -> list[str]:
    """As `samples`, by the model in any stage."""
    model = front.of_stage(holder, runtime)
    beginnings = itertools.islice((text for text in _documents(tokenized, "val") if len(text.split()) > 3), 3)
    prompts = [" ".join(text.decode("utf-8", "replace").split()[:3]) for text in beginnings]
    written = [model.generate(prompt, tokens, seed=seed)[0] for seed, prompt in enumerate(prompts)]
    return [" ".join(text.split()) for text in written]


def compressors(tokens: Stage) -> list[Reading]:
    """Bits per byte of general compressors on the val text, with the training text read before it where they can.

    The texts are the documents that the model is scored on, whatever its tokenizer makes of them.
    """
    return general_compressors.readings(b"".join(_documents(tokens, "train")), b"".join(_documents(tokens, "val")))


def _scored(key: str, what: str, stage: Stage) -> Reading:
    found = stage.manifest.metrics_as(ScoreMetrics)
    return Reading(key, what, found["bits_per_byte"], round(found["bits_per_byte"] * found["bytes_scored"] / 8))


def _documents(tokens: Stage, split: str) -> Iterator[bytes]:
    """The documents of a split, each with a line end: all of val, of train at least the last `PRIMING_BYTES`.

    Decoded from the shards where that gives the text back. What a lossy tokenizer changed is read from its files once
    more; where those are gone, or never were (the challenge's shards), the decoded text is all that there is.
    """
    if not tokens.manifest.details_as(TokenizeDetails).get("lossless", True):
        with suppress(PgolfError):
            last: deque[bytes] = deque()
            size = 0
            for text in original_documents(tokens, split):
                last.append(text + b"\n")
                size += len(last[-1])
                while split == "train" and size - len(last[0]) > PRIMING_BYTES:
                    size -= len(last.popleft())
            yield from last
            return
    used = tokenizer_of(tokens)
    stream = open_split(tokens, split)
    first = max(0, len(stream) - PRIMING_BYTES) if split == "train" else 0
    ids = np.asarray(stream[first : len(stream)])
    starts = [*np.flatnonzero(ids == used.bos_id).tolist(), len(ids)]
    for start, end in itertools.pairwise(starts):
        yield used.decode(ids[start:end]) + b"\n"
