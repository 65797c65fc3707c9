"""The coder against general compressors and NNCodec's, on the same symbols, side information included.

    python benchmarks/codec/coder.py [QUANTIZED.safetensors | QUANTIZE_STAGE ...] [--record] [--nncodec PYTHON]

Without arguments only synthetic matrices are coded: Gaussian, Laplace and Student weights with log-normal row and
column scales, whose true entropy is known. `--record` adds the shape of the 36-million-weight record, for speed.
`--nncodec` names a Python that has NNCodec (`pip install nncodec`), which needs an older NumPy than this project.
Every compressor gets the symbols as bytes, by rows or by columns, whichever is smaller, plus the row and column scales.
"""

import argparse
import bz2
import json
import lzma
import math
import os
import platform
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

import brotli
import numpy as np

from pgolf.codec import container
from pgolf.codec.ledger import ledger
from pgolf.quantized import storage
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor

_ERF = np.vectorize(math.erf)


def synthetic(
    shapes: list[tuple[int, int]], law: str, spread: float, row_steps: bool, seed: int = 0
) -> tuple[QuantizedModel, float]:
    """Matrices of the law with log-normal row and column scales, and their true entropy in bits (Gaussian only).

    row_steps: one step per row in proportion to its scale, as the records have it, so that the rows look alike.
    """
    random = np.random.default_rng(seed)
    matrices, bits = {}, 0.0
    for index, (rows, columns) in enumerate(shapes):
        row, column = np.exp(random.normal(0, spread, (rows, 1))), np.exp(random.normal(0, spread, columns))
        sigma = 2.5 * column * (np.ones_like(row) if row_steps else row)
        draw = {
            "gauss": lambda size: random.normal(size=size),
            "laplace": lambda size: random.laplace(size=size) / math.sqrt(2),
            "student": lambda size: random.standard_t(5, size) * math.sqrt(3 / 5),
        }[law]
        symbols = np.rint(draw((rows, columns)) * sigma).astype(np.int32)
        scales = np.rint(8 * np.log2(row[:, 0])) - 40 if row_steps else np.full(rows, -40)
        if law == "gauss" and symbols.size < 1 << 20:
            z = (np.abs(symbols) + np.array([0.5, -0.5])[:, None, None]) / sigma / math.sqrt(2)
            bits -= float(np.log2((_ERF(z[0]) - _ERF(z[1])) / 2).sum())
        matrices[f"m{index}"] = QuantizedTensor(
            "mlp", symbols, scales.astype(np.int16), np.zeros(columns, np.int16), 8, 0, 128
        )
    return QuantizedModel(matrices, {}, {}), bits


def narrow(symbols: np.ndarray) -> np.ndarray:
    return symbols.astype(np.int8 if np.abs(symbols).max(initial=0) < 128 else np.int16)


def general(model: QuantizedModel) -> dict[str, int]:
    """Bytes under each general compressor, the better of rows and columns, with the scales."""
    scales = b"".join(
        vector.astype("<i2").view(np.uint8).reshape(-1, 2).T.tobytes()
        for tensor in model.matrices.values()
        for vector in (tensor.row_scale, tensor.col_scale)
    )
    rows = b"".join(narrow(tensor.symbols).tobytes() for tensor in model.matrices.values())
    columns = b"".join(narrow(tensor.symbols).T.tobytes() for tensor in model.matrices.values())
    compressors = {
        "zlib 9": lambda data: zlib.compress(data, 9),
        "bz2": lambda data: bz2.compress(data, 9),
        "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME),
        "brotli 11": lambda data: brotli.compress(data, quality=11, lgwin=24),
    }
    return {
        name: min(len(compress(rows)), len(compress(columns))) + len(compress(scales))
        for name, compress in compressors.items()
    }


