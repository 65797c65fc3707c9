"""Train: tokens in, weights and their averages out. A killed or interrupted run goes on from its last checkpoint.

Everything that happens before the first step or after the last (reading, compiling, warming up, scoring the held-out
slice) is outside the training clock. Under torchrun all ranks compute, rank 0 alone decides, writes and speaks.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pgolf import config as configs
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.model.fast_paths import compile_model
from pgolf.model.gpt import GPT
from pgolf.store.stage_directory import Stage
from pgolf.tokens.byte_counts import ByteTable
from pgolf.tokens.loader import Loader
from pgolf.tokens.shards import TokenStream
from pgolf.training import checkpoint as checkpoints
from pgolf.training.budget_clock import Control
from pgolf.training.checkpoint import Checkpoint
from pgolf.training.holdout import holdout_loss
from pgolf.training.interrupt import Interrupt
from pgolf.training.matmul_throughput import matrix_rate
from pgolf.training.metrics_log import MetricsLog
from pgolf.training.trainer import Trainer
from stages.context import StageBuild, StageContext
from stages.reports.loss_curve import draw
from stages.views.tokens import open_split, tokenizer_of, with_bos

SECTIONS = ("model", "train", "optim", "average")
_HOLDOUT_SHARE = 0.05  # of the train tokens at most
# Settings that a run may be continued with other values of: they change no weight.
_FREE = ("checkpoint_every", "checkpoint_seconds", "log_every", "compile", "micro_tokens", "tensorboard")


def train(context: StageContext, tokens: Stage) -> Stage:
    """Train a model on a `tokenize` stage. Raises PgolfError for bad input before anything is written, for state of
    another run in the way, for a loss that is not finite, and KeyboardInterrupt after an orderly Ctrl-C."""
    context = context.replace(config=with_bos(context.config, tokens))
    config, runtime = context.config, context.runtime
    _check(config, tokens)
    stream = open_split(tokens, "train")
    loader = Loader(
        stream,
        config.seed,
        runtime.world_rank,
        runtime.world_size,
        holdout_tokens=holdout_tokens(config, stream),
        bos_id=config.model.bos_id,
    )
    try:
        with context.build("train", inputs={"tokens": tokens}, sections=SECTIONS, resumable=True) as build:
            if build.existing is None:
                _train(context, build, loader, tokens)
        return build.stage
    finally:
        loader.close()


def holdout_score(tokens: Stage, held_out: TokenStream, nats_per_token: float) -> dict[str, float]:
    """The metrics of a loss on the held-out slice; bits per byte, by the table of bytes per piece, where the stage has
    its tokenizer: comparable between vocabularies, as nats per token are not."""
    if math.isnan(nats_per_token):
        return {}
    score = {"holdout_nats_per_token": nats_per_token}
    if "tokenizer.model" in tokens.manifest.outputs:
        targets = ByteTable.from_tokenizer(tokenizer_of(tokens)).count(held_out[:])[1:]
        score["holdout_bits_per_byte"] = nats_per_token / math.log(2) / float(targets.mean())
    return score


def holdout_tokens(config: Config, stream: TokenStream) -> int:
    """Tokens at the end of the train stream that are held out."""
    return min(config.train.holdout_tokens, int(len(stream) * _HOLDOUT_SHARE))


def _train(context: StageContext, build: StageBuild, loader: Loader, tokens: Stage) -> None:
    config, runtime = context.config, context.runtime
    identity = _identity(config, tokens)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(runtime.device).train()
    model.compute_dtype = runtime.dtype
    trainer = Trainer(model, loader, config, runtime)
    previous = _previous(context, build, identity)
    where: dict[str, Any] = {"elapsed": 0.0, "restarts": 0}
    if previous is not None:
        trainer.restore(previous.tensors, previous.values)
        where = {"elapsed": previous.values["elapsed"], "restarts": previous.values["restarts"] + 1}
        context.reporter.message(
            f"continuing at step {trainer.iteration} after {where['elapsed']:.0f} s of training ({build.writer.folder})"
        )
    build.earlier_seconds = where["elapsed"]
    build.details["path"] = prepare(context, trainer)
    control = Control(
        config.train.iterations, config.train.seconds, runtime.world_rank, runtime.world_size, where["elapsed"]
    )
    log = MetricsLog(
        build.writer.path("metrics.jsonl"), trainer.iteration, trainer.tokens, config.train, runtime.is_main
    )
    saved_at = [trainer.iteration, control.elapsed]

    def save() -> None:
        log.add(trainer.drain(), control.elapsed, trainer.tokens)  # no checkpoint of weights that went bad
        log.flush(control.elapsed, trainer.tokens)
        if runtime.is_main:
            tensors, values = trainer.snapshot()
            state = values | {"elapsed": control.elapsed, "restarts": where["restarts"], "identity": identity}
            checkpoints.save(build.writer.scratch, tensors, state)
        saved_at[:] = [trainer.iteration, control.elapsed]

    total = config.train.seconds or float(config.train.iterations)
    with Interrupt(runtime) as interrupt, context.reporter.progress("train", total) as progress, log:
        control.start()
        while True:
            decision = control.decide(trainer.iteration, interrupt.requested)
            if decision.stop:
                break
            known = trainer.step(decision.fraction)
            if log.add(known, control.elapsed, trainer.tokens):
                progress.update(decision.fraction * total, note=log.note)
            due = trainer.iteration - saved_at[0] >= config.train.checkpoint_every
            if due or 0 < config.train.checkpoint_seconds <= control.elapsed - saved_at[1]:
                save()
        save()
        control.pause()
    if decision.interrupted:
        how = "without --force " if context.force and not build.writer.destination.exists() else ""
        context.reporter.message(
            f"stopped after step {trainer.iteration} with a checkpoint in {build.writer.folder}; "
            f"run the same command again {how}to continue"
        )
        raise KeyboardInterrupt
    rate = matrix_rate(runtime.device, runtime.dtype)  # on all at once, as they trained: cores may be shared
    if runtime.is_main:
        build.details["matrix_flops_per_second"] = round(rate * runtime.world_size)
        _finish(build, trainer, tokens, loader, config, control.elapsed, log.last_loss, where["restarts"])


def _finish(
    build: StageBuild,
    trainer: Trainer,
    tokens: Stage,
    loader: Loader,
    config: Config,
    seconds: float,
    loss: float | None,
    restarts: int,
) -> None:
    """Write the weights, the averages and the curve, and what the run scored."""
    _, seq_len = config.train.sizes_at(1.0)
    held_out = holdout_loss(trainer.model, loader.holdout, seq_len, trainer.flat.data.device)
    save_weights(build.writer.path("model.safetensors"), trainer.flat.named(trainer.flat.data))
    averages = trainer.averages.finished()
    for name, value in averages.items():
        save_weights(build.writer.path(f"average-{name}.safetensors"), trainer.flat.named(value))
    draw(build.writer.path("metrics.jsonl"), build.writer.path("loss.png"))
    if config.train.tensorboard:
        build.writer.add(build.writer.payload / "tensorboard")
    build.metrics |= {
        "iterations": trainer.iteration,
        "tokens": trainer.tokens,
        "parameters": trainer.parameters,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(trainer.tokens / seconds, 1) if seconds else 0.0,
        "loss": loss,
    }
    if seconds:
        rate = build.details["matrix_flops_per_second"]
        build.metrics["flops_utilization"] = round(trainer.flops / seconds / rate, 4)
    build.metrics |= holdout_score(tokens, loader.holdout, held_out)
    build.details |= {
        "restarts": restarts,
        "holdout_tokens": len(loader.holdout),
        "train_tokens": len(loader.stream),
        "seq_len": seq_len,
        "averages": sorted(averages),
    }


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A state dict as float32 safetensors. Raises PgolfError when it cannot be written."""
    try:
        save_file({name: tensor.detach().float().cpu().clone() for name, tensor in tensors.items()}, path)
    except Exception as error:  # safetensors raises its own class for a full disk
        raise PgolfError(f"cannot write {path}: {error}") from error


