"""The loader: batches depend on seed and position only, and an epoch sees everything once."""

import numpy as np
import pytest
import torch

from pgolf.errors import PgolfError
from pgolf.tokens.loader import UNIT, Loader
from pgolf.tokens.shards import TokenStream

LENGTH = 70 * UNIT + 77


@pytest.fixture(scope="module")
def stream():
    # Token values are their positions modulo a prime below 65,536, so a window tells where it was cut.
    tokens = (np.arange(LENGTH) % 65_521).astype(np.uint16)
    return TokenStream([tokens[:50_000], tokens[50_000:]], "train")


@pytest.fixture(scope="module")
def small():
    return TokenStream([np.arange(1000, dtype=np.uint16)], "train")


def test_targets_follow_inputs(stream):
    inputs, targets = Loader(stream, seed=0).batch(3, 1024, 128)
    assert inputs.shape == targets.shape == (8, 128)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal((inputs[:, -1] + 1) % 65_521, targets[:, -1])


def test_a_batch_is_a_function_of_seed_and_step(stream):
    first = Loader(stream, seed=5)
    straight = [first.batch(step, 512, 64)[0] for step in range(6)]
    resumed = Loader(stream, seed=5)
    assert torch.equal(resumed.batch(4, 512, 64)[0], straight[4])
    assert not torch.equal(Loader(stream, seed=6).batch(4, 512, 64)[0], straight[4])


def test_prefetching_changes_nothing(stream):
    plain, ahead = Loader(stream, seed=1), Loader(stream, seed=1)
    for step in range(4):
        ahead.prefetch(step, 512, 64)
        assert torch.equal(ahead.batch(step, 512, 64)[0], plain.batch(step, 512, 64)[0])
    ahead.prefetch(9, 512, 64)
    assert torch.equal(ahead.batch(5, 512, 64)[0], plain.batch(5, 512, 64)[0])  # not what was prepared
    ahead.close()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_one_batch(stream, world_size):
    whole = Loader(stream, seed=2).batch(7, 1024, 128)
    parts = [Loader(stream, 2, rank, world_size).batch(7, 1024, 128) for rank in range(world_size)]
    for index in (0, 1):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_an_epoch_sees_every_window_once(stream):
    loader = Loader(stream, seed=3)
    starts = loader._window_starts(np.arange(69 * UNIT // 256), 256)
    assert len(np.unique(starts)) == len(starts)
    assert (np.diff(np.sort(starts)) == 256).all()
    assert starts.min() >= 0
    assert starts.max() + 257 <= LENGTH
    again = loader._window_starts(np.arange(69 * UNIT // 256, 2 * 69 * UNIT // 256), 256)
    assert starts.tolist() != again.tolist()
    assert starts.min() % 256 != again.min() % 256 or starts.min() != again.min()


def test_a_longer_sequence_does_not_return_to_seen_text(stream):
    loader = Loader(stream, seed=3)
    half = 69 * UNIT // 2
    early = loader._window_starts(np.arange(half // 256), 256)
    late = loader._window_starts(np.arange(half // 512, 2 * half // 512), 512)
    seen = np.zeros(LENGTH, bool)
    for start in early:
        seen[start : start + 256] = True
    assert not any(seen[start : start + 512].any() for start in late)


def test_start_is_the_tokens_trained_on_before(stream):
    loader = Loader(stream, seed=3)
    assert torch.equal(loader.batch(10, 1024, 128)[0], loader.batch(99, 1024, 128, start=10 * 1024)[0])


def test_a_small_stream_is_used_up_to_its_end(small):
    starts = Loader(small, seed=0)._window_starts(np.arange(15), 64)
    assert sorted(np.diff(np.sort(starts)).tolist()) == [64] * 14


def test_one_window_is_enough(small):
    inputs, targets = Loader(small, seed=0).batch(3, 999, 999)
    assert inputs[0].tolist() == list(range(999))
    assert targets[0].tolist() == list(range(1, 1000))


@pytest.mark.parametrize(
    ("batch_tokens", "seq_len", "message"),
    [
        (1000, 1000, "longer than the train shards"),
        (100, 64, "not a multiple of train.seq_len"),
        (0, 64, "not a multiple"),
    ],
)
def test_impossible_batches(small, batch_tokens, seq_len, message):
    with pytest.raises(PgolfError, match=message):
        Loader(small, seed=0).batch(0, batch_tokens, seq_len)


def test_a_batch_that_ranks_cannot_share(small):
    with pytest.raises(PgolfError, match="number of processes"):
        Loader(small, 0, world_size=2).check(64, 64)
