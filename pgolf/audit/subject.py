"""The evaluator under audit, and the one way in which every check runs it.

The audit owns the stream: the evaluator scores the tokens that the audit passes in, changed where
the audit chose to change it. Positions are those of the stream; the score of position t is `nll[t - 1]`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pgolf.errors import CheckFailed, PgolfError
from pgolf.evaluate.evaluator import Evaluator, Trace

FLOOR_FP32 = 1e-5  # nats; tolerance between two runs in fp32, from the field's audit tests
FLOOR_BF16 = 1e-3

ISOLATES_NOTHING = "nothing"  # contexts run across documents, as in the challenge's own evaluator
ISOLATES_CONTEXT = "context"  # no context crosses a document; weights adapted on earlier documents may
ISOLATES_ALL = "all"  # nothing crosses: context and adaptation begin anew with every document


@dataclass(frozen=True)
class Claims:
    """Claims about an evaluator; the audit tests each claim and reports behavior that is not claimed."""

    documents: str = ISOLATES_NOTHING
    periods: tuple[int, ...] = ()
    """Lengths at which its windows, strides or chunks repeat; half of the probes go near their multiples."""
    adapts: bool = False
    """The evaluator learns from scored tokens."""


@dataclass
class Subject:
    """An evaluator, a stream of real tokens, and the number of evaluations made."""

    evaluator: Evaluator
    tokens: np.ndarray
    """(N,) ids; documents begin with `bos_id`."""
    vocab_size: int
    bos_id: int
    claims: Claims = field(default_factory=Claims)
    plain: Evaluator | None = None
    """The same evaluator with its adaptation off."""
    floor: float = FLOOR_FP32
    classes: np.ndarray | None = None
    """(vocab_size,) kind of each piece, small non-negative integers; -1 for ids without text."""
    make: Callable[[], Evaluator] | None = None
    """Makes the evaluator anew: probes are then scored by one that has seen no other version of the text."""
    on_run: Callable[[int], None] | None = None
    """Called after every evaluation with the number of them so far."""
    runs: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if len(self.tokens) < 16:
            raise PgolfError(f"an audit needs a stream of at least 16 tokens, not {len(self.tokens)}")
        if int(self.tokens.max()) >= self.vocab_size:
            raise PgolfError(f"token {int(self.tokens.max())} is outside a vocabulary of {self.vocab_size}")

    def run(self, tokens: np.ndarray, positions: Sequence[int] = (), plain: bool = False, same: bool = False) -> Trace:
        """Score a stream and check the form of the trace. `same`: reuse the evaluator of earlier runs.

        Raises CheckFailed when it has the wrong form.
        """
        evaluator = self.plain if plain else self.evaluator if same or self.make is None else self.make()
        assert evaluator is not None
        clock = time.monotonic()
        trace = evaluator.score(tokens, positions)
        self.seconds += time.monotonic() - clock
        self.runs += 1
        if self.on_run is not None:
            self.on_run(self.runs)
        count = len(tokens) - 1
        for name, values in (("scores", trace.nll), ("steps", trace.order)):
            if values.shape != (count,):
                raise CheckFailed(f"coverage (A4) failed: {values.shape} {name} for {count} targets of {len(tokens)}")
        if not np.isfinite(trace.nll).all():
            wrong = int(np.argmin(np.isfinite(trace.nll)))
            raise CheckFailed(f"coverage (A4) failed: the score of position {wrong + 1} is {trace.nll[wrong]}")
        return trace

    @property
    def replaceable(self) -> np.ndarray:
        """(N,) bool: positions that a probe may change; not BOS, and not the first token, which is not a target."""
        found = self.tokens != self.bos_id
        found[0] = False
        return found

    def random_tokens(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Ids drawn from the stream's own, BOS left out, so that garbage looks like text to any gate."""
        pool = self.tokens[self.tokens != self.bos_id]
        return generator.choice(pool, size=count)

    def garbage(self, where: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The stream with every replaceable position of `where` (N,) bool replaced by another token."""
        changed = self.tokens.copy()
        places = np.flatnonzero(where & self.replaceable)
        drawn = self.random_tokens(len(places), generator)
        same = drawn == self.tokens[places]
        drawn[same] = [another(self, int(token), generator) for token in drawn[same]]
        changed[places] = drawn
        return changed


def another(subject: Subject, token: int, generator: np.random.Generator) -> int:
    """A random id that is neither `token` nor BOS."""
    while True:
        drawn = int(generator.integers(subject.vocab_size))
        if drawn not in (token, subject.bos_id):
            return drawn


def earlier(order: np.ndarray, position: int) -> np.ndarray:
    """(N-1,) bool: targets scored before the one at `position`: in an earlier step, or in the same and to its left."""
    step = order[position - 1]
    targets = np.arange(1, len(order) + 1)
    return (order < step) | ((order == step) & (targets < position))
