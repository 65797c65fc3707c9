"""The `quantize` stage: a float model to integers on a grid, as `quantized.safetensors`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pgolf import config as configs
from pgolf.codec import container
from pgolf.config.quantize import CHOOSES_STEPS, NEEDS_HESSIANS
from pgolf.errors import PgolfError
from pgolf.model.fast_paths import Shape, choose_paths
from pgolf.model.gpt import GPT
from pgolf.quant import calibration_data, hessian, methods
from pgolf.quant.hessian import Calibration
from pgolf.quant.methods import TensorReport
from pgolf.quantized import storage
from pgolf.quantized.tensors import QuantizedModel
from pgolf.saved import models
from pgolf.store import kinds, stage_directory
from pgolf.store.stage_directory import Stage
from pgolf.tokens.shards import TokenStream
from stages import steps
from stages.context import StageBuild, StageContext
from stages.steps import Material, Samples


def quantize(context: StageContext, source: Stage, calibration: Path | None = None) -> Stage:
    """Quantize the model of a train or ema-finalize stage with `config.quantize`.

    calibration: a tokenize stage, a folder of shards or one shard, in place of the train tokens that `source` was
    made from: an old checkpoint needs nothing else.
    """
    context = context.inherit_model(source)
    settings = context.config.quantize
    inputs, paths = _calibration_source(source, calibration, required=settings.method in NEEDS_HESSIANS)
    sections = ["model", "quantize"]
    sections += ["optim"] if settings.distill_steps else []  # its warmdown and betas
    sections += ["package"] if settings.target_bytes else []  # what counts beside the model
    with context.build("quantize", {"model": source, **inputs}, sections) as build:
        if build.existing is None:
            model = models.load_model(source, context.runtime)
            length = settings.sequence or (_training_length(context, source) if paths else 0)
            stream = TokenStream.open(paths) if paths else None
            if stream is not None and calibration is None:
                stream = stream.view(0, len(stream) - models.held_out(source))
            weights = methods.float_weights(model)
            inner = _on_model_target(context, build, source)
            quantized, statistics, calibrated = quantize_model(inner, build, model, stream, length)
            rows = methods.report(weights, quantized, statistics)
            storage.save(build.writer.path(models.QUANTIZED), quantized)
            build.details["tensors"] = [dataclasses.asdict(row) for row in rows]
            build.details["calibration_tokens"] = calibrated
            build.metrics |= {"parameters": sum(map(torch.numel, model.state_dict().values()))}
            if settings.target_bytes:
                build.metrics["model_bytes"] = len(container.encode(quantized, context.config.package.coder))
            _show(context, rows)
    return build.stage


def _on_model_target(context: StageContext, build: StageBuild, source: Stage) -> StageContext:
    """The context with what a byte target leaves for the model once the files that count beside it have theirs."""
    from stages.package import PlannedScript  # a packaged script quantizes too, and packages nothing

    settings = context.config.quantize
    if not settings.target_bytes:
        return context
    try:
        files = PlannedScript(source, context.reporter).beside(context.config)
    except PgolfError as error:
        context.reporter.message(f"{error}; the byte target is the model's alone")
        return context
    left = settings.target_bytes - sum(files.values())
    told = " and ".join(f"{size:,} bytes for {name}" for name, size in files.items())
    if left < 1:
        raise PgolfError(
            f"--target-bytes {settings.target_bytes:,} leaves nothing for the model: it counts {told}; ask for more, "
            "or --set package.count_code=false"
        )
    if files:
        context.reporter.message(f"{left:,} bytes of the target are the model's: it leaves {told}")
    build.details |= {"reserved_bytes": files, "model_target": {"target_bytes": left}}
    inner = dataclasses.replace(settings, target_bytes=left)
    return context.replace(config=dataclasses.replace(context.config, quantize=inner))


def _training_length(context: StageContext, source: Stage) -> int:
    """The model's own, or for a checkpoint whose train stage is gone what the configuration says."""
    try:
        return models.training_length(source)
    except PgolfError as error:
        length = context.config.train.seq_len
        context.reporter.message(f"{error}; calibrating on sequences of {length} tokens (quantize.sequence)")
        return length


