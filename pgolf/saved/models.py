"""The model of any stage that holds one, ready to run."""

from dataclasses import replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pgolf import config as configs
from pgolf.config import Config, EvaluateConfig, ModelConfig
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.quantized.tensors import QuantizedModel
from pgolf.runtime import Runtime
from pgolf.store import kinds
from pgolf.store.records import TrainDetails
from pgolf.store.stage_directory import Stage

FLOAT_KINDS = kinds.FLOATS
"""Kinds of stage that hold float weights, the finished one first."""
WEIGHTS, QUANTIZED, PACKED = kinds.WEIGHTS, kinds.QUANTIZED, kinds.PACKED


def model_config(stage: Stage) -> ModelConfig:
    """The configuration of the model in a stage, as its manifest has it."""
    return recorded_config(stage).model


def recorded_config(stage: Stage) -> Config:
    """The configuration that a stage was made with."""
    return configs.recorded(stage.manifest.config)


def training_length(stage: Stage) -> int:
    """Training sequence length of the model in a stage: from its `train` stage, from its import, or from the package's
    own settings for a package without its run.

    Raises PgolfError when none is in the lineage.
    """
    try:
        trained = stage.ancestor("train")
    except PgolfError:
        if stage.manifest.stage == "package":
            return recorded_config(stage).train.seq_len
        trained = stage.ancestor("ema-finalize")
        if "imported_from" not in trained.manifest.details:
            raise
    return int(trained.manifest.config["train"]["seq_len"])


def evaluate_settings(settings: EvaluateConfig, stage: Stage) -> EvaluateConfig:
    """The settings with the training length of the stage's model where `seq_len` is 0."""
    seq_len = settings.seq_len or training_length(stage)
    return replace(settings, seq_len=seq_len, stride=min(settings.stride, seq_len))


def held_out(stage: Stage) -> int:
    """Tokens at the end of the train stream that training left alone, for choices to be made on; 0 for an import."""
    try:
        return int(stage.ancestor("train").manifest.details_as(TrainDetails)["holdout_tokens"])
    except (PgolfError, KeyError):
        return 0


def load_quantized(stage: Stage) -> QuantizedModel:
    """The integers of a `quantize` or `package` stage."""
    if stage.manifest.stage == "package":
        from pgolf.codec import container

        return container.decode(stage.file(PACKED).read_bytes())
    from pgolf.quantized import storage

    return storage.load(stage.file(QUANTIZED))


def load_weights(stage: Stage) -> dict[str, torch.Tensor]:
    """Float32 tensors by parameter name, on the CPU. Raises PgolfError for a stage that holds no model."""
    kind = stage.manifest.stage
    if kind in ("quantize", "package"):
        return load_quantized(stage).state_dict()
    if kind not in FLOAT_KINDS:
        raise PgolfError(f"{stage.path} is a {kind} stage and holds no model")
    path = stage.file(WEIGHTS)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise PgolfError(f"{path} is not a safetensors file, or it is damaged ({error}); rerun {kind}") from error


def load_model(stage: Stage, runtime: Runtime) -> GPT:
    """The model of a train, ema-finalize, quantize or package stage, in evaluation mode on the runtime's device.

    Raises PgolfError when the stage holds no model, or one that does not fit its own configuration.
    """
    weights = load_weights(stage)
    with torch.random.fork_rng(devices=[]):  # the initial weights are thrown away: leave the caller's numbers alone
        model = GPT(model_config(stage))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise PgolfError(f"the weights in {stage.path} do not fit its model configuration: {reason}") from error
    model.compute_dtype = runtime.dtype
    return model.to(runtime.device).eval()
