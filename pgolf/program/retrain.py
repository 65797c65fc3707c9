"""Retrain a run's model from its token shards in one process: the `train` mode of the packaged script.

The same functions as in the stages `train`, `ema-finalize` and `quantize`, with nothing written in between; the losses
are those of the run, as exactly as the machine and the kernels in use are the same.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.codec import container
from pgolf.config import Config
from pgolf.model import paths
from pgolf.progress import Progress, Reporter, Silent
from pgolf.quant import pipeline
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.tokens.shards import TokenStream
from pgolf.training import train_log
from pgolf.training.fit import At, Hooks, fit, warm_up
from pgolf.training.holdout import Holdout
from pgolf.training.nonfinite import StepResult
from pgolf.training.select_checkpoint import select_average
from pgolf.training.trainer import Trainer

TRAIN = "fineweb_train_*.bin"


class Lines(Silent):
    """Reports in lines on stdout and in a log, on rank 0."""

    def __init__(self, runtime: Runtime, log: Path) -> None:
        self._files = [sys.stdout, log.open("w", buffering=1)] if runtime.is_main else []

    @contextmanager
    def progress(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
        self.message(title)
        with super().progress(title) as bar:
            yield bar

    def message(self, text: str, detail: bool = False) -> None:
        for file in self._files:
            print(text, file=file, flush=True)


def retrain(data: Path, out: Path, config: Config, runtime: Runtime, pieces: Sequence[bytes] | None = None) -> None:
    """Train on the shards in `data`, choose among the averages, quantize, and write the container `out`, with a log
    beside it. pieces: as in `fit`."""
    holdout = Holdout.of(TokenStream.open(sorted(data.glob(TRAIN))), config)
    holdout.require()
    lines = Lines(runtime, out.with_suffix(".log"))
    for line in train_log.hyperparameters(config):
        lines.message(line)

    def show(results: Sequence[StepResult], at: At) -> None:
        for line in train_log.steps(results, at, config):
            lines.message(line)

    with Loader(holdout.training, config.seed, runtime.world_rank, runtime.world_size) as loader:
        made = fit(config, loader, holdout, runtime, lines, Hooks(prepare, known=show), pieces=pieces)
    if not runtime.is_main:
        return
    model, reserved = made.trainer.model, made.reserved
    choice = reserved.choice if reserved else select_average(made.trainer, holdout, config, runtime, lines)
    model.load_state_dict(choice.weights)
    paths.use_paths(model, made.fast_paths["in C"])
    length, target = config.quantize.sequence or config.train.seq_len, config.quantize.target_bytes
    statistics = (reserved.statistics, reserved.tokens) if reserved and reserved.statistics else None
    source = pipeline.calibrate(model.eval(), config, holdout.training, length, runtime, lines, statistics)
    coded = container.encode(pipeline.finish(source, target).model, config.package.coder)
    out.write_bytes(coded)
    lines.message(f"Total submission size: {len(coded) + Path(sys.argv[0]).stat().st_size} bytes, {out} {len(coded)}")


def prepare(trainer: Trainer, config: Config, runtime: Runtime, reporter: Reporter) -> tuple[str, dict[str, Any]]:
    """Compile on a GPU; elsewhere use the kernels in C that make a step faster. See `Hooks.prepare`."""
    kernels: list[str] = []
    if runtime.device.type == "cuda":
        if config.train.compile:
            paths.use_graph(trainer.model, runtime)
    else:
        before = trainer.flat.data.clone()

        def step() -> Tensor:
            torch.manual_seed(config.seed)
            trainer.flat.data.copy_(before)
            trainer.warm_up(1.0, alone=True)
            return trainer.flat.grad_and_loss.clone()

        with trainer.undone():
            kernels = paths.measured(trainer.model, step)
        bfloat16 = config.train.matmul == "bfloat16"
        paths.use_paths(trainer.model, [*kernels, *["bfloat16 products"] * bfloat16])
        reporter.message(f"kernels in use: {', '.join(kernels) or 'none'}")
    return warm_up(trainer, config, runtime, reporter)[0], {"in C": kernels}
