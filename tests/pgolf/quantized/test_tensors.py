"""Dequantizing against a plain walk over single weights, and the file that keeps the integers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.errors import PgolfError
from pgolf.quantized import storage
from pgolf.quantized.tensors import KAPPA, NEXT_STATE, QuantizedModel, QuantizedTensor, dequantize, kappas, octave_table


def plain(tensor: QuantizedTensor) -> np.ndarray:
    """ISO/IEC 15938-17's reconstruction, one weight after the other."""
    rows, columns = tensor.shape
    weights = np.zeros((rows, columns), dtype=np.float32)
    for column in range(columns):
        state = 0
        for row in range(rows):
            if row % tensor.segment == 0:
                state = 0
            symbol = int(tensor.symbols[row, column])
            level = symbol
            if tensor.trellis:
                kappa = int(KAPPA[tensor.trellis][state])
                level = 2 * symbol - (symbol > 0) * kappa + (symbol < 0) * kappa
                state = int(NEXT_STATE[tensor.trellis][state][symbol % 2])
            exponent = int(tensor.row_scale[row]) + int(tensor.col_scale[column])
            weights[row, column] = np.float32(level * 2.0 ** (exponent / tensor.resolution))
    return weights


def random_tensor(trellis: int, rows: int = 45, columns: int = 7) -> QuantizedTensor:
    random = np.random.default_rng(trellis)
    return QuantizedTensor(
        role="attn",
        symbols=random.integers(-9, 10, (rows, columns)).astype(np.int32),
        row_scale=random.integers(-60, -20, rows).astype(np.int16),
        col_scale=random.integers(-20, 20, columns).astype(np.int16),
        trellis=trellis,
        segment=16,
    )


@pytest.mark.parametrize("trellis", [0, *NEXT_STATE])
def test_weights_are_those_of_the_plain_walk(trellis: int) -> None:
    tensor = random_tensor(trellis)
    assert np.array_equal(dequantize(tensor).numpy(), plain(tensor))


@pytest.mark.parametrize("states", [*NEXT_STATE])
def test_every_trellis_state_has_two_ways_in_and_two_out(states: int) -> None:
    table = NEXT_STATE[states]
    assert all(len(set(row)) == 2 for row in table.tolist())
    assert np.bincount(table.ravel(), minlength=states).tolist() == [2] * states


def test_a_segment_longer_than_the_column_is_one_path() -> None:
    symbols = np.arange(-10, 10, dtype=np.int32).reshape(10, 2)
    assert np.array_equal(kappas(symbols, 8, 10), kappas(symbols, 8, 1000))
    assert kappas(symbols[:0], 8, 4).shape == (0, 2)


def test_powers_of_two_are_exact() -> None:
    assert octave_table(8)[0] == 1.0
    assert octave_table(8)[4] == float.fromhex("0x1.6a09e667f3bcdp+0")  # the float64 nearest to the root of 2


def test_scales_outside_float32_are_refused() -> None:
    symbols = np.ones((1, 1), np.int32)
    for row in (30000, -30000):
        with pytest.raises(PgolfError, match="step outside"):
            dequantize(QuantizedTensor("mlp", symbols, np.array([row], np.int16), np.zeros(1, np.int16)))
    huge = QuantizedTensor("mlp", symbols << 29, np.array([960], np.int16), np.zeros(1, np.int16))
    with pytest.raises(PgolfError, match="beyond float32"):
        dequantize(huge)


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    matrices = {f"b.{states}": random_tensor(states) for states in (8, 0, 4)}
    wide = random_tensor(0).symbols * 1000
    matrices["wide"] = QuantizedTensor("mlp", wide, matrices["b.0"].row_scale, matrices["b.0"].col_scale)
    controls = {"z": torch.randn(3).half(), "a": torch.tensor(2.0), "n": torch.randn(2, 2).bfloat16()}
    model = QuantizedModel(matrices, controls, {"model": {"dim": 7, "rates": [1.5, None]}})
    storage.save(tmp_path / "q.safetensors", model)
    found = storage.load(tmp_path / "q.safetensors")
    assert list(found.matrices) == list(matrices)
    assert list(found.controls) == list(controls)
    assert found.header == model.header
    for name, tensor in matrices.items():
        assert found.matrices[name].symbols.dtype == np.int32
        assert np.array_equal(found.matrices[name].symbols, tensor.symbols)
        assert torch.equal(found.state_dict()[name], model.state_dict()[name])
    assert all(found.controls[name].dtype == control.dtype for name, control in controls.items())


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    for content in (b"", b"not one", (8).to_bytes(8, "little") + b"{}      "):
        path.write_bytes(content)
        with pytest.raises(PgolfError, match="not a quantized model"):
            storage.load(path)
    with pytest.raises(PgolfError, match="not a quantized model"):
        storage.load(tmp_path / "none")
