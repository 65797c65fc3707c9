"""The `train` stage: tokens in, weights and their averages out. A stopped run continues from its last checkpoint.

Training itself is `pgolf.training.fit`. Reading, compiling, warming up and scoring the held-out slice are outside the
training clock. Under torchrun every rank trains; rank 0 alone writes and reports.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pgolf import config as configs
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.quant import hessian
from pgolf.saved.tokens import open_split, tokenizer_of, with_bos
from pgolf.store import kinds
from pgolf.store.records import TokenizeDetails, TrainDetails, TrainMetrics
from pgolf.store.stage_directory import Stage
from pgolf.tokens.byte_counts import ByteTable
from pgolf.tokens.loader import Loader
from pgolf.training import checkpoint as checkpoints
from pgolf.training import reserve
from pgolf.training.checkpoint import Checkpoint
from pgolf.training.display import Display
from pgolf.training.fit import At, Fit, Hooks, fit
from pgolf.training.holdout import Holdout
from pgolf.training.interrupt import Interrupt
from pgolf.training.matmul_throughput import matrix_rate
from pgolf.training.metrics_log import MetricsLog
from pgolf.training.nonfinite import StepResult
from pgolf.training.nonfinite_origin import explain
from pgolf.training.prepare import naming_memory, prepare
from pgolf.training.trainer import Trainer
from stages.context import StageBuild, StageContext
from stages.reports.loss_curve import draw

SECTIONS = ("model", "train", "optim", "average")
_LENGTH = ("train.iterations", "train.seconds")  # may be raised when a stopped run is continued


def train(context: StageContext, tokens: Stage, finish: bool = False) -> Stage:
    """Train a model on a `tokenize` stage.

    finish: end a stopped run where it is, from its last checkpoint, in place of continuing it.
    Raises PgolfError for bad input before anything is written, for state of another run in the way, for a loss that is
    not finite, and KeyboardInterrupt after an orderly Ctrl-C.
    """
    context = context.replace(config=with_bos(context.config, tokens))
    config, runtime = context.config, context.runtime
    _check(config, tokens)
    holdout = Holdout.of(open_split(tokens, "train"), config)
    with (
        Loader(holdout.training, config.seed, runtime.world_rank, runtime.world_size) as loader,
        context.build("train", inputs={"tokens": tokens}, sections=SECTIONS, resumable=True) as build,
    ):
        if build.existing is None:
            _train(context, build, loader, holdout, tokens, finish)
    if build.existing is None:
        context.reporter.result(_summary(build.stage))
    return build.stage


def _summary(trained: Stage) -> str:
    metrics = trained.manifest.metrics
    text = f"trained {metrics['iterations']:,} steps, {metrics['tokens']:,} tokens in {metrics['seconds']:.1f} s"
    for key, unit in (("holdout_bits_per_byte", "bits per byte"), ("holdout_nats_per_token", "nats per token")):
        if key in metrics:
            return f"{text}; held-out {metrics[key]:.4f} {unit}; {trained.path}"
    return f"{text}; {trained.path}"


def byte_table(tokens: Stage) -> ByteTable | None:
    """Bytes per piece, where a tokenize stage has its tokenizer."""
    has = kinds.TOKENIZER in tokens.manifest.outputs
    return ByteTable.from_tokenizer(tokenizer_of(tokens)) if has else None


def pieces_of(tokens: Stage) -> tuple[bytes, ...] | None:
    """The text of each piece, where a tokenize stage has its tokenizer."""
    return tokenizer_of(tokens).pieces if kinds.TOKENIZER in tokens.manifest.outputs else None


def _train(
    context: StageContext, build: StageBuild, loader: Loader, holdout: Holdout, tokens: Stage, finish: bool
) -> None:
    config, runtime, writer = context.config, context.runtime, build.writer
    identity = _identity(config, tokens)
    previous = _previous(context, build, identity, finish)
    values: dict[str, Any] = {"iteration": 0, "tokens": 0, "elapsed": 0.0, "restarts": 0}
    if previous is not None:
        values = previous.values | {"restarts": previous.values["restarts"] + 1}
        context.reporter.message(
            f"{'finishing' if finish else 'continuing'} at step {values['iteration']} after {values['elapsed']:.0f} s "
            f"of training ({writer.folder})"
        )
    build.earlier_seconds = values["elapsed"]
    at = At(values["elapsed"], values["tokens"], 0.0)
    constant = {"identity": identity, "restarts": values["restarts"]}
    paths = writer.path(kinds.METRICS_LOG), writer.path(kinds.TRAIN_LOG)
    log = MetricsLog(*paths, config, runtime.is_main, values["iteration"], at)
    display = Display(config.train, len(holdout.training), context.reporter, at)

    def known(results: Sequence[StepResult], at: At) -> None:
        log.add(results, at)
        display.add(results, at)

    def prepared(trainer: Trainer, *others: Any) -> tuple[str, dict[str, Any]]:
        log.note(f"hardware:{runtime} torch:{torch.__version__}")
        log.note(f"train_tokens:{len(holdout.training)} model_params:{trainer.parameters}")
        return prepare(trainer, *others)

    with checkpoints.Writer(writer.folder / ".scratch", constant) as checkpoint, log:
        hooks = Hooks(
            prepare=prepared,
            resume=None if previous is None else previous.restore,
            save=checkpoint.take,
            stop=display.around(Interrupt(runtime)),
            known=known,
            explain=explain,
            finish=finish,
        )
        with naming_memory(config, runtime):
            made = fit(config, loader, holdout, runtime, context.reporter, hooks, pieces=pieces_of(tokens))
        why = "interrupted" if made.interrupted else "finished"
        log.note(f"{why} train_time:{1000 * made.seconds:.0f}ms step:{made.trainer.iteration}")
    if made.interrupted:
        how = "without --force " if context.force and not writer.destination.exists() else ""
        context.reporter.message(
            f"stopped after step {made.trainer.iteration} with a checkpoint in {writer.folder}; run the same command "
            f"again {how}to continue; more --seconds or --iterations lengthen it, --finish ends it where it is"
        )
        raise KeyboardInterrupt
    rate = matrix_rate(runtime.device, runtime.dtype)  # on all at once, as they trained: cores may be shared
    if runtime.is_main:
        rate = round(rate * runtime.world_size)
        build.details |= TrainDetails(matrix_flops_per_second=rate, restarts=values["restarts"])
        build.metrics |= TrainMetrics(loss=log.last_loss)
        _finish(context, build, made, holdout, tokens, rate)


def _finish(context: StageContext, build: StageBuild, made: Fit, holdout: Holdout, tokens: Stage, rate: float) -> None:
    """Write the weights, the averages and the curve, and record the metrics. rate: FLOP/s of this machine."""
    config, trainer, writer = context.config, made.trainer, build.writer
    _, seq_len = config.train.sizes_at(1.0)
    averages = trainer.averages.finished()
    save_weights(writer.path(kinds.WEIGHTS), trainer.weights())
    for name, value in averages.items():
        save_weights(writer.path(f"{kinds.AVERAGE}{name}.safetensors"), trainer.weights(value))
    draw(writer.path(kinds.METRICS_LOG), writer.path(kinds.LOSS_CURVE))
    if config.train.tensorboard:
        writer.add(writer.payload / "tensorboard")
    build.metrics |= made.run_metrics()
    if made.seconds:
        build.metrics |= TrainMetrics(flops_utilization=round(trainer.flops / made.seconds / rate, 4))
    build.metrics |= holdout.holdout_metrics(holdout.loss(trainer.model, seq_len, context.runtime), byte_table(tokens))
    build.details |= TrainDetails(
        path=made.path,
        fast_paths=made.fast_paths,
        paused_seconds=round(made.paused, 3),
        holdout_tokens=len(holdout),
        train_tokens=len(holdout.training),
        passes=round(trainer.tokens / len(holdout.training), 3),
        seq_len=seq_len,
        averages=sorted(averages),
    )
    if made.reserved is not None:
        choice, statistics = made.reserved.choice, made.reserved.statistics
        found = {"average": choice.average, "share": choice.share, "losses": dict(choice.losses)}
        build.details |= TrainDetails(choice=found)
        if statistics:
            facts = reserve.facts(config) | {"weights": choice.name, "tokens": made.reserved.tokens}
            hessian.save(writer.path(kinds.HESSIANS), statistics, facts)
            build.details |= TrainDetails(hessians=facts)
        else:
            context.reporter.message("train.reserve_seconds left no time for Hessians: quantize will read train tokens")


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A state dict as float32 safetensors. Raises PgolfError when it cannot be written."""
    try:
        save_file({name: tensor.detach().float().cpu().clone() for name, tensor in tensors.items()}, path)
    except Exception as error:  # safetensors raises its own class for a full disk
        raise PgolfError(f"cannot write {path}: {error}") from error


