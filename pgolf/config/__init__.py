"""Typed configuration: one frozen dataclass per section, presets as TOML files that only pick values.

`load(preset, file, assignments)` composes them in that order; an unknown key is an error that names the nearest
known one.
"""

from pgolf.config.compose import composed, from_dict, load, preset_names, recorded, to_dict
from pgolf.config.effects import settings_of
from pgolf.config.sections import (
    AverageConfig,
    Config,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    PackageConfig,
    QuantizeConfig,
    TokenizerConfig,
    TrainConfig,
    TttConfig,
)

__all__ = [
    "AverageConfig",
    "Config",
    "EvaluateConfig",
    "ModelConfig",
    "OptimConfig",
    "PackageConfig",
    "QuantizeConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TttConfig",
    "composed",
    "from_dict",
    "load",
    "preset_names",
    "recorded",
    "settings_of",
    "to_dict",
]
