"""The copy heads in C against plain torch: the same candidates to the integer, sums and gradients to rounding."""

import pytest
import torch

from pgolf.config.model import ModelConfig
from pgolf.model.copy_heads import CopyHeads, candidates
from pgolf.model.document_counts import DocumentCounts
from pgolf.model.kernels import copies
from pgolf.model.raised_logits import Raised, joined
from pgolf.runtime import Runtime


@pytest.mark.parametrize("orders", [(1, 2, 3), (2, 4), (3,)])
@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize(("rows", "length"), [(3, 70), (1, 1), (2, 33)])
def test_the_same_candidates(orders: tuple[int, ...], window: int, rows: int, length: int, kernels: Runtime) -> None:
    config = ModelConfig(vocab_size=6, bos_id=1, copy_orders=orders, copy_depth=3)
    for seed in range(10):
        tokens = torch.randint(6, (rows, length), generator=torch.Generator().manual_seed(seed))
        found = candidates(tokens, config, window, native=True)
        assert torch.equal(found, candidates(tokens, config, window))


@pytest.mark.parametrize("dim", [80, 24, 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_sums_and_gradients(dim: int, threads: int, kernels: Runtime) -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=30, dim=dim, num_heads=1, num_kv_heads=1, copy_orders=(1, 2), copy_input=True)
    heads, table = CopyHeads(config), torch.randn(30, dim, requires_grad=True)
    with torch.no_grad():
        for part in heads.parameters():
            part.normal_()
    tokens, hidden = torch.randint(30, (3, 50)), torch.randn(3, 50, dim, requires_grad=True)
    copied, grad, before = candidates(tokens, config), torch.randn(3, 50, dim), torch.get_num_threads()
    results = []
    for native in (False, True):
        heads.native = native
        torch.set_num_threads(threads)
        try:
            y = heads(hidden, copied[:, -50:], table) + heads.at_input(copied, table, table.dtype)
            results.append([y, *torch.autograd.grad(y, [hidden, table, *heads.parameters()], grad)])
        finally:
            torch.set_num_threads(before)
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("others", [0, 4])
def test_the_same_document_counts(others: int, kernels: Runtime) -> None:
    torch.manual_seed(0)
    counts = DocumentCounts(ModelConfig(vocab_size=9, dim=24, num_heads=1, num_kv_heads=1, bos_id=1))
    with torch.no_grad():
        for part in counts.parameters():
            part.normal_()
    tokens, hidden = torch.randint(9, (3, 40)), torch.randn(3, 40, 24, requires_grad=True)
    table, inputs = torch.randn(9, 24, requires_grad=True), [hidden, *counts.parameters()]
    other = Raised(torch.zeros(3, 40, others, dtype=torch.int64), torch.zeros(3, 40, others, requires_grad=True))
    grad, results = torch.randn(3, 40, 40 + others), []
    for native in (False, True):
        counts.native = native
        raised = joined([counts(hidden, tokens, table), other])
        assert raised is not None
        results.append([*raised, *torch.autograd.grad(raised.amounts, [table, *inputs], grad)])
    assert torch.equal(results[0][0], results[1][0])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-4)


def test_tokens_of_another_layout(kernels: Runtime) -> None:
    tokens, table = torch.tensor([[0, -1, 2], [1, 1, -1]]).T, torch.eye(3)
    assert copies.look_up(tokens, table, torch.ones(3, 2)).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
