"""Checkpoints of other programs: float state dicts of the challenge's scripts, and their quantized files.

`read` opens a file: `containers` unpacks it, the row of FORMATS that recognises what is inside makes float tensors of
it, `names` gives them the names of pgolf's model. `Checkpoint.fit` finds the configuration they belong to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pgolf.config import ModelConfig
from pgolf.errors import PgolfError
from pgolf.interop import baseline_integers, containers, names, psionic, record_integers, settings
from pgolf.interop.settings import VALUES, untold

__all__ = ["FORMATS", "VALUES", "Checkpoint", "Format", "read", "untold"]


@dataclass(frozen=True)
class Format:
    """The contents of a checkpoint's file."""

    name: str
    recognises: Callable[[Any, Mapping[str, str]], bool]
    """Looks at the object in the file and its metadata."""
    read: Callable[[Any, Mapping[str, str]], Mapping[str, Tensor]]
    """Parameters by the script's names; any exception is a damaged file."""
    assumption: Callable[[Any], str] = lambda found: ""
    """What is assumed of the format, from the object in the file; empty: nothing."""


def _float_weights(found: Any, metadata: Mapping[str, str]) -> Mapping[str, Tensor]:
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError("is not a state dict (expected a mapping of names to tensors)")
    return found


FORMATS = (
    Format(
        "the baseline's integers", baseline_integers.recognises, baseline_integers.read, baseline_integers.assumption
    ),
    Format("the records' integers", record_integers.recognises, record_integers.read),
    Format("psionic's integers", psionic.recognises, psionic.read),
    Format("float weights", lambda found, metadata: True, _float_weights),
)


@dataclass(frozen=True)
class Checkpoint:
    """float32 weights under pgolf's names."""

    path: Path
    kind: str
    """The packings and the format, such as `brotli, byte shuffle, torch: the records' integers`."""
    weights: dict[str, Tensor]
    told: dict[str, Any]
    """The fields of ModelConfig that follow from the shapes of the weights."""
    assumption: str = ""
    """What had to be assumed of the format; empty: nothing."""

    def composable(self) -> dict[str, Any]:
        """`told` without the settings that need others (two lanes need the first layer that they run in)."""
        return {name: value for name, value in self.told.items() if (name, value) != ("parallel_lanes", 2)}

    def fit(self, base: ModelConfig) -> tuple[ModelConfig, dict[str, Tensor]]:
        """The configuration of the model, from `base` where the weights do not determine it, and its weights. Raises
        PgolfError."""
        try:
            return settings.fit(self.weights, self.told, base)
        except PgolfError as error:
            raise PgolfError(f"{self.path}: {error}") from error


def read(path: Path) -> Checkpoint:
    """Raises PgolfError for a damaged file, or a checkpoint that pgolf's model cannot hold."""
    if not path.is_file():
        raise PgolfError(f"{path} does not exist")
    found, metadata, packings = containers.unpack(path)
    form = next(row for row in FORMATS if row.recognises(found, metadata))
    try:
        weights = form.read(found, metadata)
        if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise ValueError("one of the weights is not a tensor")
    except Exception as error:  # a damaged file has a class per kind of damage
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise PgolfError(f"{path} ({form.name}) cannot be read: {reason.splitlines()[0]}") from error
    ours = names.as_ours(weights, path)
    try:
        told = settings.sizes(ours)
    except PgolfError as error:
        raise PgolfError(f"{path}: {error}") from error
    return Checkpoint(path, f"{', '.join(packings)}: {form.name}", ours, told, form.assumption(found))
