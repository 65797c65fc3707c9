"""Damaged and hostile containers: one line, soon, and never a wrong model."""

import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from quantized_models import same, trained_like

from pgolf.codec import compressors, container, directory
from pgolf.codec.coder import write_numbers
from pgolf.errors import PgolfError

DATA = container.encode(trained_like())


def refused(data: bytes) -> None:
    with pytest.raises(PgolfError) as caught:
        container.decode(data)
    assert "\n" not in str(caught.value)


def sealed(body: bytes) -> bytes:
    """A container whose digest is right, as someone who means harm would make it."""
    return container.MAGIC + hashlib.sha256(body).digest()[:16] + body


def with_directory(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The container with its directory changed, sealed again."""
    parts = container.take_apart(DATA)
    text = directory.write(parts.directory)
    kind, stored = compressors.smallest(text)
    start = 20 + len(write_numbers(np.array([len(text), kind, len(stored)])))
    assert DATA[start : start + len(stored)] == stored
    value = json.loads(text)
    change(value)
    new = json.dumps(value).encode()
    packed = compressors.compress(new, "brotli")
    return sealed(write_numbers(np.array([len(new), 2, len(packed)])) + packed + DATA[start + len(stored) :])


def test_any_flipped_missing_or_added_byte_is_refused() -> None:
    for position in range(0, len(DATA), 7):
        refused(DATA[:position] + bytes([DATA[position] ^ (1 << position % 8)]) + DATA[position + 1 :])
        refused(DATA[:position] + DATA[position + 1 :])
        refused(DATA[:position] + b"\0" + DATA[position:])
        refused(DATA[:position])
    refused(DATA + b"\0")
    refused(b"")


def test_a_sealed_container_with_damaged_streams_gives_no_other_model() -> None:
    body, model = DATA[20:], trained_like()
    random = np.random.default_rng(0)
    passed = 0
    for _ in range(100):
        changed = bytearray(body)
        changed[random.integers(len(body))] ^= 1 << int(random.integers(8))
        try:
            found = container.decode(sealed(bytes(changed)))
        except PgolfError:
            continue
        assert same(found, model)  # the last bits of a stream may be anything
        passed += 1
    assert passed < 5


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "ten terabytes": lambda v: v["matrices"].update(rows=[1 << 20] * 4, columns=[1 << 20] * 4),
    "more rows": lambda v: v["matrices"].update(rows=[1000] * 4),
    "fewer rows": lambda v: v["matrices"].update(rows=[8] * 4),
    "negative": lambda v: v["matrices"].update(rows=[-1] * 4),
    "a float": lambda v: v["matrices"].update(rows=[1.5] * 4),
    "true": lambda v: v["matrices"].update(rows=[True] * 4),
    "a billion times": lambda v: v["matrices"].update(rows={"all": 4, "count": 1 << 30}),
    "missing": lambda v: v["matrices"].pop("columns"),
    "short column": lambda v: v["matrices"]["role"].pop(),
    "same name": lambda v: v["matrices"].update(name=["a"] * 4),
    "trellis": lambda v: v["matrices"].update(trellis=[5] * 4),
    "other model": lambda v: v["matrices"].update(part=[0] * 4),
    "zeros": lambda v: v["matrices"].update(part=[2] * 4),
    "prediction": lambda v: v["matrices"].update(row_scale_kind=[9] * 4),
    "scale": lambda v: v["matrices"].update(row_scale_first=[1 << 16] * 4),
    "alphabet": lambda v: v.update(alphabets=[3, 3, 3]),
    "memory": lambda v: v.update(memories=[64, 64]),
    "huge alphabet": lambda v: v.update(alphabets=[10**9] * 3),
    "coder": lambda v: v.update(coder="pickle"),
    "another coder": lambda v: v.update(coder="lzma"),
    "header": lambda v: v.update(header=[]),
    "changed header": lambda v: v["header"].update(model={"dim": 33}),
    "control": lambda v: v["controls"].update(shape=[[1 << 19, 1 << 19], [], []]),
    "control type": lambda v: v["controls"].update(type=["f16", "f16", "f16"]),
    "control kind": lambda v: v["controls"].update(type=["object"] * 3),
    "deep": lambda v: v["header"].update(x=json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_directory_is_refused_before_anything_large_is_made(case: str) -> None:
    data = with_directory(HOSTILE[case])
    tracemalloc.start()
    begun = time.monotonic()
    try:
        refused(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    assert time.monotonic() - begun < 5


def test_a_compression_bomb_is_refused() -> None:
    bomb = compressors.compress(b" " * (1 << 24), "brotli")
    for declared in (1 << 24, 1 << 20, (1 << 62)):
        refused(sealed(write_numbers(np.array([declared, 2, len(bomb)])) + bomb))


def test_a_later_format_version_is_reported() -> None:
    with pytest.raises(PgolfError, match="version 03"):
        container.decode(b"PGZ\x03" + DATA[4:])
    with pytest.raises(PgolfError, match="directory is inconsistent"):
        container.decode(b"PGZ\x02" + DATA[4:])
    larger = container.encode(trained_like(trellis=16))
    assert larger[:4] == b"PGZ\x02"
    with pytest.raises(PgolfError, match="directory is inconsistent"):
        container.decode(DATA[:4] + larger[4:])
    with pytest.raises(PgolfError, match=r"not a model\.pgz"):
        container.decode(b"PK\x03\x04" + DATA[4:])
