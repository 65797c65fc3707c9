"""Which documents are val when none were named: decided by each document's own hash.

The same text is always on the same side, whatever stands around it, and two copies of it are never on both.
"""

import hashlib


def fingerprint(document: bytes) -> int:
    """64 bits of the document's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "little")


def in_val(document: bytes, fraction: float) -> bool:
    return fingerprint(document) < fraction * 2**64
