"""The `eval-ttt` stage: score a model with test-time training on tokens that are already scored."""

import dataclasses
import time
from typing import Any

from pgolf.config import EvaluateConfig, TttConfig
from pgolf.evaluate import scoring_order, tilt
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.evaluate.ttt.time_cap import Estimate
from pgolf.evaluate.ttt.tune import trials_at_most, tune
from pgolf.model.gpt import GPT
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import evaluate_settings
from pgolf.store import kinds
from pgolf.store.records import ScoreDetails
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.views import evaluation
from stages.views.evaluation import VAL, Documents

SECTIONS = ("evaluate", "ttt")
TUNE_TOKENS = 40_000
"""Held-out train tokens that `--tune` chooses by: some eighty documents of the mini track, half a minute a trial."""


def eval_ttt(context: StageContext, source: Stage, documents: Documents = VAL, tuned: bool = False) -> Stage:
    """Write an `eval-ttt` stage for the model of `source`; with `tuned`, rates are first chosen on held-out train text.

    Raises PgolfError for settings or documents that cannot be scored, CheckFailed when the coverage is not exact.
    """
    inputs = documents.inputs(source)
    with context.build("eval-ttt", inputs, SECTIONS, {"tune": tuned, **documents.options}) as build:
        if build.existing is None:
            settings = evaluate_settings(context.config.evaluate, source)
            text = evaluation.load_text(source, documents, settings)
            model = evaluation.model_of(source, context.runtime, settings, learns=True)
            ttt = context.config.ttt
            trials: list[dict[str, Any]] = []
            if tuned:
                ttt, trials = _tune(context, source, model, settings)

            def on_estimate(estimate: Estimate) -> None:
                seconds = {"scoring": estimate.scoring, "learning": estimate.learning}
                build.details |= ScoreDetails(estimate_seconds=seconds)
                context.reporter.message(f"eval-ttt ({ttt.method}): {estimate.line(ttt.seconds)}")

            clock = time.monotonic()
            with evaluation.progress(context, "eval-ttt", len(text.tokens) - 1) as on_progress:
                evaluator = TttEvaluator(model, settings, ttt, context.runtime, on_progress, on_estimate)
                trace = tilt.over(evaluator, settings).score(text.tokens)
            evaluation.write_scores(build, context, model, text, trace, time.monotonic() - clock)
            build.details |= ScoreDetails(seq_len=settings.seq_len, stride=settings.stride, method=ttt.method)
            if context.runtime.is_main:
                scoring_order.write(build.writer.path(kinds.ORDER), trace)
            if tuned:
                facts = dataclasses.asdict(ttt)
                build.details |= ScoreDetails(ttt=facts, tuned_on="held-out train tokens", trials=trials)
    return build.stage


def _tune(
    context: StageContext, source: Stage, model: GPT, settings: EvaluateConfig
) -> tuple[TttConfig, list[dict[str, Any]]]:
    """Choose learning rates on the held-out end of the train tokens, and return them with the table of trials."""
    holdout = token_stages.holdout_of(source)
    holdout.require()
    held_out = holdout.tokens[max(0, len(holdout) - TUNE_TOKENS) : len(holdout)]
    ttt = context.config.ttt
    with context.reporter.progress("tuning", total=trials_at_most(ttt)) as bar:
        best, tried = tune(model, held_out, settings, ttt, context.runtime, lambda done: bar.update(done))
    trials = [{"changes": trial.changes, "nats_per_token": trial.nats_per_token} for trial in tried]
    rows = [(str(trial["changes"] or "as given"), f"{trial['nats_per_token']:.4f}") for trial in trials]
    context.reporter.table("tuned on held-out train text", ("settings", "nats per token"), rows, detail=True)
    return best, trials
