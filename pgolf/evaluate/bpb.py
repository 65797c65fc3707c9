"""From negative log-likelihoods to bits per byte.

The only place where nats and bytes meet: every evaluator returns nats per target, and every score is made here.
Sums are float64. The first token of a stream has no context and is never a target; its bytes count for nothing.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgolf.errors import CheckFailed


@dataclass(frozen=True)
class Score:
    nats: float  # total negative log-likelihood of the targets
    tokens_scored: int
    bytes_scored: int  # UTF-8 bytes of the text of the targets

    @classmethod
    def from_nll(cls, nll: np.ndarray, token_bytes: np.ndarray) -> "Score":
        """Add up a stream's scores.

        nll: (N-1,) nats of the targets 1..N-1.
        token_bytes: (N-1,) original UTF-8 bytes of the same targets.

        Raises CheckFailed when the two do not match, a score is not a number, or there are no bytes to divide by.
        """
        if nll.shape != token_bytes.shape:
            raise CheckFailed(f"{nll.shape[0]} scores for {token_bytes.shape[0]} targets; each must be scored once")
        if not np.isfinite(nll).all():
            raise CheckFailed(f"the score of token {int(np.argmin(np.isfinite(nll))) + 1} is not a finite number")
        total = int(token_bytes.sum(dtype=np.int64))
        if total <= 0:
            raise CheckFailed("the scored tokens have no text bytes, so bits per byte is undefined")
        return cls(nats=float(nll.sum(dtype=np.float64)), tokens_scored=int(nll.size), bytes_scored=total)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2.0) / self.bytes_scored

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens_scored

    def metrics(self) -> dict[str, Any]:
        """The four metrics by the names they have everywhere."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "nats_per_token": self.nats_per_token,
            "tokens_scored": self.tokens_scored,
            "bytes_scored": self.bytes_scored,
        }
