"""Copy heads and document counts in C against plain torch: the same candidates to the integer, all else to rounding."""

import dataclasses
from collections.abc import Iterator
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.config.model import ModelConfig
from pgolf.model import fast_paths
from pgolf.model import loss as loss_module
from pgolf.model.copy_heads import CopyHeads, candidates
from pgolf.model.document_counts import DocumentCounts
from pgolf.model.gpt import GPT
from pgolf.model.kernels import copies
from pgolf.model.loss import CHUNK_TOKENS, PLAIN, softcap, token_losses, weighted_loss
from pgolf.model.paths import COPIES, TOLERANCE, use_paths
from pgolf.model.raced_pairs import PAIRS, Shape
from pgolf.model.raised_logits import Raised, Raising, joined
from pgolf.runtime import Runtime


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


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
def test_the_same_sums_and_gradients(dim: int, threads: int, kernels: Runtime) -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=30, dim=dim, num_heads=1, num_kv_heads=1, copy_orders=(1, 2), copy_input=True)
    heads, table = CopyHeads(config), torch.randn(30, dim, requires_grad=True)
    with torch.no_grad():
        for part in heads.parameters():
            part.normal_()
    tokens, hidden = torch.randint(30, (3, 50)), torch.randn(3, 50, dim, requires_grad=True)
    copied, grad = candidates(tokens, config), torch.randn(3, 50, dim)
    results = []
    for native in (False, True):
        heads.native = native
        y = heads(hidden, copied[:, -50:], table) + heads.at_input(copied, table, table.dtype)
        results.append([y, *torch.autograd.grad(y, [hidden, table, *heads.parameters()], grad)])
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


def same(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5 * float(right.detach().abs().max()))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    ("rows", "length"), [(13, 40), (4, 150), (2, 300)]
)  # chunks end inside rows, and in a long one
def test_the_loss_takes_document_counts_as_they_are(
    rows: int, length: int, beside: bool, threads: int, kernels: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1)
    pieces, count = 30, rows * length
    assert CHUNK_TOKENS % length
    counts = DocumentCounts(ModelConfig(vocab_size=pieces, dim=12, num_heads=1, num_kv_heads=1, bos_id=1))
    with torch.no_grad():
        for part in counts.parameters():
            part.normal_(std=0.2)
    tokens = torch.randint(pieces, (length, rows)).T  # of another layout
    hidden = torch.randn(rows, length, 12, requires_grad=True)
    assert (tokens == 1).sum() > rows
    head, others = torch.randn(pieces, 12, requires_grad=True), torch.randn(rows, length, 3, requires_grad=True)
    copied = [Raised(torch.randint(pieces, others.shape), others)] if beside else []
    learned = [hidden, head, *counts.parameters(), *([others] if beside else [])]
    targets, weights = torch.randint(pieces, (count, 2)), torch.rand(count, 2)
    raised = joined([counts(hidden, tokens, head), *copied])
    assert raised is not None
    log_p = softcap(raised.on(hidden @ head.T).flatten(0, 1), 30.0).log_softmax(1)
    wanted = [-(log_p.gather(1, targets) * weights).sum(), -(log_p.gather(1, targets[:, :1]) * weights[:, :1]).sum()]
    counts.native = True
    forms = [counts(hidden, tokens, head), *copied]
    assert isinstance(forms[0], copies.Counted)
    given = hidden.flatten(0, 1), head, None
    single = token_losses(*given, targets[:, 0], 30.0, PLAIN, forms)
    found = [weighted_loss(*given, targets, weights, 30.0, PLAIN, forms), (single * weights[:, 0]).sum()]
    for mine, right in zip(found, wanted, strict=True):
        same(mine, right)
        gradients = [torch.autograd.grad(loss, learned, retain_graph=True) for loss in (mine, right)]
        for mine_by, right_by in zip(*gradients, strict=True):
            if right_by.ndim:  # the bias is a sum over all gates in which most cancels
                same(mine_by, right_by)
        torch.testing.assert_close(gradients[0][3], gradients[1][3], rtol=1e-4, atol=1e-4)


def test_the_number_of_threads_changes_no_bit_of_document_counts(kernels: Runtime) -> None:
    torch.manual_seed(0)
    tokens, first = torch.randint(30, (3, 200)), torch.zeros(3, 200, dtype=torch.int32)
    gates, by_token, weights = torch.randn(3, 3, 200)
    counted, part = copies.Counted(tokens, first, gates, by_token, weights), slice(90, 346)
    grad, results, before = torch.randn(256, 30), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        z, gradients = torch.zeros(256, 30), (None, None, torch.zeros(3, 200), torch.zeros(3, 200), None)
        counted.add(z, part)
        counted.differentiate(grad, part, gradients)
        torch.set_num_threads(before)
        results.append(torch.cat([made.flatten() for made in (z, *gradients[2:4])]))
    assert all(torch.equal(results[0], other) for other in results[1:])


