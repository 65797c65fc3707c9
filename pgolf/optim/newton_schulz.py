"""Orthogonalization of matrices by Newton-Schulz iteration, one batched call for a whole stack.

`X <- aX + (bA + cA^2)X` with `A = X X^T` drives every singular value of X towards 1. Unusual here: Polar Express
coefficients (arXiv 2505.16932) have one table per number of steps, since the published one cut short
leaves singular values between 0.16 and 1.87.
"""

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

# The original Muon's quintic (github.com/KellerJordan/Muon), the same in every step.
FIXED = (3.4445, -4.7750, 2.0315)

# Greedy minimax quintics with safety 1.02 and cushion 0.024. 5 steps: the published table (singular values from 0.001
# on end between 0.86 and 1.14). 4 and 3 steps: the same algorithm run for singular values from 0.004 and from 0.02 on.
POLAR_EXPRESS: dict[int, Coefficients] = {
    5: (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    4: (
        (8.024966728422568, -21.961942285773457, 15.477112149771946),
        (3.878768310005303, -2.742824281396036, 0.4994520620315599),
        (3.2792556522672154, -2.3634889135331316, 0.46398481453629686),
        (2.3240577304072203, -1.6898267113027345, 0.42107124620287456),
    ),
    3: (
        (7.5324126474305855, -20.61396856009367, 14.527162447882123),
        (3.1549808203788436, -2.2740934346764674, 0.45425934476722696),
        (2.2203684814920703, -1.5958909913675485, 0.41095148287740335),
    ),
}


def coefficients(kind: str, steps: int) -> Coefficients:
    """Rows (a, b, c), one per step, for `polar-express` (3, 4 or 5 steps) or `fixed` (any number)."""
    return POLAR_EXPRESS[steps] if kind == "polar-express" else (FIXED,) * steps


def orthogonalize(stack: Tensor, rows: Coefficients) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each of a stack, approximately.

    stack: (k, m, n) with m <= n, contiguous. Returns a new tensor of that shape and type; bfloat16 leaves 3 digits.
    """
    assert stack.shape[-2] <= stack.shape[-1], stack.shape
    x = stack / (torch.linalg.vector_norm(stack, dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in rows:
        square = torch.bmm(x, x.mT)  # (k, m, m)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of the iteration for `auto`, `float32` or `bfloat16`. `auto` is bfloat16 on a GPU, as in all published
    runs, and float32 on a CPU: with AVX-512 BF16 the iteration would be three times as fast there, but its rounding
    carries differences in the seventh digit, such as another number of processes makes, into the fourth."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32
