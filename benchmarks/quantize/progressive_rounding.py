r"""What training in between brings: one checkpoint quantized to one byte target, rounded at once and share by share.

    python benchmarks/quantize/progressive_rounding.py artifacts/mini/ema-finalize --preset mini --target-bytes \
        128000 [--threads 1]

Nats per token over disjoint windows of 512 held-out train tokens, on which neither training nor quantization looks,
and processor seconds of the whole stage.
"""

import argparse
import tempfile
import time
from pathlib import Path

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.progress import Silent
from pgolf.saved.models import load_model
from pgolf.saved.tokens import holdout_of
from pgolf.store import stage_directory
from stages.context import StageContext
from stages.quantize import quantize

WINDOW = 512
ROWS = {
    "at once, nothing trained": ["quantize.distill_steps=0"],
    "at once, gains and norms trained, 100 steps": ["quantize.distill_steps=100", "quantize.distill_shares=[]"],
    "half, quarter, quarter, 400 steps": ["quantize.distill_steps=400", "quantize.distill_shares=[0.5, 0.75]"],
    "shares .5, .25, .15, .07, .03 (default), 100 steps": ["quantize.distill_steps=100"],
    "the same, 400 steps": ["quantize.distill_steps=400"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a train or ema-finalize stage directory")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--target-bytes", type=int, default=128_000)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    runtime = runtimes.choose("cpu", options.threads)
    source = stage_directory.open_stage(options.source)
    holdout = holdout_of(source)

    def loss(stage: stage_directory.Stage) -> float:
        return holdout.loss(load_model(stage, runtime), WINDOW, runtime)

    unquantized = loss(source)
    print(f"{'floating point':46} {unquantized:.4f} nats per token", flush=True)
    for name, assignments in ROWS.items():
        changes = [f"quantize.target_bytes={options.target_bytes}", "quantize.seconds=0", *assignments]
        config = configs.load(options.preset, None, changes)
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            stage = quantize(StageContext(Path(folder) / "run", config, runtime, Silent(), ("benchmark",)), source)
            seconds = time.process_time() - started
            found, size = loss(stage), stage.manifest.metrics["model_bytes"]
        print(f"{name:46} {found:.4f} ({found - unquantized:+.4f}), {size:,} bytes, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
