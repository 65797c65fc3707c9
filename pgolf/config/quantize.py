"""Settings of the weight quantizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizeConfig:
    method: str = "gptq"
    """`rtn`, `sdclip` or `gptq`."""
