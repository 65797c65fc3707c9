"""Encoding many documents at the speed of the tokenizer: batches in threads, in order, each document checked.

SentencePiece releases the interpreter while it encodes, so threads use every core without copying text between
processes. Memory is bounded by the batches under way.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pgolf.tokens.byte_counts import changed_bytes, document_bytes
from pgolf.tokens.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 19
_BATCH_DOCUMENTS = 512


@dataclass
class Encoded:
    """A batch of encoded documents in order, with the result of each document's round-trip check."""

    tokens: np.ndarray  # (n,) uint16
    token_bytes: np.ndarray | None  # (n,) uint16, original bytes of each token, where asked for
    documents: int
    bytes: int
    lossy_documents: int
    changed_bytes: int
    invalid_documents: int
    """Documents that are not UTF-8."""


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[bytes], with_bytes: bool = False, threads: int = 2
) -> Iterator[Encoded]:
    """Encode documents in order, decode each and compare; `with_bytes` adds the sidecar of byte counts."""
    waiting: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="encode") as pool:
        try:
            for batch in _batches(documents):
                waiting.append(pool.submit(_encode_batch, tokenizer, batch, with_bytes))
                while len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(tokenizer: Tokenizer, batch: Sequence[bytes], with_bytes: bool) -> Encoded:
    encoded = tokenizer.encode(batch)
    tokens = np.concatenate(encoded)
    lossy = changed = 0
    if _decoded(tokenizer.decode_lines, tokens) != b"".join([b"\n" + document for document in batch]):
        for document, part in zip(batch, encoded, strict=True):
            difference = changed_bytes(document, _decoded(tokenizer.decode, part))
            lossy += difference > 0
            changed += difference
    counts = None
    if with_bytes:
        pairs = zip(batch, encoded, strict=True)
        counts = np.concatenate([document_bytes(tokenizer, document, part) for document, part in pairs])
    return Encoded(
        tokens=tokens,
        token_bytes=counts,
        documents=len(batch),
        bytes=sum(map(len, batch)),
        lossy_documents=lossy,
        changed_bytes=changed,
        invalid_documents=sum(not document.isascii() and not _is_utf8(document) for document in batch),
    )


def _decoded(decode: Callable[[np.ndarray], bytes], tokens: np.ndarray) -> bytes:
    try:
        return decode(tokens)
    except ValueError:  # a lossy model can separate a case operator from its letter: no text at all comes back
        return b""


def _is_utf8(document: bytes) -> bool:
    try:
        document.decode()
    except UnicodeDecodeError:
        return False
    return True
