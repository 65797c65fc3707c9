"""All parameters of a model in one flat buffer, and their gradients in another, with the tensors as views.

Elementwise work of an optimizer step (momentum, Adam, averages, the gradient's norm, the all-reduce) becomes a handful
of vector operations over contiguous spans instead of a loop over tensors, which on small models costs more than the
arithmetic. Matrices of one shape lie side by side, so that a stack of them is a view too, without any copying (the
records' parameter banks, but the modules keep their own named weights).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgolf.errors import PgolfError

GROUPS = ("matrix", "embed", "scalar")
_ALIGN = 16  # floats: every tensor begins at a cache line, as compiled kernels expect


@dataclass(frozen=True)
class Bank:
    """Matrices of one shape, one after the other in the flat buffer."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    offset: int
    padded: int  # floats from one matrix to the next

    def view(self, flat: Tensor) -> Tensor:
        """The matrices as one tensor (k, rows, columns) that shares memory with `flat`."""
        return flat.as_strided((len(self.names), *self.shape), (self.padded, self.shape[1], 1), self.offset)


class FlatParameters:
    """Moves a model's parameters and gradients into flat float32 buffers; the model goes on using them as views.

    groups: parameter name -> `matrix`, `embed` or `scalar`.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, str]) -> None:
        named = dict(model.named_parameters())
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for name, parameter in named.items():
            if groups[name] == "matrix":
                by_shape.setdefault(tuple(parameter.shape), []).append(name)
        order = [name for names in by_shape.values() for name in names]
        self.spans: dict[str, tuple[int, int]] = {}
        """Start and stop of each group in the flat buffers."""
        self._offsets: dict[str, int] = {}
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        at = 0
        for group in GROUPS:
            start = at
            names = order if group == "matrix" else [name for name in named if groups[name] == group]
            for name in names:
                self._offsets[name] = at
                at += -(-named[name].numel() // _ALIGN) * _ALIGN
            self.spans[group] = (start, at)
        device = next(iter(named.values())).device
        self.data = torch.zeros(at, device=device)
        # One float more than the parameters: the loss travels with the gradient through one all-reduce.
        self.grad_and_loss = torch.zeros(at + _ALIGN, device=device)
        self.grad = self.grad_and_loss[:at]
        self.loss = self.grad_and_loss[at]
        with torch.no_grad():
            for name, parameter in named.items():
                self.view(self.data, name).copy_(parameter)
                parameter.data = self.view(self.data, name)
                parameter.grad = self.view(self.grad, name)
        self.banks = [
            Bank(
                names=tuple(names),
                shape=(shape[0], shape[1]),
                offset=self._offsets[names[0]],
                padded=-(-shape[0] * shape[1] // _ALIGN) * _ALIGN,
            )
            for shape, names in by_shape.items()
        ]

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The tensor of that parameter inside a buffer laid out like `data`."""
        shape, offset = self.shapes[name], self._offsets[name]
        return flat[offset : offset + shape.numel()].view(shape)

    def span(self, flat: Tensor, group: str) -> Tensor:
        """The contiguous part of a buffer that holds one group."""
        start, stop = self.spans[group]
        return flat[start:stop]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """All tensors of a buffer by parameter name, as views, in the model's order."""
        return {name: self.view(flat, name) for name in self.shapes}

    def zero_grad(self) -> None:
        """Zero the gradient buffer and the loss stored with it. Gradients must never be set to None."""
        self.grad_and_loss.zero_()


def parameter_groups(model: nn.Module, roles: Mapping[str, str]) -> dict[str, str]:
    """Group of every parameter: `embed` for the weights of nn.Embedding and of output heads (role `embed` or `head`),
    `matrix` for the other matrices named in `roles`, `scalar` for the rest.

    Raises PgolfError when a role names a parameter the model does not have.
    """
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    named = dict(model.named_parameters())
    unknown = sorted(set(roles) - set(named))
    if unknown:
        raise PgolfError(f"matrix_roles names {unknown[0]}, which is not a parameter of the model")
    groups = {}
    for name, parameter in named.items():
        if name in embeddings or roles.get(name) in ("embed", "head"):
            groups[name] = "embed"
        else:
            groups[name] = "matrix" if name in roles and parameter.ndim == 2 else "scalar"
    return groups
