"""A checkpoint from another program as a stage directory, so that it can be quantized, scored and packaged.

The result stands where `ema-finalize` would: float weights, final. Its manifest says which file they came from.
"""

import dataclasses
from pathlib import Path

import torch

from pgolf.errors import PgolfError
from pgolf.model import challenge_checkpoint
from pgolf.model.gpt import GPT
from pgolf.saved.tokens import with_bos
from pgolf.store import kinds
from pgolf.store.records import FinalizeDetails, FinalizeMetrics, TokenizeDetails
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.train import save_weights


def import_checkpoint(context: StageContext, file: Path, tokens: Stage | None = None) -> Stage:
    """Write an `ema-finalize` stage with the weights of a state dict that has the challenge's names.

    tokens: the tokenize stage whose tokenizer the weights were trained with; quantizing by Hessians, scoring and
        packaging need it. Sizes are read off the tensors; what shapes do not tell (loops, slopes, rotary dimensions,
        `train.seq_len`) is taken from the configuration.

    Raises PgolfError for a file that is no such checkpoint, or does not fit.
    """
    if not file.is_file():
        raise PgolfError(f"no such file: {file}")
    weights, kind = challenge_checkpoint.read_state_dict(file)
    model = challenge_checkpoint.model_config(weights, context.config.model)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in GPT(model).state_dict().items()}
    _check({name: tuple(tensor.shape) for name, tensor in weights.items()}, expected, file)
    if tokens is not None:
        pieces = tokens.manifest.details_as(TokenizeDetails)["vocab_size"]
        if pieces > model.vocab_size:
            raise PgolfError(
                f"{file} was trained with {model.vocab_size} pieces, but the tokenizer of {tokens.path} has {pieces}"
            )
    context = context.replace(config=dataclasses.replace(context.config, model=model))
    if tokens is not None:
        context = context.replace(config=with_bos(context.config, tokens))
    inputs: dict[str, Stage | Path] = {"checkpoint": file} if tokens is None else {"checkpoint": file, "tokens": tokens}
    with context.build("ema-finalize", inputs=inputs, sections=("model", "train")) as build:
        if build.existing is None:
            save_weights(build.writer.path(kinds.WEIGHTS), weights)
            build.metrics |= FinalizeMetrics(parameters=sum(tensor.numel() for tensor in weights.values()))
            build.details |= FinalizeDetails(imported_from=file.name, imported_format=kind)
            context.reporter.message(
                f"{file.name} ({kind}): {model.num_layers} layers of {model.dim}, {model.num_heads}/"
                f"{model.num_kv_heads} heads, {build.metrics['parameters']:,} weights"
            )
    return build.stage


def _check(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], file: Path) -> None:
    if missing := sorted(set(expected) - set(found)):
        raise PgolfError(f"{file} lacks {missing[0]} and {len(missing) - 1} more: set the model it was trained with")
    if unknown := sorted(set(found) - set(expected)):
        raise PgolfError(f"{file} holds an unexpected tensor {unknown[0]}: set the model it was trained with")
    for name, shape in expected.items():
        if found[name] != shape:
            raise PgolfError(f"{file}: {name} is {found[name]}, expected shape {shape}")
