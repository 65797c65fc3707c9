"""Shared by the two evaluation stages: the text to score, its bytes, and writing of the scores."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from safetensors.numpy import save_file

from pgolf import data
from pgolf.config import EvaluateConfig
from pgolf.data import Source
from pgolf.errors import PgolfError
from pgolf.evaluate import canonical, mixture
from pgolf.evaluate.bpb import Score
from pgolf.evaluate.evaluator import OnProgress, Trace
from pgolf.evaluate.mixture import MixtureEvaluator
from pgolf.model.fast_paths import paths_by_rule
from pgolf.model.gpt import GPT
from pgolf.model.raced_pairs import Shape
from pgolf.progress import Reporter
from pgolf.runtime import Runtime
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import load_model
from pgolf.store import kinds
from pgolf.store.manifest import Input
from pgolf.store.records import ScoreDetails, ScoreMetrics, TokenizeDetails
from pgolf.store.stage_directory import Stage
from stages.context import StageBuild, StageContext
from stages.views import repeat

SCORES_FILE = kinds.SCORES


@dataclass(frozen=True, eq=False)
class Text:
    """A stream to score."""

    tokens: np.ndarray  # (N,) uint16
    token_bytes: np.ndarray  # (N,) int64 original UTF-8 bytes of each token
    lossless: bool  # whether decoding gives the documents back exactly
    source: str  # "val", or the documents' names


@dataclass(frozen=True)
class Documents:
    """Text to score in place of val: documents as for `tokenize`. Empty: val."""

    sources: tuple[Source, ...] = ()
    text_field: str = "text"

    @classmethod
    def of(cls, names: Sequence[str | Path], text_field: str = "text") -> "Documents":
        """Raises PgolfError for a name that leads to no documents."""
        return cls(tuple(data.source(name) for name in names), text_field)

    def inputs(self, source: Stage, role: str = "model") -> dict[str, Stage | Path | Input]:
        """The inputs of a stage that evaluates `source`, by role."""
        entries = {f"documents:{index}": token_stages.input_of(item) for index, item in enumerate(self.sources)}
        return {role: source, **entries}

    @property
    def options(self) -> dict[str, str]:
        return {"text_field": self.text_field} if self.sources else {}


VAL = Documents()


def load_text(source: Stage, documents: Documents, settings: EvaluateConfig | None = None) -> Text:
    """The run's val split, or other documents through the run's own tokenizer.

    Raises PgolfError when there is nothing in it to score, or too much for what the settings ask.
    """
    if documents.sources:
        names = ", ".join(PurePath(item.name).name for item in documents.sources)
        texts = (text for item in documents.sources for text in data.documents(item, documents.text_field))
        encoded = token_stages.encode_documents(source, texts)
        if encoded is None:
            raise PgolfError(f"no text in {names}")
        text = Text(*encoded, names)
    else:
        tokenized = source.ancestor("tokenize")
        stream = token_stages.open_split(tokenized, "val")
        counts = np.asarray(token_stages.token_bytes(tokenized), dtype=np.int64)
        lossless = tokenized.manifest.details_as(TokenizeDetails).get("lossless", True)
        text = Text(np.asarray(stream[0 : len(stream)]), counts, lossless, "val")
    if len(text.tokens) < 2:
        raise PgolfError(f"{text.source} holds {len(text.tokens)} tokens; a score needs at least 2")
    if settings is not None and settings.mixture:
        mixture.check(len(text.tokens))
    return text


@contextmanager
def progress(context: StageContext, title: str, targets: int) -> Iterator[OnProgress]:
    """A bar that counts targets and shows the mean loss so far."""
    started = time.monotonic()

    def update(done: int, nats: float) -> None:
        done = min(done * context.runtime.world_size, targets)  # the other processes do their share meanwhile
        speed = done / max(time.monotonic() - started, 1e-9)
        bar.update(done, note=f"{nats:.4f} nats/token  {speed:,.0f} tokens/s")

    with context.reporter.progress(title, total=targets) as bar:
        yield update


def model_of(source: Stage, runtime: Runtime, settings: EvaluateConfig, learns: bool = False) -> GPT:
    """The stage's model on this machine's kernels (`paths_by_rule`) for its windows, or (`learns`) for one window at a
    time forward and backward."""
    model = load_model(source, runtime)
    if settings.canonical:
        model.barred = canonical.barred(token_stages.tokenizer_of(source), runtime.device)
    rows, threads = (1, runtime.threads) if learns else (settings.batch_windows, 1)
    paths_by_rule(model, runtime, Shape(rows, settings.seq_len, learns, threads), scoring=not learns)
    return model


def write_scores(
    build: StageBuild, context: StageContext, model: GPT, text: Text, trace: Trace, seconds: float
) -> None:
    """Metrics, per-token payload and the facts of the evaluation, into the stage being built."""
    score = Score.from_nll(trace.nll, text.token_bytes[1:])
    speed = round(score.tokens_scored / max(seconds, 1e-9), 1)
    build.metrics |= score.metrics() | ScoreMetrics(seconds=round(seconds, 3), tokens_per_second=speed)
    build.details |= ScoreDetails(text=text.source, lossless=text.lossless) | trace.facts
    payload = {"nll": trace.nll.astype(np.float32), "token_bytes": text.token_bytes[1:].astype(np.int32)}
    if context.config.evaluate.mixture and context.runtime.is_main:
        clock = time.monotonic()
        mixed = MixtureEvaluator(None, model.config.vocab_size, model.config.bos_id).mix(text.tokens, trace)
        found = Score.from_nll(mixed.nll, text.token_bytes[1:])
        mixture_seconds = round(time.monotonic() - clock, 3)
        build.metrics |= ScoreMetrics(mixture_bits_per_byte=found.bits_per_byte, mixture_seconds=mixture_seconds)
        payload["nll_mixture"] = mixed.nll.astype(np.float32)
    if context.runtime.is_main:
        save_file(payload, build.writer.path(SCORES_FILE))


def tilt_row(scored: Stage) -> list[tuple[str, str]]:
    """The score without the n-gram tilt."""
    found, metrics = scored.manifest.details_as(ScoreDetails).get("tilt"), scored.manifest.metrics_as(ScoreMetrics)
    if found is None:
        return []
    gain = found["nats_gained"] / math.log(2) / metrics["bytes_scored"]
    text = f"{metrics['bits_per_byte'] + gain:.4f} ({gain:+.4f} gained; {found['hinted']:,} tokens hinted"
    return [("without the n-gram tilt", f"{text}, {found['right'] / max(found['hinted'], 1):.0%} of them right)")]


def mixture_row(metrics: ScoreMetrics) -> list[tuple[str, str]]:
    if "mixture_bits_per_byte" not in metrics:
        return []
    gain = metrics["bits_per_byte"] - metrics["mixture_bits_per_byte"]
    return [("with the online mixture", f"{metrics['mixture_bits_per_byte']:.4f} ({gain:+.4f} gained)")]


def line(scored: Stage) -> str:
    """A score in one line."""
    metrics = scored.manifest.metrics_as(ScoreMetrics)
    return (
        f"{scored.label} of {scored.manifest.inputs['model'].name}: {metrics['bits_per_byte']:.4f} bits per byte over "
        f"{metrics['bytes_scored']:,} bytes, {metrics['seconds']:.1f} s"
    )


def report(reporter: Reporter, scored: Stage) -> None:
    """The score as a table, the command that repeats it, and remarks for the reader."""
    metrics, details = scored.manifest.metrics_as(ScoreMetrics), scored.manifest.details_as(ScoreDetails)
    rows = [
        ("bits per byte", f"{metrics['bits_per_byte']:.4f}"),
        *tilt_row(scored),
        *mixture_row(metrics),
        ("nats per token", f"{metrics['nats_per_token']:.4f}"),
        ("tokens scored", f"{metrics['tokens_scored']:,}"),
        ("bytes scored", f"{metrics['bytes_scored']:,}"),
        ("seconds", f"{metrics['seconds']:.1f}"),
        ("tokens/s", f"{metrics['tokens_per_second']:,.0f}"),
    ]
    title = f"{scored.label} of {scored.manifest.inputs['model'].name}, {scored.path}"
    reporter.table(title, ("measure", "value"), rows)
    for what, value in repeat.lines(scored):  # outside of the table, which would break a command line in two
        reporter.result(f"{what}: {value}")
    if details.get("out_of_time"):
        reporter.message("learning ran out of time: the rest of the text was scored without it (ttt.seconds)")
    if not details.get("lossless", True):
        reporter.message(
            "the tokenizer is lossy: the scored tokens do not decode to the documents exactly, so this score is not "
            "comparable with one of a lossless tokenizer"
        )
