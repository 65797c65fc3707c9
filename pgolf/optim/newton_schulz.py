"""Orthogonalization of matrices by Newton-Schulz iteration, one batched call for a whole stack.

`X <- aX + (bA + cA^2)X` with `A = X X^T` drives every singular value of X towards 1. Unusual here: Polar Express
coefficients (arXiv 2505.16932) have a table of their own for every number of steps, since the published one cut short
leaves singular values between 0.16 and 1.87; and the Gram form iterates on the small `X X^T` alone, which on matrices
much wider than high does fewer operations (gram-newton-schulz; see `orthogonalize`).
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


def orthogonalize(stack: Tensor, rows: Coefficients, gram: bool = False) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each of a stack, approximately.

    stack: (k, m, n) with m <= n; float32, or bfloat16 on a GPU. Returns a new tensor of that shape and type.

    gram: iterate on R = X X^T (m, m) and multiply X once at the end. 2m^2n (2 + 0) + 8m^3 per step operations in place
        of 4m^2n + 2m^3 per step: at 5 steps 0.66 of them for n = 3m, but 1.3 for n = m, where the plain form is used
        anyhow. It squares the condition number, so singular values below about 1e-3 come out less exact in float32.
    """
    height, width = stack.shape[-2:]
    assert height <= width, (height, width)
    x = stack / (torch.linalg.vector_norm(stack, dim=(-2, -1), keepdim=True) + 1e-7)
    if gram and width >= 2 * height:
        return _through_gram(x, rows)
    for a, b, c in rows:
        square = torch.bmm(x, x.mT)  # (k, m, m)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x


def _through_gram(x: Tensor, rows: Coefficients) -> Tensor:
    r = torch.bmm(x, x.mT)  # (k, m, m)
    product: Tensor | None = None
    for step, (a, b, c) in enumerate(rows):
        z = torch.baddbmm(r, r, r, beta=b, alpha=c)  # Z - aI, with Z the polynomial that X is multiplied by
        if product is None:
            product = z.clone()
            product.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            product = torch.baddbmm(product, product, z, beta=a)
        if step + 1 < len(rows):
            half = torch.baddbmm(r, r, z, beta=a)  # R Z
            r = torch.baddbmm(half, z, half, beta=a)  # Z R Z: all polynomials of one matrix, they commute
    assert product is not None, "no steps"
    return torch.bmm(product, x)
