"""Split into train and val by the hash of each document, used when no val documents are named.

The same text is always on the same side, whatever other documents there are, so copies never end up on both sides.
"""

import hashlib


def fingerprint(document: bytes) -> int:
    """64 bits of the document's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "little")


def in_val(document: bytes, fraction: float) -> bool:
    return fingerprint(document) < fraction * 2**64
