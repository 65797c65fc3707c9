"""The loss in one call in C against cross entropy in float64 and against the same steps in four calls."""

import dataclasses
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf import config as configs
from pgolf.model import loss as loss_module
from pgolf.model.attention_mask import document_starts
from pgolf.model.gpt import GPT
from pgolf.model.kernels import copies, linear, loss, whole_loss
from pgolf.model.loss import Arithmetic, softcap, weighted_loss
from pgolf.model.paths import IN_C, LOSS, use_paths
from pgolf.model.raised_logits import Raised, Raising
from pgolf.runtime import Runtime

APART = Arithmetic(loss.softmax, linear.product, linear.outer)
WHOLE = APART._replace(whole=whole_loss.weighted_loss)


Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def problem(count: int, width: int, pieces: int) -> Problem:
    numbers = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(count, width, generator=numbers), torch.randn(pieces, width, generator=numbers)
    targets, weights = torch.randint(pieces, (count, 2), generator=numbers), torch.rand(count, 2, generator=numbers)
    bias = torch.randn(pieces, generator=numbers).requires_grad_()
    return hidden.requires_grad_(), head.requires_grad_(), bias, targets, weights / count


def counted(count: int, pieces: int) -> copies.Counted:
    """Documents that begin anywhere, in rows that no piece of a kernel fits."""
    shape = (4, count // 4) if count % 4 == 0 else (1, count)
    tokens = torch.randint(pieces, shape)
    first = document_starts((torch.rand(shape) < 0.03).long(), 1)
    gates, by_token = torch.randn(2, *shape)
    return copies.Counted(tokens, first, gates.requires_grad_(), by_token.requires_grad_(), torch.rand(shape))


@pytest.mark.parametrize(("count", "width", "pieces"), [(1, 8, 7), (47, 12, 77), (500, 64, 1024), (200, 13, 300)])
@pytest.mark.parametrize("cap", [0.0, 30.0, 50.0])
@pytest.mark.parametrize("more", ["", "bias", "raised", "counted"])
def test_values_gradients_and_every_bit_of_the_four_calls(
    count: int, width: int, pieces: int, cap: float, more: str, kernels: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_loss, "CHUNK_ELEMENTS", 128 * pieces)  # several chunks, the last not full
    hidden, head, bias, targets, weights = problem(count, width, pieces)
    forms: list[Raising] = []
    if more == "raised":
        forms = [Raised(torch.randint(pieces, (count, n)), torch.randn(count, n).requires_grad_()) for n in (3, 5)]
    elif more == "counted":
        forms = [
            counted(count, pieces),
            Raised(torch.randint(pieces, (count, 2)), torch.randn(count, 2)),
            counted(count, 2),
        ]
    inputs = [hidden, head, *[bias] * (more == "bias"), *(part for part in chain(*forms) if part.requires_grad)]
    z = F.linear(hidden.double(), head.double(), bias.double() if more == "bias" else None)
    for form in forms:
        z = form.spread().flat().on(z)
    direct = -(softcap(z, cap).log_softmax(1).gather(1, targets) * weights).sum()
    wanted = [direct, *torch.autograd.grad(direct, inputs)]
    results, before = [], torch.get_num_threads()
    try:
        for threads, arithmetic in ((1, APART), (1, WHOLE), (2, WHOLE), (3, WHOLE)):
            torch.set_num_threads(threads)
            given = hidden, head, bias if more == "bias" else None, targets, weights, cap, arithmetic, forms
            found = weighted_loss(*given)
            results.append([found, *torch.autograd.grad(found, inputs)])
    finally:
        torch.set_num_threads(before)
    for mine, right in zip(results[1], wanted, strict=True):
        torch.testing.assert_close(mine.double(), right.double(), rtol=1e-5, atol=1e-6)
    for other in results[2:]:
        assert all(map(torch.equal, results[1], other))
    if not more:
        assert all(map(torch.equal, *results[:2]))


def test_what_raises_may_have_gaps(kernels: Runtime) -> None:
    hidden, head, _, targets, weights = problem(500, 8, 40)
    tokens, amounts = torch.randint(40, (600, 500)).T, torch.randn(600, 500).T.requires_grad_()
    results = []
    for form in (Raised(tokens, amounts), Raised(tokens.contiguous(), amounts.contiguous())):
        loss = weighted_loss(hidden, head, None, targets, weights, 30.0, WHOLE, [form])
        results.append([loss, *torch.autograd.grad(loss, (hidden, head, amounts))])
    assert all(map(torch.equal, *results))


def test_a_frozen_head_gets_no_gradient(kernels: Runtime) -> None:
    hidden, head, _, targets, weights = problem(30, 8, 40)
    weighted_loss(hidden, head.detach(), None, targets, weights, 30.0, WHOLE).backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_a_model_trains_with_the_same_bits(kernels: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(configs.load("demo").model, vocab_size=64, future_weights=(0.5,))).train()
    tokens = torch.randint(64, (3, 51))
    results = []
    for names in (IN_C, (*IN_C, LOSS)):
        use_paths(model, names)
        found = model.loss(tokens[:, :-1], tokens[:, 1:])
        results.append([found, *torch.autograd.grad(found, list(model.parameters()))])
    assert model.arithmetic.whole is not None
    assert all(map(torch.equal, *results))
