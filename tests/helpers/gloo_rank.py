"""One of two gloo ranks, started by test_ranks.py: `python gloo_rank.py RANK FOLDER`. Prints what it saw as JSON."""

import dataclasses
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pgolf import config as configs
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.model.fast_paths import Choice, Compilation
from pgolf.model.gpt import GPT
from pgolf.progress import Reporter, Silent
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.tokens.shards import TokenStream
from pgolf.training import checkpoint as checkpoints
from pgolf.training import fit as fits
from pgolf.training import prepare as preparation
from pgolf.training.fit import Fit, Hooks
from pgolf.training.holdout import Holdout
from pgolf.training.trainer import Trainer

SETTINGS = (
    *("model.vocab_size=64", "model.dim=16", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=1"),
    *("model.loop_passes=2", "model.loop_from=0.5", "train.iterations=4", "train.batch_tokens=128", "train.seq_len=16"),
    *("train.holdout_tokens=200", "train.reserve_seconds=60", "train.checkpoint_every=2", "average.ema_decays=[0.5]"),
    *("quantize.fisher=false", "quantize.calibration_tokens=512"),
)


def config() -> Config:
    return configs.load(None, None, SETTINGS)


def run(
    settings: Config,
    runtime: Runtime,
    hooks: Hooks | None = None,
    reporter: Reporter | None = None,
    length: int = 4000,
) -> Fit:
    """Train on random tokens."""
    tokens = np.random.default_rng(0).integers(3, 64, length).astype(np.uint16)
    holdout = Holdout.of(TokenStream([tokens], "train"), settings)
    with Loader(holdout.training, settings.seed, runtime.world_rank, runtime.world_size) as loader:
        return fits.fit(settings, loader, holdout, runtime, reporter or Silent(), hooks or Hooks(preparation.prepare))


def pretend_compiler(patch: Callable[[Any, str, Any], None]) -> None:
    """Let `prepare` find a compiler that costs nothing, changes nothing and halves every step's time."""
    times = (2.0**-count for count in range(1000))
    patch(preparation.native, "compiler", lambda: sys.executable)
    patch(preparation.fast_paths, "choose_paths", lambda *given: Choice())
    patch(preparation.paths, "use_graph", lambda *given: None)
    patch(preparation.fast_paths, "known_compilation", lambda *given: Compilation(0.0, 2.0))
    patch(preparation, "_step_seconds", lambda trainer, fraction, *ways: [next(times) for _ in ways])


def hessians(made: Fit) -> dict[str, Any]:
    """A figure of every Hessian, and of how many tokens they are."""
    assert made.reserved is not None
    weighted = {
        name: float((item.curvature * np.arange(item.curvature.size).reshape(item.curvature.shape)).sum())
        for name, item in made.reserved.statistics.items()
    }
    return {"hessians": weighted, "calibration_tokens": made.reserved.tokens}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    runtime = Runtime(torch.device("cpu"), torch.float32, rank, 2, 1, compile=True)
    pretend_compiler(setattr)
    warm_up, initialize, step = Trainer.warm_up, GPT._initialize, Trainer.step
    found = []
    for bad in (0.0, 0.5, None):  # where the compiler fails on rank 1: at once, when looping begins, not at all

        def failing(self: Trainer, fraction: float, alone: bool = False, bad: float | None = bad) -> None:
            warm_up(self, fraction, alone)
            if rank == 1 and alone and fraction == bad:
                self.flat.data.add_(1.0)  # what a failed attempt leaves behind
                raise RuntimeError("the compiler failed")

        Trainer.warm_up = failing  # type: ignore[method-assign]
        made = run(config(), runtime)
        weights = float(made.trainer.flat.data.double().sum()), runtime.same(made.trainer.flat.data)
        losses = dict(made.reserved.choice.losses) if made.reserved is not None else {}
        found.append({"path": made.path, "sum": weights[0], "same": weights[1], "losses": losses, **hessians(made)})

    def unequal(self: GPT) -> None:
        initialize(self)
        with torch.no_grad():
            self.tok_emb.weight.add_(rank * 1e-6)

    GPT._initialize = unequal  # type: ignore[method-assign]
    unequal_sum = float(run(config(), runtime).trainer.flat.data.double().sum())

    def diverging(self: Trainer, fraction: float) -> list[fits.StepResult]:
        known = step(self, fraction)
        self.flat.data[0] += rank * 1e-6
        return known

    Trainer.step = diverging  # type: ignore[method-assign]
    try:
        save = checkpoints.Writer(folder / "checkpoint", {}).take
        run(dataclasses.replace(config(), seed=1), runtime, Hooks(preparation.prepare, save=save))
        error = ""
    except PgolfError as raised:
        error = str(raised)
    print(json.dumps({"attempts": found, "unequal": unequal_sum, "error": error}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