COUNTING = ModelConfig(
    vocab_size=40, dim=24, num_layers=1, num_heads=1, num_kv_heads=1, bos_id=1, head_map=True, copy_orders=(1, 2),
    copy_logits=True, copy_token=True, document_counts=True,
)  # fmt: skip


def loss_and_gradients(model: GPT, tokens: Tensor) -> list[Tensor]:
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    return [loss, *torch.autograd.grad(loss, [*model.parameters()])]


def test_a_model_trains_without_pairs_of_positions(kernels: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, tokens = GPT(COUNTING), torch.randint(40, (3, 151))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    right, hidden = loss_and_gradients(model, tokens), model.hidden(tokens)
    use_paths(model, [COPIES])
    torch.testing.assert_close(model.hidden(tokens), hidden)  # all that is not the training loss takes them spread
    monkeypatch.setattr(copies.Counted, "spread", lambda self: pytest.fail("spread over pairs of positions"))
    for mine, theirs in zip(loss_and_gradients(model, tokens), right, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("caps", [1, 2])
@pytest.mark.parametrize("paths", [[], [COPIES]])
def test_token_losses_are_those_of_states_with_what_is_raised_beside_them(
    paths: list[str], caps: int, dtype: torch.dtype, kernels: Runtime
) -> None:
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(COUNTING, asymmetric_softcap=caps == 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    use_paths(model, paths)
    model.compute_dtype = dtype
    tokens = torch.randint(40, (3, 151))
    targets, results = tokens[:, 1:].contiguous(), []
    for losses in (
        model.token_losses(tokens[:, :-1], targets),
        model.hidden_losses(model.hidden(tokens[:, :-1]).flatten(0, 1), targets.flatten()).view(targets.shape),
    ):
        results.append([losses, *torch.autograd.grad(losses.mean(), [*model.parameters()])])
    for mine, theirs in zip(*results, strict=True):
        same(mine, theirs) if dtype == torch.float32 else torch.testing.assert_close(mine, theirs, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"copy_input": True, "copy_logits": False}, {"document_counts": False, "copy_token": False}],
)
def test_the_race_times_what_training_runs(
    changes: dict[str, bool], kernels: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies.Counted, "spread", lambda self: pytest.fail("spread over pairs of positions"))
    model, shape = GPT(dataclasses.replace(COUNTING, **changes)), Shape(rows=3, length=100, training=True, threads=1)
    fast_paths._check(*PAIRS[COPIES](model, shape), TOLERANCE, learns=True)
    assert len(PAIRS[COPIES](model, shape)[1]()) > 3


def test_a_loss_of_its_own_arithmetic_gets_all_that_is_raised(kernels: Runtime) -> None:
    def whole(
        hidden: Tensor, head: Tensor, bias: None, targets: Tensor, weights: Tensor, cap: float, *raised: Raising
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        learn = [hidden.requires_grad, head.requires_grad, *(part.requires_grad for part in chain(*raised))]
        parts = [part.detach() for part in (hidden, head, *chain(*raised))]
        with torch.enable_grad():
            inputs = [part.requires_grad_() for part, learns in zip(parts, learn, strict=True) if learns]
            z, rest = parts[0] @ parts[1].T, iter(parts[2:])
            for form in raised:
                z = type(form)(*(next(rest) for _ in form)).spread().flat().on(z)
            losses = F.cross_entropy(softcap(z, cap), targets[:, 0], reduction="none") * weights[:, 0]
            found = iter(torch.autograd.grad(losses.sum(), inputs))
        d_hidden, d_head, *others = (next(found) if learns else None for learns in learn)
        return losses.detach(), (d_hidden, d_head, None, *others)

    torch.manual_seed(0)
    tokens = torch.randint(40, (3, 71))
    for changes in ({}, {"document_counts": False}):
        model = GPT(dataclasses.replace(COUNTING, **changes))
        right = loss_and_gradients(model, tokens)
        use_paths(model, [COPIES])
        model.arithmetic = PLAIN._replace(whole=whole)
        for mine, theirs in zip(loss_and_gradients(model, tokens), right, strict=True):
            same(mine, theirs)


def test_tokens_of_another_layout(kernels: Runtime) -> None:
    tokens, table = torch.tensor([[0, -1, 2], [1, 1, -1]]).T, torch.eye(3)
    assert copies.look_up(tokens, table, torch.ones(3, 2)).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
