"""Calibration: Hessians of the inputs of every weight matrix, and Fisher weights of its outputs.

The loss of a small error E in one matrix is close to ½ Σ_t (g_tᵀ E x_t)², x_t the input and g_t the gradient of the
loss with respect to the output, labels drawn from the model itself (the true Fisher; YAQA, arXiv 2505.22988). Kept
is one of two approximations of it: the plain H = E[x xᵀ], or with gradients the Kronecker form ½ tr(H_O E H_I Eᵀ)
with H_I = Σ |g_t|² x_t x_tᵀ / Σ |g_t|² and H_O = Σ |x_t|² g_t g_tᵀ, scaled so that the form is in nats per token of
text.

Looped layers are seen by forward hooks in every pass, and every pass counts. Products are float32 and leave out most of
the half that symmetry gives (half the work on a large model), sums float64. The tied embedding is seen from
both sides: as the head it meets the final norm's output, as the input it meets the gradient. One matrix and one weight
per row serve both: the head weighs a row by its p (1 - p) (Hessian of the softmax, coupling between tokens left out),
the table by how often its token is looked up and by the squared gradient of a lookup.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from pgolf.errors import PgolfError
from pgolf.model.gpt import CHUNK_TOKENS, GPT
from pgolf.model.raised_logits import split
from pgolf.quant import hessian_ranks, precision
from pgolf.quant.grid import Floats
from pgolf.runtime import Runtime

PRIOR_COUNTS = 3.0
"""Added to every token's count, so that a token calibration never saw keeps a sane step. With 10 the loss was 4%
higher; with none rare tokens' steps are so coarse that their logits rise where they never occur."""
GRADIENT_COUNTS = 20.0  # lookups of average gradient that every token's own are averaged with
SYMMETRIC_BLOCK = 256  # columns: leaves out 44% of a product of 2,048, and blocks are still large enough to be fast
EMBEDDING, HEAD = "tok_emb.weight", "lm_head.weight"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration statistics of one matrix (rows, columns)."""

    curvature: Floats
    """(columns, columns) E[x xᵀ] over tokens and passes, the layer's own output error; with gradients H_I, where tokens
    are weighted by the squared gradient."""
    output: Floats
    """(rows, rows) H_O, or (rows,) its diagonal where the rest is not worth keeping (an embedding); ones without
    gradients."""


@dataclass
class _Sums:
    inputs: Tensor  # (columns, columns) Σ |g|² x xᵀ, its lower triangle; without gradients Σ x xᵀ
    output: Tensor
    """(rows, rows) Σ |x|² g gᵀ, its lower triangle, or (rows,) its diagonal; of a table (2, rows): lookups of every
    row and Σ |g|² over them."""
    weight: float = 0.0  # Σ |g|², or how many vectors


@dataclass
class _Collector:
    """Running sums for every matrix, filled by hooks."""

    gradients: bool
    sums: dict[str, _Sums] = field(default_factory=dict)

    def of(self, name: str, columns: int, output: tuple[int, ...]) -> _Sums:
        """The sums of one matrix, initially zero. `output` is the shape of the stored part of H_O."""
        if name not in self.sums:
            square = torch.zeros(columns, columns, dtype=torch.float64)
            self.sums[name] = _Sums(square, torch.zeros(output, dtype=torch.float64))
        return self.sums[name]

    def add(self, name: str, x: Tensor, gradient: Tensor | None) -> None:
        """x: (N, columns) inputs; gradient: (N, rows) of the outputs, or None."""
        rows = 0 if gradient is None else gradient.shape[1]
        sums = self.of(name, x.shape[1], (rows, rows))
        if gradient is None:
            _add_products(sums.inputs, x, x)
            sums.weight += len(x)
            return
        weight = gradient.square().sum(dim=1, keepdim=True)  # (N, 1)
        _add_products(sums.inputs, x * weight, x)
        sums.weight += float(weight.sum(dtype=torch.float64))
        _add_products(sums.output, gradient * x.square().sum(dim=1, keepdim=True), gradient)


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the lower triangle of leftᵀ @ right (columns, columns), which is symmetric, and parts of the upper one."""
    for start in range(0, len(total), SYMMETRIC_BLOCK):
        stop = min(len(total), start + SYMMETRIC_BLOCK)
        total[start:stop, :stop] += (left[:, start:stop].T @ right[:, :stop]).to(total.device)


def _whole(triangle: Tensor) -> Floats:
    """The symmetric matrix of a lower triangle; the diagonal alone, (rows,), as it is."""
    if triangle.ndim == 1:
        return triangle.numpy()
    lower = triangle.tril()
    return (lower + lower.tril(-1).T).numpy()


