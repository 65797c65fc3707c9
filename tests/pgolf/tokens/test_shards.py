"""Shards: the challenge's bytes exactly, any cut of a stream, and damage refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.errors import PgolfError
from pgolf.tokens.shards import ShardWriter, TokenStream, write_shards


def test_the_layout_is_the_challenges(tmp_path):
    (path,) = write_shards(tmp_path, "fineweb_val", [np.array([1, 2, 65_535], np.uint16)], 100)
    header = [20240520, 1, 3] + [0] * 253
    assert path.name == "fineweb_val_000000.bin"
    assert path.read_bytes() == b"".join(word.to_bytes(4, "little") for word in header) + b"\1\0\2\0\xff\xff"


@given(
    parts=st.lists(st.lists(st.integers(0, 65_535), max_size=30), max_size=6),
    limit=st.integers(1, 20),
    cut=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_any_stream_in_any_shards(tmp_path_factory, parts, limit, cut):
    folder = tmp_path_factory.mktemp("shards")
    arrays = [np.array(part, np.uint16) for part in parts]
    paths = write_shards(folder, "fineweb_train", arrays, limit)
    expected = np.concatenate([np.zeros(0, np.uint16), *arrays])
    stream = TokenStream.open(paths)
    assert len(stream) == len(expected)
    assert len(paths) == max(1, -(-len(expected) // limit))
    start, stop = cut
    assert stream[start:stop].tolist() == expected[start:stop].tolist()
    view = stream.view(min(start, stop), max(start, stop))
    assert view[:].tolist() == expected[min(start, stop) : max(start, stop)].tolist()
    assert stream[:].dtype == np.uint16
    hits = np.flatnonzero(expected[start:] == 7)
    assert stream.find_after(7, start) == (start + int(hits[0]) if len(hits) else None)


def test_rows(tmp_path):
    tokens = np.arange(50, dtype=np.uint16)
    stream = TokenStream.open(write_shards(tmp_path, "x", [tokens], 7))
    assert stream.rows(np.array([0, 5, 40]), 10).tolist() == [[*range(10)], [*range(5, 15)], [*range(40, 50)]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "expected 1030 bytes, found 1029 bytes"),
        (lambda data: data + b"\0\0", "expected 1030 bytes, found 1032 bytes"),
        (lambda data: data[:500], "expected a header of 1024 bytes, found 500"),
        (lambda data: b"", "found 0 bytes"),
        (lambda data: b"\0" * len(data), "found 0, 0, 0"),
        (lambda data: data[:4] + b"\2" + data[5:], "found 20240520, 2, 3"),
        (lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:], "found 20240520, 1, -1"),
    ],
)
def test_a_damaged_or_foreign_shard(tmp_path, damage, message):
    (path,) = write_shards(tmp_path, "fineweb_val", [np.array([1, 2, 3], np.uint16)], 100)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PgolfError) as caught:
        TokenStream.open([path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_shards(tmp_path):
    with pytest.raises(PgolfError, match="cannot read the shard"):
        TokenStream.open([tmp_path / "none.bin"])
    with pytest.raises(PgolfError, match="no shards"):
        TokenStream.open([])


def test_an_empty_stream_has_one_empty_shard(tmp_path):
    with ShardWriter(tmp_path, "fineweb_val", 10) as writer:
        pass
    assert len(TokenStream.open(writer.paths)) == 0
