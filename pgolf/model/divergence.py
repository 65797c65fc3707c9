"""KL divergence of a model's predictions from given ones, with its gradient, in one pass over the logits."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.model.loss import softcap

Divergence = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]


def plain_divergence(z: Tensor, wanted: Tensor, weights: Tensor | None, cap: float) -> Tensor:
    """KL(softmax(c(wanted)) ‖ softmax(c(z))) of each row, (n,) float32 nats; z and wanted (n, V), c the softcap.

    With weights (n, 1) the divergences are weighted and z is overwritten by the gradient of their sum.
    """
    log_p, log_q = (torch.log_softmax(softcap(part.float(), cap), -1) for part in (wanted, z))
    p = log_p.exp()
    found = torch.sum(p * (log_p - log_q), dim=-1)
    if weights is None:
        return found
    slope = log_q.exp_().sub_(p).mul_(weights)
    z.copy_(slope.mul_(1 - torch.tanh(z / cap).square()) if cap else slope)
    return found * weights[:, 0]
