"""Training what stays in floating point (gains, norms, mixes) so that the quantized model speaks like the original.

The matrices are frozen at their decoded values; Adam on the mean KL divergence to the unquantized model over train
tokens, the learning rate falling along a cosine. A fixed number of steps, so that the result depends on nothing but
its inputs (QUANTIZATION 7.2).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.quant.divergence import kl

_BETAS = (0.9, 0.99)


def distill(
    model: GPT,
    weights: Mapping[str, Tensor],
    matrices: Sequence[str],
    batches: Sequence[Tensor],
    steps: int,
    lr: float,
    on_progress: Callable[[int, float], None] | None = None,
) -> dict[str, Tensor]:
    """New control tensors, float32 on the CPU, by parameter name.

    model: the unquantized model; weights: the quantized model's decoded state; matrices: names that stay as they are;
    batches: token ids (B, T), used in turn. on_progress is told the step and its divergence.
    """
    student = copy.deepcopy(model)
    student.load_state_dict(dict(weights))
    student.eval()
    free = {name: parameter for name, parameter in student.named_parameters() if name not in set(matrices)}
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for parameter in free.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(free.values(), lr=lr, betas=_BETAS)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        tokens = batches[step % len(batches)]
        with torch.no_grad():
            reference = model.logits(model.hidden(tokens))
        loss = kl(reference.flatten(0, 1), student.logits(student.hidden(tokens)).flatten(0, 1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if on_progress is not None:
            on_progress(step + 1, float(loss.detach()))
    return {name: parameter.detach().float().cpu() for name, parameter in free.items()}
