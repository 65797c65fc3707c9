"""The whole chain, from text to a scored package, each stage skipped when it is up to date."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgolf.store.stage_directory import Stage
from stages.context import StageContext


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
    quantized ones, which is what shows the price of quantization. Raises what the stages raise; everything finished
    before that is kept, and the next call goes on from there.
    """
    from stages.ema_finalize import ema_finalize
    from stages.eval_sliding import eval_sliding
    from stages.eval_ttt import eval_ttt
    from stages.package import package
    from stages.quantize import quantize
    from stages.tokenize import tokenize
    from stages.train import train as train_model

    tokens = tokenize(context, train=train, val=val, tokenizer=tokenizer, shards=shards, text_field=text_field)
    trained = train_model(context, tokens)
    averaged = ema_finalize(context, trained)
    quantized = quantize(context, averaged)
    float_name = "float" if context.name is None else f"{context.name}-float"
    float_score = eval_sliding(context.replace(name=float_name), averaged) if score_float else None
    sliding_score = eval_sliding(context, quantized)
    ttt_score = eval_ttt(context, quantized)
    packaged = package(context, quantized)
    return Chain(tokens, trained, averaged, quantized, float_score, sliding_score, ttt_score, packaged)
