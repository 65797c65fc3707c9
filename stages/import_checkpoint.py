"""A checkpoint from another program as a stage directory, so that it can be quantized, scored and packaged.

The result is an `ema-finalize` stage: final float weights. Its manifest names the file they came from and the settings
that were assumed.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from pgolf import interop
from pgolf.errors import PgolfError
from pgolf.saved.tokens import with_bos
from pgolf.store import kinds
from pgolf.store.records import FinalizeDetails, FinalizeMetrics, TokenizeDetails
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.train import save_weights


def import_checkpoint(
    context: StageContext, checkpoint: interop.Checkpoint, tokens: Stage | None = None, given: Iterable[str] = ()
) -> Stage:
    """Write an `ema-finalize` stage with the weights of a checkpoint.

    tokens: the tokenize stage whose tokenizer the weights were trained with; quantizing by Hessians, scoring and
        packaging need it. Sizes are read from the tensors; settings that shapes do not determine (loops, slopes, rotary
        dimensions, `train.seq_len`) is taken from the configuration.
    given: names of the settings, such as `model.mlp_slope`, that the user chose; all other undetermined settings are
        recorded as assumptions.

    Raises PgolfError for a checkpoint that does not fit the configuration or the tokenizer.
    """
    file, given = checkpoint.path, set(given)
    model, weights = checkpoint.fit(context.config.model)
    if tokens is not None:
        pieces = tokens.manifest.details_as(TokenizeDetails)["vocab_size"]
        if pieces > model.vocab_size:
            raise PgolfError(
                f"{file} was trained with {model.vocab_size} pieces, but the tokenizer of {tokens.path} has {pieces}"
            )
    context = context.replace(config=dataclasses.replace(context.config, model=model))
    if tokens is not None:
        context = context.replace(config=with_bos(context.config, tokens))
    untold = {f"model.{name}": value for name, value in interop.untold(model).items()}
    assumed = {
        name: value
        for name, value in (untold | {"train.seq_len": context.config.train.seq_len}).items()
        if name not in given
    }
    if checkpoint.assumption:
        assumed["format"] = checkpoint.assumption
    inputs: dict[str, Stage | Path] = {"checkpoint": file} if tokens is None else {"checkpoint": file, "tokens": tokens}
    with context.build("ema-finalize", inputs=inputs, sections=("model", "train")) as build:
        if build.existing is None:
            save_weights(build.writer.path(kinds.WEIGHTS), weights)
            build.metrics |= FinalizeMetrics(parameters=sum(tensor.numel() for tensor in weights.values()))
            build.details |= FinalizeDetails(
                imported_from=file.name,
                imported_format=checkpoint.kind,
                imported_assumed=assumed,
            )
            context.reporter.message(
                f"{file.name} ({checkpoint.kind}): {model.num_layers} layers of {model.dim}, {model.num_heads}/"
                f"{model.num_kv_heads} heads, {build.metrics['parameters']:,} weights"
            )
            if assumed:
                values = ", ".join(
                    f"{(field := name.removeprefix('model.'))} {value}"
                    + (f" ({interop.VALUES[field]})" if field in interop.VALUES else "")
                    for name, value in assumed.items()
                )
                context.reporter.message(f"assumed: {values} (not in the tensors; --set or --preset change them)")
    return build.stage
