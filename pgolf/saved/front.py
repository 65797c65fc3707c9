"""The Python interface: open a run, load a model, score text with it, let it write.

>>> run = pgolf.open_run("artifacts/demo")
>>> run.scores["eval-sliding"]
1.9871
>>> model = pgolf.load("artifacts/demo/package")
>>> model.bits_per_byte("The function returns a list.")
2.4106
>>> model.generate("The function", tokens=20)
['The function returns the number of the object.']
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pgolf.errors import PgolfError
from pgolf.evaluate import canonical
from pgolf.evaluate.bpb import Score
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.generate import Sampling, generate
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime, choose
from pgolf.saved import models, tokens
from pgolf.store import kinds, lineage, runs, stage_directory
from pgolf.store.records import ScoreMetrics
from pgolf.store.stage_directory import Stage
from pgolf.tokens.tokenizer import Tokenizer


class TokenLoss(NamedTuple):
    text: bytes
    """Text of the token."""
    bits: float
    """Its cost in bits after the preceding text: minus the log2 of its probability."""


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model with its tokenizer, on the device that `load` was given."""

    stage: Stage
    network: GPT
    tokenizer: Tokenizer
    runtime: Runtime

    @cached_property
    def context(self) -> int:
        """Tokens that the model was trained to look back over."""
        return models.training_length(self.stage)

    def bits_per_byte(self, text: str | bytes) -> float:
        """Bits per UTF-8 byte of a text as one document, as `pgolf eval-sliding --documents` counts them.

        Raises PgolfError for an empty text.
        """
        nll, token_bytes, _ = self._scored(text)
        return Score.from_nll(nll, token_bytes).bits_per_byte

    def token_losses(self, text: str | bytes) -> list[TokenLoss]:
        """The tokens of a text with the cost of each; their bits add up to those of `bits_per_byte`."""
        nll, _, ids = self._scored(text)
        pieces = [self.tokenizer.pieces[token] for token in ids.tolist()]
        return [TokenLoss(piece, nats / math.log(2)) for piece, nats in zip(pieces, nll.tolist(), strict=True)]

    def generate(
        self,
        prompt: str = "",
        tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        count: int = 1,
    ) -> list[str]:
        """`count` continuations of a prompt, each with the prompt in front; see `pgolf.generate.Sampling`."""
        settings = Sampling(tokens, temperature, top_p, seed)
        texts = [prompt] * count
        for row, text in self.stream(prompt, settings, count):
            texts[row] += text
        return texts

    def stream(self, prompt: str, settings: Sampling, count: int = 1) -> Iterator[tuple[int, str]]:
        """(continuation, new text) as they grow, without the prompt."""
        return generate(self.network, self.tokenizer, prompt, settings, self.context, count)

    def _scored(self, text: str | bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nats, original bytes and id of every token of the text: (n,) each."""
        document = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        encoded = tokens.encode_documents(self.stage, [document], self.runtime.threads)
        if encoded is None:
            raise PgolfError("the text is empty: there is nothing to score")
        ids, token_bytes, _ = encoded
        settings = models.evaluate_settings(models.recorded_config(self.stage).evaluate, self.stage)
        if settings.canonical and self.network.barred is None:
            self.network.barred = canonical.barred(self.tokenizer, self.runtime.device)
        trace = SlidingEvaluator(self.network, settings, self.runtime).score(ids)
        return trace.nll, token_bytes[1:], ids[1:]


@dataclass(frozen=True)
class Run:
    """The finished stages of a run."""

    path: Path
    stages: dict[str, Stage]
    """By label (`quantize`, `quantize@int5`), oldest first. `stage.manifest` has all that is known of each."""

    @property
    def scores(self) -> dict[str, float]:
        """Bits per byte of every stage that holds a score, but for scores of a model that was replaced since."""
        scored = (
            (label, stage)
            for label, stage in self.stages.items()
            if stage.manifest.stage in kinds.SCORED and not lineage.outdated(stage)
        )
        return {label: float(stage.manifest.metrics_as(ScoreMetrics)["bits_per_byte"]) for label, stage in scored}

    def load(self, label: str | None = None, device: str = "auto", threads: int = 0) -> Model:
        """The model of a stage; without a label, of the plain stage that comes last in the chain.

        Raises PgolfError where there is none.
        """
        found = [kind for kind in kinds.MODELS if kind in self.stages]
        if label is None and not found:
            raise PgolfError(f"{self.path} holds no model; its stages: {', '.join(self.stages)}")
        name = label or found[0]
        if name not in self.stages:
            raise PgolfError(f"{self.path} has no stage {name}; its stages: {', '.join(self.stages)}")
        return of_stage(self.stages[name], choose(device, threads))


def open_run(path: str | Path) -> Run:
    """The run in a folder such as `artifacts/default`. Raises PgolfError when no finished stage is in it."""
    folder = Path(path)
    found = runs.stages_of(folder)
    if not found:
        raise PgolfError(f"{folder} holds no finished stage: name the folder of a run, such as artifacts/default")
    return Run(folder, {stage.label: stage for stage in found})


def load(path: str | Path, device: str = "auto", threads: int = 0) -> Model:
    """The model in a stage directory (train, ema-finalize, quantize or package) or a run.

    A package is self-contained. device: `auto`, `cpu` or `cuda`; threads: of the CPU, 0 for every core.
    Raises PgolfError where there is no model, or where a file does not match its manifest.
    """
    folder = Path(path)
    if stage_directory.exists(folder):
        return of_stage(stage_directory.open_stage(folder, kinds.MODELS), choose(device, threads))
    return open_run(folder).load(None, device, threads)


def of_stage(stage: Stage, runtime: Runtime) -> Model:
    """The model of a stage with its tokenizer. Raises PgolfError where there is none."""
    return Model(stage, models.load_model(stage, runtime), tokens.tokenizer_of(stage), runtime)
