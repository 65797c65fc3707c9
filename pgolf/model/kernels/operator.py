"""A kernel in C as torch calls it, with its gradients.

torch.compile needs an operator of torch.library. Outside of it, calling one and its gradient costs 60 microseconds more
than a `torch.autograd.Function` around the same Python functions does; a step of the record's shape has some fifty.
"""

from collections.abc import Callable
from typing import Any

import torch


class Operator:
    """An operator under torch.compile, a Function elsewhere."""

    def __init__(self, name: str, forward: Callable[..., Any]) -> None:
        self._forward = self._direct = forward
        self._registered = torch.library.custom_op(name, forward, mutates_args=())
        self.register_fake = self._registered.register_fake

    def __call__(self, *given: Any) -> Any:
        return self._registered(*given) if torch.compiler.is_compiling() else self._direct(*given)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As the operator's own."""
        self._registered.register_autograd(backward, setup_context=setup_context)

        def forward(ctx: Any, *given: Any) -> Any:  # with a setup_context of its own a Function binds names, for 20 us
            result = self._forward(*given)
            setup_context(ctx, given, result)
            return result

        parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        made: type[torch.autograd.Function] = type(self._forward.__name__, (torch.autograd.Function,), parts)
        self._direct = made.apply


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make an `Operator` of that name of a function whose annotations are its schema."""
    return lambda forward: Operator(name, forward)
