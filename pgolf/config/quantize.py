"""Settings of the weight quantizer."""

from dataclasses import dataclass, field

from pgolf.errors import PgolfError

_BITS = {"attn": 6.0, "mlp": 6.0, "embed": 8.0}  # the records'
METHODS = ("rtn", "sdclip", "gptq", "waterfill", "trellis")
NEEDS_HESSIANS = ("gptq", "waterfill", "trellis")
_CLIP_SIGMAS = {"sdclip": {"default": 2.5}, "gptq": {"default": 12.85, "embed": 20.0}}  # the seed's; record 1.0856's


@dataclass(frozen=True)
class QuantizeConfig:
    method: str = "gptq"
    """`rtn` (nearest, scaled to each row's maximum), `sdclip` (nearest, clipped), `gptq` (error feedback, one step per
    row), `waterfill` (steps per column and row from what the loss feels), `trellis` (those and dependent levels)."""
    bits: dict[str, float] = field(default_factory=lambda: dict(_BITS))
    """Per role of matrix. `rtn`, `sdclip`, `gptq`: width of the integers. `waterfill`, `trellis`: coded bits per weight
    aimed at, where no `target_bytes` decides."""
    clip_sigmas: float = 0.0
    """Clip of `sdclip` and step of `gptq`: the largest integer stands at so many standard deviations of the row. 0: 2.5
    for `sdclip` (the seed's), 12.85 and 20 on the embedding for `gptq` (the records'); `gptq` clips nothing."""
    target_bytes: int = 0
    """Choose the steps of all matrices so that the packaged model takes at most so many bytes; 0: no target."""
    calibration_tokens: int = 131_072
    """Train tokens that the Hessians are collected on."""
    sequence: int = 0
    """Tokens of one calibration sequence; 0: the training length."""
    damping: float = 0.001
    """Added to the diagonal of every Hessian, as a share of its mean."""
    resolution: int = 8
    """Steps of the scale grid per octave (`waterfill`, `trellis`); ⅛ octave costs 0.001 bit per weight."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PgolfError(f"quantize.method is {self.method!r}; choose {', '.join(METHODS)}")
        for role, bits in self.bits.items():
            if not 1.0 <= bits <= 16.0:
                raise PgolfError(f"quantize.bits.{role} is {bits:g}; it must lie between 1 and 16")
            if self.method in _INTEGER and (bits != int(bits) or bits < 2):
                raise PgolfError(f"quantize.bits.{role} is {bits:g}; {self.method} wants a whole number from 2 to 16")
        for name in ("clip_sigmas", "target_bytes", "sequence"):
            if getattr(self, name) < 0:
                raise PgolfError(f"quantize.{name} is {getattr(self, name)}; it must not be negative")
        if self.calibration_tokens < 1:
            raise PgolfError(f"quantize.calibration_tokens is {self.calibration_tokens}; it must be at least 1")
        if self.damping <= 0:
            raise PgolfError(f"quantize.damping is {self.damping:g}; it must be above 0")
        if not 1 <= self.resolution <= 1024:
            raise PgolfError(f"quantize.resolution is {self.resolution}; it must lie between 1 and 1024")
        if self.target_bytes and self.method in _INTEGER[:2]:
            raise PgolfError(
                f"quantize.target_bytes with method {self.method}: only gptq, waterfill and trellis can choose steps"
            )

    def role_bits(self, role: str) -> float:
        """Bits of a role; one that is not named takes the records' (6, the embedding 8)."""
        return self.bits.get(role, _BITS.get(role, 6.0))

    def role_sigmas(self, role: str) -> float:
        """Clip in standard deviations of a role, with the method's own where none is set."""
        own = _CLIP_SIGMAS.get(self.method, _CLIP_SIGMAS["gptq"])
        return self.clip_sigmas or own.get(role, own["default"])


_INTEGER = ("rtn", "sdclip", "gptq")
