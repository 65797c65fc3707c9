"""Decisions that all ranks must take alike: rank 0's clock and its wish to stop, broadcast before every step.

If each rank went by its own clock, one could switch a schedule, or stop, a step before another, and the next
collective operation would hang. The broadcast runs on gloo between the hosts, so that a GPU is never waited for.
"""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pgolf.optim.schedule import fraction_done


@dataclass(frozen=True)
class Decision:
    """What all ranks do next."""

    fraction: float
    """Of training done."""
    stop: bool
    interrupted: bool


class Control:
    """The clock of training time, and the decisions by it. Time runs between `start` and `pause` only."""

    def __init__(self, iterations: int, seconds: float, world_rank: int, world_size: int, elapsed: float = 0.0) -> None:
        self._iterations, self._seconds = iterations, seconds
        self._is_main = world_rank == 0
        self._group = None
        if world_size > 1:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._before, self._started = elapsed, 0.0
        self._last = 0.0
        self._step_seconds = 0.0

    def start(self) -> None:
        self._started = self._last = time.perf_counter()

    def pause(self) -> None:
        self._before, self._started = self.elapsed, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all restarts."""
        return self._before + (time.perf_counter() - self._started if self._started else 0.0)

    def decide(self, iteration: int, interrupted: bool) -> Decision:
        """Before the step after `iteration` steps; the same on every rank. A step that would end after the clock
        does is not begun."""
        now = time.perf_counter()
        step_seconds, self._last = now - self._last, now
        self._step_seconds = 0.9 * self._step_seconds + 0.1 * step_seconds if iteration else 0.0
        elapsed = self.elapsed
        over = bool(self._seconds) and elapsed + self._step_seconds > self._seconds
        values = [fraction_done(iteration, self._iterations, elapsed, self._seconds), float(over), float(interrupted)]
        if self._group is not None:
            shared = torch.tensor(values if self._is_main else [0.0] * len(values), dtype=torch.float64)
            dist.broadcast(shared, 0, group=self._group)
            values = shared.tolist()
        fraction, over, stopped = values[0], bool(values[1]), bool(values[2])
        return Decision(fraction, over or stopped or iteration >= self._iterations, stopped)
