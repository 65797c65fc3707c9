"""Tokens per second and model-FLOP utilization of the training step, compared with a plain reference of the record's
shape.

    python benchmarks/training/speed.py [--isa avx512 avx2 sse2] [--no-compiler] [--threads 2] [--rounds 12]
        [--presets mini] [--compile-reference] [--cpu-time] [--matmul float32]

At the record script's scaled shape (4 layers of 64, 2 heads of 32 over 1 KV head, MLP 3x, 1,024 pieces, batches of 8
sequences of 512; blocks 1-2 once or three times) ours and the reference train in turns on random tokens, and
the large matrix product is timed between them. Rates are medians over rounds; utilization counts 6 operations per
executed weight and token and attention's own (`pgolf/model/flops.py`). Both make the same arithmetic: their losses on
the same weights are compared first. `--isa` runs a child process for each instruction set, which holds torch, MKL,
oneDNN, inductor and our kernels to it (MKL ignores its setting on AMD processors and keeps to AVX2);
`--no-compiler` hides every compiler. `--cpu-time` counts processor time, for a machine that others use too (with
--threads 1).
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from reference_record import ReferenceGPT, ReferenceTraining
from torch import Tensor

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.config import AverageConfig, Config, ModelConfig, OptimConfig, TrainConfig
from pgolf.model.flops import training_flops_per_token
from pgolf.model.gpt import GPT
from pgolf.model.kernels import native
from pgolf.model.paths import IN_C, use_paths
from pgolf.progress import Silent
from pgolf.tokens.loader import Loader
from pgolf.tokens.shards import TokenStream
from pgolf.training.prepare import prepare
from pgolf.training.trainer import Trainer

RECORD = ModelConfig(
    vocab_size=1024, dim=64, num_layers=4, num_heads=2, num_kv_heads=1, mlp_ratio=3.0, mlp_slope=0.5, rope_dims=16,
    norm_scale=True, xsa_from=0, skips=True, loop_first=1, loop_last=2, loop_passes=3,
)  # fmt: skip
BATCH, LENGTH, MATRIX = 8, 512, 2048
FRACTION = 0.5  # of training done, which decides the schedules


class Printed(Silent):
    """Prints which paths training takes."""

    def message(self, text: str, detail: bool = False) -> None:
        print(f"  {text}", flush=True)


def ours(config: Config, runtime: runtimes.Runtime) -> Trainer:
    """The trainer of `pgolf train` on random tokens, with the paths that it would choose."""
    torch.manual_seed(0)
    batch_tokens, _ = config.train.sizes_at(FRACTION)
    tokens = np.random.default_rng(0).integers(3, config.model.vocab_size, 64 * batch_tokens).astype(np.uint16)
    loader = Loader(TokenStream([tokens], "random tokens"), seed=0)
    trainer = Trainer(GPT(config.model).train(), loader, config, runtime)
    prepare(trainer, config, runtime, Printed())
    trainer.model.set_progress(FRACTION)
    return trainer


def batch(vocab_size: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, vocab_size, (rows, length + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def same_losses(ours: GPT, reference: ReferenceGPT) -> float:
    """Largest difference of the two losses, without and with looping, on the same perturbed weights."""
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        names = {"skips.weights": "skip_weights", "skips.gates": "skip_gates"}
        reference.load_state_dict({names.get(name, name): tensor for name, tensor in ours.state_dict().items()})
        tokens, targets = batch(RECORD.vocab_size, 2, 64)
        found = []
        for looped in (False, True):
            ours.set_looped(looped)
            reference.looping = looped
            found.append(abs(float(ours.loss(tokens, targets)) - float(reference(tokens, targets))))
    return max(found)


LEVELS = {
    "avx512": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse2": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""Environment that restricts torch (ATen; inductor and our kernels follow it), oneDNN and MKL to an instruction set."""


