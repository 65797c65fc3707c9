"""Score a model with sliding windows: any stage that holds one, on the val split or on other documents."""

import time
from collections.abc import Sequence
from pathlib import Path

from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.store import Stage
from stages import scoring
from stages.context import StageContext

SECTIONS = ("evaluate",)


def eval_sliding(context: StageContext, source: Stage, documents: Sequence[Path] = ()) -> Stage:
    """Write an `eval-sliding` stage for the model of `source`.

    Raises PgolfError for settings or documents that cannot be scored, CheckFailed when the coverage is not exact.
    """
    inputs = scoring.inputs(source, documents)
    with context.build("eval-sliding", inputs, SECTIONS) as build:
        if build.existing is None:
            settings = scoring.resolve(context.config.evaluate, source)
            text = scoring.load_text(source, documents)
            model = scoring.model_of(source, context.runtime)
            clock = time.monotonic()
            with scoring.progress(context, "eval-sliding", len(text.tokens) - 1) as on_progress:
                evaluator = SlidingEvaluator(model, settings, context.runtime, on_progress)
                trace = evaluator.score(text.tokens)
            scoring.write_scores(build, context, model, text, trace, time.monotonic() - clock)
            build.details |= {"seq_len": settings.seq_len, "stride": settings.stride, "context": settings.context}
            scoring.report(context, f"{build.label} of {source.label}", build.metrics, text.lossless)
    return build.stage
