"""The `quantize` stage: a float model to integers on a grid, as `quantized.safetensors`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pgolf import config as configs
from pgolf import store
from pgolf.config.quantize import NEEDS_HESSIANS
from pgolf.errors import PgolfError
from pgolf.quant import file, hessian, methods, sample
from pgolf.quant.hessian import Calibration
from pgolf.quant.methods import TensorReport
from pgolf.shards import TokenStream
from pgolf.store import Stage
from stages import models
from stages.context import StageContext

INPUT_KINDS = ("ema-finalize", "train")


def quantize(context: StageContext, source: Stage, calibration: Path | None = None) -> Stage:
    """Quantize the model of a train or ema-finalize stage with `config.quantize`.

    calibration: a tokenize stage, a folder of shards or one shard, in place of the train tokens that `source` was
    made from: an old checkpoint needs nothing else.
    """
    context = models.inherit_model(context, source)
    settings = context.config.quantize
    inputs, paths = _calibration_source(source, calibration, required=settings.method in NEEDS_HESSIANS)
    with context.build("quantize", inputs={"model": source, **inputs}, sections=("model", "quantize")) as build:
        if build.existing is None:
            model = models.load_model(source, context.runtime)
            weights = {name: tensor.float().cpu() for name, tensor in model.state_dict().items()}
            statistics: dict[str, Calibration] = {}
            if paths:
                length = settings.sequence or int(source.manifest.config["train"]["seq_len"])
                tokens = sample.batches(
                    TokenStream.open(paths),
                    settings.calibration_tokens,
                    length,
                    choosing=False,
                    seed=context.config.seed,
                )
                total = sum(batch.numel() for batch in tokens)
                with context.reporter.progress("calibrate", total=total) as bar:
                    statistics = hessian.calibrate(
                        model,
                        [batch.to(context.runtime.device) for batch in tokens],
                        gradients=False,
                        seed=context.config.seed,
                        on_progress=bar.update,
                    )
                build.details["calibration_tokens"] = total
            else:
                context.reporter.message("no calibration tokens in reach: output errors are not measured")
            roles = model.matrix_roles()
            header = {"model": configs.to_dict(context.config)["model"]}
            with context.reporter.progress("quantize", total=sum(weights[name].numel() for name in roles)) as bar:
                quantized = methods.quantize_weights(weights, roles, settings, statistics, header, bar.update)
            file.save(build.writer.path(models.QUANTIZED), quantized)
            rows = methods.report(weights, quantized, statistics)
            build.details["tensors"] = [dataclasses.asdict(row) for row in rows]
            build.metrics |= {"parameters": sum(tensor.numel() for tensor in weights.values())}
            _show(context, rows)
    return build.stage


def _calibration_source(
    source: Stage, given: Path | None, required: bool
) -> tuple[dict[str, Stage | Path], Sequence[Path]]:
    """The stage's extra inputs, and the shards to calibrate on; none where none are needed and none can be found."""
    if given is not None:
        if (given / store.manifests.FILE_NAME).is_file():
            tokens = store.open_stage(given, ("tokenize",))
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
    paths = tokens.files("fineweb_train_")
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
