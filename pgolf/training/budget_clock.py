"""The training clock and the stop decisions, which are the same on every rank.

Rank 0 reads its clock and its request to stop before every step and broadcasts both. If each rank went by its own
clock, one could switch a schedule or stop one step before another, and the next collective operation would hang. The
broadcast runs through gloo between the hosts, so that nothing waits for a GPU.

The clock never passes its cap. On a GPU the host launches steps ahead of the device, so the steps still in flight are
counted before another one is begun; a step is begun only when the slowest of the last few would still end in time.
Writing a checkpoint is not training: the clock is paused meanwhile, with the device idle.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pgolf.optim.schedule import fraction_done
from pgolf.runtime import Runtime

_RECENT = 8  # steps by whose slowest the next one is estimated: a step's time varies, and the cap is never passed
_MARGIN = 1.05  # on top of it, for a step that is slower than all of those


@dataclass(frozen=True)
class Decision:
    """The decision that all ranks follow before a step."""

    fraction: float
    """Fraction of training done, 0 to 1."""
    stop: bool
    interrupted: bool


class Control:
    """Measures training time, which runs between `start` and `pause` only, and decides before every step.

    seconds: cap of the training time, 0 for none; elapsed: seconds of earlier attempts at the same run; reserve: how
    many seconds before the cap the last step ends, for other work that must be inside the clock.
    """

    def __init__(
        self,
        iterations: int,
        seconds: float,
        runtime: Runtime,
        elapsed: float = 0.0,
        reserve: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._iterations, self._cap, self._runtime, self._clock = iterations, seconds, runtime, clock
        self._seconds = seconds - reserve if seconds else 0.0
        self._group = None
        if runtime.world_size > 1:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._before = elapsed
        self._started: float | None = None
        self._last: float | None = None
        self._durations: deque[float] = deque(maxlen=_RECENT)
        self.paused = 0.0
        """Seconds that checkpoints have taken so far."""

    def start(self) -> None:
        self._started = self._last = self._clock()

    def pause(self) -> None:
        self._before, self._started, self._last = self.elapsed, None, None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock while the block runs. The device must be idle, or it would train for free."""
        self.pause()
        begun = self._clock()
        yield
        self.paused += self._clock() - begun
        self.start()

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all restarts."""
        return self._before + (0.0 if self._started is None else self._clock() - self._started)

    def decide(self, iteration: int, interrupted: bool = False, in_flight: int = 0) -> Decision:
        """Decide before the step after `iteration` steps; every rank gets the same answer.

        in_flight: steps launched on the device and not yet finished. No step is started that would end after the cap.
        """
        now = self._clock()
        if self._last is not None and now > self._last:
            self._durations.append(now - self._last)
        self._last = now
        step_seconds = _MARGIN * max(self._durations, default=0.0)
        begins = self.elapsed + in_flight * step_seconds
        over = bool(self._seconds) and begins + step_seconds > self._seconds
        fraction = fraction_done(iteration, self._iterations, begins, self._seconds)
        fraction, *stop = self._of_main([fraction, float(over), float(interrupted)])
        return Decision(fraction, any(stop) or iteration >= self._iterations, bool(stop[1]))

    def time_for(self, seconds: float) -> bool:
        """True if work of `seconds` would end before the cap; all ranks get the same answer."""
        fits = not self._cap or self.elapsed + _MARGIN * seconds <= self._cap
        return bool(self._of_main([float(fits)])[0])

    def _of_main(self, values: list[float]) -> list[float]:
        """Rank 0's values, on every rank."""
        if self._group is None:
            return values
        shared = torch.tensor(values if self._runtime.is_main else [0.0] * len(values), dtype=torch.float64)
        dist.broadcast(shared, 0, group=self._group)
        return list(shared.tolist())
