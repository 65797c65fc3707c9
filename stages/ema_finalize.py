"""EMA-finalize: the last weights, the averages kept during training and blends of the two, into one checkpoint.

The choice goes by the loss on a held-out slice of the *train* tokens, which training never saw; val is not touched.
The seed has no such choice and in a short run exports an average that never began.
"""

import functools
import time

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pgolf.errors import PgolfError
from pgolf.model.fast_paths import compile_model
from pgolf.model.gpt import GPT
from pgolf.store.stage_directory import Stage
from pgolf.training.holdout import holdout_loss
from pgolf.training.select_checkpoint import Weights, choose
from stages.context import StageBuild, StageContext
from stages.train import holdout_score, save_weights
from stages.views.models import inherit_model
from stages.views.tokens import open_split

_PREFIX, _SUFFIX = "average-", ".safetensors"


def ema_finalize(context: StageContext, trained: Stage) -> Stage:
    """Choose among the candidates of a `train` stage. Raises PgolfError for another kind of stage, or when there is
    no held-out slice to choose by."""
    if trained.manifest.stage != "train":
        raise PgolfError(f"{trained.path} holds a {trained.manifest.stage} stage; ema-finalize needs train")
    context = inherit_model(context, trained)
    with context.build("ema-finalize", inputs={"train": trained}, sections=("average",)) as build:
        if build.existing is None and context.runtime.is_main:
            _choose(context, build, trained)
    return build.stage


def _choose(context: StageContext, build: StageBuild, trained: Stage) -> None:
    started = time.monotonic()
    config, runtime = context.config, context.runtime
    tokens = trained.ancestor("tokenize")
    stream = open_split(tokens, "train")
    held_out = stream.view(len(stream) - trained.manifest.details["holdout_tokens"], len(stream))
    if len(held_out) < 2:
        raise PgolfError(f"{trained.path} was trained with train.holdout_tokens = 0: there is nothing to choose by")
    seq_len = trained.manifest.details["seq_len"]
    with torch.random.fork_rng(devices=[]):
        model = GPT(config.model)
    model.compute_dtype = runtime.dtype
    compile_model(model.to(runtime.device), runtime, graph=False)

    def loss_of(weights: Weights) -> float:
        model.load_state_dict(weights)
        return holdout_loss(model, held_out, seq_len, runtime.device)

    averages = {
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX): functools.partial(_load, trained, name)
        for name in _averages(trained)
    }
    with context.reporter.progress("ema-finalize", 1 + len(averages) + len(config.average.interpolate)) as progress:
        choice = choose(
            _load(trained, "model.safetensors"),
            averages,
            config.average.interpolate,
            loss_of,
            lambda count, note: progress.update(count, note=note),
        )
    losses, best = choice.losses, choice.name
    save_weights(build.writer.path("model.safetensors"), choice.weights)
    build.metrics |= {
        **holdout_score(tokens, held_out, losses[best]),
        "parameters": sum(value.numel() for value in choice.weights.values()),
        "seconds": round(time.monotonic() - started, 3),
    }
    build.details |= {
        "chosen": best,
        "candidates": [{"name": name, "holdout_nats_per_token": loss} for name, loss in losses.items()],
        "holdout_tokens": len(held_out),
        "seq_len": seq_len,
    }
    ordered = sorted(losses, key=lambda name: losses[name])
    context.reporter.table(
        "weights tried on held-out train tokens",
        ("weights", "nats per token", "against last"),
        [(name, f"{losses[name]:.4f}", f"{losses[name] - losses['last']:+.4f}") for name in ordered],
    )


def _averages(trained: Stage) -> list[str]:
    return [name for name in sorted(trained.manifest.outputs) if name.startswith(_PREFIX)]


def _load(stage: Stage, name: str) -> Weights:
    path = stage.file(name)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise PgolfError(f"{path} is no safetensors file or is damaged ({error}); rerun train") from error
