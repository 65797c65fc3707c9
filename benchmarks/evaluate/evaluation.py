"""Speed of the evaluators, compared with plain implementations of the same evaluations.

    python benchmarks/evaluate/evaluation.py windows      # windows/s at the mini shape, against one window at a time
    python benchmarks/evaluate/evaluation.py in-place     # in-place TTT, seed's sizes, against a forward per 64 tokens
    python benchmarks/evaluate/evaluation.py contexts --from artifacts/mini/quantize --tokens 60000

Both sides of a comparison run in one process, in turn, on the same threads; medians of seven rounds. The weights of the
first two are random: speed does not depend on them.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.config import EvaluateConfig, TttConfig
from pgolf.evaluate.bpb import Score
from pgolf.evaluate.sliding import SlidingEvaluator, plan_windows
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.fast_paths import paths_by_rule
from pgolf.model.gpt import GPT
from pgolf.model.raced_pairs import Shape
from pgolf.saved.models import evaluate_settings
from pgolf.store import stage_directory
from stages.views import evaluation

ROUNDS = 7
Clock = Callable[[], float]


def medians(works: Sequence[Callable[[], object]], clock: Clock) -> list[float]:
    """Median seconds of each over rounds in which each runs once, in turn."""
    found: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, times in zip(works, found, strict=True):
            begun = clock()
            work()
            times.append(clock() - begun)
    return [statistics.median(times) for times in found]


@torch.no_grad()
def one_at_a_time(model: GPT, tokens: np.ndarray, seq_len: int, stride: int) -> list[np.ndarray]:
    """The plain evaluator: each window alone, all of its logits. Returns the nats of each window's targets."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    found = []
    for start in range(0, len(tokens) - 1 - seq_len + stride, stride):
        stop = min(start + seq_len, len(tokens) - 1)
        logits = model.logits(model.hidden(ids[None, start:stop]))[0]
        found.append(F.cross_entropy(logits, ids[start + 1 : stop + 1], reduction="none").numpy())
    return found


def bench_windows(threads: int, clock: Clock) -> None:
    for seq_len in (256, 512):
        _windows(seq_len, threads, clock)


def _windows(seq_len: int, threads: int, clock: Clock) -> None:
    config = configs.load("mini")
    runtime = runtimes.choose("cpu", threads)
    plain, batched, fast = (GPT(config.model).eval() for _ in range(3))
    for model in batched, fast:
        model.load_state_dict(plain.state_dict())
    tokens = np.random.default_rng(0).integers(2, config.model.vocab_size, 64 * 127 + seq_len + 1).astype(np.uint16)
    settings = EvaluateConfig(seq_len=seq_len, stride=64)
    paths_by_rule(fast, runtime, Shape(settings.batch_windows, seq_len, False, 1), scoring=True)
    expected = one_at_a_time(plain, tokens, seq_len, 64)
    found = SlidingEvaluator(fast, settings, runtime).score(tokens).nll
    difference = np.abs(found - np.concatenate([expected[0], *(nll[-64:] for nll in expected[1:])])).max()
    times = medians(
        [
            lambda: one_at_a_time(plain, tokens, seq_len, 64),
            lambda: SlidingEvaluator(batched, settings, runtime).score(tokens),
            lambda: SlidingEvaluator(fast, settings, runtime).score(tokens),
        ],
        clock,
    )
    speeds = [len(expected) / seconds for seconds in times]
    level = torch.backends.cpu.get_cpu_capability()
    print(
        f"mini, context {seq_len}, {level}, {runtime.threads} threads: plain {speeds[0]:.1f} windows/s, batched "
        f"{speeds[1]:.1f}, in C {speeds[2]:.1f}: {times[0] / times[2]:.2f} times the plain one; largest difference "
        f"of a token {difference:.1e} nats",
        flush=True,
    )


def bench_in_place(threads: int, clock: Clock) -> None:
    """The seed's way is plain torch, a full forward and all logits for every 64 targets; its learning not counted."""
    config = configs.load("seed")
    runtime = runtimes.choose("cpu", threads)
    model = GPT(config.model).eval()
    length, chunk, steps = config.train.seq_len, 64, 2
    tokens = np.random.default_rng(0).integers(2, config.model.vocab_size, 2 * length + 1).astype(np.uint16)
    part = tokens[: length + steps * chunk + 1]
    one_at_a_time(model, part[: length + 1], length, chunk)  # one-time work of a first call
    begun = clock()
    windows = len(one_at_a_time(model, part, length, chunk))
    slow = chunk * windows / (clock() - begun)
    print(f"seed, {runtime.threads} threads, a full forward for each {chunk}: {slow:.1f} tokens/s", flush=True)
    paths_by_rule(model, runtime, Shape(2, length, False, runtime.threads))
    ttt = TttConfig(method="in-place", chunk_tokens=chunk)
    base = EvaluateConfig(seq_len=length, stride=chunk, batch_windows=2)
    for name, settings in {
        f"windowed, stride {chunk}": base,
        f"windowed, stride {length // 2}": replace(base, stride=length // 2),
        "banded": replace(base, context="banded"),
    }.items():
        scored = part if settings.stride == chunk and settings.context == "windowed" else tokens
        plan, _ = plan_windows(model, scored, settings)
        count = settings.stride * len(plan) if settings.context == "windowed" else len(scored) - 1
        begun = clock()
        TttEvaluator(model, settings, ttt, runtime).score(scored)
        speed = count / (clock() - begun)  # the first window, which scores more than a stride, counts as the others
        print(f"  {name}: {speed:.1f} tokens/s, {speed / slow:.1f} times that", flush=True)


def bench_contexts(where: Path, count: int, threads: int, clock: Clock) -> None:
    source = stage_directory.open_stage(where)
    runtime = runtimes.choose("cpu", threads)
    text = evaluation.load_text(source, evaluation.VAL)
    tokens, counts = text.tokens[:count], text.token_bytes[1:count]
    base = evaluate_settings(EvaluateConfig(), source)
    model = evaluation.model_of(source, runtime, base)
    settings = {f"windowed, stride {stride}": replace(base, stride=stride) for stride in (16, 64, 128, base.seq_len)}
    settings["banded"] = replace(base, context="banded")
    settings["windowed, stride 64, reset at documents"] = replace(base, reset_at_documents=True)
    settings["banded, reset at documents"] = replace(base, context="banded", reset_at_documents=True)
    for name, choice in settings.items():
        begun = clock()
        trace = SlidingEvaluator(model, choice, runtime).score(tokens)
        seconds = clock() - begun
        print(f"{name}: {Score.from_nll(trace.nll, counts).bits_per_byte:.4f} BPB in {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("windows", "in-place", "contexts"))
    parser.add_argument("--from", dest="source", type=Path, default=Path("artifacts/mini/quantize"))
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a machine in use; with --threads 1"
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.what == "windows":
        bench_windows(arguments.threads, clock)
    elif arguments.what == "in-place":
        bench_in_place(arguments.threads, clock)
    else:
        bench_contexts(arguments.source, arguments.tokens, arguments.threads, clock)


if __name__ == "__main__":
    main()
