"""Find where a loss or gradient that is not finite began, by repeating the step with hooks on every module."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pgolf.model.gpt import GPT
from pgolf.model.paths import plain_model
from pgolf.training.nonfinite import NotFinite
from pgolf.training.trainer import Trainer


def explain(trainer: Trainer, error: NotFinite) -> str:
    """The error message: the step, the first tensor that is not finite, and what to do."""
    plain_model(trainer.model)  # inside compiled blocks no module can be looked at
    origin = find_origin(trainer.model, trainer.go_over_again(error))
    return (
        f"{error}; it began in {origin}; the last checkpoint is kept: lower optim.matrix_lr or set optim.grad_clip, "
        "and start over with --force"
    )


def find_origin(model: GPT, passes: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Name the first tensor that is not finite: a weight, the output of a module, the loss, or a gradient.

    passes: tokens and targets of the step, in the portions it was computed in. The model must not be compiled.
    Gradients are overwritten.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name}"
    origins = (_origin_of_pass(model, tokens, targets) for tokens, targets in passes)
    return next(filter(None, origins), "none in this process's share of the batch: it began on another process")


def _origin_of_pass(model: GPT, tokens: Tensor, targets: Tensor) -> str | None:
    first: list[str] = []

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not first and isinstance(output, Tensor) and not torch.isfinite(output).all():
                first.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        value = model.loss(tokens, targets)
    finally:
        for handle in handles:
            handle.remove()
    if first:
        return f"the output of {first[0]}"
    if not torch.isfinite(value):
        return "the loss, after finite outputs of all layers"
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    value.backward()
    for name, parameter in reversed(list(model.named_parameters())):  # the backward pass comes from the end
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name}"
    return None
