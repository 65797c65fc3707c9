"""The compressors' sizes are of streams that decode to the text."""

import random

import pytest
import zstandard

from pgolf.evaluate import general_compressors
from pgolf.evaluate.general_compressors import SLOW_BYTES, left_out, readings

WORDS = [f"{syllable}{ending} " for syllable in ("ka", "lo", "mir", "sen", "tu") for ending in ("no", "ri", "sta", "x")]


def text(seed: int, words: int) -> bytes:
    return "".join(random.Random(seed).choices(WORDS, range(1, 21), k=words)).encode()


def test_ppmd_counts_what_the_val_text_adds_to_one_stream() -> None:
    pyppmd = pytest.importorskip("pyppmd", reason="PPMd cannot be tested: pip install 'pgolf[ppmd]'")
    train, val = text(0, 20_000), text(1, 2_000)
    found = {reading.key: reading.bits_per_byte * len(val) / 8 for reading in readings(train, val)}
    alone = pyppmd.Ppmd7Encoder(16, 256 << 20)
    before = len(alone.encode(train) + alone.flush())
    both = pyppmd.Ppmd7Encoder(16, 256 << 20)
    stream = both.encode(train + val) + both.flush()
    assert pyppmd.Ppmd7Decoder(16, 256 << 20).decode(stream, len(train) + len(val)) == train + val
    assert abs(found["ppmd"] - (len(stream) - before)) <= 8  # bytes that the range coder holds back
    assert found["ppmd"] < found["xz_primed"] < found["gzip"]


def test_the_dictionary_of_zstd_is_named_with_its_size() -> None:
    train, val = text(0, 20_000), text(1, 2_000)
    row = next(reading for reading in readings(train, val) if reading.key == "zstd")
    samples = [train[at : at + 4096] for at in range(0, len(train), 4096)]
    trained = zstandard.train_dictionary(112_640, samples)
    packed = zstandard.ZstdCompressor(level=19, dict_data=trained).compress(val)
    assert zstandard.ZstdDecompressor(dict_data=trained).decompress(packed) == val
    assert (row.bits_per_byte, row.bytes) == (8 * len(packed) / len(val), len(packed))
    assert row.what == f"zstd -19 with a {len(trained):,}-byte dictionary"


@pytest.mark.parametrize("train", [b"", b"short", text(0, 300)])
def test_little_training_text_is_the_dictionary_itself(train: bytes) -> None:
    val = text(0, 300)
    row = next(reading for reading in readings(train, val) if reading.key == "zstd")
    assert row.what == f"zstd -19 with a {len(train):,}-byte dictionary"
    assert (row.bits_per_byte < 0.3) == (train == val)


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "longer than" in str(left_out(SLOW_BYTES + 1))
    monkeypatch.setattr(general_compressors, "find_spec", lambda name: None)
    assert "pgolf[ppmd]" in str(left_out(10))
    assert "ppmd" not in {reading.key for reading in readings(text(0, 100), text(1, 100))}
