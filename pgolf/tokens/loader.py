"""Training batches from a token stream: a shuffle that is a pure function of seed and position.

A batch depends on the seed, the tokens trained on before it and its own size, and on nothing else: a resumed run and
a run of any world size see the same data (every rank takes its slice of one global batch). What is unusual: windows
are drawn so that a change of sequence length in mid-training does not go back to text that was already seen. The
stream is cut in units of about 2048 tokens; an epoch visits the first part of every unit, in a random order, then the
second part of every unit in another order, and so on. Whatever the lengths of the parts, a position in tokens means
the same share of every unit seen. Each epoch cuts the units at another phase.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch

from pgolf.errors import PgolfError
from pgolf.tokens.shards import TokenStream

UNIT = 2048  # the longest training context of the records
_MIN_UNITS = 64  # in shorter streams the unit is the sequence itself, or an epoch would leave out too much


class Loader:
    """Batches of shuffled windows; see the module docstring. `prefetch` prepares one in a thread."""

    def __init__(
        self,
        stream: TokenStream,
        seed: int,
        world_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.stream = stream
        self._seed, self._world_rank, self._world_size = seed, world_rank, world_size
        self._order: tuple[tuple[int, ...], np.ndarray] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: tuple[tuple[int, int, int], Future[tuple[torch.Tensor, torch.Tensor]]] | None = None

    def batch(
        self, step: int, batch_tokens: int, seq_len: int, start: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's slice of the batch of a step: inputs and targets, int64 (rows, seq_len).

        batch_tokens: of the global batch; rows = batch_tokens / seq_len / world_size.
        start: tokens trained on before this step; `step * batch_tokens` when sizes never change.
        """
        key = (step * batch_tokens if start is None else start, batch_tokens, seq_len)
        if self._ahead is not None:
            wanted, future = self._ahead
            self._ahead = None
            result = future.result()  # waited for in any case: one thread at a time touches the order
            if wanted == key:
                return result
        return self._make(*key)

    def prefetch(self, step: int, batch_tokens: int, seq_len: int, start: int | None = None) -> None:
        """Begin to prepare the batch that the next call of `batch` will ask for."""
        key = (step * batch_tokens if start is None else start, batch_tokens, seq_len)
        self._ahead = (key, self._thread.submit(self._make, *key))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._thread.shutdown()

    def check(self, batch_tokens: int, seq_len: int) -> None:
        """Raises PgolfError for a batch that cannot be cut from this stream or shared out between the ranks."""
        if seq_len + 1 > len(self.stream):
            raise PgolfError(
                f"train.seq_len = {seq_len} is longer than the train shards: {self.stream.name} leaves "
                f"{len(self.stream)} tokens; a sequence needs {seq_len + 1}"
            )
        if batch_tokens % (seq_len * self._world_size) or not batch_tokens:
            raise PgolfError(
                f"train.batch_tokens = {batch_tokens} is not a multiple of train.seq_len ({seq_len}) times the number "
                f"of processes ({self._world_size})"
            )

    def _make(self, start: int, batch_tokens: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.check(batch_tokens, seq_len)
        rows = batch_tokens // seq_len
        mine = rows // self._world_size
        first = start // seq_len + self._world_rank * mine
        starts = self._window_starts(np.arange(first, first + mine), seq_len)
        tokens = torch.from_numpy(self.stream.rows(starts, seq_len + 1).astype(np.int64))  # (rows, seq_len + 1)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _window_starts(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """Start positions in the stream of the windows with these running numbers: int64, same shape."""
        usable = len(self.stream) - 1  # the last target
        small = usable < _MIN_UNITS * max(UNIT, seq_len)
        per_unit = 1 if small else max(1, UNIT // seq_len)
        unit = per_unit * seq_len
        units = usable // unit - (0 if small else 1)
        out = np.empty(len(windows), np.int64)
        passes, index = np.divmod(windows, units)
        for number in np.unique(passes):  # one pass: the same part of every unit
            epoch, part = divmod(int(number), per_unit)
            order, phase = self._pass_order(epoch, part, unit, units, usable)
            here = passes == number
            out[here] = phase + order[index[here]] * unit + part * seq_len
        return out

    def _pass_order(self, epoch: int, part: int, unit: int, units: int, usable: int) -> tuple[np.ndarray, int]:
        phase_random = np.random.default_rng((self._seed, epoch))
        phase = int(phase_random.integers(0, min(unit, usable - units * unit) + 1))
        key = (epoch, part, unit, units)
        if self._order is None or self._order[0] != key:
            self._order = key, np.random.default_rng((self._seed, *key)).permutation(units)
        return self._order[1], phase
