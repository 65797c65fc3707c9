"""Text from a model, token by token."""

from pgolf.generate.sampling import Sampling, generate

__all__ = ["Sampling", "generate"]
