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

from pgolf.codec import container
from pgolf.config import Config
from pgolf.quant import pipeline
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.tokens.shards import TokenStream
from pgolf.training.fit import At, Hooks, fit
from pgolf.training.holdout import Holdout
from pgolf.training.nonfinite import StepResult
from pgolf.training.reserve import select_average

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
    def progress(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Any]:
        self.message(title)
        yield SimpleNamespace(update=lambda *done, **note: None)

    def message(self, text: str, detail: bool = False) -> None:
        if self.runtime.is_main:
            print(text, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], detail: bool = False) -> None:
        for row in rows:
            self.message("  ".join(row))


def train_again(data: Path, out: Path, config: Config, runtime: Runtime) -> None:
    """Train on the shards in `data`, choose among the averages, quantize, and write the container `out`."""
    context: Any = Context(config, runtime)
    holdout = Holdout.of(TokenStream.open(sorted(data.glob(TRAIN))), config)
    holdout.require()

    def show(results: Sequence[StepResult], at: At) -> None:
        for result in results:
            context.message(f"step:{result.iteration + 1} loss:{result.loss:.6f} train_time:{at.elapsed:.1f}s")

    with Loader(holdout.training, config.seed, runtime.world_rank, runtime.world_size) as loader:
        made = fit(config, loader, holdout, runtime, context, Hooks(known=show))
    if not runtime.is_main:
        return
    reserved = made.reserved
    choice = reserved.choice if reserved else select_average(made.trainer, holdout, config, runtime, context)
    model = made.trainer.model
    model.load_state_dict(choice.weights)
    length, target = config.quantize.sequence or config.train.seq_len, config.quantize.target_bytes
    statistics = (reserved.statistics, reserved.tokens) if reserved and reserved.statistics else None
    source = pipeline.calibrate(model.eval(), config, holdout.training, length, runtime, context, statistics)
    result = pipeline.finish(source, target)
    coded = container.encode(result.model, config.package.coder)
    out.write_bytes(coded)
    context.message(f"{out}: {len(coded)} bytes")
