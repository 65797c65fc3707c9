"""Schedules at their corners."""

import pytest
import torch

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
    assert lr_factor(config, "matrix", 0.75, 75) == pytest.approx(0.55)
    assert lr_factor(config, "scalar", 1.0, 100) == pytest.approx(0.1)
    assert lr_factor(config, "embed", 0.8, 80) == 1.0
    assert lr_factor(config, "embed", 1.0, 100) == 0.0


def test_the_seeds_warmdown_counts_iterations() -> None:
    config = OptimConfig(warmdown_iterations=3500)
    assert lr_factor(config, "matrix", 0.5, 10_000) == 1.0
    assert lr_factor(config, "matrix", (20_000 - 1750) / 20_000, 20_000 - 1750) == pytest.approx(0.5)
    # A clock that will end the run after 7,000 iterations: half of it is warmdown.
    assert lr_factor(config, "matrix", 0.75, 5250) == pytest.approx(0.5)


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
