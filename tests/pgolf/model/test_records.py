"""The forward of the challenge's newest records, and of every further part, against plain transcriptions.

`record_losses` is written from `train_gpt.py` of records/track_10min_16mb in openai/parameter-golf (`_forward_hidden`,
`_parallel_block`, `CausalSelfAttention.forward`), in float64 and without any of the model's own code.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.config.model import ModelConfig
from pgolf.model.copy_heads import candidates
from pgolf.model.gpt import GPT

Hidden = Callable[[Tensor, dict[str, Tensor]], Tensor]
EPS = torch.finfo(torch.float32).eps
SHAPE = ModelConfig(
    vocab_size=64, dim=32, num_layers=11, num_heads=4, num_kv_heads=2, mlp_ratio=2.0, mlp_slope=0.5, qk_gain=2.0,
    rope_dims=4, norm_scale=True, xsa_from=0, skips=True, parallel_from=8, parallel_lanes=2, loop_first=3, loop_last=5,
    loop_passes=3, loop_from=0.35,
)  # fmt: skip
RECORDS: dict[str, dict[str, Any]] = {
    "#1855 (1.0611)": {"head_gate": "sparse", "head_gate_factor": 0.5, "smear_gate": True},
    "#1851 and #1868 (1.0614)": {"head_gate": "sparse", "head_gate_factor": 1.0, "smear_gate": True},
    "#1787 (1.0634)": {"head_gate": "sparse", "head_gate_factor": 1.0},
    "#1736 and #1769 (1.0655, 1.0645)": {"head_gate": "dense"},
    "#1729 and #1626 (1.0678, 1.0719)": {},
    "#1493 (1.0810)": {"parallel_from": 7, "parallel_lanes": 1},
}


def build(config: ModelConfig) -> tuple[GPT, dict[str, Tensor]]:
    """A model in float64 with every weight off its start, and its weights by name."""
    torch.manual_seed(0)
    model = GPT(config)
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=numbers) * 0.15)
    model.compute_dtype = torch.float64
    return model.double().eval(), {name: p.detach() for name, p in model.named_parameters()}


def batch(length: int = 40) -> Tensor:
    """Two rows of tokens that repeat themselves, each with a document that begins inside."""
    tokens = torch.randint(2, 12, (2, length + 1), generator=torch.Generator().manual_seed(2))
    tokens[0, 17] = tokens[1, 5] = tokens[1, 26] = 1
    return tokens


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def documents(tokens: Tensor) -> Tensor:
    """(B, T) number of the document that each token belongs to."""
    return (tokens == 1).cumsum(1)


def rope(x: Tensor, dims: int, base: float) -> Tensor:
    """x (B, T, heads, D): dimension i turns with dimension i + dims / 2, as one complex number."""
    angle = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(0, dims, 2).double() / dims)
    turned = torch.complex(x[..., : dims // 2], x[..., dims // 2 : dims]) * torch.exp(-1j * angle)[:, None]
    return torch.cat((turned.real, turned.imag, x[..., dims:]), -1)


def attention(
    n: Tensor, layer: int, w: dict[str, Tensor], c: ModelConfig, mask: Tensor, change: dict[str, Hidden] | None = None
) -> Tensor:
    """n (B, T, dim) normed input, mask (B, T, T) or (T, T) of the keys seen -> (B, T, dim)."""
    at, size, change = f"blocks.{layer}.attn.", c.dim // c.num_heads, change or {}
    q, k, v = (n @ w[f"{at}c_{x}.weight"].T for x in "qkv")
    if f"values {layer}" in change:
        v = change[f"values {layer}"](v, w)
    q, k, v = (x.unflatten(-1, (-1, size)) for x in (q, k, v))
    q = rope(rms(q), c.rope_dims, c.rope_base) * w[f"{at}q_gain"][:, None]
    k = rope(rms(k), c.rope_dims, c.rope_base)
    if "keys" in change:
        k = change["keys"](k, w)
    k, v = (x.repeat_interleave(c.num_heads // c.num_kv_heads, 2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / size**0.5
    scores = scores.masked_fill(~(mask if mask.ndim == 2 else mask[:, None]), -torch.inf)
    y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    y = y - (y * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True) * v
    if c.head_gate == "sparse":
        y = y * torch.sigmoid(c.head_gate_factor * n[..., :12] @ w[f"{at}gate.weight"].T)[..., None]
    if c.head_gate == "dense":
        y = y * torch.sigmoid(n @ w[f"{at}gate.weight"].T)[..., None]
    return y.flatten(2) @ w[f"{at}proj.weight"].T


def mlp(n: Tensor, layer: int, w: dict[str, Tensor]) -> Tensor:
    z = n @ w[f"blocks.{layer}.mlp.fc.weight"].T
    return torch.where(z > 0, z, z / 2).square() @ w[f"blocks.{layer}.mlp.proj.weight"].T


def record_losses(tokens: Tensor, w: dict[str, Tensor], c: ModelConfig, looped: bool) -> Tensor:
    """(B, T) nats of each next token."""
    x = w["tok_emb.weight"][tokens[:, :-1]]
    if c.smear_gate:
        gate = w["smear.strength"] * torch.sigmoid(x[:, 1:, :12] @ w["smear.weight"])[..., None]
        x = torch.cat((x[:, :1], x[:, 1:] + gate * x[:, :-1] * (tokens[:, 1:-1] != 1)[..., None]), 1)
    x = x0 = rms(x)
    passes = 3 if looped else 1
    order = [0, 1, 2, *[3, 4, 5] * passes, 6, 7, 8, 9, 10]
    encoder, decoder = order[: len(order) // 2], order[len(order) // 2 :]
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    if c.document_attention:
        own = documents(tokens[:, :-1])
        mask = mask & (own[:, :, None] == own[:, None, :])
    skips: list[Tensor] = []
    lane: Tensor | None = None
    for place, layer in enumerate([*encoder, *decoder]):
        block, scale, j = f"blocks.{layer}.", (layer + 1) ** -0.5, place - len(encoder)
        if layer >= c.parallel_from and c.parallel_lanes == 2 and lane is None:
            lane = x
        if j >= 0 and skips:
            g = torch.sigmoid(w["skips.gates"][j])
            x = g * x + (1 - g) * w["skips.weights"][j] * skips.pop()
        u = w[block + "resid_mix"][0] * x + w[block + "resid_mix"][1] * x0
        attended = w[block + "attn_scale"] * attention(scale * rms(u), layer, w, c, mask)
        if lane is not None:
            at = layer - c.parallel_from
            (keep_a, keep_b), ((a_a, a_b), (m_a, m_b)) = w["lanes.keep"][at], w["lanes.write"][at]
            expanded = w[block + "mlp_scale"] * mlp(scale * rms(lane), layer, w)
            x, lane = keep_a * x + a_a * attended + m_a * expanded, keep_b * lane + a_b * attended + m_b * expanded
        else:
            read = u if layer >= c.parallel_from else u + attended
            x = u + attended + w[block + "mlp_scale"] * mlp(scale * rms(read), layer, w)
        if j < 0:
            skips.append(x)
    x = rms(x if lane is None else (x + lane) / 2)
    logits = 30 * torch.tanh(x @ w["tok_emb.weight"].T / 30)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_the_losses_are_the_records(record: str, looped: bool, cut: bool) -> None:
    config = dataclasses.replace(SHAPE, **RECORDS[record], document_attention=cut)
    model, weights = build(config)
    model.set_looped(looped)
    tokens = batch()
    found = model.token_losses(tokens[:, :-1], tokens[:, 1:]).double()
    torch.testing.assert_close(found, record_losses(tokens, weights, config, looped), atol=1e-5, rtol=0)


PLAIN = dataclasses.replace(
    SHAPE, num_layers=2, norm_scale=False, skips=False, parallel_from=-1, parallel_lanes=1, loop_passes=1, loop_first=0,
    loop_last=-1, loop_from=0.0,
)  # fmt: skip


def before(x: Tensor, tokens: Tensor, back: int = 1) -> Tensor:
    """x (B, T, ...) of `back` tokens before in the same document; zero where there is none."""
    out, own = torch.zeros_like(x), documents(tokens)
    for b in range(len(x)):
        for t in range(back, x.shape[1]):
            if own[b, t] == own[b, t - back]:
                out[b, t] = x[b, t - back]
    return out


def matches(tokens: Tensor, order: int, depth: int) -> Tensor:
    """(B, T) the token behind the `depth`-th latest (from 0) earlier match of the last `order` tokens; -1: none."""
    out, own = torch.full_like(tokens, -1), documents(tokens)
    for b, row in enumerate(tokens.tolist()):
        for t in range(len(row)):
            first = own[b].tolist().index(int(own[b, t]))
            ends = [e for e in range(first + order - 1, t) if row[e - order + 1 : e + 1] == row[t - order + 1 : t + 1]]
            if t - order + 1 >= first and len(ends) > depth:
                out[b, t] = row[ends[-1 - depth] + 1]
    return out


def plain_hidden(tokens: Tensor, w: dict[str, Tensor], change: dict[str, Hidden] | None = None) -> Tensor:
    """A plain stack of two layers; `change` holds what one part does, by the place it does it at."""
    change = change or {}

    def at(place: str, x: Tensor) -> Tensor:
        return change[place](x, w) if place in change else x

    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    x = x0 = rms(at("embedding", w["tok_emb.weight"][tokens]))
    for layer in (0, 1):
        block = f"blocks.{layer}."
        x = at(f"skip {layer}", x)
        x = w[block + "resid_mix"][0] * x + w[block + "resid_mix"][1] * x0
        n = at(f"attention {layer}", rms(x))
        x = x + w[block + "attn_scale"] * attention(n, layer, w, PLAIN, mask, change)
        x = x + w[block + "mlp_scale"] * mlp(at(f"mlp {layer}", rms(x)), layer, w)
        x = at(f"out {layer}", x)
    return at("final", rms(x))


TOKENS = batch()[:, :-1]


def hashed_bigrams(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """PR #549 and #1019; a document's first token is treated as a row's first, which theirs does not do."""
    rows = len(w["bigram.table.weight"])
    for b in range(len(x)):
        for t in range(x.shape[1]):
            now, last = int(TOKENS[b, t]), int(TOKENS[b, t - 1])
            row = rows - 1 if t == 0 or now == 1 else ((36313 * now) ^ (27191 * last)) % (rows - 1)
            x[b, t] += w["bigram.scale"] * (w["bigram.proj.weight"] @ w["bigram.table.weight"][row])
    return x


