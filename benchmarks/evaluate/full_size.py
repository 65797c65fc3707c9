"""Seconds that the evaluations of the challenge's whole val text take on eight H100s, on paper.

    python benchmarks/evaluate/full_size.py [--processes 8] [--skip-measuring] [--skip-counting]

What a GPU does is counted (`benchmarks/training/gpu_traffic.py`): bytes at 2.6 TB/s, or 6 microseconds for every kernel
of parts that are not compiled where that is more, and operations at 700 TFLOP/s on top. With these figures the same
count gives 101 ms for a training step of the record. What runs token by token on a CPU is measured on one core. The
lengths of the 50,000 documents are those of the batches in #2135's logs, scaled to the tokens of the plain tokenizer.
Token passes are those by which `ttt.seconds` is held.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import gpu_traffic

from pgolf import config as configs
from pgolf.config import Config
from pgolf.evaluate import banded, tilt, windows
from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.mixture import MixtureEvaluator
from pgolf.evaluate.ttt import lora
from pgolf.evaluate.ttt.fast_output import FastOutput
from pgolf.evaluate.ttt.task import LEARNING, Task
from pgolf.model.flops import training_flops_per_token
from pgolf.model.gpt import GPT

TARGETS, DOCUMENTS, CAP = 40_540_160, 50_000, 600.0
BANDWIDTH, ARITHMETIC, LAUNCH = 2.6e12, 7e14, 6e-6
BATCHES = 782  # of 64 documents, the shortest first, in #2135's logs; below: number of a batch and its mean length
LENGTHS = {
    1: 75, 2: 86, 11: 109, 30: 133, 68: 170, 101: 200, 149: 244, 201: 297, 253: 357, 301: 423, 351: 499, 399: 581,
    452: 686, 499: 795, 547: 935, 598: 1126, 648: 1389, 677: 1598, 697: 1796, 716: 2061, 733: 2454, 744: 2824,
    755: 3431, 762: 4087, 768: 4971, 774: 6659, 780: 15167, 782: 40000,
}  # fmt: skip
BOS = 1
COUNTED: dict[str, Any] = {"compiled": (0.898e6, 539), "plain": (2.421e6, 1651), "adapting": (9.09e6, 1.004e9, 5817)}
"""What `counted` gave for preset `record`."""


def stream() -> np.ndarray:
    """Tokens of documents with the lengths of the challenge's, in random order; the text itself is random."""
    rng = np.random.default_rng(0)
    at = (np.arange(DOCUMENTS) + 0.5) / DOCUMENTS * BATCHES
    lengths = np.exp(np.interp(at, list(LENGTHS), np.log(list(LENGTHS.values()))))
    lengths = np.maximum(2, lengths * TARGETS / lengths.sum()).astype(np.int64)
    lengths[-1] += TARGETS + 1 - lengths.sum()
    rng.shuffle(lengths)
    tokens = np.minimum(3 + rng.zipf(1.3, TARGETS + 1), 8191).astype(np.uint16)  # as skewed as text
    tokens[np.concatenate(([0], np.cumsum(lengths)[:-1]))] = BOS
    return tokens


def measured(tokens: np.ndarray, config: Config) -> dict[str, float]:
    """Seconds a token on one core of what goes token by token."""
    vocab_size = config.model.vocab_size
    rng = np.random.default_rng(0)

    def timed(count: int, work: Callable[[], object]) -> float:
        begun = time.process_time()
        work()
        return (time.process_time() - begun) / count

    tilt.hints_of(tokens[:1000], np.arange(999), config.evaluate)  # compiles
    some = 4_000_000  # tables far larger than any cache, as at full size
    found = {"tilt": timed(some, lambda: tilt.hints_of(tokens[: some + 1], np.arange(some), config.evaluate))}
    part = tokens[:100_001]
    trace = Trace(rng.gamma(2.0, 1.2, len(part) - 1), np.zeros(len(part) - 1, np.int64))
    found["mixture"] = timed(len(part), lambda: MixtureEvaluator(None, vocab_size, BOS).mix(part, trace))
    output, logits = FastOutput(vocab_size, BOS, config.ttt), rng.normal(0, 2, (64, vocab_size)).astype(np.float32)

    def score() -> None:
        for start in range(0, 19_200, 64):
            output.score(tokens[start : start + 64], tokens[start + 1 : start + 65], logits, set())

    score()
    found["fast output weights"] = timed(19_200, score)
    return found


