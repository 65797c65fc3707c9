"""Plan of the probes: random positions, half of them at boundaries of windows, chunks and documents.

Leaks hide at edges of chunks, windows and documents, and in rare classes of tokens (word starts, digits, bytes); a
probe therefore draws its replacement from every class in turn, from tokens that followed the same token elsewhere in
the stream (what a cache would have stored), and from the whole vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from pgolf.audit.subject import Subject, another

_NEAR = 2  # tokens to either side of a seam


@dataclass(frozen=True)
class Probe:
    position: int
    replacement: int
    everything_after: bool
    """Keep this token and replace all that is scored after it."""
    boundary: bool = False
    """A document's beginning is taken away or put in: schedules over documents may change with it."""


def probes(subject: Subject, order: np.ndarray, count: int, generator: np.random.Generator) -> list[Probe]:
    """`count` places to change, no two alike, and besides them some document boundaries.

    order: (N-1,) steps of the unchanged run.
    """
    open_places = np.flatnonzero(subject.replaceable)
    near = np.intersect1d(seams(subject, order), open_places)
    last = open_places[order[open_places - 1] == order.max()]
    drawn: list[int] = []
    for pool, share in ((last, count // 8), (near, count // 2 - count // 8), (open_places, count)):
        left = np.setdiff1d(pool, np.array(drawn, dtype=np.int64))
        drawn += generator.permutation(left)[: min(share, count - len(drawn))].tolist()
    found = [
        Probe(position, _replacement(subject, position, index, generator), everything_after=index % 2 == 1)
        for index, position in enumerate(drawn)
    ]
    if subject.claims.adapts:
        return found  # schedules over documents (phases, batches of them) may change with their number
    begins = generator.permutation(np.flatnonzero(subject.tokens[1:] == subject.bos_id) + 1)[: max(2, count // 16)]
    taken = [Probe(int(place), another(subject, subject.bos_id, generator), False, True) for place in begins]
    put = [Probe(int(place), subject.bos_id, False, True) for place in generator.permutation(open_places)[: len(taken)]]
    return [*found, *taken, *put]


def seams(subject: Subject, order: np.ndarray) -> np.ndarray:
    """Positions within two tokens of a change of step, a document's beginning, or a multiple of a declared period."""
    length = len(subject.tokens)
    edges = [np.flatnonzero(np.diff(order)) + 2, np.flatnonzero(subject.tokens == subject.bos_id)]
    edges += [np.arange(0, length, period) for period in subject.claims.periods if period > 1]
    around = np.concatenate(edges)[:, None] + np.arange(-_NEAR, _NEAR + 1)  # (edges, 5)
    inside = np.unique(around)
    return inside[(inside >= 1) & (inside < length)]


def _replacement(subject: Subject, position: int, index: int, generator: np.random.Generator) -> int:
    token = int(subject.tokens[position])
    kind = index // 2 % 3
    if kind == 0 and subject.classes is not None:
        kinds = np.unique(subject.classes[subject.classes >= 0])
        members = np.flatnonzero(subject.classes == kinds[index // 6 % len(kinds)])
        pool = members[(members != token) & (members != subject.bos_id)]
    elif kind == 1:
        followers = subject.tokens[1:][subject.tokens[:-1] == subject.tokens[position - 1]]
        pool = followers[(followers != token) & (followers != subject.bos_id)]
    else:
        pool = np.array([], dtype=np.int64)
    return int(generator.choice(pool)) if len(pool) else another(subject, token, generator)