def canon(name: str) -> Hidden:
    """arXiv 2512.17351, residual."""
    return lambda h, w: h + sum(w[name][k - 1] * before(h, TOKENS, k) for k in (1, 2, 3))


def copied(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Gate times the embedding of each candidate: orders 1 and 3, two candidates each."""
    gates, total = x @ w["copy_heads.gate"].T + w["copy_heads.bias"], x.clone()
    for number, (order, depth) in enumerate([(1, 0), (1, 1), (3, 0), (3, 1)]):
        found = matches(TOKENS, order, depth)
        total += gates[..., number, None] * w["tok_emb.weight"][found] * (found >= 0)[..., None]
    return total


def copied_at_input(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    for number, order in enumerate((1, 3)):
        found = matches(TOKENS, order, 0)
        x = x + w["copy_heads.on_input"][number] * w["tok_emb.weight"][found] * (found >= 0)[..., None]
    return x


def value_embedding(number: int, layer: int) -> dict[str, Hidden]:
    """PR #374: the same projected table on each of its layers, times a scale of the layer."""

    def add(v: Tensor, w: dict[str, Tensor]) -> Tensor:
        return v + w["value_emb.scales"][number] * (w["value_emb.table.weight"][TOKENS] @ w["value_emb.proj.weight"].T)

    return {f"values {layer}": add}


def value_x0(layer: int) -> dict[str, Hidden]:
    """The values read the normed embedding too, through the layer's own matrix."""
    at = f"blocks.{layer}.attn."

    def add(v: Tensor, w: dict[str, Tensor]) -> Tensor:
        return v + w[f"{at}value_x0"] * rms(w["tok_emb.weight"][TOKENS]) @ w[f"{at}c_v.weight"].T

    return {f"values {layer}": add}


def offset_keys(k: Tensor, w: dict[str, Tensor]) -> Tensor:
    """NanoGPT speedrun: the dimensions that do not rotate are those of the token before."""
    return torch.cat((k[..., :4], before(k, TOKENS)[..., 4:]), -1)


def baseline_skip() -> dict[str, Hidden]:
    """The challenge's baseline: x + w * (output of the first half)."""
    kept: dict[str, Tensor] = {}
    return {"out 0": lambda x, w: kept.setdefault("x", x), "skip 1": lambda x, w: x + w["skips.weights"][0] * kept["x"]}


COPY = {"copy_orders": (1, 3), "copy_depth": 2}
PARTS: dict[str, tuple[dict[str, Any], dict[str, Hidden]]] = {
    "bigram": ({"bigram_rows": 50, "bigram_dim": 8}, {"embedding": hashed_bigrams}),
    "canon": ({"canon_taps": 3}, {f"{place} {n}": canon(f"blocks.{n}.{field}.taps") for n in (0, 1)
                                  for place, field in (("attention", "attn_canon"), ("mlp", "mlp_canon"))}),
    "copy heads": (COPY, {"final": copied}),
    "copy heads, input": (COPY | {"copy_input": True}, {"embedding": copied_at_input, "final": copied}),
    "value embedding": ({"value_embed_layers": (0, 1), "value_embed_dim": 8},
                        value_embedding(0, 0) | value_embedding(1, 1)),
    "value x0": ({"value_x0": True}, value_x0(0) | value_x0(1)),
    "key offset": ({"key_offset": True}, {"keys": offset_keys}),
    "skips of the baseline": ({"skips": True, "skip_gates": False}, baseline_skip()),
    "plain": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_its_formula(part: str) -> None:
    settings, change = PARTS[part]
    model, weights = build(dataclasses.replace(PLAIN, **settings))
    torch.testing.assert_close(model.hidden(TOKENS), plain_hidden(TOKENS, weights, change), atol=1e-5, rtol=0)


def test_backout_takes_the_middle_block_out() -> None:
    """nanochat: before the final norm, x - share * (output of the block in the middle: the second of three)."""
    model, w = build(dataclasses.replace(PLAIN, backout=True))
    plain = {name: weight for name, weight in w.items() if name != "backout"}
    kept: list[Tensor] = []
    plain_hidden(TOKENS, plain, {"out 1": lambda x, w: kept.append(x) or x})  # type: ignore[func-returns-value]
    torch.testing.assert_close(model.hidden(TOKENS), rms(kept[0] - w["backout"] * kept[0]), atol=1e-5, rtol=0)


def test_windows_limit_what_each_layer_sees() -> None:
    model, w = build(dataclasses.replace(PLAIN, layer_windows=(5, 0)))
    place = torch.arange(TOKENS.shape[1])
    band = (place[:, None] >= place) & (place[:, None] - place < 5)
    x = x0 = rms(w["tok_emb.weight"][TOKENS])
    for layer, mask in ((0, band), (1, place[:, None] >= place)):
        block = f"blocks.{layer}."
        x = w[block + "resid_mix"][0] * x + w[block + "resid_mix"][1] * x0
        x = x + w[block + "attn_scale"] * attention(rms(x), layer, w, PLAIN, mask)
        x = x + w[block + "mlp_scale"] * mlp(rms(x), layer, w)
    torch.testing.assert_close(model.hidden(TOKENS), rms(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"embed_dim": 8},
        {"tied_head": False},
        {"head_map": True},
        {"input_map": True},
        {"logit_bias": True},
        {"logit_softcap": 0.0},
    ],
)
def test_logits_are_their_formula(settings: dict[str, Any]) -> None:
    """Factored embedding: projected up at the input and back down, by the same matrix, before the head."""
    model, w = build(dataclasses.replace(PLAIN, **settings))
    down = w.get("emb_proj.weight", torch.eye(PLAIN.dim).double())
    w = w | {"tok_emb.weight": w["tok_emb.weight"] @ down.T}
    head = w.get("lm_head.weight", w["tok_emb.weight"])
    w = w | {"tok_emb.weight": w["tok_emb.weight"] @ w.get("input_map.weight", torch.eye(PLAIN.dim).double()).T}
    hidden = plain_hidden(TOKENS, w) @ w.get("head_map.weight", torch.eye(PLAIN.dim).double()).T
    z = hidden @ head.T + w.get("logit_bias", 0.0)
    z = z if settings.get("logit_softcap") == 0.0 else 30 * torch.tanh(z / 30)
    torch.testing.assert_close(model.logits(model.hidden(TOKENS)).double(), z, atol=1e-4, rtol=0)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copied_logits_are_their_formula(by_token: bool, dtype: torch.dtype) -> None:
    """Before the softcap, the logit of every candidate rises by its gate: a sum where two agree."""
    model, w = build(dataclasses.replace(PLAIN, **COPY, copy_logits=True, copy_token=by_token))
    model.compute_dtype = dtype
    hidden, table = plain_hidden(TOKENS, w), w["tok_emb.weight"]
    gates, z = hidden @ w["copy_heads.gate"].T + w["copy_heads.bias"], hidden @ table.T
    for number, (order, depth) in enumerate([(1, 0), (1, 1), (3, 0), (3, 1)]):
        found = matches(TOKENS, order, depth)
        for place in (found >= 0).nonzero().tolist():
            token = found[*place]
            gate = gates[*place, number]
            if by_token:
                gate = gate + table[token] @ w["copy_heads.on_token"][number]
            z[*place, token] += gate
    z = 30 * torch.tanh(z / 30)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(model.logits(model.hidden(TOKENS)).double(), z, atol=tolerance, rtol=0)
    losses = F.cross_entropy(z[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="none")
    found = model.token_losses(TOKENS[:, :-1], TOKENS[:, 1:]).flatten().double()
    torch.testing.assert_close(found, losses, atol=tolerance, rtol=0)


def test_document_counts_are_their_formula() -> None:
    tokens = torch.tensor([[5, 7, 5, 5, 1, 5, 7, 7, 9, 5, 1, 1], [1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]])
    model, w = build(dataclasses.replace(PLAIN, document_counts=True))
    hidden, table = plain_hidden(tokens, w), w["tok_emb.weight"]
    z = hidden @ table.T
    for b, t in itertools.product(range(2), range(12)):
        begin = max((j for j in range(t + 1) if tokens[b, j] == 1), default=0)
        for token in set(tokens[b, begin : t + 1].tolist()):
            count = tokens[b, begin : t + 1].tolist().count(token)
            gate = hidden[b, t] @ w["counts.gate"] + w["counts.bias"] + table[token] @ w["counts.on_token"]
            z[b, t, token] += gate * math.log(1 + count)
    found = model.logits(model.hidden(tokens)).double()
    torch.testing.assert_close(found, 30 * torch.tanh(z / 30), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logits(model.hidden(tokens, 3)).double(), found[:, -3:], atol=1e-5, rtol=0)


def test_the_caps_above_and_below_zero_move_apart_only_outside_training() -> None:
    """PR #1923: `where(z > 0, p tanh(z / p), n tanh(z / n))`, p and n from 30 on, learned at test time alone."""
    model, w = build(dataclasses.replace(PLAIN, asymmetric_softcap=True, logit_softcap=6.0))
    targets = batch()[:, 1:]
    z = plain_hidden(TOKENS, w) @ w["tok_emb.weight"].T
    p, n = 6.0 + w["softcap_shift"]
    capped = torch.where(z > 0, p * torch.tanh(z / p), n * torch.tanh(z / n))
    wanted = F.cross_entropy(capped.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    torch.testing.assert_close(model.token_losses(TOKENS, targets).double(), wanted, atol=1e-5, rtol=0)
    model.token_losses(TOKENS, targets).mean().backward()
    assert model.softcap_shift is not None
    assert model.softcap_shift.grad is not None
    assert model.softcap_shift.grad.abs().min() > 0
    even = F.cross_entropy((6.0 * torch.tanh(z / 6.0)).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.train().loss(TOKENS, targets).double(), even, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [0, 9])
def test_copies_come_from_inside_the_window(window: int) -> None:
    config = dataclasses.replace(PLAIN, copy_orders=(1, 2), copy_depth=2)
    wanted = torch.full((*TOKENS.shape, 2, 2), -1)
    for row in range(len(TOKENS)):
        for t in range(TOKENS.shape[1]):
            start = max(0, t - window + 1) if window else 0
            for number, order in enumerate((1, 2)):
                for depth in (0, 1):  # the context itself may begin before the window, the match's last token may not
                    first = max(0, start - order + 1)
                    found = matches(TOKENS[row : row + 1, first : t + 1], order, depth)
                    wanted[row, t, number, depth] = found[0, -1]
    assert torch.equal(candidates(TOKENS, config, window), wanted)