def counted(config: Config) -> dict[str, Any]:
    """Bytes and kernels of scoring a token, compiled and plain, and of a step of the adapters."""
    gpu_traffic.as_on_a_gpu()
    found: dict[str, Any] = {}
    for compiled in (True, False):
        one, two = (gpu_traffic.scoring(config, rows, compiled) for rows in (1, 2))
        moved = (two.bytes.total() - one.bytes.total()) / gpu_traffic.LENGTH
        found["compiled" if compiled else "plain"] = moved, two.kernels.total()
    few, many, longer = (gpu_traffic.adapting(config, *sizes) for sizes in ((1, 64), (2, 64), (2, 128)))
    per_token = (longer.bytes.total() - many.bytes.total()) / 128
    per_document = many.bytes.total() - few.bytes.total() - 64 * per_token
    found["adapting"] = per_token, per_document, many.kernels.total()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="record")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--skip-measuring", action="store_true", help="with figures of an earlier run")
    parser.add_argument("--skip-counting", action="store_true", help="with the counts of an earlier run")
    options = parser.parse_args()
    config, size = configs.load(options.preset), options.processes
    settings, ttt = config.evaluate, config.ttt
    tokens = stream()
    each = {"tilt": 0.73e-6, "mixture": 4e-6, "fast output weights": 25e-6}
    if not options.skip_measuring:
        each = measured(tokens, config)
    gpu = COUNTED if options.skip_counting else counted(config)
    model = GPT(config.model).eval()
    flops = training_flops_per_token(model, settings.seq_len) / 3  # of a forward

    plan = windows.plan(tokens, settings.seq_len, settings.stride)
    batch = settings.batch_windows * settings.seq_len

    def forward(passes: float, how: str) -> float:
        moved, kernels = gpu[how]
        launches = LAUNCH * kernels / batch * (how == "plain")
        return passes * (max(moved / BANDWIDTH, launches) + flops / ARITHMETIC)

    def adapted(phases: int) -> tuple[float, float, float]:
        """Seconds of scoring alone, of the adapters' steps and of the global steps, of the process with the most."""
        runtime = SimpleNamespace(world_size=size, world_rank=0)
        task = cast(Task, SimpleNamespace(tokens=tokens, settings=settings, ttt=ttt, bos_id=BOS, runtime=runtime))
        per_token, per_document, kernels = gpu["adapting"]
        seconds = rest = alone = 0.0
        for end, groups in (planned := lora._plan(task, phases)):
            loads = []
            for share in lora._share(task, groups, size):
                load = 0.0
                for group in share:
                    steps = math.ceil(lora._longest(group) / group.chunk)
                    documents = sum(lora._live(group, begin) for begin in range(0, lora._longest(group), group.chunk))
                    passes = lora._adapting(task, group) / LEARNING
                    moved = passes * per_token + steps * len(group.documents) * per_document
                    extra = 3 * 2 * ttt.lora_rank * 8e4 * passes  # of the adapters: two thin products per map
                    load += max(moved / BANDWIDTH, steps * kernels * LAUNCH) + (2 * flops * passes + extra) / ARITHMETIC
                    assert documents > 0
                loads.append(load)
            seconds += max(loads)
            if (end, groups) is not planned[-1]:
                rest += LEARNING * ttt.epochs * end / size * (flops / ARITHMETIC + gpu["plain"][0] / BANDWIDTH)
            alone += max(sum(lora._alone(task, group) for group in share) for share in lora._share(task, groups, size))
        return forward(alone, "plain"), seconds, rest if phases > 1 else 0.0

    sliding = sum(window.length for window in plan)
    whole, stretches = banded.plan(model, tokens, dataclasses.replace(settings, context="banded"), None), 0
    stretches = sum(window.length for window in whole[0])
    rows: list[tuple[str, str, float, str]] = []

    def row(what: str, where: str, seconds: float, answer: str = "") -> None:
        rows.append((what, where, seconds, answer or ("fits" if seconds <= CAP else "does not fit")))

    everywhere = f"{size} GPUs"
    row("`eval-sliding`, compiled", everywhere, forward(sliding / size, "compiled"))
    row("`eval-sliding`, plain", everywhere, forward(sliding / size, "plain"))
    row("`eval-sliding`, compiled", "1 GPU", forward(sliding, "compiled"))
    row("`eval-sliding --context banded`, plain", everywhere, forward(stretches / size, "plain"))
    for name, phases in (("lora", 1), ("phased", ttt.phases)):
        alone, steps, rest = adapted(phases)
        all_of_it = steps + rest
        share = (CAP - 1.15 * alone) / max(all_of_it - alone, 1e-9)
        answer = "" if all_of_it <= CAP else f"learns from {min(1.0, share):.0%} of the text within the cap"
        row(f"`eval-ttt`, {name}, all its learning", everywhere, all_of_it, answer)
        row(f"`eval-ttt`, {name}, scoring alone", everywhere, alone)
    learning = LEARNING * forward(sliding, "plain")
    refused = f"refused: scoring alone takes {forward(sliding, 'plain'):,.0f} s"
    row("`eval-ttt`, sgd, a step every stride", "1 GPU", learning + TARGETS * each["fast output weights"], refused)
    row("`eval-ttt`, sgd, chunks of 32,768, 3 epochs", "1 GPU", forward(sliding + 9 * TARGETS, "plain"), refused)
    row("`eval-ttt`, in-place", "1 GPU", forward(sliding, "plain"), refused)
    row("`eval-ttt`, in-place, banded", "1 GPU", forward(stretches, "plain"))
    row("n-gram tilt: hints, before scoring", "1 core each", TARGETS * each["tilt"])
    row("n-gram tilt: tables of hinted tokens", everywhere, 0.015 * TARGETS / size * 4e-6)
    row("mixture, after scoring", "1 core", TARGETS * each["mixture"])
    row("fast output weights alone", "1 core", TARGETS * each["fast output weights"], "part of sgd: refused")
    row("`audit`, sliding: 152 texts of 5,120 tokens", "1 GPU", forward(152 * 5120 / 64 * settings.seq_len, "plain"))
    row("`verify`: sliding", "1 GPU", forward(sliding, "compiled"), "no limit of the challenge's; --seconds")
    print(f"| what | where | seconds for {TARGETS:,} tokens | within {CAP:.0f} s |\n|---|---|---|---|")
    for what, where, seconds, answer in rows:
        print(f"| {what} | {where} | {seconds:,.0f} | {answer} |")
    print(f"\ncounted: {gpu}\nmeasured: {each}\nwindows {len(plan):,}, token passes {sliding:,}, a forward {flops:.3g}")


if __name__ == "__main__":
    main()
