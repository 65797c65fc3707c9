"""Settings of the weight quantizer; `pgolf.quant.methods` holds the table of methods and checks a method's settings."""

import itertools
from dataclasses import dataclass, field

from pgolf.errors import PgolfError


@dataclass(frozen=True)
class QuantizeConfig:
    method: str = "trellis"
    """`rtn` (nearest, scaled to each row's maximum), `sdclip` (nearest, clipped), `gptq` (error feedback, one step per
    row), `waterfill` (reverse water-filling: steps per column and row from Hessians), `trellis` (adds dependent
    levels)."""
    bits: dict[str, float] = field(default_factory=dict)
    """Per role of matrix (`attn`, `mlp`, `embed`). `rtn`, `sdclip`, `gptq`: width of the integers, 6 and 8 for the
    embedding where not named. `waterfill`, `trellis`: coded bits per weight, 3.5 and 4.5; `target_bytes` overrules."""
    clip_sigmas: float = 0.0
    """Clip of `sdclip` and step of `gptq`: the largest integer is at this many standard deviations of the row. 0: 2.5
    for `sdclip` (the seed's), 12.85 and 20 on the embedding for `gptq` (the records'); `gptq` clips nothing."""
    target_bytes: int = 0
    """Byte target of the package: the model, with the script and the tokenizer where `package.count_code` and
    `package.count_tokenizer` are set. The steps of all matrices are chosen to meet it; 0: no target."""
    calibration_tokens: int = 131_072
    """Number of train tokens from which the Hessians are collected."""
    sequence: int = 0
    """Tokens of one calibration sequence; 0: the training length."""
    damping: float = 0.001
    """Added to the diagonal of every Hessian, as a share of its mean."""
    resolution: int = 4
    """Steps of the scale grid per octave (`waterfill`, `trellis`): a quarter octave costs 0.004 bit per weight."""
    trellis_states: int = 8
    """4, 8, 16, 32 or 64: more states round a little better and take longer to search."""
    rate_weight: float = 1.0
    """Weight of a symbol's bits in rounding, 1 being the slope of rate against distortion; 0: nearest level. Bits that
    cost something shrink weights. A model trained on half a token a weight lost less BPB with 0.15 to 0.3, at 4 bits
    more so than at 2.6; on `mini`, at 2.6 bits, 1 is better (benchmarks/results/quantization.md)."""
    fisher: bool = True
    """Weight tokens and output rows by the model's own gradients; off: plain input covariances, no backward pass."""
    sensitivity_tokens: int = 16_384
    """Train tokens, apart from those of the calibration, on which every matrix's share of the target is measured; 0:
    trust the Fisher weights."""
    round_controls: bool = False
    """Also round control tensors (gains, gates, taps) of 16 values or more, onto steps of their own (`waterfill`,
    `trellis`); off: they are stored in 16 bits a value, which small models notice."""
    distill_steps: int = 0
    """Distillation steps that train the remaining float weights toward the original model (`waterfill`, `trellis`); 0:
    off. 400,000 weights gain little beyond 400 steps, 3.5 million still gained from 1,200."""
    distill_shares: tuple[float, ...] = (0.5, 0.75, 0.9, 0.97)
    """Progressive rounding: share of each matrix's columns that is rounded before each part of the distillation steps;
    the rest is rounded before a last part of 4%. Empty: round all columns at once, then train gains and norms only."""
    distill_tokens: int = 2048
    """Train tokens of one distillation step; many small steps gain more in the same time than a few large ones."""
    seconds: float = 0.0
    """Wall seconds that calibration and rounding should take together at most: distillation makes as many of its steps
    as fit, and the manifest says how many (`distill_steps`). Without distillation it has no effect. 0: all of them,
    so that the result depends on nothing but its inputs."""
    distill_lr: float = 0.0
    """Learning rate of the distillation (Adam; Muon uses twice this), decaying to 0. 0: in proportion to the steps of
    the quantizer."""

    def __post_init__(self) -> None:
        for role, bits in self.bits.items():
            if not 1.0 <= bits <= 16.0:
                raise PgolfError(f"quantize.bits.{role} is {bits:g}; it must lie between 1 and 16")
        never_negative = "clip_sigmas", "target_bytes", "sequence", "rate_weight", "sensitivity_tokens", "distill_steps"
        for name in (*never_negative, "distill_lr", "seconds"):
            if getattr(self, name) < 0:
                raise PgolfError(f"quantize.{name} is {getattr(self, name):g}; it must not be negative")
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
        if self.trellis_states not in (4, 8, 16, 32, 64):
            raise PgolfError(f"quantize.trellis_states is {self.trellis_states}; choose 4, 8, 16, 32 or 64")
