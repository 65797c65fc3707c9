"""Speed and size of `pgolf compress` and `decompress`, with and without learning, as rows for results/proofs.md.

    python benchmarks/compress/text_speed.py --from artifacts/demo/quantize --text FILE --bytes 131072

Processor time of one thread, the fastest of three runs. A text of fewer than 32 pieces (131,072 bytes) leaves rows
idle.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pgolf import runtime as runtimes
from pgolf.compress.texts import CompressSettings, compress, decompress
from pgolf.config import TttConfig
from pgolf.progress import Silent
from pgolf.saved.models import load_model, training_length
from pgolf.saved.tokens import tokenizer_of
from pgolf.store.stage_directory import open_stage

REPEATS = 3
Made = TypeVar("Made")


def best(work: Callable[[], Made]) -> tuple[float, Made]:
    """Processor seconds of the fastest of a few runs, and what the last one gave."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        made = work()
        seconds.append(time.process_time() - begun)
    return min(seconds), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="stage", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bytes", type=int, default=131_072)
    arguments = parser.parse_args()
    stage = open_stage(arguments.stage)
    model = load_model(stage, runtimes.choose("cpu", 1, compile=False))
    length = training_length(stage)
    tokenizer, settings = tokenizer_of(stage), CompressSettings(length, stride=min(CompressSettings.stride, length))
    text = arguments.text.read_bytes()[: arguments.bytes]
    print("| learning | bytes of text | of the file | bits per byte | compress, bytes/s | decompress, bytes/s |")
    print("|---|---|---|---|---|---|")
    for name, ttt in (("no", None), ("yes", TttConfig())):
        packing, made = best(lambda ttt=ttt: compress(text, model, tokenizer, settings, Silent(), ttt))
        unpacking, back = best(lambda made=made: decompress(made.data, "file", model, tokenizer, Silent()))
        assert back == text
        figures = f"{len(text):,} | {len(made.data):,} | {made.bits_per_byte:.4f}"
        print(f"| {name} | {figures} | {len(text) / packing:,.0f} | {len(text) / unpacking:,.0f} |")


if __name__ == "__main__":
    main()
