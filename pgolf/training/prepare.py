"""Before training: choose the fastest way to compute a step by measuring, compile it, warm it up.

torch.compile costs seconds to minutes, so it is used where it saves more of the run's budget than that. Under torchrun
the ranks decide together: a compiler that fails on one rank is used on none.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pgolf.config import Config
from pgolf.errors import PgolfError, RankError
from pgolf.model import fast_paths, paths
from pgolf.model.flops import training_flops_per_token
from pgolf.model.gpt import GPT, Parts
from pgolf.model.kernels import native
from pgolf.model.loss import Arithmetic
from pgolf.model.raced_pairs import Shape
from pgolf.progress import Reporter
from pgolf.runtime import Runtime
from pgolf.training.trainer import Trainer

_CORE_FLOPS = 5e10  # float32 operations per second of one CPU core, generously: products of large matrices with AVX2
# Not from a sweep: five judgements of one pair lay between 0.84 and 0.98, so a gain of 1% is no reason to compile.
_CLEARLY_FASTER = 1.02
_FEWEST_STEPS = 10  # a time cap with fewer steps than this on a CPU was meant for a GPU


def prepare(trainer: Trainer, config: Config, runtime: Runtime, reporter: Reporter) -> tuple[str, dict[str, Any]]:
    """Choose the fastest paths by measuring and warm them up; the trainer's state is as before afterwards. From then on
    it counts the operations of its steps.

    Returns what runs (`compiled`, `C kernels` or `plain`) and the measurements, for the manifest. Raises PgolfError for
    a configuration that is meant for a GPU on a CPU.
    """
    _check_machine(trainer.model, config, runtime)
    trainer.flops_per_token = training_flops_per_token
    train, model = config.train, trainer.model
    fractions = sorted({*train.breakpoints(), *config.model.breakpoints()})
    batch_tokens, seq_len = train.sizes_at(fractions[-1])
    rank_tokens = batch_tokens // runtime.world_size
    rows = max(1, min(train.micro_tokens or rank_tokens, rank_tokens) // seq_len)
    shape = Shape(rows, seq_len, training=True, threads=runtime.threads)
    choice = fast_paths.choose_paths(model, runtime, shape, train.matmul)
    if choice.timings or choice.notes:
        reporter.message(choice.line(), detail=True)
    facts = choice.describe()
    with trainer.undone():
        compiled = False
        if train.compile and runtime.compile:
            compiled, facts["torch.compile"] = _compile(trainer, config, runtime, reporter, shape, fractions)
        for fraction in fractions:
            trainer.warm_up(fraction)
    in_c = any(timing.used for name, timing in choice.timings.items() if name.endswith("in C"))
    return "compiled" if compiled else "C kernels" if in_c else "plain", facts


def _compile(
    trainer: Trainer,
    config: Config,
    runtime: Runtime,
    reporter: Reporter,
    shape: Shape,
    fractions: Sequence[float],
) -> tuple[bool, dict[str, Any]]:
    """Use torch.compile if it saves more of the remaining run than it costs. Returns the decision and its reason."""
    train, model = config.train, trainer.model
    if runtime.device.type == "cpu" and native.compiler() is None:
        reporter.message("torch.compile is off: no C++ compiler found", detail=True)
        return False, {"used": False, "unavailable": "no C++ compiler found"}
    [before] = _step_seconds(trainer, fractions[-1], lambda: None)
    budget = min(train.seconds or math.inf, (train.iterations - trainer.iteration) * before)
    known = fast_paths.known_compilation(model, runtime, shape)
    source = "measured before" if known.measured else "expected"
    facts: dict[str, Any] = {
        "used": False, "budget_seconds": round(budget, 1), "compile_seconds": round(known.seconds, 1),
        "speedup": round(known.speedup, 3), "estimate": source,
    }  # fmt: skip
    if not runtime.agree(known.pays(budget)):
        saved = budget * (1 - 1 / max(known.speedup, 1.0))
        reporter.message(
            f"torch.compile is off: {source} to save {saved:.0f} s of {budget:.0f} s of steps and to cost "
            f"{known.seconds:.0f} s",
            detail=True,
        )
        return False, facts
    plain = model.compiled, model.arithmetic
    paths.use_graph(model, runtime)
    graph = model.compiled, model.arithmetic

    def use(parts: tuple[Parts | None, Arithmetic]) -> None:
        model.compiled, model.arithmetic = parts

    begun = time.perf_counter()
    if _compiles(trainer, fractions, runtime, reporter):
        cost = time.perf_counter() - begun
        # Not against `before`: in the minute of compiling a machine that others use too becomes faster or slower.
        alone, compiled = _step_seconds(trainer, fractions[-1], lambda: use(plain), lambda: use(graph))
        speedup = alone / compiled
        fast_paths.remember_compilation(model, runtime, shape, cost, speedup)
        facts |= {"compile_seconds": round(cost, 1), "speedup": round(speedup, 3), "estimate": "measured"}
        if runtime.agree(speedup > _CLEARLY_FASTER):
            reporter.message(f"torch.compile is on: {cost:.0f} s to compile, steps {speedup:.2f} times as fast")
            return True, facts | {"used": True}
        reporter.message(f"torch.compile is off: steps are {speedup:.2f} times as fast with it", detail=True)
    paths.without_graph(model)
    return False, facts


def _step_seconds(trainer: Trainer, fraction: float, *ways: Callable[[], None]) -> list[float]:
    """The fastest of three steps in each of the ways that these calls switch to, in turn; every rank makes as many.

    Each follows one of its own kind, as in training. The last way stays on.
    """
    # As in `fast_paths`: what other processes take of one thread's time is no part of it.
    alone = not trainer.flat.data.is_cuda and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(3):
        for switch, kept in zip(ways, times, strict=True):
            switch()
            trainer.warm_up(fraction)
            begun = clock()
            trainer.warm_up(fraction)
            if trainer.flat.data.is_cuda:
                torch.cuda.synchronize()
            kept.append(clock() - begun)
    return [min(kept) for kept in times]


def _compiles(trainer: Trainer, fractions: Sequence[float], runtime: Runtime, reporter: Reporter) -> bool:
    """True if torch.compile works on all ranks. Ranks communicate only after each has tried, so that none hangs."""
    reason = ""
    try:
        with reporter.progress("compile"):
            for fraction in fractions:
                for _ in range(2):
                    trainer.warm_up(fraction, alone=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises whatever its compilers raise, and all of it means the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    worked = runtime.agree(not reason)
    if not worked:
        reason = reason or "it failed on another process"
        reporter.message(f"torch.compile failed; training continues without it ({reason})")
    return worked


def _check_machine(model: GPT, config: Config, runtime: Runtime) -> None:
    """Raises PgolfError when one step would take minutes or hours: a GPU configuration on a CPU."""
    train = config.train
    if runtime.device.type != "cpu" or not train.seconds:
        return
    batch_tokens, seq_len = train.sizes_at(0.0)
    operations = batch_tokens * training_flops_per_token(model, seq_len)
    seconds = operations / (_CORE_FLOPS * runtime.threads * runtime.world_size)
    if seconds * _FEWEST_STEPS > train.seconds:
        raise PgolfError(
            f"a step of {batch_tokens:,} tokens is {operations / 1e12:.0f} TFLOP, at least {seconds:.0f} s on the CPU: "
            f"too slow for train.seconds = {train.seconds:g}; this configuration needs a GPU, and pgolf runs on "
            f"{runtime}. Lower train.batch_tokens, or choose a smaller preset"
        )


@contextmanager
def naming_memory(config: Config, runtime: Runtime) -> Iterator[None]:
    """Around `fit`: turn torch's error of memory that is used up into one that names the setting to lower."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        batch_tokens, _ = config.train.sizes_at(0.0)
        at_once = config.train.micro_tokens or batch_tokens // runtime.world_size
        raise RankError(
            f"out of memory on {runtime.device} in a pass of {at_once:,} tokens; lower train.micro_tokens, for example "
            f"to {max(config.train.seq_len, at_once // 2)}: the result is the same"
        ) from error
