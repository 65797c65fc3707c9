"""Document isolation (audit test A12): with contexts claimed to reset, no document influences the next.

Token mixers that add the previous token's vector (SmearGate) carry the last token of a document into the next one's
BOS in packed streams, past any reset of attention; so the last token alone is changed as well as whole documents, and
a document's length. Without that claim, crossing is the challenge's default and is only reported.
"""

from typing import Any

import numpy as np

from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, SHOWN, Finding
from pgolf.audit.subject import ISOLATES_ALL, ISOLATES_NOTHING, Subject
from pgolf.evaluate.evaluator import Trace

_BOUNDARIES = 6


def documents(subject: Subject, base: Trace, noise: float, generator: np.random.Generator) -> Finding:
    """Change documents and watch the others. A target belongs to the document that its context, position t-1, is in."""
    owner = np.maximum(np.cumsum(subject.tokens == subject.bos_id) - 1, 0)[:-1]  # (N-1,)
    count = int(owner[-1]) + 1
    if count < 2:
        return Finding("documents", "A12", NOT_RUN, "the audited stream holds one document only; audit more tokens")
    chosen = np.sort(generator.permutation(count - 1)[:_BOUNDARIES])
    tested, crossed, largest, where = 0, 0, 0.0, None
    for index, document in enumerate(chosen.tolist()):
        places = np.flatnonzero(owner == document)  # inputs of the document, BOS first
        replaced = np.zeros(len(subject.tokens), dtype=bool)
        replaced[places[1:] if index % 2 else places[-1:]] = True
        replaced &= subject.replaceable
        if not replaced.any():
            continue
        trace = subject.run(subject.garbage(replaced, generator))
        watched = _watched(subject, base, owner, document, replaced)
        difference = np.abs(trace.nll - base.nll)
        moved = np.flatnonzero(watched & (difference > noise))
        tested += int(watched.sum())
        largest = max(largest, float(difference[watched].max(initial=0.0)))
        if len(moved):
            crossed += 1
            at = int(moved[0])
            where = where or {
                "changed_document": document,
                "replaced_from_position": int(np.argmax(replaced)),
                "document_ends_at": int(places[-1]),
                "moved_position": at + 1,
                "moved_document": int(owner[at]),
                "score_before": -float(base.nll[at]),
                "score_after": -float(trace.nll[at]),
            }
    numbers: dict[str, Any] = {
        "documents": count,
        "documents_changed": len(chosen),
        "targets_watched": tested,
        "crossed": crossed,
        "largest_move_nats": largest,
    }
    if subject.claims.documents == ISOLATES_NOTHING:
        text = (
            f"contexts cross documents: {crossed} of {len(chosen)} changed documents moved scores of the next ones"
            if crossed
            else f"no context crossed a document in {len(chosen)} tries, though no reset was asked for"
        )
        return Finding("documents", "A12", SHOWN, text, numbers | ({"first": where} if where else {}))
    if where is not None:
        text = f"reset at documents, yet {crossed} of {len(chosen)} changed documents moved scores of another"
        return Finding("documents", "A12", FAILED, text, numbers, where)
    if not tested:
        text = "each document is a separate step, and what it teaches may carry over to the next: nothing to test"
        return Finding("documents", "A12", NOT_RUN, text, numbers)
    return _other_length(subject, base, owner, int(chosen[0]), noise, numbers)


def _watched(subject: Subject, base: Trace, owner: np.ndarray, document: int, replaced: np.ndarray) -> np.ndarray:
    """(N-1,) bool: targets that a change of one document may not move."""
    others = owner != document
    claims = subject.claims
    if claims.documents == ISOLATES_ALL:
        return others
    if claims.documents == ISOLATES_NOTHING:
        return others & (owner == document + 1)
    # Weights that learned from the changed tokens may differ in later steps; within their first step they may not.
    return others & (base.order <= base.order[replaced[1:]].min()) if claims.adapts else others


def _other_length(
    subject: Subject, base: Trace, owner: np.ndarray, document: int, noise: float, numbers: dict[str, Any]
) -> Finding:
    """Shorten a document to its first half; the scores of all others must stay, in whatever batch they are."""
    text = f"{numbers['targets_watched']:,} scores of other documents did not move"
    places = np.flatnonzero(owner == document)
    kept = np.ones(len(subject.tokens), dtype=bool)
    kept[places[1 + len(places) // 2 :]] = False
    if kept.all() or subject.claims.adapts:  # learning steps amplify the rounding of another batch shape
        return Finding("documents", "A12", PASSED, text, numbers)
    trace = subject.run(subject.tokens[kept])
    others = (owner != document) & kept[1:]
    difference = np.abs(trace.nll[others[kept[1:]]] - base.nll[others])
    numbers["largest_move_at_other_length_nats"] = float(difference.max())
    if difference.max() > max(noise, 10 * subject.floor):
        at = int(np.flatnonzero(others)[np.argmax(difference)])
        where = {"shortened_document": document, "moved_position": at + 1, "moved_document": int(owner[at])}
        text = f"shortening a document moved scores of others by up to {difference.max():.4f} nats"
        return Finding("documents", "A12", FAILED, text, numbers, where)
    return Finding("documents", "A12", PASSED, f"{text}, nor when a document was shortened", numbers)
