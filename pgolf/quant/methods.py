"""The table of quantization methods.

A new method is a module with a function from a `CalibratedModel` to a `Rounded`, and one row here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pgolf.config.quantize import QuantizeConfig
from pgolf.errors import PgolfError
from pgolf.quant import single_matrix, step_search
from pgolf.quant.calibrated_model import Quantizer


@dataclass(frozen=True)
class Method:
    quantize: Quantizer
    bits: Mapping[str, float]
    """Default of `quantize.bits` by role, "" for every role that is not named: width of the integers, or coded bits per
    weight of a method that chooses its steps."""
    needs_hessians: bool = False
    chooses_steps: bool = False
    """True if the method can meet a byte target and distill between rounding steps."""

    def role_bits(self, settings: QuantizeConfig, role: str) -> float:
        return settings.bits.get(role, self.bits.get(role, self.bits[""]))


_WIDTHS = {"embed": 8.0, "": 6.0}  # the records'
_CODED = {"embed": 4.5, "": 3.5}  # near the coded size of the records' integers

METHODS = {
    "rtn": Method(single_matrix.rtn, _WIDTHS),
    "sdclip": Method(single_matrix.sdclip, _WIDTHS),
    "gptq": Method(single_matrix.gptq, _WIDTHS, needs_hessians=True),
    "waterfill": Method(step_search.waterfill, _CODED, needs_hessians=True, chooses_steps=True),
    "trellis": Method(step_search.trellis, _CODED, needs_hessians=True, chooses_steps=True),
}


def of(settings: QuantizeConfig) -> Method:
    """The configured method. Raises PgolfError for an unknown one, or settings that it cannot follow."""
    name = settings.method
    if name not in METHODS:
        raise PgolfError(f"quantize.method is {name!r}; choose {', '.join(METHODS)}")
    method = METHODS[name]
    if not method.chooses_steps:
        single_matrix.check(settings, " and ".join(key for key, row in METHODS.items() if row.chooses_steps))
    return method
