"""The divergence of logits and its gradient, plain and in C, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.divergence import Divergence, plain_divergence
from pgolf.model.kernels import divergence as kernel
from pgolf.model.loss import softcap


@pytest.fixture(params=["plain", "in C"])
def of(request: pytest.FixtureRequest) -> Divergence:
    if request.param == "plain":
        return plain_divergence
    request.getfixturevalue("kernels")
    return kernel.divergence


def direct(z: Tensor, wanted: Tensor, cap: float) -> Tensor:
    return F.kl_div(
        softcap(z, cap).log_softmax(1), softcap(wanted, cap).log_softmax(1), reduction="none", log_target=True
    ).sum(1)


@pytest.mark.parametrize("width", [77, 256])  # one does not end with a whole vector
@pytest.mark.parametrize("cap", [0.0, 5.0, 30.0])
def test_divergence_and_gradient_are_the_direct_ones(cap: float, width: int, of: Divergence) -> None:
    numbers = torch.Generator().manual_seed(0)
    z, wanted = 3 * torch.randn(2, 45, width, generator=numbers)
    weights = torch.rand(45, 1, generator=numbers)
    right = direct(z.requires_grad_(), wanted, cap)
    (slope,) = torch.autograd.grad((right * weights[:, 0]).sum(), z)
    mine = z.detach().clone()
    torch.testing.assert_close(of(mine, wanted, None, cap), right, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine, z)
    torch.testing.assert_close(of(mine, wanted, weights, cap), right * weights[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, slope, rtol=1e-5, atol=1e-6)


def test_a_small_divergence_is_exact(of: Divergence) -> None:
    """Bits are allocated by divergences of 1e-4 nats, far below the size of the logits."""
    numbers = torch.Generator().manual_seed(0)
    wanted = 5 * torch.randn(400, 2048, generator=numbers)
    z = wanted + 0.01 * torch.randn(400, 2048, generator=numbers)
    right = float(direct(z.double(), wanted.double(), 0.0).mean())
    assert float(of(z, wanted, None, 0.0).double().mean()) == pytest.approx(right, rel=0.003)
    assert abs(float(of(wanted.clone(), wanted, None, 0.0).mean())) < 1e-7


def test_far_logits_neither_overflow_nor_vanish(of: Divergence) -> None:
    z, wanted = (
        torch.tensor([[-1e4, 1e4, 0.0], [200.0, 100.0, -300.0]]),
        torch.tensor([[0.0, 30.0, 0.0], [9.0, 9.0, 0.0]]),
    )
    for cap in (0.0, 30.0):
        torch.testing.assert_close(of(z.clone(), wanted, None, cap), direct(z, wanted, cap))
