"""Products in bfloat16 in C against the same in plain torch on rounded factors, gradients included."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf import config as configs
from pgolf.config.model import ModelConfig
from pgolf.model.attention import attend
from pgolf.model.attention_mask import View
from pgolf.model.gpt import GPT
from pgolf.model.kernels import bfloat16, bfloat16_attention, native, tiles
from pgolf.model.loss import PLAIN, weighted_loss
from pgolf.model.paths import HEADS, TILED, use_paths
from pgolf.model.raised_logits import Raised

ROUNDED = 2**-8  # bfloat16, relative


@pytest.fixture(autouse=True, params=["as the machine does it", "vectors alone"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "vectors alone":
        monkeypatch.setattr(tiles, "library", lambda source, folder: native.library(source, ("VECTORS_ALONE",), folder))
    try:
        bfloat16.load()
        bfloat16_attention.load()
    except native.Unavailable as reason:
        pytest.skip(f"not tested here: bfloat16 in C ({reason})")


def rounded(*parts: Tensor) -> list[Tensor]:
    return [part.detach().bfloat16().double() for part in parts]


def off(found: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    found, right = found.detach().double(), right.detach().double()
    return float((found - right).abs().max() / right.abs().max())


@pytest.mark.parametrize(("rows", "inner", "columns"), [(600, 80, 240), (33, 7, 5), (1, 40, 100), (64, 32, 16)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_linear_map_and_its_gradients(rows: int, inner: int, columns: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, w = torch.randn(rows, inner, requires_grad=True), torch.randn(columns, inner, requires_grad=True)
        grad = torch.randn(rows, columns)
        y = bfloat16.linear(x, w)
        dx, dw = torch.autograd.grad(y, (x, w), grad)
    finally:
        torch.set_num_threads(before)
    x_, w_, grad_ = rounded(x, w, grad)
    assert max(off(y, x_ @ w_.T), off(dx, grad_ @ w_), off(dw, grad_.T @ x_)) < 1e-5


@pytest.mark.parametrize(("rows", "width", "hidden"), [(700, 80, 240), (45, 24, 40)])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_an_mlp_and_its_gradients(rows: int, width: int, hidden: int, slope: float) -> None:
    x, grad = torch.randn(rows, width, requires_grad=True), torch.randn(rows, width)
    fc = (torch.randn(hidden, width) / width**0.5).requires_grad_()
    proj = (torch.randn(width, hidden) / hidden**0.5).requires_grad_()
    y = F.leaky_relu(x @ fc.T, slope).square() @ proj.T
    tiled = bfloat16.mlp(x, fc, proj, slope)
    assert off(tiled, y) < 4 * ROUNDED
    found = torch.autograd.grad(tiled, (x, fc, proj), grad)
    for mine, right in zip(found, torch.autograd.grad(y, (x, fc, proj), grad), strict=True):
        assert off(mine, right) < 4 * ROUNDED


@pytest.mark.parametrize(
    ("rows", "length", "queries", "heads", "kv_heads", "width"),
    [(2, 100, 100, 2, 2, 40), (1, 77, 7, 4, 2, 16), (3, 64, 64, 2, 1, 32), (1, 1, 1, 1, 1, 24)],
)
@pytest.mark.parametrize("documents", [True, False])
def test_attention_and_its_gradients(
    rows: int, length: int, queries: int, heads: int, kv_heads: int, width: int, documents: bool
) -> None:
    q, grad = torch.randn(2, rows, queries, heads, width).unbind()
    k, v = torch.randn(2, rows, length, kv_heads, width).unbind()
    first = None
    if documents:
        starts = torch.where(torch.rand(rows, length) < 0.05, torch.arange(length), 0)
        first = starts.cummax(1).values.int()
    inputs = [part.requires_grad_() for part in (q, k, v)]
    plain, tiled = attend(q, k, v, View(first)), bfloat16_attention.attention(q, k, v, first)[0]
    assert off(tiled, plain) < 4 * ROUNDED
    found, right = (torch.autograd.grad(y, inputs, grad) for y in (tiled, plain))
    for mine, theirs in zip(found, right, strict=True):
        assert float((mine - theirs).abs().max()) < 8 * ROUNDED * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("cap", [0.0, 30.0])
@pytest.mark.parametrize(("count", "width", "pieces"), [(300, 24, 77), (512, 80, 512)])
def test_the_loss_and_its_gradients(cap: float, count: int, width: int, pieces: int) -> None:
    hidden, head, bias = torch.randn(count, width), torch.randn(pieces, width), torch.randn(pieces)
    targets, weights = torch.randint(pieces, (count, 2)), torch.rand(count, 2)
    targets[5, 1], weights[7] = targets[5, 0], 0.0
    amounts = torch.randn(count, 3), torch.randn(count, 5)
    parts = [part.bfloat16().float().requires_grad_() for part in (hidden, head, bias, *amounts)]
    raised = [Raised(torch.randint(pieces, part.shape), part) for part in parts[3:]]
    found, right = (
        weighted_loss(parts[0], parts[1], parts[2], targets, weights, cap, arithmetic, raised)
        for arithmetic in (PLAIN._replace(whole=bfloat16.weighted_loss), PLAIN)
    )
    assert off(found, right) < 1e-5
    for mine, theirs in zip(torch.autograd.grad(found, parts), torch.autograd.grad(right, parts), strict=True):
        assert off(mine, theirs) < 2 * ROUNDED


@pytest.mark.parametrize("attention", [TILED, HEADS])
def test_a_model_trains_in_it_as_in_float32_and_scores_in_float32(attention: str) -> None:
    config: ModelConfig = dataclasses.replace(configs.load("mini").model, vocab_size=256)
    torch.manual_seed(0)
    model, tokens = GPT(config).train(), torch.randint(256, (4, 65))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    losses, gradients = [], []
    for names in ([], ["attention in C", "bfloat16 in C", attention]):
        use_paths(model, names)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        losses.append(loss.item())
        gradients.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*model.parameters()])]))
    assert 0 < abs(losses[1] - losses[0]) < 0.02
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
    with torch.no_grad():
        scored = model.token_losses(tokens[:, :-1], tokens[:, 1:])
        use_paths(model, ["attention in C"])
        assert torch.equal(scored, model.token_losses(tokens[:, :-1], tokens[:, 1:]))
