"""The `ema-finalize` stage: the best of the last weights, the averages kept during training and blends of the two.

The choice is made by the loss on a held-out slice of the *train* tokens, which training never saw; val is not used. A
run trained with `train.reserve_seconds` made the choice inside its clock, and it is only carried out here. The seed has
no such choice and in a short run exports an average that never began.
"""

import functools
import time
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pgolf.errors import PgolfError
from pgolf.model.fast_paths import paths_by_rule
from pgolf.model.gpt import GPT
from pgolf.model.raced_pairs import Shape
from pgolf.saved.tokens import holdout_of
from pgolf.store import kinds
from pgolf.store.records import FinalizeDetails, TrainDetails
from pgolf.store.stage_directory import Stage
from pgolf.training.select_checkpoint import Weights, blend, select
from stages.context import StageBuild, StageContext
from stages.train import byte_table, save_weights

_PREFIX, _SUFFIX = kinds.AVERAGE, ".safetensors"


def ema_finalize(context: StageContext, trained: Stage) -> Stage:
    """Choose among the candidates of a `train` stage. Raises PgolfError for another kind of stage, or when there is
    no held-out slice to choose by."""
    if trained.manifest.stage != "train":
        raise PgolfError(f"{trained.path} holds a {trained.manifest.stage} stage; ema-finalize needs train")
    context = context.inherit_model(trained)
    with context.build("ema-finalize", inputs={"train": trained}, sections=("average",)) as build:
        if build.existing is None and context.runtime.is_main:
            _choose(context, build, trained)
    return build.stage


def _choose(context: StageContext, build: StageBuild, trained: Stage) -> None:
    started = time.monotonic()
    config, runtime, details = context.config, context.runtime, trained.manifest.details_as(TrainDetails)
    holdout = holdout_of(trained)
    last = _load(trained, kinds.WEIGHTS)
    averages = {
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX): functools.partial(_load, trained, name)
        for name in _averages(trained)
    }
    recorded = details.get("choice")
    if recorded is not None and trained.manifest.config["average"]["interpolate"] == list(config.average.interpolate):
        losses: Mapping[str, float] = recorded["losses"]
        best = min(losses, key=lambda name: losses[name])
        name = recorded["average"]
        weights = last if name is None else blend(last, averages[name](), recorded["share"])
    else:
        with torch.random.fork_rng(devices=[]):
            model = GPT(config.model)
        model.compute_dtype = runtime.dtype
        shape = Shape(8, details["seq_len"], False, runtime.threads)
        paths_by_rule(model.to(runtime.device), runtime, shape, scoring=True)
        shares = config.average.interpolate
        choice = select(model, holdout, details["seq_len"], runtime, last, averages, shares, context.reporter)
        losses, best, weights = choice.losses, choice.name, choice.weights
    save_weights(build.writer.path(kinds.WEIGHTS), weights)
    build.metrics |= {
        **holdout.holdout_metrics(losses[best], byte_table(trained.ancestor("tokenize"))),
        "parameters": sum(value.numel() for value in weights.values()),
        "seconds": round(time.monotonic() - started, 3),
    }
    build.details |= FinalizeDetails(
        chosen=best,
        chosen_inside_the_training_clock=recorded is not None and losses is recorded["losses"],
        candidates=[{"name": name, "holdout_nats_per_token": loss} for name, loss in losses.items()],
        holdout_tokens=len(holdout),
        seq_len=details["seq_len"],
    )
    ordered = sorted(losses, key=lambda name: losses[name])
    gain = losses["last"] - losses[best]
    context.reporter.result(
        f"chosen weights: {best}, which predicts held-out train text best of {len(losses)} candidates"
        + (f", {gain:.4f} nats per token better than the last step's weights" if gain else "")
    )
    context.reporter.table(
        "weights tried on held-out train tokens",
        ("weights", "nats per token", "against last"),
        [(name, f"{losses[name]:.4f}", f"{losses[name] - losses['last']:+.4f}") for name in ordered],
        detail=True,
    )


def _averages(trained: Stage) -> list[str]:
    return [name for name in sorted(trained.manifest.outputs) if name.startswith(_PREFIX)]


def _load(stage: Stage, name: str) -> Weights:
    path = stage.file(name)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise PgolfError(f"{path} is not a safetensors file, or it is damaged ({error}); rerun train") from error
