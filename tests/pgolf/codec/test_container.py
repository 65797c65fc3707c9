"""Round trips of the container: every kind of model, every coder, the same bytes every time."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from quantized_models import models, same, trained_like

from pgolf.codec import container
from pgolf.codec.ledger import ledger
from pgolf.errors import PgolfError
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor


@settings(max_examples=40, deadline=None)
@given(models())
def test_decoding_gives_back_the_model(model: QuantizedModel) -> None:
    data = container.encode(model)
    assert same(container.decode(data), model)
    assert container.encode(model) == data


@settings(max_examples=12, deadline=None)
@given(models())
def test_the_general_compressors_do_too(model: QuantizedModel) -> None:
    for coder in ("zlib", "brotli", "lzma"):
        assert same(container.decode(container.encode(model, coder)), model)


@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_beats_the_general_compressors(trellis: int) -> None:
    model = trained_like(trellis=trellis, shapes=((192, 64), (64, 192), (64, 64)))
    data = container.encode(model)
    assert same(container.decode(data), model)
    assert len(data) < min(len(container.encode(model, coder)) for coder in ("zlib", "brotli", "lzma"))


def test_rows_that_resemble_each_other_are_coded_around_their_mean() -> None:
    model = trained_like()
    parts = container.take_apart(container.encode(model)).directory.matrices
    assert [entry.part for entry in parts] == [container.PLAIN] * 3 + [container.CENTERED]


def test_the_bytes_are_the_same_on_every_machine() -> None:
    # A change of this digest is a change of the format: give it a new version and keep reading the old one.
    data = container.encode(trained_like(trellis=8))
    parts = container.take_apart(data)
    streams = (parts.plain, parts.centered, parts.scales)  # what this package codes itself
    joined = b"".join(part.magnitudes + part.signs + part.escapes for part in streams)
    assert hashlib.sha256(joined).hexdigest()[:16] == "d601aa4814bb6121"


def test_a_model_that_cannot_be_stored_is_refused() -> None:
    zeros = np.zeros(3, np.int16)
    big = np.array([[0, 0, 1 << 29]], dtype=np.int32)
    cases = [
        (QuantizedTensor("mlp", big, zeros[:1], zeros), "2\\^29"),
        (QuantizedTensor("mlp", big, zeros, zeros), "do not go with"),
    ]
    for tensor, message in cases:
        with pytest.raises(PgolfError, match=message):
            container.encode(QuantizedModel({"a": tensor}, {}))
    with pytest.raises(PgolfError, match="float16, bfloat16 or float32"):
        container.encode(QuantizedModel({}, {"a": torch.zeros(2, dtype=torch.int64)}))
    with pytest.raises(PgolfError, match="no coder"):
        container.encode(QuantizedModel({}, {}), "zpaq")


def test_the_ledger_adds_up_and_the_coder_is_at_its_models_cross_entropy() -> None:
    model = trained_like(shapes=((256, 96), (96, 256)))
    data = container.encode(model)
    found = ledger(data)
    assert round(sum(line.bytes for line in found.tensors)) + found.header_bytes == len(data) == found.total_bytes
    assert [line.role for line in found.roles()] == ["attn", "mlp", "embed", "control"]
    for line in found.roles()[:2]:
        assert line.coder_distance < 0.002  # words of 32 bits and escapes: 0.1% on real sizes
        assert line.against_entropy < 0  # rows and columns differ, and the model knows
    assert ledger(container.encode(model, "brotli")).total().symbol_bytes > 0


def test_the_choices_for_another_model_still_give_back_the_model() -> None:
    model = trained_like(trellis=8)
    choices = container.choose(model)
    assert container.encode(model, choices=choices) == container.encode(model)
    assert choices.centered
    other = container.Choices(frozenset(), (15, 15))
    assert same(container.decode(container.encode(model, choices=other)), model)
