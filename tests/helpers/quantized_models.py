"""Quantized models for the tests of this room: random ones of every kind, and a small one that looks trained."""

import numpy as np
import torch
from hypothesis import strategies as st

from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor


def same(left: QuantizedModel, right: QuantizedModel) -> bool:
    """Equality in every integer, every bit of the controls, all orders and the header."""
    if list(left.matrices) != list(right.matrices) or list(left.controls) != list(right.controls):
        return False
    for name, one in left.matrices.items():
        other = right.matrices[name]
        facts = [(t.role, t.shape, t.resolution, t.trellis, t.segment) for t in (one, other)]
        if facts[0] != facts[1] or not np.array_equal(one.symbols, other.symbols):
            return False
        if not (np.array_equal(one.row_scale, other.row_scale) and np.array_equal(one.col_scale, other.col_scale)):
            return False
    for name, control in left.controls.items():
        found = right.controls[name]
        if control.dtype != found.dtype or control.shape != found.shape:
            return False
        if control.numel() and not torch.equal(
            control.reshape(-1).view(torch.uint8), found.contiguous().reshape(-1).view(torch.uint8)
        ):
            return False
    return dict(left.header) == dict(right.header)


def trained_like(
    seed: int = 0, shapes: tuple[tuple[int, int], ...] = ((48, 32), (32, 48), (32, 32)), trellis: int = 0
) -> QuantizedModel:
    """Gaussian weights with log-normal row and column scales, an embedding with unseen rows, a few control tensors."""
    random = np.random.default_rng(seed)
    matrices = {}
    for index, (rows, columns) in enumerate(shapes):
        sigma = 2.5 * np.exp(random.normal(0, 0.3, (rows, 1)) + random.normal(0, 0.3, columns))
        matrices[f"blocks.{index}.weight"] = QuantizedTensor(
            role="mlp" if index % 2 else "attn",
            symbols=np.rint(random.normal(size=(rows, columns)) * sigma).astype(np.int32),
            row_scale=(random.integers(-3, 4, rows) - 40).astype(np.int16),
            col_scale=np.rint(8 * random.normal(0, 0.3, columns)).astype(np.int16),
            trellis=trellis,
            segment=20,
        )
    unseen = (random.random((120, 1)) < 0.8) & (np.arange(120)[:, None] < 80)
    embedding = np.where(
        unseen, random.normal(0, 4, 32) + random.normal(0, 0.4, (120, 32)), random.normal(0, 4, (120, 32))
    )
    matrices["tok_emb.weight"] = QuantizedTensor(
        "embed",
        np.rint(embedding).astype(np.int32),
        np.full(120, -40, np.int16),
        np.zeros(32, np.int16),
        8,
        trellis,
        16,
    )
    controls = {
        "blocks.0.scale": torch.from_numpy(random.normal(1, 0.1, 32)).half(),
        "blocks.0.gain": torch.from_numpy(random.normal(5, 1, (2, 3))).bfloat16(),
        "skip": torch.tensor(0.5),
    }
    return QuantizedModel(matrices, controls, {"model": {"dim": 32, "note": "Größe"}})


@st.composite
def tensors(draw: st.DrawFn) -> QuantizedTensor:
    """Any matrix: empty, one row, dead rows and columns, all zero, huge symbols, each trellis."""
    rows, columns = draw(st.tuples(st.integers(0, 40), st.integers(0, 40)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 0.05, 1.0, 5.0, 60.0, 1e4]))
    symbols = np.rint(random.standard_t(3, (rows, columns)) * spread).astype(np.int64)
    if draw(st.booleans()) and symbols.size:
        symbols[:, random.integers(columns)] = 0
        symbols[random.integers(rows)] = 0
    if draw(st.booleans()) and symbols.size:
        symbols[random.integers(rows), random.integers(columns)] = draw(st.sampled_from([-(2**29) + 1, 2**29 - 1]))
    if draw(st.booleans()) and rows > 1:
        symbols[rows // 2 :] = symbols[0]
    wide = draw(st.sampled_from([0, 3, 32767]))
    return QuantizedTensor(
        role=draw(st.sampled_from(["embed", "attn", "mlp"])),
        symbols=np.clip(symbols, -(2**29) + 1, 2**29 - 1).astype(np.int32),
        row_scale=random.integers(-wide - 1, wide + 1, rows).astype(np.int16),
        col_scale=random.integers(-wide - 1, wide + 1, columns).astype(np.int16),
        resolution=draw(st.sampled_from([1, 3, 8, 16])),
        trellis=draw(st.sampled_from([0, 4, 8])),
        segment=draw(st.sampled_from([1, 7, 128])),
    )


@st.composite
def models(draw: st.DrawFn) -> QuantizedModel:
    matrices = {f"m{index}": tensor for index, tensor in enumerate(draw(st.lists(tensors(), max_size=4)))}
    controls = {}
    for index in range(draw(st.integers(0, 3))):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        kind = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
        controls[f"c{index}"] = torch.randn(shape, generator=torch.Generator().manual_seed(index)).to(kind)
    header = draw(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3))
    return QuantizedModel(matrices, controls, header)
