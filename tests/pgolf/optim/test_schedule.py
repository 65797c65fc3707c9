"""Schedules at their corners."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.config import AverageConfig, OptimConfig, TrainConfig
from pgolf.errors import PgolfError
from pgolf.optim.average import Averages
from pgolf.optim.schedule import decay_factor, fraction_done, lr_factor, momentum_at


def test_fraction_is_whichever_is_further_along() -> None:
    assert fraction_done(10, 100, 5.0, 0.0) == 0.1
    assert fraction_done(10, 100, 5.0, 10.0) == 0.5
    assert fraction_done(90, 100, 5.0, 10.0) == 0.9
    assert fraction_done(10, 100, 50.0, 10.0) == 1.0


def test_warmdown_ends_at_the_floor_of_each_group() -> None:
    config = OptimConfig(warmdown=0.5, lr_floor=0.1, embed_warmdown=0.2, embed_floor=0.0, warmup=4)
    assert lr_factor(config, "matrix", 0.0, 0) == 0.25
    assert lr_factor(config, "matrix", 0.5, 50) == 1.0
    assert lr_factor(config, "matrix", 0.75, 75) == pytest.approx(0.5)  # clamped at the floor, not led to it
    assert lr_factor(config, "matrix", 0.94, 94) == pytest.approx(0.12)
    assert lr_factor(config, "matrix", 0.96, 96) == lr_factor(config, "scalar", 1.0, 100) == pytest.approx(0.1)
    assert lr_factor(config, "embed", 0.8, 80) == 1.0
    assert lr_factor(config, "embed", 1.0, 100) == 0.0


def test_the_seeds_warmdown_counts_iterations() -> None:
    config = OptimConfig(warmdown_iterations=3500)
    assert lr_factor(config, "matrix", 0.5, 10_000) == 1.0
    assert lr_factor(config, "matrix", (20_000 - 1750) / 20_000, 20_000 - 1750) == pytest.approx(0.5)
    # A clock that will end the run after 7,000 iterations: half of it is warmdown.
    assert lr_factor(config, "matrix", 0.75, 5250) == pytest.approx(0.5)


def baseline_multiplier(step: int, elapsed: float, iterations: int, warmdown: int, seconds: float) -> float:
    """The learning rate's multiplier in the challenge's train_gpt.py (openai/parameter-golf), written out plainly."""
    if not seconds:
        return min(1.0, (iterations - step) / warmdown)
    remaining, needed = seconds - elapsed, warmdown * elapsed / max(step, 1)
    return 1.0 if remaining > needed else remaining / needed


def record_multiplier(done: float, share: float, lowest: float) -> float:
    """The same in the records since PR #1530, by the fraction of the run that is done."""
    return max((1 - done) / share, lowest) if done > 1 - share else 1.0


@given(step=st.integers(0, 999), warmdown=st.integers(1, 5000))
def test_warmdown_in_iterations_is_the_baselines(step: int, warmdown: int) -> None:
    """Also when it is longer than the run: it then begins at iterations / warmdown."""
    config = OptimConfig(warmdown_iterations=warmdown)
    found = lr_factor(config, "matrix", step / 1000, step, planned=1000)
    assert found == pytest.approx(baseline_multiplier(step, 0.0, 1000, warmdown, 0.0), abs=1e-9)


@given(step=st.integers(0, 5000), elapsed=st.floats(1.0, 599.0), warmdown=st.integers(1, 9000))
def test_warmdown_in_iterations_under_a_clock_is_the_baselines(step: int, elapsed: float, warmdown: int) -> None:
    config = OptimConfig(warmdown_iterations=warmdown)
    done = fraction_done(step, 20_000, elapsed, 600.0)
    if done == elapsed / 600.0:  # the baseline looks at nothing but the clock
        expected = baseline_multiplier(step, elapsed, 20_000, warmdown, 600.0) if step else 1.0
        assert lr_factor(config, "matrix", done, step) == pytest.approx(expected, rel=1e-9)


@given(done=st.floats(0, 1), share=st.floats(0.01, 1), lowest=st.floats(0, 1))
def test_the_floor_is_the_records(done: float, share: float, lowest: float) -> None:
    config = OptimConfig(warmdown=share, lr_floor=lowest)
    assert lr_factor(config, "matrix", done, 7) == pytest.approx(record_multiplier(done, share, lowest), abs=1e-9)


def test_a_reserve_must_leave_time_to_train() -> None:
    with pytest.raises(PgolfError, match=r"must be less than train\.seconds"):
        TrainConfig(seconds=5.0, reserve_seconds=5.0)


def test_momentum_and_decay() -> None:
    config = OptimConfig(momentum_start=0.8, momentum=0.9, momentum_warmup=10, decay_end=0.5, decay_from=0.5)
    assert [momentum_at(config, iteration) for iteration in (0, 5, 10, 99)] == pytest.approx([0.8, 0.85, 0.9, 0.9])
    assert [decay_factor(config, fraction) for fraction in (0.2, 0.75, 1.0)] == pytest.approx([1.0, 0.75, 0.5])


def test_sizes_change_at_their_fractions() -> None:
    config = TrainConfig(batch_tokens=64, seq_len=16, batch_schedule=((0.5, 128),), seq_schedule=((0.0, 8), (0.25, 32)))
    assert [config.sizes_at(fraction) for fraction in (0.0, 0.25, 0.5)] == [(64, 8), (64, 32), (128, 32)]
    assert config.breakpoints() == [0.0, 0.25, 0.5]
    with pytest.raises(PgolfError, match="seq_schedule must ascend"):
        TrainConfig(seq_schedule=((0.5, 8), (0.25, 16)))


def test_averages_hold_no_weights_from_before_their_start() -> None:
    data = torch.full((4,), 1000.0)  # the initial weights
    averages = Averages(data, AverageConfig(ema_decays=(0.9,), ema_from=0.25, tail_from=0.5))
    averages.update(0.0)
    assert averages.finished() == {}  # nothing to export: never the initial weights
    seen = []
    for step, fraction in enumerate((0.25, 0.5, 0.75)):
        data.fill_(float(step + 1))
        seen.append(step + 1)
        averages.update(fraction)
    weights = [0.9**2, 0.9, 1.0]
    expected = sum(w * value for w, value in zip(weights, seen, strict=True)) / sum(weights)
    finished = averages.finished()
    torch.testing.assert_close(finished["ema-0.9"], torch.full((4,), expected))
    torch.testing.assert_close(finished["tail"], torch.full((4,), 2.5))
