"""Score a model that learns from what it has already scored."""

import time
from collections.abc import Sequence
from pathlib import Path

from pgolf.evaluate.ttt import TttEvaluator
from pgolf.store import Stage
from stages import scoring
from stages.context import StageContext
from stages.models import load_model

SECTIONS = ("evaluate", "ttt")


def eval_ttt(context: StageContext, source: Stage, documents: Sequence[Path] = ()) -> Stage:
    """Write an `eval-ttt` stage for the model of `source`.

    Raises PgolfError for settings or documents that cannot be scored, CheckFailed when the coverage is not exact.
    """
    inputs = scoring.inputs(source, documents)
    with context.build("eval-ttt", inputs, SECTIONS) as build:
        if build.existing is None:
            settings = scoring.resolve(context.config.evaluate, source)
            text = scoring.load_text(source, documents)
            model = load_model(source, context.runtime)
            clock = time.monotonic()
            with scoring.progress(context, "eval-ttt", len(text.tokens) - 1) as on_progress:
                evaluator = TttEvaluator(model, settings, context.config.ttt, context.runtime, on_progress)
                trace = evaluator.score(text.tokens)
            scoring.write_scores(build, context, text, trace, time.monotonic() - clock)
            build.details |= {
                "seq_len": settings.seq_len,
                "stride": settings.stride,
                "method": context.config.ttt.method,
            }
            scoring.report(context, f"{build.label} of {source.label}", build.metrics, text.lossless)
    return build.stage