def calibrate(
    model: GPT,
    batches: Sequence[Tensor],
    gradients: bool = True,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda tokens: None,
    runtime: Runtime | None = None,
    time_for: Callable[[float], bool] = lambda longest: True,
) -> dict[str, Calibration]:
    """Statistics of every matrix in `model.matrix_roles()`, over batches of token ids (B, T).

    gradients: also the Fisher form, at the price of a backward pass. Labels come from a generator seeded with `seed`.
    on_progress is given the number of tokens done. The model computes in float32, whatever its own type.
    runtime: every process calls this with the same number of batches, and all get the statistics of all batches.
    time_for: called before every batch with the longest duration of a batch so far; when it returns False, the
    remaining batches are skipped. Raises PgolfError when a matrix is never used.
    """
    model.eval()
    roles = model.matrix_roles()
    parameters = dict(model.named_parameters())
    collector = _Collector(gradients)
    rank = 0 if runtime is None else runtime.world_rank
    generator = torch.Generator(device=batches[0].device).manual_seed(seed + rank)
    with precision.float32(model), _frozen(model), _hooked(model, collector, roles):
        done, longest = 0, 0.0
        for tokens in batches:
            started = time.perf_counter()
            if done and not time_for(longest):
                break
            _one_batch(model, tokens, collector, generator)
            longest = max(longest, time.perf_counter() - started)
            done += tokens.numel()
            on_progress(done)
    if runtime is not None and runtime.world_size > 1:
        done = hessian_ranks.add_up(collector.sums, done, batches[0].device)
    return {name: _finish(name, collector, tuple(parameters[name].shape), done) for name in roles}


def save(path: Path, statistics: Mapping[str, Calibration], facts: Mapping[str, Any]) -> None:
    """Write statistics as float32 safetensors, `facts` about them as JSON in the header."""
    arrays = {
        f"{name}/{part}": np.ascontiguousarray(getattr(item, part), np.float32)
        for name, item in statistics.items()
        for part in ("curvature", "output")
    }
    save_file(arrays, path, {"facts": json.dumps(facts)})


def load(path: Path) -> tuple[dict[str, Calibration], dict[str, Any]]:
    """Read a file of `save`. Raises PgolfError for any other file."""
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
        names = sorted({name.rpartition("/")[0] for name in arrays})
        found = {name: Calibration(arrays[f"{name}/curvature"], arrays[f"{name}/output"]) for name in names}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PgolfError(f"{path} holds no Hessians ({error}); rerun train") from error
    return found, facts


def _one_batch(model: GPT, tokens: Tensor, collector: _Collector, generator: torch.Generator) -> None:
    with torch.set_grad_enabled(collector.gradients):
        hidden = model.hidden(tokens)
        flat = hidden.flatten(0, 1)
    upstream = torch.zeros_like(flat) if collector.gradients else None
    head = EMBEDDING if model.lm_head is None else HEAD
    for start in range(0, len(flat), CHUNK_TOKENS):
        leaf = flat[start : start + CHUNK_TOKENS].detach().requires_grad_(collector.gradients)
        with torch.set_grad_enabled(collector.gradients):
            x = model.before_head(leaf)  # once: a map in front of the head is counted by its hook
            log_p = torch.log_softmax(model.project(x).float(), dim=-1)
        with torch.no_grad():
            _add_head(collector, head, split(x, model.config.embed_dim or model.config.dim)[0].float(), log_p)
        if upstream is not None:
            # torch.multinomial draws an exponential for every logit, which takes ten times as long.
            below = log_p.detach().exp().cumsum(1)
            drawn = torch.rand(len(below), 1, generator=generator, device=below.device) * below[:, -1:]
            labels = torch.searchsorted(below, drawn)
            (upstream[start : start + CHUNK_TOKENS],) = torch.autograd.grad(-log_p.gather(1, labels).sum(), leaf)
    if upstream is not None:
        hidden.backward(upstream.view_as(hidden))


def _add_head(collector: _Collector, name: str, x: Tensor, log_p: Tensor) -> None:
    """The matrix `name` as the head: x (N, width), log_p (N, V). The label's expectation is taken exactly."""
    sums = collector.of(f"{name}/head", x.shape[1], (log_p.shape[1],))
    if not collector.gradients:
        _add_products(sums.inputs, x, x)
        sums.weight += len(x)
        return
    p = log_p.exp()
    variance = p - p.square()  # (N, V) of the gradient's elements
    weight = variance.sum(dim=1, keepdim=True)
    _add_products(sums.inputs, x * weight, x)
    sums.weight += float(weight.sum(dtype=torch.float64))
    sums.output += variance.sum(dim=0, dtype=torch.float64).cpu()


