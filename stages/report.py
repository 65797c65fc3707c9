"""The progress-reporting interface, from its place in the library."""

from pgolf.progress import Progress, Reporter, Silent

__all__ = ["Progress", "Reporter", "Silent"]
