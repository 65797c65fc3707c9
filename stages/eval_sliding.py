"""Score a model with sliding windows: any stage that holds one, on the val split or on other documents."""

import time

from pgolf.evaluate import scoring_order, tilt
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.saved.models import evaluate_settings
from pgolf.store import kinds
from pgolf.store.records import ScoreDetails
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.views import evaluation
from stages.views.evaluation import VAL, Documents

SECTIONS = ("evaluate",)


def eval_sliding(context: StageContext, source: Stage, documents: Documents = VAL) -> Stage:
    """Write an `eval-sliding` stage for the model of `source`.

    Raises PgolfError for settings or documents that cannot be scored, CheckFailed when the coverage is not exact.
    """
    inputs = documents.inputs(source)
    with context.build("eval-sliding", inputs, SECTIONS, documents.options) as build:
        if build.existing is None:
            settings = evaluate_settings(context.config.evaluate, source)
            text = evaluation.load_text(source, documents, settings)
            model = evaluation.model_of(source, context.runtime, settings)
            clock = time.monotonic()
            with evaluation.progress(context, "eval-sliding", len(text.tokens) - 1) as on_progress:
                evaluator = tilt.over(SlidingEvaluator(model, settings, context.runtime, on_progress), settings)
                trace = evaluator.score(text.tokens)
            evaluation.write_scores(build, context, model, text, trace, time.monotonic() - clock)
            if settings.tilt_boost and context.runtime.is_main:
                scoring_order.write(build.writer.path(kinds.ORDER), trace)
            build.details |= ScoreDetails(seq_len=settings.seq_len, stride=settings.stride, context=settings.context)
    return build.stage
