"""The chunked softcapped cross entropy against the direct one, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model import loss as loss_module
from pgolf.model.kernels import linear
from pgolf.model.kernels import loss as loss_kernel
from pgolf.model.loss import CHUNK_TOKENS, PLAIN, Arithmetic, plain_softmax, softcap, token_losses, weighted_loss
from pgolf.model.raised_logits import Raised
from pgolf.runtime import Runtime


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with many pieces: `CHUNK_TOKENS` tokens at a time."""
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1)


def problem(cap: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    numbers = torch.Generator().manual_seed(0)
    count = CHUNK_TOKENS + 45  # more than one chunk, the last not full
    hidden, head = torch.randn(count, 12, generator=numbers), torch.randn(77, 12, generator=numbers)
    bias = torch.randn(77, generator=numbers)
    targets = torch.randint(77, (count, 2), generator=numbers)
    weights = torch.rand(count, 2, generator=numbers) / count
    return hidden.requires_grad_(), head.requires_grad_(), bias.requires_grad_(), targets, weights, cap


@pytest.fixture(params=["plain", "softmax in C", "softmax and products in C"])
def arithmetic(request: pytest.FixtureRequest) -> Arithmetic:
    if request.param == "plain":
        return PLAIN
    request.getfixturevalue("kernels")
    if request.param == "softmax in C":
        return PLAIN._replace(softmax=loss_kernel.softmax)
    request.getfixturevalue("product_kernel")
    return Arithmetic(loss_kernel.softmax, linear.product, linear.outer)


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("cap", [0.0, 5.0, 30.0])
def test_chunked_loss_and_gradients_are_the_direct_ones(cap: float, raising: bool, arithmetic: Arithmetic) -> None:
    hidden, head, bias, targets, weights, cap = problem(cap)
    z, forms, learned = F.linear(hidden, head, bias), [], (hidden, head, bias)
    if raising:
        numbers = torch.Generator().manual_seed(1)
        tokens = torch.randint(77, (len(hidden), 3), generator=numbers)  # some of them twice in a row
        raised = Raised(tokens, torch.randn(len(hidden), 3, generator=numbers).requires_grad_())
        z, forms, learned = raised.on(z), [raised], (*learned, raised.amounts)
    log_p = softcap(z, cap).log_softmax(1)
    direct = -(log_p.gather(1, targets) * weights).sum()
    chunked = weighted_loss(hidden, head, bias, targets, weights, cap, arithmetic, forms)
    single = [token_losses(hidden, head, bias, targets[:, k], cap, arithmetic, forms) for k in range(2)]
    torch.testing.assert_close(torch.stack(single, 1), -log_p.gather(1, targets), rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(direct, learned)
    for loss in (chunked, (torch.stack(single, 1) * weights).sum()):
        torch.testing.assert_close(loss, direct, rtol=1e-5, atol=1e-5)
        for found, right in zip(torch.autograd.grad(loss, learned), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


def test_without_bias_and_with_a_frozen_head_only_the_hidden_state_gets_a_gradient(arithmetic: Arithmetic) -> None:
    hidden, head, _, targets, weights, cap = problem(30.0)
    frozen = head.detach()
    weighted_loss(hidden, frozen, None, targets, weights, cap, arithmetic).backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_far_logits_neither_overflow_nor_lose_the_target(kernels: Runtime) -> None:
    z = torch.tensor([[-1e4, 1e4, 0.0], [200.0, 100.0, -300.0]])
    targets = torch.tensor([[0], [2]])
    for cap in (0.0, 30.0):
        found = loss_kernel.softmax(z.clone(), targets, None, cap)
        torch.testing.assert_close(found, plain_softmax(z.clone(), targets, None, cap))
