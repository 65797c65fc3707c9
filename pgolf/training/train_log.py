"""The lines of a training log as the challenge's records have them: hyperparameters first, then a line per logged step.

The `train` stage and the packaged program write them while they train.
"""

from collections.abc import Iterator, Sequence

from pgolf.config import Config
from pgolf.training.fit import At
from pgolf.training.nonfinite import StepResult

_FIRST = 5  # steps logged in any case, as in the records


def hyperparameters(config: Config) -> Iterator[str]:
    yield "Hyperparameters:"
    for name, section in vars(config).items():
        for key, value in vars(section).items() if name != "seed" else ():
            yield f"  {name}.{key}: {value}"
    yield f"  seed: {config.seed}"


def steps(results: Sequence[StepResult], at: At, config: Config) -> Iterator[str]:
    for result in results:
        step = result.iteration + 1
        if step <= _FIRST or step % config.train.log_every == 0:
            speed = at.tokens / (at.elapsed or 1)
            yield (
                f"{step}/{config.train.iterations} train_loss:{result.loss:.6f} "
                f"train_time:{1000 * at.elapsed:.0f}ms tok/s:{speed:.0f}"
            )
