r"""Settings of a preset against each other: same seed, same data, same seconds, scored on the held-out slice of train.

    python benchmarks/training/sweep.py artifacts/mini/tokenize "" "model.dim=72 model.num_layers=4" \
        "optim.matrix_lr=0.04"

Every quoted argument is one variant, a list of settings; "" is the preset itself, and the others are told against the
first. Full-precision scores alone would favour more weights, so the second figure adds the expected loss of
quantization
to the same bytes: `--gap` at `--gap-bits` per weight (by default what `mini` lost with 357k weights in 128,000
bytes), and a factor of four for each bit less, as in every rate-distortion law at high rates. Processor time with
`--cpu-time --threads 1`. Rows go to `sweep.json` as they come, and rows already there are not run again.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from ablation import run

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.store import stage_directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path, help="a tokenize stage directory")
    parser.add_argument("variants", nargs="+", help='settings in quotes: "section.key=value section.key=value"')
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of processor time, not of the wall clock")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gap", type=float, default=0.0186, help="BPB that quantization costs ...")
    parser.add_argument("--gap-bits", type=float, default=2.87, help="... at this many bits per weight")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("sweep.json"))
    options = parser.parse_args()
    runtime = runtimes.choose("auto", threads=options.threads)
    tokens = stage_directory.open_stage(options.tokens, ("tokenize",))
    pieces = tokens.manifest.details.get("vocab_size", 0)
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    kind = "of processor time" if options.cpu_time else "of the wall clock"
    table = rows.setdefault(f"{options.preset}, {options.seconds:g} s {kind}", {})
    first: float | None = None
    for variant in options.variants:
        name = f"{variant or 'preset'} ({pieces} pieces)"
        config = configs.load(options.preset, None, variant.split())
        if name not in table:
            timed = dataclasses.replace(config, train=dataclasses.replace(config.train, seconds=options.seconds))
            table[name] = run(timed, tokens, runtime, clock)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
        row = table[name]
        bits = 8 * config.quantize.target_bytes / row["parameters"]
        quantized = row["bits_per_byte"] + options.gap * 4.0 ** (options.gap_bits - bits)
        first = quantized if first is None else first
        speed = f"{row['iterations']:6} steps {row['tokens_per_second']:8,.0f} tokens/s {row['parameters']:9,} weights"
        print(
            f"{row['bits_per_byte']:.4f}, quantized {quantized:.4f} {quantized - first:+.4f} {speed}  {name}",
            flush=True,
        )


if __name__ == "__main__":
    main()