def quantize_model(
    context: StageContext, build: StageBuild, model: GPT, stream: TokenStream | None, length: int
) -> tuple[QuantizedModel, dict[str, Calibration], int]:
    """Integers for a float model, the statistics they were chosen by, and the number of calibration tokens.

    stream: the train tokens that were trained on, cut into sequences of `length` tokens; None: without calibration.
    """
    settings = context.config.quantize
    choose_paths(model, context.runtime, Shape(8, length, False, context.runtime.threads))
    weights = methods.float_weights(model)
    methods.check_finite(weights)
    roles = model.matrix_roles()
    samples = _samples(context, stream, length, sum(map(torch.numel, weights.values())))
    calibrating = samples.calibrating
    statistics = _calibrate(context, model, calibrating)
    header = {"model": configs.to_dict(context.config)["model"]}
    if settings.method in CHOOSES_STEPS:
        material = Material(model, weights, statistics, samples, header)
        quantized = steps.choose(context, build, material)
    else:
        matrices = {}
        with context.reporter.progress("quantize", total=len(roles)) as bar:
            for name, role in roles.items():
                weight = weights[name].double().numpy()
                matrices[name] = methods.quantize_matrix(weight, role, settings, statistics.get(name))
                bar.update(len(matrices))
        quantized = QuantizedModel(matrices, methods.control_tensors(weights, roles), header)
    return quantized, statistics, sum(map(torch.numel, calibrating))


def _samples(context: StageContext, stream: TokenStream | None, length: int, parameters: int) -> Samples:
    """Train tokens for everything that looks at them."""
    settings, seed = context.config.quantize, context.config.seed
    if stream is None:
        context.reporter.message("no calibration tokens in reach: output errors are not measured")
        return Samples()

    def draw(tokens: int, choosing: bool = False) -> list[Tensor]:
        batches = calibration_data.batches(stream, tokens, length, choosing=choosing, seed=seed)
        return [batch.to(context.runtime.device) for batch in batches]

    choosing = settings.target_bytes and settings.sensitivity_tokens
    wanted = settings.distill_steps * max(settings.distill_tokens, length)
    return Samples(
        calibrating=draw(settings.calibration_tokens),
        choosing=draw(steps.choosing_tokens(settings.sensitivity_tokens, parameters), True) if choosing else (),
        teaching=steps.cut(draw(wanted), settings.distill_steps) if wanted else (),
    )


def _calibrate(context: StageContext, model: GPT, batches: Sequence[Tensor]) -> dict[str, Calibration]:
    if not batches:
        return {}
    settings = context.config.quantize
    with context.reporter.progress("calibrate", total=sum(map(torch.numel, batches))) as bar:
        return hessian.calibrate(
            model,
            batches,
            gradients=settings.fisher and settings.method in CHOOSES_STEPS,
            seed=context.config.seed,
            on_progress=bar.update,
        )


def _calibration_source(
    source: Stage, given: Path | None, required: bool
) -> tuple[dict[str, Stage | Path], Sequence[Path]]:
    """The stage's extra inputs, and the shards to calibrate on; none where none are needed and none can be found."""
    if given is not None:
        if (given / stage_directory.manifests.FILE_NAME).is_file():
            tokens = stage_directory.open_stage(given, ("tokenize",))
            return {"tokens": tokens}, train_shards(tokens)
        paths = [given] if given.is_file() else sorted(given.glob("*train*.bin")) or sorted(given.glob("*.bin"))
        if not paths:
            raise PgolfError(f"--calibration {given}: no tokenize stage, no shard and no folder of shards (*.bin)")
        TokenStream.open(paths)
        return {f"calibration:{number}": path for number, path in enumerate(paths)}, paths
    try:
        return {}, train_shards(source.ancestor("tokenize"))
    except PgolfError as error:
        if required:
            raise PgolfError(f"{error}; or name calibration tokens with --calibration") from error
        return {}, ()


def train_shards(tokens: Stage) -> list[Path]:
    """Verified paths of a tokenize stage's train shards."""
    paths = tokens.files(f"{kinds.TRAIN_SHARDS}_")
    if not paths:
        raise PgolfError(f"{tokens.path} holds no train shards to calibrate on")
    return paths


def _show(context: StageContext, rows: Sequence[TensorReport]) -> None:
    context.reporter.table(
        "quantized",
        ("tensor", "role", "weights", "bits", "relative error", "output error"),
        [
            (
                row.name,
                row.role,
                f"{row.weights:,}",
                f"{row.bits:.3f}",
                f"{row.relative_error:.4f}",
                "-" if row.output_error is None else f"{row.output_error:.4f}",
            )
            for row in rows
        ],
    )