def _check(config: Config, tokens: Stage) -> None:
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise PgolfError(
            "train.tensorboard needs the package tensorboard: pip install 'pgolf[tensorboard]', or set it to false"
        )
    if tokens.manifest.stage != "tokenize":
        raise PgolfError(f"{tokens.path} holds a {tokens.manifest.stage} stage; train needs tokenize")
    pieces = tokens.manifest.details_as(TokenizeDetails).get("vocab_size")
    rows = config.model.vocab_size
    if pieces is None or pieces == rows or (pieces < rows and config.train.allow_unused_rows):
        return
    if pieces > rows:
        raise PgolfError(
            f"model.vocab_size = {rows} is smaller than the tokenizer's {pieces} pieces; set it to {pieces}"
        )
    raise PgolfError(
        f"model.vocab_size = {rows}, but the tokenizer of {tokens.path} has {pieces} pieces: {rows - pieces:,} rows of "
        f"the embedding would never be used; tokenize with {rows} pieces, set model.vocab_size={pieces}, or allow it "
        "with train.allow_unused_rows=true"
    )


def _identity(config: Config, tokens: Stage) -> dict[str, Any]:
    """Identity of a run for its checkpoints: all settings and inputs that determine the weights."""
    settings = json.loads(json.dumps(configs.settings_of(config, "train", SECTIONS)))  # as a checkpoint has them
    return {**settings, "seed": config.seed, "the tokens": tokens.manifest_sha256}