def prepare(context: StageContext, trainer: Trainer) -> str:
    """Choose the fastest paths that work here and warm up, outside the training clock. Returns what runs."""
    config, runtime, reporter = context.config, context.runtime, context.reporter
    fractions = sorted({*config.train.breakpoints(), *config.model.breakpoints()})
    fast = compile_model(trainer.model, runtime, graph=config.train.compile)
    for note in fast.notes:
        reporter.message(f"slower here: {note}")
    if fast.graph:
        try:
            with reporter.progress("compile"):
                trainer.warm_up(fractions)
            return "compiled"
        except Exception as error:  # torch raises whatever its compilers raise, and all of it means the same here
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reporter.message(f"torch.compile does not work here, training goes on without it ({reason})")
            fast = compile_model(trainer.model, runtime, graph=False)
    trainer.warm_up(fractions, steps=1)
    return "C kernels" if fast.kernels else "plain"


def _check(config: Config, tokens: Stage) -> None:
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise PgolfError(
            "train.tensorboard needs the package tensorboard: pip install 'pgolf[tensorboard]', or set it to false"
        )
    if tokens.manifest.stage != "tokenize":
        raise PgolfError(f"{tokens.path} holds a {tokens.manifest.stage} stage; train needs tokenize")
    pieces = tokens.manifest.details.get("vocab_size")
    if pieces is not None and pieces > config.model.vocab_size:
        raise PgolfError(
            f"model.vocab_size = {config.model.vocab_size} is smaller than the tokenizer's {pieces} pieces; "
            f"set it to {pieces}"
        )


def _identity(config: Config, tokens: Stage) -> dict[str, Any]:
    """What a checkpoint belongs to: everything that decides the weights."""
    values = configs.to_dict(config)
    flat = {
        f"{section}.{key}": value for section in SECTIONS for key, value in values[section].items() if key not in _FREE
    }
    return flat | {"seed": config.seed, "the tokens": tokens.manifest_sha256}


def _previous(context: StageContext, build: StageBuild, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to continue from, if there is one. Raises PgolfError when it is another run's."""
    folder = build.writer.folder / ".scratch"
    found = checkpoints.load(folder) if not context.force or build.writer.destination.exists() else None
    if found is not None:
        theirs = found.values["identity"]
        changed = [key for key in {**theirs, **identity} if theirs.get(key) != identity.get(key)]
        if not changed:
            return found
        if not context.force:
            name = changed[0]
            what = name if name == "the tokens" else f"{name}: {theirs.get(name)} there, {identity.get(name)} now"
            raise PgolfError(
                f"{build.writer.folder} holds an unfinished run of other settings ({what}); continue it with its own, "
                "or start over with --force"
            )
    context.runtime.wait()  # all ranks have looked before the main one clears the way
    if context.runtime.is_main:
        build.writer.discard()
    context.runtime.wait()
    return None
