"""Near-duplicate detection: documents of a small corpus that share no long passage with another, for scoring.

A corpus that quotes itself (documentation does) makes a score on held-out documents a score on remembered ones. Runs of
words are shingles (Broder 1997), compared exactly, since the corpus is in memory.
"""

from collections.abc import Sequence

SHINGLE_WORDS = 8
"""Words of a passage: on Python's documentation longer ones leave twice the repetition, shorter ones half the text."""


def unlike_others(documents: Sequence[bytes], words: int = SHINGLE_WORDS) -> list[bool]:
    """For each document, True if it shares no run of this many words with another document."""
    first: dict[int, int] = {}
    unlike = [True] * len(documents)
    for index, document in enumerate(documents):
        parts = document.split()
        for start in range(max(1, len(parts) - words + 1)):
            owner = first.setdefault(hash(tuple(parts[start : start + words])), index)
            if owner != index:
                unlike[owner] = unlike[index] = False
    return unlike
