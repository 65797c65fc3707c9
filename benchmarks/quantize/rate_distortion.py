"""The gap to the rate-distortion bound of a Gaussian source, in bits per weight as written to the file.

    python benchmarks/quantize/rate_distortion.py

Independent Gaussian weights, 2048 x 512, no structure to exploit; bits are those of the whole container, distortion the
mean squared error after decoding. ½ log2(σ² / D) is the bound. A uniform quantizer with an ideal coder is 0.2546
above it at high rates. Writes rate_distortion.json beside it.
"""

import json
import time
from pathlib import Path

import numpy as np

from pgolf.codec import container
from pgolf.quant import rate_tables, waterfill
from pgolf.quant.waterfill import Rounding
from pgolf.quantized.tensors import QuantizedModel, dequantize

SHAPE = (2048, 512)


def main() -> None:
    weight = np.random.default_rng(0).standard_normal(SHAPE)
    weight /= weight.std()
    problem = waterfill.prepare(weight, "mlp", np.eye(SHAPE[1]), np.ones(SHAPE[0]), 1e-12)
    rows = []
    for name, rounding in (
        ("uniform, nearest", Rounding(states=0, rate_weight=0.0)),
        ("uniform, rate-aware", Rounding(states=0)),
        ("trellis of 4 states", Rounding(states=4)),
        ("trellis of 8 states", Rounding(states=8)),
        ("trellis of 64 states", Rounding(states=64)),
        ("trellis of 8 states, nearest", Rounding(states=8, rate_weight=0.0)),
    ):
        for bits in (2.0, 3.0, 4.0, 6.0, 8.0):
            log2_c = 2.0471 - bits - (1.0 if rounding.states else 0.0)
            started = time.monotonic()
            tensor = waterfill.quantize(problem, log2_c, rounding)
            parts = [(tensor.symbols, waterfill.classes(problem, tensor), tensor.trellis, tensor.segment)]
            tensor = waterfill.quantize(problem, log2_c, rounding, rate_tables.refit(parts, rounding.states > 0))
            seconds = time.monotonic() - started
            data = container.encode(QuantizedModel({"w": tensor}, {}, {}))
            assert np.array_equal(container.decode(data).matrices["w"].symbols, tensor.symbols)
            rate = 8 * len(data) / weight.size
            distortion = float(np.mean((weight - dequantize(tensor).double().numpy()) ** 2))
            gap = rate - 0.5 * np.log2(1 / distortion)
            rows.append({"rounding": name, "bits": rate, "distortion": distortion, "gap": gap, "seconds": seconds})
            print(f"{name:30s} {rate:.4f} bits  D {distortion:.5f}  gap {gap:.4f}  {seconds:.1f} s", flush=True)
    (Path(__file__).parents[1] / "results" / Path(__file__).with_suffix(".json").name).write_text(
        json.dumps(rows, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
