"""Methods that round every matrix by itself: nearest levels, and GPTQ. Packages without them leave it out."""

from collections.abc import Callable
from dataclasses import dataclass

from pgolf.config.quantize import QuantizeConfig
from pgolf.errors import PgolfError
from pgolf.quant import gptq as feedback
from pgolf.quant import rtn as nearest
from pgolf.quant.calibrated_model import CalibratedModel, Quantizer, Rounded
from pgolf.quant.grid import Floats
from pgolf.quant.hessian import Calibration
from pgolf.quantized.tensors import QuantizedTensor


def check(settings: QuantizeConfig, choosing: str) -> None:
    """Raises PgolfError for settings that only other methods, named in `choosing`, can follow."""
    for role, bits in settings.bits.items():
        if bits != int(bits) or bits < 2:
            raise PgolfError(
                f"quantize.bits.{role} is {bits:g}; method {settings.method} needs a whole number from 2 to 16"
            )
    for key in ("target_bytes", "distill_steps"):
        if getattr(settings, key):
            raise PgolfError(f"quantize.{key} with quantize.method {settings.method}: only {choosing} can use it")


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix and the settings that apply to it."""

    weight: Floats  # (rows, columns)
    role: str
    bits: float
    sigmas: float  # `quantize.clip_sigmas`; 0: the method's own
    damping: float
    calibration: Calibration | None  # None without tokens; there for every method that needs Hessians


def each_matrix(function: Callable[[Matrix], QuantizedTensor]) -> Quantizer:
    """The method that rounds every matrix by itself, with steps that the settings fix."""

    def quantize(source: CalibratedModel, target_bytes: int) -> Rounded:
        settings, matrices = source.config.quantize, {}
        with source.reporter.progress("quantize", total=len(source.roles)) as bar:
            for name, role in source.roles.items():
                weight, found = source.weights[name].double().numpy(), source.calibration.get(name)
                matrices[name] = function(
                    Matrix(weight, role, source.bits[role], settings.clip_sigmas, settings.damping, found)
                )
                bar.update(len(matrices))
        return Rounded(matrices, source.controls)

    return quantize


@each_matrix
def rtn(matrix: Matrix) -> QuantizedTensor:
    return nearest.quantize(matrix.weight, matrix.role, int(matrix.bits), None)


@each_matrix
def sdclip(matrix: Matrix) -> QuantizedTensor:
    return nearest.quantize(matrix.weight, matrix.role, int(matrix.bits), matrix.sigmas or 2.5)  # the seed's clip


@each_matrix
def gptq(matrix: Matrix) -> QuantizedTensor:
    assert matrix.calibration is not None, "gptq needs Hessians"
    curvature = matrix.calibration.curvature
    sigmas = matrix.sigmas or (20.0 if matrix.role == "embed" else 12.85)  # record 2026-04-05's
    return feedback.quantize(matrix.weight, curvature, matrix.role, int(matrix.bits), sigmas, matrix.damping)
