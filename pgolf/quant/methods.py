"""The table of quantization methods.

A new method is a module with a function from a `CalibratedModel` to a `Rounded`, and one row here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgolf.config.quantize import QuantizeConfig
from pgolf.errors import PgolfError
from pgolf.quant import gptq, rtn, step_search
from pgolf.quant.calibrated_model import Matrix, Quantizer, each_matrix
from pgolf.quantized.tensors import QuantizedTensor


@dataclass(frozen=True)
class Method:
    quantize: Quantizer
    bits: Mapping[str, float]
    """Default of `quantize.bits` by role, "" for every role that is not named: width of the integers, or coded bits per
    weight of a method that chooses its steps."""
    sigmas: Mapping[str, float] = field(default_factory=lambda: {"": 0.0})
    """Default of `quantize.clip_sigmas` by role."""
    needs_hessians: bool = False
    chooses_steps: bool = False
    """True if the method can meet a byte target and distill between rounding steps."""

    def role_bits(self, settings: QuantizeConfig, role: str) -> float:
        return settings.bits.get(role, self.bits.get(role, self.bits[""]))

    def role_sigmas(self, settings: QuantizeConfig, role: str) -> float:
        return settings.clip_sigmas or self.sigmas.get(role, self.sigmas[""])


def _rtn(matrix: Matrix) -> QuantizedTensor:
    return rtn.quantize(matrix.weight, matrix.role, int(matrix.bits), None)


def _sdclip(matrix: Matrix) -> QuantizedTensor:
    return rtn.quantize(matrix.weight, matrix.role, int(matrix.bits), matrix.sigmas)


def _gptq(matrix: Matrix) -> QuantizedTensor:
    assert matrix.calibration is not None, "gptq needs Hessians"
    curvature = matrix.calibration.curvature
    return gptq.quantize(matrix.weight, curvature, matrix.role, int(matrix.bits), matrix.sigmas, matrix.damping)


_WIDTHS = {"embed": 8.0, "": 6.0}  # the records'
_CODED = {"embed": 4.5, "": 3.5}  # near the coded size of the records' integers

METHODS = {
    "rtn": Method(each_matrix(_rtn), _WIDTHS),
    "sdclip": Method(each_matrix(_sdclip), _WIDTHS, {"": 2.5}),  # the seed's clip
    "gptq": Method(each_matrix(_gptq), _WIDTHS, {"embed": 20.0, "": 12.85}, needs_hessians=True),  # record 2026-04-05's
    "waterfill": Method(step_search.waterfill, _CODED, needs_hessians=True, chooses_steps=True),
    "trellis": Method(step_search.trellis, _CODED, needs_hessians=True, chooses_steps=True),
}


def of(settings: QuantizeConfig) -> Method:
    """The configured method. Raises PgolfError for an unknown one, or settings that it cannot follow."""
    name = settings.method
    if name not in METHODS:
        raise PgolfError(f"quantize.method is {name!r}; choose {', '.join(METHODS)}")
    method = METHODS[name]
    choosing = " and ".join(key for key, row in METHODS.items() if row.chooses_steps)
    if method.chooses_steps:
        return method
    for role, bits in settings.bits.items():
        if bits != int(bits) or bits < 2:
            raise PgolfError(f"quantize.bits.{role} is {bits:g}; method {name} needs a whole number from 2 to 16")
    for key in ("target_bytes", "distill_steps"):
        if getattr(settings, key):
            raise PgolfError(f"quantize.{key} with quantize.method {name}: only {choosing} can use it")
    return method
