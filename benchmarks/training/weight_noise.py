"""Quantization noise in training (`train.noise_bits`): float and quantized score of variants that share a beginning.

    python benchmarks/training/weight_noise.py RUN/tokenize "" "train.noise_bits=2.9" ... --tokens 2e6 --seed 0

The first part of training (`--branch`, a fraction) is run once; every quoted argument, settings over the preset that
change nothing before that point, continues from there. Every finished model is quantized to the preset's byte target
and scored, float and quantized, on the held-out slice of train. Rows are appended to `weight_noise.jsonl` under
benchmarks/results.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.config import Config
from pgolf.progress import Silent
from pgolf.quant import pipeline
from pgolf.saved.tokens import open_split
from pgolf.store import stage_directory
from pgolf.tokens.loader import Loader
from pgolf.training.fit import Fit, Hooks, fit
from pgolf.training.holdout import Holdout
from pgolf.training.prepare import prepare
from pgolf.training.trainer import Trainer
from stages.train import byte_table

RESULTS = Path(__file__).parents[1] / "results" / "weight_noise.jsonl"


class Branch:
    """The beginning that all variants share."""

    def __init__(self, config: Config, holdout: Holdout, runtime: runtimes.Runtime, until: float) -> None:
        self._holdout, self._runtime = holdout, runtime
        self._stop_at = until * config.train.iterations
        self._trainer: Trainer | None = None
        made = self._fit(config, Hooks(self._prepared, stop=self._stopping()))
        self._tensors, self._values = made.trainer.snapshot()

    def finish(self, config: Config) -> Fit:
        """Train the rest under `config`."""
        return self._fit(config, Hooks(prepare, resume=self._resume))

    def _fit(self, config: Config, hooks: Hooks) -> Fit:
        with Loader(self._holdout.training, config.seed) as loader:
            return fit(config, loader, self._holdout, self._runtime, Silent(), hooks)

    def _prepared(self, trainer: Trainer, *given: Any) -> tuple[str, dict[str, Any]]:
        self._trainer = trainer
        return prepare(trainer, *given)

    @contextmanager
    def _stopping(self) -> Iterator[Any]:
        yield lambda: self._trainer is not None and self._trainer.iteration >= self._stop_at

    def _resume(self, trainer: Trainer) -> float:
        own, _ = trainer.snapshot()  # a variant may have state that the beginning has not
        trainer.restore({**own, **self._tensors}, self._values)
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens_stage", type=Path, help="a tokenize stage directory")
    parser.add_argument("variants", nargs="+", help='settings in quotes: "section.key=value section.key=value"')
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--tokens", type=float, default=2e6, help="train tokens of each run")
    parser.add_argument("--branch", type=float, default=0.65, help="fraction of training that is shared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="assignments", nargs="*", default=[], help="settings of all variants")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runtime = runtimes.choose("auto", threads=options.threads)
    tokens = stage_directory.open_stage(options.tokens_stage, ("tokenize",))

    def load(settings: str) -> Config:
        config = configs.load(options.preset, None, [*options.assignments, *settings.split()])
        iterations = round(options.tokens / config.train.batch_tokens)
        train = dataclasses.replace(config.train, iterations=iterations, seconds=0.0)
        return dataclasses.replace(config, train=train, seed=options.seed)

    base = load("")
    holdout, table = Holdout.of(open_split(tokens, "train"), base), byte_table(tokens)
    branch = Branch(base, holdout, runtime, options.branch)
    for settings in options.variants:
        config, begun = load(settings), time.perf_counter()
        model = branch.finish(config).trainer.model
        length = config.train.sizes_at(1.0)[1]

        def score(model: Any = model, length: int = length) -> float:
            return holdout.holdout_metrics(holdout.loss(model, length, runtime), table)["holdout_bits_per_byte"]

        trained = time.perf_counter()
        unquantized = score()
        target = config.quantize.target_bytes
        result = pipeline.quantize(
            model.eval(), config, holdout.training, config.train.seq_len, runtime, Silent(), target
        )
        model.load_state_dict(result.model.state_dict())
        row = {
            "preset": options.preset,
            "settings": " ".join([*options.assignments, settings]).strip(),
            "tokens": config.train.iterations * config.train.batch_tokens,
            "seed": options.seed,
            "float": unquantized,
            "quantized": score(),
            "train_seconds": round(trained - begun, 1),
            "seconds": round(time.perf_counter() - begun, 1),
        }
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
