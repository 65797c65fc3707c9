"""Keys and values of the tokens already seen, so that one more token costs one more position and not a whole window.

A part that looks back over neighbours (SmearGate, convolutions, key offsets) makes the last position depend on a few
positions before it in every layer. So a step computes the last `1 + model.local_reach()` positions again; only the last
one is exact then, and only its keys and values enter the cache.
"""

from torch import Tensor


class KeyValueCache:
    """For one batch of rows that grow by one token a step, up to `length` tokens; `start` clears it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.known = 0
        """Positions whose keys and values are held."""
        self._held: list[tuple[Tensor, Tensor]] = []  # by executed block: (B, length, H_kv, D) each
        self._block, self._before = 0, 0

    def start(self) -> None:
        """Forget everything: the rows begin at another token now."""
        self.known = 0

    def begin(self, total: int, back: int) -> int:
        """A forward over `total` tokens begins: how many positions at their end it must compute.

        back: see `GPT.local_reach`. The blocks then call `extend` in the order in which they run.
        """
        self._block, self._before, self.known = 0, self.known, total
        return min(total, total - self._before + back)

    def extend(self, k: Tensor, v: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Keep keys and values of the new positions and return those of all.

        k, v: (B, m, H_kv, D) of the last m of `total` positions -> (B, total, H_kv, D) each.
        """
        if self._block == len(self._held):
            shape = (k.shape[0], self.length, *k.shape[2:])
            self._held.append((k.new_empty(shape), v.new_empty(shape)))
        keys, values = self._held[self._block]
        fresh = total - self._before
        keys[:, self._before : total] = k[:, -fresh:]
        values[:, self._before : total] = v[:, -fresh:]
        self._block += 1
        return keys[:, :total], values[:, :total]

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows; rows: (B,) bool."""
        self._held = [(keys[rows], values[rows]) for keys, values in self._held]
