"""Settings of the weight quantizer; `pgolf.quant.methods` holds the table of methods and checks a method's settings."""

import itertools
from dataclasses import dataclass, field

from pgolf.errors import PgolfError


@dataclass(frozen=True)
class QuantizeConfig:
    method: str = "trellis"
    """`rtn` (nearest, scaled to each row's maximum), `sdclip` (nearest, clipped), `gptq` (error feedback, one step per
    row), `waterfill` (steps per column and row from what the loss feels), `trellis` (those and dependent levels)."""
    bits: dict[str, float] = field(default_factory=dict)
    """Per role of matrix (`attn`, `mlp`, `embed`). `rtn`, `sdclip`, `gptq`: width of the integers, 6 and 8 for the
    embedding where not named. `waterfill`, `trellis`: coded bits per weight, 3.5 and 4.5; `target_bytes` overrules."""
    clip_sigmas: float = 0.0
    """Clip of `sdclip` and step of `gptq`: the largest integer stands at so many standard deviations of the row. 0: 2.5
    for `sdclip` (the seed's), 12.85 and 20 on the embedding for `gptq` (the records'); `gptq` clips nothing."""
    target_bytes: int = 0
    """Choose the steps of all matrices so that what the package counts (the model, and the script and the tokenizer
    where `package.count_code` and `package.count_tokenizer` say so) takes at most so many bytes; 0: no target."""
    calibration_tokens: int = 131_072
    """Train tokens that the Hessians are collected on."""
    sequence: int = 0
    """Tokens of one calibration sequence; 0: the training length."""
    damping: float = 0.001
    """Added to the diagonal of every Hessian, as a share of its mean."""
    resolution: int = 4
    """Steps of the scale grid per octave (`waterfill`, `trellis`): a quarter octave costs 0.004 bit per weight."""
    trellis_states: int = 8
    """4 or 8: more states round a little better and take longer to search."""
    rate_weight: float = 1.0
    """Weight of a symbol's bits in rounding, 1 being the slope of rate against distortion; 0: nearest level."""
    fisher: bool = True
    """Weight tokens and output rows by the model's own gradients; off: plain input covariances, no backward pass."""
    sensitivity_tokens: int = 16_384
    """Train tokens, apart from those of the calibration, on which every matrix's share of the target is measured; 0:
    trust the Fisher weights."""
    distill_steps: int = 0
    """Steps of training what is still floating point toward the unquantized model (`waterfill`, `trellis`); 0: off."""
    distill_shares: tuple[float, ...] = (0.5, 0.75, 0.9)
    """Shares of every matrix's columns that are rounded before one part of those steps each, all being rounded before
    the last part. None: all columns are rounded at once, and only gains and norms are trained."""
    distill_tokens: int = 2048
    """Train tokens of one such step: many small steps go further in the same time than few large ones."""
    distill_lr: float = 0.002
    """Learning rate of those steps (Adam; Muon takes twice it), falling to 0."""

    def __post_init__(self) -> None:
        for role, bits in self.bits.items():
            if not 1.0 <= bits <= 16.0:
                raise PgolfError(f"quantize.bits.{role} is {bits:g}; it must lie between 1 and 16")
        for name in ("clip_sigmas", "target_bytes", "sequence", "rate_weight", "sensitivity_tokens", "distill_steps"):
            if getattr(self, name) < 0:
                raise PgolfError(f"quantize.{name} is {getattr(self, name)}; it must not be negative")
        for name in ("calibration_tokens", "distill_tokens"):
            if getattr(self, name) < 1:
                raise PgolfError(f"quantize.{name} is {getattr(self, name)}; it must be at least 1")
        shares = (0.0, *self.distill_shares, 1.0)
        if any(later <= earlier for earlier, later in itertools.pairwise(shares)):
            raise PgolfError(
                f"quantize.distill_shares is {list(self.distill_shares)}; give rising numbers between 0 and 1"
            )
        if self.damping <= 0:
            raise PgolfError(f"quantize.damping is {self.damping:g}; it must be above 0")
        if not 1 <= self.resolution <= 1024:
            raise PgolfError(f"quantize.resolution is {self.resolution}; it must lie between 1 and 1024")
        if self.trellis_states not in (4, 8):
            raise PgolfError(f"quantize.trellis_states is {self.trellis_states}; choose 4 or 8")