def nncodec(model: QuantizedModel, python: str) -> int | str:
    """Bytes of NNCodec's DeepCABAC for the integers as they are; its error when it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "symbols.npz"
        np.savez(path, **{name: tensor.symbols for name, tensor in model.matrices.items()})
        script = Path(__file__).with_name("nncodec_bytes.py")
        done = subprocess.run([python, str(script), str(path)], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].isdigit():
        return (done.stderr.strip().splitlines() or ["no output"])[-1][:120]
    return int(lines[-1])


def measure(name: str, model: QuantizedModel, true_bits: float, nncodec_python: str | None, small: bool) -> dict:
    weights = sum(tensor.symbols.size for tensor in model.matrices.values())
    matrices = QuantizedModel(model.matrices, {}, {})
    cpu, wall = time.process_time(), time.perf_counter()
    data = container.encode(matrices)
    encoded = (time.process_time() - cpu, time.perf_counter() - wall)
    cpu, wall = time.process_time(), time.perf_counter()
    container.decode(data)
    decoded = (time.process_time() - cpu, time.perf_counter() - wall)
    total = ledger(data).total()
    row: dict = {
        "what": name,
        "weights": weights,
        "container": len(data),
        "symbols_and_scales": round(total.bytes),
        "bits_per_weight": round(total.bits_per_weight, 4),
        "zero_order_entropy": round(total.entropy, 4),
        "over_own_cross_entropy_percent": round(100 * total.coder_distance, 4),
        "over_true_entropy_percent": round(100 * (8 * total.symbol_bytes / true_bits - 1), 3) if true_bits else None,
        "encode_seconds": {"cpu": round(encoded[0], 2), "wall": round(encoded[1], 2)},
        "decode_seconds": {"cpu": round(decoded[0], 2), "wall": round(decoded[1], 2)},
    }
    if small:
        others: dict[str, int | str] = dict(general(model))
        if nncodec_python:
            found = nncodec(model, nncodec_python)
            scales = np.concatenate([v for t in model.matrices.values() for v in (t.row_scale, t.col_scale)])
            coded = len(lzma.compress(scales.astype("<i2").tobytes(), lzma.FORMAT_ALONE))
            others["nncodec"] = found + coded if isinstance(found, int) else found  # its scales by lzma
        row["others"] = others
        best = min(size for size in others.values() if isinstance(size, int))
        row["ratio_to_best"] = round(total.bytes / best, 4)
        row["container_to_best"] = round(len(data) / best, 4)
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--nncodec", default=None)
    arguments = parser.parse_args()
    mini = [(1024, 64), *[(64, 64), (32, 64), (32, 64), (64, 64), (192, 64), (64, 192)] * 4]
    middle = [(1024, 256), (256, 256), (1024, 256), (256, 1024)]
    rows = []
    for law, spread, row_steps in (
        ("gauss", 0.0, False),
        ("gauss", 0.3, False),
        ("gauss", 0.3, True),
        ("laplace", 0.3, False),
        ("student", 0.3, False),
    ):
        for size, shapes in (("mini", mini), ("middle", middle)):
            model, bits = synthetic(shapes, law, spread, row_steps)
            name = f"{size} {law}, scales spread {spread}{', step per row' if row_steps else ''}"
            rows.append(measure(name, model, bits, arguments.nncodec, small=True))
    for source in arguments.sources:
        path = source / "quantized.safetensors" if source.is_dir() else source
        rows.append(measure("/".join(path.parts[-3:-1]), storage.load(path), 0.0, arguments.nncodec, small=True))
    if arguments.record:
        layer = [(512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)]
        model, _ = synthetic([(8192, 512), *layer * 11], "gauss", 0.3, False)
        rows.append(measure("record's shape, gauss", model, 0.0, None, small=False))
    result = {"machine": platform.platform(), "cores": os.cpu_count(), "numpy": np.__version__, "rows": rows}
    (Path(__file__).parents[1] / "results" / Path(__file__).with_suffix(".json").name).write_text(
        json.dumps(result, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