def _previous(context: StageContext, build: StageBuild, identity: Mapping[str, Any], finish: bool) -> Checkpoint | None:
    """The checkpoint to continue from, if there is one. Raises PgolfError when it is another run's."""
    folder = build.writer.folder / ".scratch"
    found = checkpoints.load(folder) if not context.force or build.writer.destination.exists() else None
    if found is not None:
        theirs = found.values["identity"]
        changed = [key for key in {**theirs, **identity} if theirs.get(key) != identity.get(key)]
        if not [key for key in changed if not (key in _LENGTH and (finish or _longer(theirs[key], identity[key])))]:
            for key in () if finish else changed:
                context.reporter.message(f"{key}: {theirs[key]} until now, {identity[key]} from here on")
            return found
        if not context.force:
            name = next(key for key in changed if not (key in _LENGTH and _longer(theirs[key], identity[key])))
            what = name if name == "the tokens" else f"{name}: {theirs.get(name)} there, {identity.get(name)} now"
            how = "end it where it is with --finish, " if name in _LENGTH else ""
            raise PgolfError(
                f"{build.writer.folder} holds an unfinished run of other settings ({what}); continue it with its own, "
                f"{how}or start over with --force"
            )
    if finish:
        raise PgolfError(f"{build.writer.folder} holds no checkpoint of a stopped run: there is nothing to finish")
    context.runtime.wait()  # all ranks have looked before the main one clears the way
    if context.runtime.is_main:
        build.writer.discard()
    context.runtime.wait()
    return None


def _longer(before: float, now: float) -> bool:
    """True if the new limits lengthen a run; 0 seconds: no cap."""
    return now == 0 or 0 < before < now
