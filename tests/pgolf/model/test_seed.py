"""The seed's architecture against an independent plain implementation of its description."""

import math

import pytest
import torch
from torch import Tensor

from pgolf import config as configs
from pgolf.model.gpt import GPT

SMALL = ("model.vocab_size=96", "model.dim=48", "model.num_heads=6", "model.num_kv_heads=2")


def seed_losses(weights: dict[str, Tensor], tokens: Tensor, targets: Tensor, heads: int, passes: int) -> Tensor:
    """Losses (T,) of one sequence, every sum written out; `weights` under the seed's names."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    unique = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    embedding = w["tok_emb.weight"]
    length, dim = len(tokens), embedding.shape[1]
    head_dim = dim // heads

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    def rotate(x: Tensor) -> Tensor:
        half = head_dim // 2
        angle = torch.arange(length).double()[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
        x1, x2 = x[:, :half], x[:, half:]
        return torch.cat([x1 * angle.cos() + x2 * angle.sin(), -x1 * angle.sin() + x2 * angle.cos()], 1)

    x = x0 = norm(embedding[tokens])
    for index in [*range(unique)] * passes:
        b = {n.removeprefix(f"blocks.{index}."): t for n, t in w.items() if n.startswith(f"blocks.{index}.")}
        x = b["resid_mix"][0] * x + b["resid_mix"][1] * x0
        h = norm(x)
        q, k, v = (h @ b[f"attn.c_{part}.weight"].T for part in "qkv")
        shared = heads // (k.shape[1] // head_dim)
        outputs = []
        for head in range(heads):
            own, kv = slice(head * head_dim, (head + 1) * head_dim), head // shared * head_dim
            queries = rotate(norm(q[:, own])) * b["attn.q_gain"][head]
            keys = rotate(norm(k[:, kv : kv + head_dim]))
            score = queries @ keys.T / math.sqrt(head_dim)
            score = score.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            outputs.append(score.softmax(-1) @ v[:, kv : kv + head_dim])
        attended = torch.cat(outputs, 1) @ b["attn.proj.weight"].T
        expanded = (h @ b["mlp.fc.weight"].T).clamp(min=0).square() @ b["mlp.proj.weight"].T
        x = x + b["attn_scale"] * attended + b["mlp_scale"] * expanded
    z = 30.0 * torch.tanh(norm(x) @ embedding.T / 30.0)
    return z.logsumexp(-1) - z[torch.arange(length), targets]


@pytest.mark.parametrize("depth", ["training", "evaluation"])
@pytest.mark.parametrize("changes", [SMALL, ("model.vocab_size=256",)], ids=["small", "the seed's own blocks"])
def test_the_seed_preset_gives_the_losses_of_a_plain_implementation(changes: tuple[str, ...], depth: str) -> None:
    model_config = configs.load("seed", None, (*changes, "model.eval_loop_passes=16")).model
    torch.manual_seed(3)
    model = GPT(model_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 1.0 / math.sqrt(parameter.shape[1]) if parameter.ndim == 2 and "mix" not in name else 0.3
            parameter.add_(torch.randn_like(parameter) * spread)
    model.train(depth == "training")
    passes = 8 if depth == "training" else 16
    tokens = torch.randint(model_config.vocab_size, (1, 21))
    found = model.token_losses(tokens[:, :-1], tokens[:, 1:])[0]
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    wanted = seed_losses(weights, tokens[0, :-1], tokens[0, 1:], model_config.num_heads, passes)
    assert len(model.layer_order()) == 3 * passes
    # Random weights this large amplify float32's own rounding from pass to pass, so the comparison is relative.
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_seed_preset_has_the_seeds_parameters() -> None:
    with torch.device("meta"):
        model = GPT(configs.load("seed").model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    block = {
        "attn.c_q.weight": (768, 768),
        "attn.c_k.weight": (256, 768),
        "attn.c_v.weight": (256, 768),
        "attn.proj.weight": (768, 768),
        "attn.q_gain": (12,),
        "mlp.fc.weight": (3072, 768),
        "mlp.proj.weight": (768, 3072),
        "attn_scale": (768,),
        "mlp_scale": (768,),
        "resid_mix": (2, 768),
    }
    wanted = {f"blocks.{n}.{name}": shape for n in range(3) for name, shape in block.items()}
    assert shapes == {"tok_emb.weight": (8192, 768)} | wanted
    assert model.eval().layer_order() == [0, 1, 2] * 8
