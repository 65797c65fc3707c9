r"""Quantize and code the record's shape to its byte target: minutes and memory of every part.

    python benchmarks/quantize/record_quantize.py [--preset record] [--threads 2] [--set \
        quantize.calibration_tokens=32768 ...]

Weights are random and tokens follow Zipf's law: this measures cost, not quality. The work is that of `pgolf quantize`,
from calibration to the coded container, and the decoding afterwards. Both wall clock and processor time are
reported, since wall clock means little on a shared machine: processor time over
the number of cores is the least that the same work takes there. Writes record_quantize.json beside it.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.codec import container
from pgolf.config import Config
from pgolf.model.gpt import GPT
from pgolf.quant import pipeline
from pgolf.tokens.shards import TokenStream, write_shards

WEIGHT_STD = 0.04


@dataclass
class Clock:
    """A reporter that sums the time of every part."""

    parts: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[Any]:
        wall, processor = time.monotonic(), time.process_time()
        notes = SimpleNamespace(update=lambda *_, note=None: print(f"  {note}", flush=True) if note else None)
        yield notes
        found = {"wall": time.monotonic() - wall, "processor": time.process_time() - processor}
        self.parts[title] = {key: round(value, 1) for key, value in found.items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{title}: {found['wall']:.1f} s, processor {found['processor']:.1f} s, peak {peak:.1f} GiB", flush=True)

    def message(self, text: str, detail: bool = False) -> None:
        print(text, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], detail: bool = False) -> None:
        pass


def random_model(config: Config) -> GPT:
    """Every matrix Gaussian: at initialization some are zero."""
    torch.manual_seed(0)
    model = GPT(config.model)
    for name, parameter in model.named_parameters():
        if name in model.matrix_roles():
            torch.nn.init.normal_(parameter, std=WEIGHT_STD)
    return model.eval()


def random_shard(folder: Path, config: Config, count: int) -> list[Path]:
    chance = 1.0 / np.arange(1, config.model.vocab_size + 1)
    ids = np.random.default_rng(0).choice(config.model.vocab_size, count, p=chance / chance.sum())
    write_shards(folder, "fineweb_train", [ids.astype(np.uint16)], count)
    return sorted(folder.glob("*.bin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="record")
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    config = configs.load(arguments.preset, None, arguments.settings)
    clock, runtime = Clock(), runtimes.choose("cpu", arguments.threads)
    model = random_model(config)
    length = config.quantize.sequence or config.train.seq_len
    with tempfile.TemporaryDirectory() as folder, clock.progress("everything"):
        paths = random_shard(Path(folder), config, 4 * config.quantize.calibration_tokens)
        stream, target = TokenStream.open(paths), config.quantize.target_bytes
        quantized = pipeline.quantize(model, config, stream, length, runtime, clock, target).model
        with clock.progress("encode"):
            data = container.encode(quantized, config.package.coder)
    with clock.progress("decode"):
        container.decode(data)
    result = {
        "preset": arguments.preset,
        "weights": sum(tensor.symbols.size for tensor in quantized.matrices.values()),
        "bytes": len(data),
        "target": config.quantize.target_bytes,
        "calibration_tokens": config.quantize.calibration_tokens,
        "threads": runtime.threads,
        "seconds": clock.parts,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parents[1] / "results" / Path(__file__).with_suffix(".json").name).write_text(
        json.dumps(result, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
