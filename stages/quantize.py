"""The `quantize` stage: a float model to integers on a grid, as `quantized.safetensors`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pgolf.codec import container
from pgolf.errors import PgolfError
from pgolf.model.fast_paths import paths_by_rule
from pgolf.model.raced_pairs import Shape
from pgolf.quant import hessian, methods, pipeline
from pgolf.quant.calibrated_model import CalibratedModel
from pgolf.quant.hessian import Calibration
from pgolf.quant.tensor_report import TensorReport
from pgolf.quantized import storage
from pgolf.saved import models
from pgolf.store import kinds, stage_directory
from pgolf.store.records import FinalizeDetails, QuantizeDetails, QuantizeMetrics
from pgolf.store.stage_directory import Stage
from pgolf.tokens.shards import TokenStream
from pgolf.training import reserve
from stages.context import StageContext
from stages.package import PlannedScript


def quantize(context: StageContext, source: Stage, calibration: Path | None = None) -> Stage:
    """Quantize the model of a train or ema-finalize stage with `config.quantize`.

    calibration: a tokenize stage, a folder of shards or one shard, in place of the train tokens that `source` was
    made from. An old checkpoint needs nothing else.
    """
    return sweep(context, source, {context.name: context.config.quantize.target_bytes}, calibration)[0]


def sweep(
    context: StageContext, source: Stage, targets: Mapping[str | None, int], calibration: Path | None = None
) -> list[Stage]:
    """One stage per variant name and byte target, each equal to `quantize` with that target.

    The size of the script, the calibration and the factored Hessians are computed once. A target out of reach ends the
    sweep; the variants before it stay.
    """
    context = context.inherit_model(source)
    settings = context.config.quantize
    contexts = [
        context.replace(
            name=name,
            config=dataclasses.replace(context.config, quantize=dataclasses.replace(settings, target_bytes=target)),
        )
        for name, target in targets.items()
    ]
    required = any(methods.of(each.config.quantize).needs_hessians for each in contexts)
    inputs, paths = _calibration_source(source, calibration, required)
    sections = ["model", "quantize"]
    sections += ["optim"] if settings.distill_steps else []  # its warmdown and betas
    sections += ["package"] if any(targets.values()) else []  # counted files other than the model
    script = PlannedScript(source, context.reporter)
    calibrated: CalibratedModel | None = None
    stages = []
    for each in contexts:
        with each.build("quantize", {"model": source, **inputs}, sections) as build:
            if build.existing is None:
                files = _other_files(each, script)
                calibrated = calibrated or _calibrate(each, source, paths, apart=calibration is not None)
                target = each.config.quantize.target_bytes - sum(files.values())
                result = pipeline.finish(calibrated, target)
                rows = result.tensor_reports()
                storage.save(build.writer.path(models.QUANTIZED), result.model)
                build.details |= QuantizeDetails(
                    tensors=[dataclasses.asdict(row) for row in rows],
                    calibration_tokens=calibrated.calibration_tokens,
                    distill_steps=result.distill_steps,
                )
                parameters = sum(tensor.numel() for tensor in calibrated.weights.values())
                with context.reporter.progress("code weights"):
                    coded = container.encode(result.model, each.config.package.coder, result.choices)
                build.metrics |= QuantizeMetrics(parameters=parameters, model_bytes=len(coded))
                if target:
                    build.details |= QuantizeDetails(
                        reserved_bytes=files,
                        model_target={"target_bytes": target},
                        allocation=[dataclasses.asdict(share) for share in result.allocation],
                    )
                _show(each, rows)
        stages.append(build.stage)
    return stages


def _other_files(context: StageContext, script: PlannedScript) -> dict[str, int]:
    """Bytes of the byte target that other files take, by file; empty without a target."""
    target = context.config.quantize.target_bytes
    if not target:
        return {}
    try:
        files = script.beside(context.config)
    except PgolfError as error:
        context.reporter.message(f"{error}; the byte target is the model's alone")
        return {}
    reserved = " and ".join(f"{size:,} bytes for {name}" for name, size in files.items())
    if target <= sum(files.values()):
        raise PgolfError(
            f"--target-bytes {target:,} leaves nothing for the model: it counts {reserved}; ask for more, "
            "or --set package.count_code=false"
        )
    if files:
        context.reporter.message(f"{target - sum(files.values()):,} bytes of the target are the model's, {reserved}")
    return files


def _calibrate(context: StageContext, source: Stage, paths: Sequence[Path], apart: bool) -> CalibratedModel:
    """The model and its statistics. apart: `paths` are not its training text, so they contain no held-out slice."""
    model = models.load_model(source, context.runtime)
    stream = TokenStream.open(paths) if paths else None
    length = context.config.quantize.sequence or (_training_length(context, source) if paths else 0)
    if stream is not None:
        paths_by_rule(model, context.runtime, Shape(8, length, True, context.runtime.threads), scoring=True)
    if stream is not None and not apart:
        stream = stream.view(0, len(stream) - models.held_out(source))
    made = None if apart else _made_inside_clock(context, source, length)
    return pipeline.calibrate(model, context.config, stream, length, context.runtime, context.reporter, made)


def _made_inside_clock(
    context: StageContext, source: Stage, length: int
) -> tuple[Mapping[str, Calibration], int] | None:
    """The statistics that training collected of these weights inside its clock, with the number of tokens; None where
    there are none, or only some of other weights or settings."""
    try:
        trained = source.ancestor("train")
    except PgolfError:
        return None
    if kinds.HESSIANS not in trained.manifest.outputs:
        return None
    statistics, found = hessian.load(trained.file(kinds.HESSIANS))
    expected = reserve.facts(context.config) | {
        "sequence": length,
        "weights": source.manifest.details_as(FinalizeDetails).get("chosen", "last"),
    }
    differing = [key for key, value in expected.items() if found.get(key) != value]
    if differing:
        key = differing[0]
        context.reporter.message(
            f"calibrating outside the training clock: the Hessians in {trained.path} are of {key} = {found.get(key)}, "
            f"not {expected[key]}"
        )
        return None
    settings = context.config.quantize
    if settings.distill_steps or (settings.target_bytes and settings.sensitivity_tokens):
        context.reporter.message(
            "calibrated inside the training clock; sensitivity and distillation still read train tokens outside it "
            "(quantize.sensitivity_tokens, quantize.distill_steps)"
        )
    return statistics, int(found["tokens"])


def _training_length(context: StageContext, source: Stage) -> int:
    """The model's training length; the configuration's where the train stage of an old checkpoint is gone."""
    try:
        return models.training_length(source)
    except PgolfError as error:
        length = context.config.train.seq_len
        context.reporter.message(f"{error}; calibrating on sequences of {length} tokens (quantize.sequence)")
        return length


def _calibration_source(
    source: Stage, given: Path | None, required: bool
) -> tuple[dict[str, Stage | Path], Sequence[Path]]:
    """The stage's extra inputs, and the shards to calibrate on; none where none are needed and none can be found."""
    if given is not None:
        if (given / stage_directory.manifests.FILE_NAME).is_file():
            tokens = stage_directory.open_stage(given, ("tokenize",))
            return {"tokens": tokens}, train_shards(tokens)
        shards = [path for path in sorted(given.glob("*.bin")) if f"{kinds.VAL_BYTES}_" not in path.name]
        paths = [given] if given.is_file() else [path for path in shards if "train" in path.name] or shards
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
    """One line per role, errors as means over its weights; the manifest holds one per matrix."""
    lines = []
    for role in dict.fromkeys(row.role for row in rows):
        mine = [row for row in rows if row.role == role]
        weights = np.array([row.weights for row in mine], dtype=np.float64)
        measures = np.array(
            [[row.bits, row.relative_error, row.output_error] for row in mine],
            dtype=np.float64,  # None: NaN
        )
        bits, relative, output = weights @ measures / weights.sum()
        lines.append((role, str(len(mine)), f"{weights.sum():,.0f}", f"{bits:.3f}", f"{relative:.4f}", f"{output:.4f}"))
    total = sum(row.weights for row in rows)
    bits = sum(row.bits * row.weights for row in rows) / max(total, 1)
    method = context.config.quantize.method
    context.reporter.result(f"quantized by {method}: {total:,} weights in {len(rows)} matrices at {bits:.2f} bits each")
    columns = ("role", "matrices", "weights", "bits", "relative error", "output error")
    context.reporter.table("quantized", columns, lines, detail=True)