@contextmanager
def _frozen(model: GPT) -> Iterator[None]:
    """Compute gradients of activations only: gradients of weights would cost half as much again and are not used."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, value in wanted.items():
            parameter.requires_grad_(value)


@contextmanager
def _hooked(model: GPT, collector: _Collector, roles: dict[str, str]) -> Iterator[None]:
    handles = []
    scoring, model.scoring = model.scoring, None  # without gradients it would call no hook
    for name in roles:
        if name == HEAD:
            continue  # seen where its logits are made
        module = model.get_submodule(name.rpartition(".")[0])
        handles.append(module.register_forward_hook(_hook(name, collector)))
    try:
        yield
    finally:
        model.scoring = scoring
        for handle in handles:
            handle.remove()


def _hook(name: str, collector: _Collector) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    def on_forward(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        x = arguments[0].detach()
        if isinstance(module, nn.Embedding):
            rows = module.num_embeddings
            if not collector.gradients:
                _add_lookup(collector, name, rows, x.flatten(), None)
                return None
            output = output.detach().requires_grad_(True)  # the graph begins here
            output.register_hook(
                lambda gradient: _add_lookup(collector, name, rows, x.flatten(), gradient.flatten(0, 1))
            )
            return output
        flat = x.flatten(0, -2).float()
        if collector.gradients and output.requires_grad:
            output.register_hook(lambda g: collector.add(name, flat, g.flatten(0, -2).float()))
        else:
            collector.add(name, flat, None)
        return None

    return on_forward


def _add_lookup(collector: _Collector, name: str, rows: int, tokens: Tensor, gradient: Tensor | None) -> None:
    """Statistics of the embedding table: tokens (N,), gradient (N, dim) by the looked-up rows; row v gets those of
    token v."""
    columns = 0 if gradient is None else gradient.shape[1]
    sums = collector.of(f"{name}/table", columns, (2, rows))
    sums.output[0] += torch.bincount(tokens, minlength=rows).double().cpu()
    if gradient is not None:
        gradient = gradient.float()
        _add_products(sums.inputs, gradient, gradient)
        squares = gradient.square().sum(dim=1).double()
        sums.output[1] += torch.bincount(tokens, squares, minlength=rows).cpu()


def _finish(name: str, collector: _Collector, shape: tuple[int, ...], tokens: int) -> Calibration:
    table, head = collector.sums.get(f"{name}/table"), collector.sums.get(f"{name}/head")
    if table is not None or head is not None:
        return _finish_embedding(table, head, collector.gradients, shape, tokens)
    sums = collector.sums.get(name)
    if sums is None:
        raise PgolfError(f"the matrix {name} is never used on the calibration tokens, so it has no Hessian")
    if not sums.weight:  # used, but it has no effect on the loss: the weights after it are zero, as before any training
        return Calibration(np.eye(shape[1]), np.ones(shape[0]))
    curvature, output = _whole(sums.inputs) / sums.weight, np.ones(shape[0])
    if collector.gradients:
        output = _whole(sums.output) / (tokens * np.trace(curvature))
    return Calibration(curvature, output)


def _finish_embedding(
    table: _Sums | None, head: _Sums | None, gradients: bool, shape: tuple[int, ...], tokens: int
) -> Calibration:
    """A matrix of rows per token: looked up, or the head, or both.

    Both sides share one matrix and one weight per row: H̄ = f H_head + G, ρ_v splits the trace as the sides do.
    """
    rows, columns = shape
    if not gradients:
        return Calibration(np.eye(columns) if head is None else _whole(head.inputs) / head.weight, np.ones(rows))
    fisher, traces = np.zeros((columns, columns)), np.zeros(rows)
    if head is not None:
        weight = (head.output.numpy() + PRIOR_COUNTS * head.weight / tokens) / tokens  # (V,)
        side = _whole(head.inputs) / head.weight
        fisher, traces = fisher + weight.sum() * side, traces + weight * np.trace(side)
    if table is not None:
        counts, squares = table.output.numpy()  # (V,) each
        frequency = (counts + PRIOR_COUNTS) / (tokens + PRIOR_COUNTS * rows)  # sums to 1
        mean = squares.sum() / tokens
        each = (squares + GRADIENT_COUNTS * mean) / (counts + GRADIENT_COUNTS)  # (V,) squared gradient of one lookup
        fisher, traces = fisher + _whole(table.inputs) / tokens, traces + frequency * each
    return Calibration(fisher, traces / np.trace(fisher))
