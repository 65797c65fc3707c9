"""The training clock with a simulated device: it never passes its cap, and checkpoints do not count."""

from collections import deque

import pytest
import torch

from pgolf.audit.finding import PASSED
from pgolf.audit.record import clocks
from pgolf.runtime import Runtime
from pgolf.training.budget_clock import Control

RUNTIME = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)
DELAY = 2  # steps that the host runs ahead of a GPU


class Machine:
    """A host that launches steps on a device that runs up to `delay` of them behind it; time is simulated."""

    def __init__(self, delay: int) -> None:
        self.now, self.delay, self.checkpoints = 0.0, delay, 0
        self.ends: deque[float] = deque()  # of the steps in flight
        self.free = 0.0  # when the device has finished everything launched

    def clock(self) -> float:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += 0.004  # launching
        self.free = max(self.free, self.now) + seconds
        self.ends.append(self.free)
        self.wait(self.delay)

    def wait(self, keep: int = 0) -> None:
        while len(self.ends) > keep:
            self.now = max(self.now, self.ends.popleft())


def train(control: Control, machine: Machine, every: float, varying: float = 0.0) -> tuple[int, float]:
    """As `fit` does: steps that take longer from 35% on, checkpoints of 1.5 s. Returns steps and the last fraction."""
    iteration, saved, fraction = 0, 0.0, 0.0
    control.start()
    while not (decision := control.decide(iteration, in_flight=len(machine.ends))).stop:
        fraction = decision.fraction
        machine.step((0.096 if fraction < 0.35 else 0.141) * (1 + varying * (iteration * 7919 % 13) / 13))
        iteration += 1
        if 0 < every <= control.elapsed - saved:
            machine.wait()
            with control.stopped():
                machine.now += 1.5
                machine.checkpoints += 1
            saved = control.elapsed
    machine.wait()
    control.pause()
    machine.now += 1.5  # the last checkpoint
    return iteration, fraction


@pytest.mark.parametrize("delay", [0, DELAY])
@pytest.mark.parametrize("every", [0.0, 1.0, 7.3, 60.0, 599.0])
@pytest.mark.parametrize("varying", [0.0, 0.2])
def test_a_run_of_600_seconds_ends_in_time(delay: int, every: float, varying: float) -> None:
    machine = Machine(delay)
    control = Control(10**9, 600.0, RUNTIME, clock=machine.clock)
    steps, fraction = train(control, machine, every, varying)
    assert control.elapsed <= 600.0
    assert control.elapsed > 600.0 - 4 * 0.141 * 1.05 * (1 + varying)  # and wastes no more than the steps in flight
    assert fraction == pytest.approx(1.0, abs=2e-3)  # the schedules reach their end
    assert clocks(control.elapsed, 0.0, {}, {}, 600.0).outcome == PASSED
    assert steps > 4000
    assert control.paused == pytest.approx(machine.checkpoints * 1.5)  # on the wall, and not on the clock
    assert (machine.checkpoints > 0) == (every > 0)


def test_a_resumed_run_has_the_remaining_time() -> None:
    machine = Machine(DELAY)
    control = Control(10**9, 600.0, RUNTIME, elapsed=590.0, clock=machine.clock)
    steps, _ = train(control, machine, 0.0)
    assert 60 <= steps <= 70
    assert 599.0 < control.elapsed <= 600.0


def test_the_reserve_is_kept_free_and_bounded() -> None:
    machine = Machine(DELAY)
    control = Control(10**9, 600.0, RUNTIME, reserve=10.0, clock=machine.clock)
    _, fraction = train(control, machine, 60.0)
    assert control.elapsed <= 590.0
    assert fraction == pytest.approx(1.0, abs=2e-3)
    control.start()
    count = 0
    while control.time_for(3.0):
        machine.now += 3.0
        count += 1
    assert count == 3
    assert control.elapsed <= 600.0


def test_iterations_end_a_run_without_a_clock() -> None:
    control = Control(3, 0.0, RUNTIME)
    control.start()
    assert [control.decide(step).stop for step in range(4)] == [False, False, False, True]
    assert control.decide(1).fraction == pytest.approx(1 / 3)
    assert control.decide(0, interrupted=True).interrupted