def run_levels(levels: list[str], no_compiler: bool) -> None:
    """This benchmark in one child process per instruction set, held to it before torch is loaded."""
    arguments, skip = [], False
    for argument in sys.argv[1:]:
        skip = argument == "--isa" or (skip and argument in LEVELS)
        if not skip and argument != "--no-compiler":
            arguments.append(argument)
    for level in levels:
        print(f"\n== {level}{', no compiler' if no_compiler else ''}", flush=True)
        with tempfile.TemporaryDirectory() as empty:
            environment = {**os.environ, **LEVELS[level], "TORCHINDUCTOR_CACHE_DIR": f"{empty}/inductor"}
            if no_compiler:
                environment |= {"PATH": empty, "CXX": ""}
            subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def race(contenders: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each contender; in every round each runs in turn, once untimed and then once: in training every
    step follows one of its own kind, which leaves caches and free memory as it wants them."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            work()
            times[name].append(seconds(work, clock))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--presets", nargs="*", default=["mini"])
    parser.add_argument("--compile-reference", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--matmul", default="float32", help="float32, bfloat16 or auto")
    parser.add_argument("--isa", nargs="+", choices=LEVELS)
    parser.add_argument("--no-compiler", action="store_true")
    options = parser.parse_args()
    if options.isa or options.no_compiler:
        run_levels(options.isa or ["avx512"], options.no_compiler)
        return
    clock = time.process_time if options.cpu_time else time.perf_counter
    runtime = runtimes.choose("cpu", threads=options.threads)
    level, can_compile = torch.backends.cpu.get_cpu_capability(), native.compiler() is not None
    kind = "processor" if options.cpu_time else "wall"
    built = "with" if can_compile else "without"
    print(f"{level} {built} a compiler, torch {torch.__version__}, {options.threads} threads, {kind} time")
    model = GPT(RECORD)
    if can_compile:
        use_paths(model, IN_C)
    difference = same_losses(model, ReferenceGPT(RECORD.vocab_size, 64, 4, 2, 1, 192, 16))
    print(f"losses of ours and the reference on the same weights differ by {difference:.1e}")

    matrix = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    contenders: dict[str, Callable[[], object]] = {"matrix": lambda: matrix[0] @ matrix[1]}
    tokens_of, flops_of = {}, {}
    record = Config(model=RECORD, optim=OptimConfig(newton_schulz="fixed", grad_clip=0.3))
    record = dataclasses.replace(record, average=AverageConfig(ema_decays=(0.997,), ema_from=0.0, tail_from=1.0))
    train = TrainConfig(batch_tokens=BATCH * LENGTH, seq_len=LENGTH)
    shapes: list[tuple[str, Config, bool]] = []
    for name, start in (("record, not looped", 1.0), ("record, looped", 0.0)):
        model_config = dataclasses.replace(RECORD, loop_from=start)
        shapes.append((name, dataclasses.replace(record, model=model_config, train=train), start == 0.0))
    shapes += [(f"preset {preset}", configs.load(preset), True) for preset in options.presets]
    for name, config, looped in shapes:
        print(name)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, matmul=options.matmul))
        trainer = ours(config, runtime)
        batch_tokens, length = config.train.sizes_at(FRACTION)
        data = batch(config.model.vocab_size, batch_tokens // length, length)
        contenders[f"{name}: ours"] = lambda trainer=trainer: trainer.step(FRACTION)
        tokens_of[name], flops_of[name] = batch_tokens, training_flops_per_token(trainer.model, length)
        if not name.startswith("record"):
            continue
        for compiled in (False, True) if options.compile_reference else (False,):
            reference = ReferenceTraining(config.model.vocab_size, config.model.dim, compile=compiled)
            reference.model.looping = looped
            reference.step(*data)
            label = f"{name}: reference{', compiled' if compiled else ''}"
            contenders[label] = lambda step=reference.step, data=data: step(*data)
    for work in contenders.values():
        work()
    medians = race(contenders, options.rounds, clock)

    rate = 2 * MATRIX**3 / medians["matrix"]
    print(f"{MATRIX}^3 matrix product: {rate / 1e9:.1f} GFLOP/s")
    for label, median in medians.items():
        name, _, who = label.partition(": ")
        if not who:
            continue
        speed, ratio = tokens_of[name] / median, median / medians[f"{name}: ours"]
        share = speed * flops_of[name] / rate
        print(
            f"{name:24} {who:20} {median * 1e3:8.1f} ms {speed:8,.0f} tokens/s  utilization {share:6.1%}"
            + ("" if who == "ours" else f"  ours is {ratio:.2f} times as fast")
        )


if __name__ == "__main__":
    main()
