"""Settings of the package and its byte budget."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PackageConfig:
    cap_bytes: int = 16_000_000
    """Code and model together, decimal (the challenge's cap)."""
