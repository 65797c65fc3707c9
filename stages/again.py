"""Make the run's model again from its shards, without stage directories: what a packaged script does to train.

The same steps as the stages `train`, `ema-finalize` and `quantize`, from the same functions, in one process and
without checkpoints; the losses are those of the run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pgolf.codec import container
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.tokens.shards import TokenStream
from pgolf.training.budget_clock import Control
from pgolf.training.holdout import holdout_loss
from pgolf.training.select_checkpoint import Weights, choose
from pgolf.training.trainer import Trainer
from stages.quantize import quantize_model
from stages.train import holdout_tokens, prepare

TRAIN = "fineweb_train_*.bin"


@dataclass(frozen=True)
class Context:
    """As much of a StageContext as the steps look at; it is also their Reporter, on stdout."""

    config: Config
    runtime: Runtime

    @property
    def reporter(self) -> "Context":
        return self

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[Any]:
        self.message(title)
        yield SimpleNamespace(update=lambda *done, **note: None)

    def message(self, text: str) -> None:
        if self.runtime.is_main:
            print(text, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for row in rows:
            self.message("  ".join(row))


def train_again(data: Path, out: Path, config: Config, runtime: Runtime) -> None:
    """Train on the shards in `data`, choose among the averages, quantize, and write the container `out`."""
    paths = sorted(data.glob(TRAIN))
    stream = TokenStream.open(paths)
    loader = Loader(
        stream,
        config.seed,
        runtime.world_rank,
        runtime.world_size,
        holdout_tokens=holdout_tokens(config, stream),
        bos_id=config.model.bos_id,
    )
    context: Any = Context(config, runtime)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(runtime.device).train()
    model.compute_dtype = runtime.dtype
    trainer = Trainer(model, loader, config, runtime)
    prepare(context, trainer)
    settings = config.train
    control = Control(settings.iterations, settings.seconds, runtime.world_rank, runtime.world_size)
    control.start()
    while not (decision := control.decide(trainer.iteration, False)).stop:
        _tell(context, control, trainer.step(decision.fraction))
    _tell(context, control, trainer.drain())
    loader.close()
    if not runtime.is_main:
        return
    if len(loader.holdout) < 2:
        raise PgolfError(f"{data} holds too few tokens to hold some out")
    _, seq_len = settings.sizes_at(1.0)

    def loss_of(weights: Weights) -> float:
        model.load_state_dict(weights)
        return holdout_loss(model, loader.holdout, seq_len, runtime.device)

    def named(flat: torch.Tensor) -> Weights:
        return {name: tensor.detach().float().cpu().clone() for name, tensor in trainer.flat.named(flat).items()}

    last = named(trainer.flat.data)
    averages = {name: lambda flat=flat: named(flat) for name, flat in sorted(trainer.averages.finished().items())}
    choice = choose(last, averages, config.average.interpolate, loss_of, lambda count, note: context.message(note))
    model.load_state_dict(choice.weights)
    build: Any = SimpleNamespace(details={}, metrics={})
    length = config.quantize.sequence or settings.seq_len
    quantized, _, _ = quantize_model(context, build, model.eval(), loader.stream, length)
    coded = container.encode(quantized, config.package.coder)
    out.write_bytes(coded)
    context.message(f"{out}: {len(coded)} bytes")


def _tell(context: Any, control: Control, results: Sequence[Any]) -> None:
    for result in results:
        context.message(f"step:{result.iteration + 1} loss:{result.loss:.6f} train_time:{control.elapsed:.1f}s")
