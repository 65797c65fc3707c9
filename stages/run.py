"""The whole chain, from text to a scored package, each stage skipped when it is up to date."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pgolf.progress import Silent
from pgolf.store import kinds
from pgolf.store.stage_directory import Stage
from stages.context import StageContext, WouldRun


@dataclass(frozen=True)
class Chain:
    """The finished stages of one run of the chain."""

    tokens: Stage
    trained: Stage
    averaged: Stage
    quantized: Stage
    float_score: Stage | None
    """Sliding-window score of the averaged weights before quantization; None when it was not asked for."""
    sliding_score: Stage
    ttt_score: Stage
    packaged: Stage
    proof: Stage | None
    """The proof of a part of `sliding_score`; None unless `evaluate.prove_tokens` asks for one."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        everything = (
            self.tokens,
            self.trained,
            self.averaged,
            self.quantized,
            self.float_score,
            self.sliding_score,
            self.ttt_score,
            self.packaged,
            self.proof,
        )
        return tuple(stage for stage in everything if stage is not None)


def run(
    context: StageContext,
    train: Sequence[str | Path] = (),
    val: Sequence[str | Path] = (),
    tokenizer: Path | None = None,
    shards: Path | None = None,
    text_field: str = "text",
    score_float: bool = True,
) -> Chain:
    """Tokenize, train, finalize the average, quantize, score and package, in that order.

    The arguments are `tokenize`'s. `score_float` also scores the averaged weights, as `eval-sliding@float` beside the
    quantized ones, which shows the loss by quantization. Raises the errors of the stages; finished stages are kept, and
    the next call continues after them.
    """

    from stages.views import evaluation

    def make(kind: str, function: Any, source: Stage | None, name: str | None, *after: Any) -> Stage:
        stage = cast(Stage, function(_adopted(context, kind, source, name), source))
        if kind in kinds.SCORED and context.runtime.is_main:
            context.reporter.result(evaluation.line(stage))
        return stage

    return Chain(*_stages(make, context, _tokenizing(train, val, tokenizer, shards, text_field), score_float))


@dataclass(frozen=True)
class Planned:
    """The planned action for one stage and its reason."""

    label: str
    would_run: bool
    reason: str


def plan(
    context: StageContext,
    train: Sequence[str | Path] = (),
    val: Sequence[str | Path] = (),
    tokenizer: Path | None = None,
    shards: Path | None = None,
    text_field: str = "text",
    score_float: bool = True,
) -> list[Planned]:
    """Dry run: the actions of `run` with the same arguments. Raises the errors of its input checks."""
    dry = context.replace(dry_run=True, reporter=Silent())
    rows: list[Planned] = []

    def make(kind: str, function: Any, source: Any, name: str | None, *after: Any) -> Any:
        own = dry.replace(name=name)
        label = own.label(kind)
        behind = [item for item in (source, *after) if isinstance(item, str)]
        if not behind:
            try:
                stage = function(_adopted(dry, kind, source, name), source)
                rows.append(Planned(label, False, "up to date"))
                return stage
            except WouldRun as would:
                rows.append(Planned(label, True, ", ".join(would.reasons)))
                return label
        missing = own.own(kind) is None
        rows.append(Planned(label, True, "missing" if missing else f"{behind[0]} runs again"))
        return label

    _stages(make, context, _tokenizing(train, val, tokenizer, shards, text_field), score_float)
    return rows


def _adopted(context: StageContext, kind: str, source: Stage | None, name: str | None) -> StageContext:
    named = context.replace(name=name)
    return named.adopt(named.own(kind), source)


def _tokenizing(
    train: Sequence[str | Path], val: Sequence[str | Path], tokenizer: Path | None, shards: Path | None, text_field: str
) -> Callable[[StageContext, None], Stage]:
    from stages.tokenize import tokenize

    return lambda context, _: tokenize(context, train, val, tokenizer, shards, text_field)


def _stages(make: Any, context: StageContext, tokenize: Any, score_float: bool) -> tuple[Any, ...]:
    """The chain: calls `make(kind, function, source, variant, *other stages it waits for)` for each stage."""
    from stages.ema_finalize import ema_finalize
    from stages.eval_sliding import eval_sliding
    from stages.eval_ttt import eval_ttt
    from stages.package import package
    from stages.prove import prove
    from stages.quantize import quantize
    from stages.train import train as train_model

    name = context.name
    tokens = make("tokenize", tokenize, None, name)
    trained = make("train", train_model, tokens, name)
    averaged = make("ema-finalize", ema_finalize, trained, name)
    quantized = make("quantize", quantize, averaged, name)
    float_name = "float" if name is None else f"{name}-float"
    float_score = make("eval-sliding", eval_sliding, averaged, float_name) if score_float else None
    sliding = make("eval-sliding", eval_sliding, quantized, name)
    ttt = make("eval-ttt", eval_ttt, quantized, name)
    packaged = make("package", package, quantized, name, sliding, ttt)
    evaluate = context.config.evaluate
    count = 0 if evaluate.tilt_boost else evaluate.prove_tokens  # a proof codes with the model alone
    proof = make("prove", lambda built, source: prove(built, source, count), sliding, name) if count else None
    return tokens, trained, averaged, quantized, float_score, sliding, ttt, packaged, proof
