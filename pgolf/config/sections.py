"""The whole configuration; each section is defined in a module of this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pgolf.config.average import AverageConfig
from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.optim import OptimConfig
from pgolf.config.package import PackageConfig
from pgolf.config.quantize import QuantizeConfig
from pgolf.config.tokenizer import TokenizerConfig
from pgolf.config.train import TrainConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError

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
]


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Each section's `__post_init__` rejects invalid values."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    ttt: TttConfig = field(default_factory=TttConfig)
    package: PackageConfig = field(default_factory=PackageConfig)
    seed: int = 0
    """Seed of every random number in the run: initial weights, data order, calibration sample."""

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> "Config":
        """Settings that were checked when they were recorded, by section; those not named have their defaults."""
        made = cls()
        sections = {
            name: replace(getattr(made, name), **{key: _frozen(value) for key, value in section.items()})
            for name, section in values.items()
            if isinstance(section, Mapping)
        }
        return cls(**{**values, **sections})

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise PgolfError(f"seed is {self.seed}; it must lie between 0 and {2**63 - 1}")


def _frozen(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
