"""Every part of the model: it changes the loss, its parameters exist only when it is on, and it looks nowhere ahead."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.config.model import ModelConfig
from pgolf.errors import PgolfError
from pgolf.model import attention_mask, flops, multi_token_prediction
from pgolf.model.attention import attend, offset_keys
from pgolf.model.attention_mask import View
from pgolf.model.depth_recurrence import layer_order
from pgolf.model.fast_paths import choose_paths, paths_by_rule, use_paths
from pgolf.model.gpt import GPT
from pgolf.model.key_value_cache import KeyValueCache
from pgolf.model.raced_pairs import Shape
from pgolf.model.xsa import exclude_self
from pgolf.runtime import Runtime

BASE = ModelConfig(vocab_size=64, dim=32, num_layers=4, num_heads=2, num_kv_heads=1, mlp_ratio=2.0)
IN_C = ("attention in C", "softmax in C", "layer products in C", "head products in C")
SHAPE = Shape(rows=2, length=24, training=True, threads=1)
PARTS: dict[str, tuple[dict[str, Any], set[str]]] = {  # what switches it on, and the parameters that come with it
    "loop": ({"loop_first": 1, "loop_last": 2, "loop_passes": 3}, set()),
    "parallel": ({"parallel_from": 2}, set()),
    "lanes": ({"parallel_from": 2, "parallel_lanes": 2}, {"lanes.keep", "lanes.write"}),
    "partial rotary": ({"rope_dims": 8}, set()),
    "norm scale": ({"norm_scale": True}, set()),
    "leaky": ({"mlp_slope": 0.5}, set()),
    "xsa": ({"xsa_from": 1}, set()),
    "skips": ({"skips": True}, {"skips.weights", "skips.gates"}),
    "smear": ({"smear_gate": True}, {"smear.weight", "smear.strength"}),
    "sparse gate": ({"head_gate": "sparse"}, {f"blocks.{n}.attn.gate.weight" for n in range(4)}),
    "dense gate": ({"head_gate": "dense"}, {f"blocks.{n}.attn.gate.weight" for n in range(4)}),
    "value embedding": (
        {"value_embed_layers": (2, 3), "value_embed_dim": 16},
        {"value_emb.table.weight", "value_emb.proj.weight", "value_emb.scales"},
    ),
    "value x0": ({"value_x0": True}, {f"blocks.{n}.attn.value_x0" for n in range(4)}),
    "bigram": (
        {"bigram_rows": 50, "bigram_dim": 8},
        {"bigram.table.weight", "bigram.proj.weight", "bigram.scale"},
    ),
    "factored": ({"embed_dim": 16}, {"emb_proj.weight"}),
    "untied": ({"tied_head": False}, {"lm_head.weight"}),
    "bias": ({"logit_bias": True}, {"logit_bias"}),
    "backout": ({"backout": True}, {"backout"}),
    "no softcap": ({"logit_softcap": 0.0}, set()),
    "documents": ({"document_attention": True}, set()),
    "windows": ({"layer_windows": (4, 0, 4, 0)}, set()),
    "canon": (
        {"canon_taps": 3}, {f"blocks.{n}.{name}_canon.taps" for n in range(4) for name in ("attn", "mlp")}
    ),
    "parallel canon": (
        {"canon_taps": 3, "parallel_from": 3, "skips": True, "parallel_lanes": 2},
        {f"blocks.{n}.{name}_canon.taps" for n in range(4) for name in ("attn", "mlp")}
        | {"lanes.keep", "lanes.write", "skips.weights", "skips.gates"},
    ),
    "copy": (
        {"copy_orders": (1, 2), "copy_depth": 2, "copy_input": True},
        {"copy_heads.gate", "copy_heads.bias", "copy_heads.on_input"},
    ),
    "copied logits": (
        {"copy_orders": (1, 2), "copy_depth": 2, "copy_logits": True, "copy_token": True, "head_map": True},
        {"copy_heads.gate", "copy_heads.bias", "copy_heads.on_token", "head_map.weight"},
    ),
    "counts": ({"document_counts": True}, {"counts.gate", "counts.bias", "counts.on_token"}),
    "head map": ({"head_map": True}, {"head_map.weight"}),
    "input map": ({"input_map": True}, {"input_map.weight"}),
    "input map beside copies at the input": (
        {"input_map": True, "copy_orders": (1, 2), "copy_input": True},
        {"input_map.weight", "copy_heads.gate", "copy_heads.bias", "copy_heads.on_input"},
    ),
    "key offset": ({"rope_dims": 8, "key_offset": True}, set()),
    "all": (
        {
            "loop_first": 1, "loop_last": 2, "loop_passes": 2, "parallel_from": 3, "parallel_lanes": 2, "rope_dims": 8,
            "norm_scale": True, "mlp_slope": 0.5, "xsa_from": 0, "skips": True, "smear_gate": True,
            "head_gate": "sparse", "value_embed_layers": (3,), "value_embed_dim": 8, "value_x0": True,
            "bigram_rows": 50, "bigram_dim": 8, "embed_dim": 16, "tied_head": False, "logit_bias": True,
            "backout": True, "document_attention": True, "layer_windows": (8, 0, 0, 0), "key_offset": True,
        },
        {
            "lanes.keep", "lanes.write", "skips.weights", "skips.gates", "smear.weight", "smear.strength",
            "value_emb.table.weight", "value_emb.proj.weight", "value_emb.scales", "bigram.table.weight",
            "bigram.proj.weight", "bigram.scale", "emb_proj.weight", "lm_head.weight", "logit_bias", "backout",
            *(f"blocks.{n}.attn.{name}" for n in range(4) for name in ("gate.weight", "value_x0")),
        },
    ),
}  # fmt: skip


def build(**changes: Any) -> GPT:
    """A model whose parameters are all off their starting values, so that every part does something."""
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(BASE, **changes))
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=numbers) * 0.1)
    return model


def batch(rows: int = 3, length: int = 24) -> Tensor:
    tokens = torch.randint(2, BASE.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(2))
    tokens[0, 9] = tokens[1, 5] = BASE.bos_id
    return tokens


@pytest.mark.parametrize("part", PARTS)
def test_a_part_trains_changes_the_loss_and_brings_only_its_own_parameters(part: str) -> None:
    changes, brought = PARTS[part]
    model, plain, tokens = build(**changes), build(), batch()
    names = {name for name, _ in model.named_parameters()}
    assert names - {name for name, _ in plain.named_parameters()} == brought
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{name} has no effect"
    assert not torch.equal(loss, plain.loss(tokens[:, :-1], tokens[:, 1:])) or part == "untied"
    assert set(model.matrix_roles()) <= names


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("native", [False, True])
def test_the_last_positions_alone_are_the_same(part: str, native: bool, request: pytest.FixtureRequest) -> None:
    model, tokens = build(**PARTS[part][0]).eval(), batch(length=40)
    with torch.no_grad():  # the kernels' own check of their gradients works here too
        if native:
            request.getfixturevalue("kernels")
            use_paths(model, IN_C)
        whole = model.hidden(tokens)
        for last in (1, 7, 40, 41):
            torch.testing.assert_close(model.hidden(tokens, last), whole[:, -last:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", PARTS)
def test_the_forward_pass_in_c_is_the_plain_one(part: str, kernels: Runtime) -> None:
    model, tokens = build(**PARTS[part][0]).eval(), batch(length=70)
    paths_by_rule(model, kernels, Shape(3, 70, training=False, threads=1), scoring=True)
    assert (model.scoring is None) == (part in ("value x0", "key offset", "all"))  # the kernel leaves them to torch
    scoring = model.scoring
    for window, last in ((0, 0), (0, 1), (0, 50), (6, 0), (6, 7)):
        model.set_window(window)
        with torch.no_grad():
            model.scoring = scoring
            fast = model.hidden(tokens, last)
            model.scoring = None
            torch.testing.assert_close(fast, model.hidden(tokens, last), atol=3e-5, rtol=0)
    model.scoring = scoring
    model.hidden(tokens).sum().backward()  # with gradients it is torch that computes
    assert all(block.attn.c_q.weight.grad is not None for block in model.blocks)  # type: ignore[union-attr]


@pytest.mark.parametrize("window", [0, 6])
def test_the_last_positions_alone_teach_the_same(window: int, kernels: Runtime) -> None:
    found = []
    for native, last in ((False, 0), (False, 7), (True, 7)):
        model, tokens = build(**PARTS["all"][0]).eval(), batch(length=40)
        model.set_window(window)
        if native:
            use_paths(model, IN_C)
        model.hidden(tokens, last)[:, -7:].square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_no_part_looks_ahead(part: str) -> None:
    model, tokens = build(**PARTS[part][0]).eval(), batch()
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 7) % BASE.vocab_size
    changed[2, 12] = BASE.bos_id
    with torch.no_grad():
        before, after = model.hidden(tokens), model.hidden(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12], after[:, 12])


LOOK_BACK = {"document_attention": True, "canon_taps": 3, "copy_orders": (1, 2), "copy_input": True, "smear_gate": True}


@pytest.mark.parametrize("part", [PARTS["documents"][0], PARTS["all"][0], LOOK_BACK])
def test_with_document_attention_nothing_crosses_a_document_start(part: dict[str, Any]) -> None:
    model, tokens = build(**part).eval(), batch()
    changed = tokens.clone()
    changed[0, :9] = torch.arange(20, 29)  # the first document of row 0
    with torch.no_grad():
        before, after = model.hidden(tokens), model.hidden(changed)
    torch.testing.assert_close(before[0, 9:], after[0, 9:])
    assert not torch.allclose(before[0, 8], after[0, 8])


@pytest.mark.parametrize("part", PARTS)
def test_kernels_in_c_agree_with_plain_torch_gradients_included(part: str, kernels: Runtime) -> None:
    model, tokens = build(**PARTS[part][0]), batch(2, 40)
    results = []
    for fast in (False, True):
        use_paths(model, (*IN_C, "MLP in C", "heads in C") if fast else ())
        model.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for plain, fast_one in zip(*results, strict=True):
        torch.testing.assert_close(fast_one, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()) + 1e-7)


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize(("length", "head_dim"), [(5, 8), (70, 24), (96, 16)])
def test_the_attention_kernel_agrees_with_float64(length: int, head_dim: int, window: int, kernels: Runtime) -> None:
    numbers = torch.Generator().manual_seed(length)
    q, k, v, grad = (torch.randn(2, length, heads, head_dim, generator=numbers) for heads in (4, 2, 2, 4))
    tokens = torch.randint(0, 9, (2, length), generator=numbers)
    view = attention_mask.view(attention_mask.document_starts(tokens, 1), window, tokens, native=True)
    results = []
    for dtype in (torch.float64, torch.float32):
        parts = [part.to(dtype).requires_grad_() for part in (q, k, v)]
        y = attend(parts[0], parts[1], parts[2], view, native=dtype == torch.float32)
        results.append([y, *torch.autograd.grad((y * grad.to(dtype)).sum(), parts)])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def test_not_a_number_is_not_lost_in_the_kernels(kernels: Runtime) -> None:
    for name in ("blocks.1.attn.c_q.weight", "blocks.1.attn.c_v.weight", "blocks.3.mlp.fc.weight"):
        model, tokens = build(), batch()
        use_paths(model, (*IN_C, "MLP in C", "heads in C"))
        model.get_parameter(name).data[3, 3] = float("nan")
        assert not torch.isfinite(model.loss(tokens[:, :-1], tokens[:, 1:])), name


def test_without_a_compiler_the_plain_path_runs_and_the_report_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("pgolf.model.kernels.native._loaded", {})
    model = build()
    choice = choose_paths(model, Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=True), SHAPE)
    assert choice.notes == (
        *(f"no {name}: no C compiler found" for name in (*IN_C, "norms in C", "MLP in C")),
        "no heads in C: attention in C is off",
        "no loss in C: no C compiler found",
    )
    assert not choice.timings
    assert model.loss(batch()[:, :-1], batch()[:, 1:]).isfinite()


def test_banded_attention_is_the_windowed_mask() -> None:
    numbers = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 19, heads, 8, generator=numbers) for heads in (4, 2, 2))
    tokens = torch.zeros(2, 19, dtype=torch.int64)
    first = attention_mask.within_window(None, tokens, 5)
    torch.testing.assert_close(attend(q, k, v, View(window=5)), attend(q, k, v, View(first=first)))


def test_the_loop_runs_its_range_and_switches_on_at_its_fraction() -> None:
    config = dataclasses.replace(BASE, num_layers=11, loop_first=3, loop_last=5, loop_passes=3, loop_from=0.35)
    assert layer_order(config, 3) == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    model = GPT(dataclasses.replace(config, eval_loop_passes=5))
    model.set_progress(0.34)
    assert model.layer_order() == [*range(11)]
    model.set_progress(0.35)
    assert len(model.layer_order()) == 17
    assert len(model.eval().layer_order()) == 23


def test_exclusive_attention_leaves_nothing_along_the_own_value() -> None:
    y, v = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8)
    found = exclude_self(y, v)
    along = (found * F.normalize(v, dim=-1).repeat_interleave(2, dim=2)).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)


def test_offset_keys_come_from_the_token_before_in_the_same_document() -> None:
    k, inside = torch.randn(1, 4, 1, 8), torch.tensor([1.0, 1.0, 0.0, 1.0])[None, :, None]
    found = offset_keys(k, 3, inside)
    assert torch.equal(found[..., :3], k[..., :3])
    assert torch.equal(
        found[0, :, 0, 3:], torch.stack([torch.zeros(5), k[0, 0, 0, 3:], torch.zeros(5), k[0, 2, 0, 3:]])
    )


def test_further_tokens_are_learned_from_only_in_training_and_within_a_document() -> None:
    config = dataclasses.replace(BASE, future_weights=(0.5, 0.25), future_until=0.5)
    assert [multi_token_prediction.share(config, fraction) for fraction in (0.0, 0.25, 0.5, 1.0)] == [
        1.0,
        0.5,
        0.0,
        0.0,
    ]
    following = torch.tensor([[5, 6, BASE.bos_id, 7]])
    wanted, weights = multi_token_prediction.targets(following, config, 1.0)
    assert wanted[0].tolist() == [5, 6, BASE.bos_id]
    share = 0.25  # one of four tokens
    assert weights.tolist() == [
        [share, share * 0.5, share * 0.25],  # 6 and the start of the next document come after 5
        [share, share * 0.5, 0.0],  # nothing beyond that start
        [share, 0.0, 0.0],
        [share, 0.0, 0.0],
    ]
    model, tokens = build(future_weights=(0.5, 0.25)), batch()
    with_future = model.loss(tokens[:, :-1], tokens[:, 1:])
    model.set_progress(1.0)
    torch.testing.assert_close(
        model.loss(tokens[:, :-1], tokens[:, 1:]), model.token_losses(tokens[:, :-1], tokens[:, 1:]).mean()
    )
    assert with_future > model.loss(tokens[:, :-1], tokens[:, 1:])


def test_operations_are_six_per_executed_weight_and_attentions_own() -> None:
    model = build(loop_first=1, loop_last=2, loop_passes=2)
    block = 32 * 32 * 2 + 32 * 16 * 2 + 2 * 32 * 64
    wanted = 6 * (6 * block + 64 * 32) + 6 * 12 * 32 * (20 + 1) / 2
    assert flops.training_flops_per_token(model, 20) == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "does not divide"),
        ({"parallel_lanes": 2}, "parallel_lanes"),
        ({"head_gate": "thick"}, "head_gate"),
        ({"layer_windows": (4, 4)}, "layer_windows"),
        ({"value_embed_layers": (9,)}, "value_embed_layers"),
        ({"key_offset": True}, "rope_dims"),
        ({"loop_first": 3, "loop_last": 1}, "loop_first"),
        ({"rope_dims": 7}, "rope_dims"),
        ({"vocab_size": 70_000}, "vocab_size"),
        ({"parallel_from": 1, "parallel_lanes": 2, "loop_passes": 2}, "parallel_lanes"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PgolfError, match=message):
        dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize("part", PARTS)
def test_one_more_token_with_cached_keys_and_values_is_the_whole_forward(part: str) -> None:
    model, tokens = build(**PARTS[part][0]).eval(), batch()
    cache = KeyValueCache(tokens.shape[1])
    with torch.no_grad():
        for length in (7, *range(8, tokens.shape[1] + 1)):  # a prefill, then token by token
            whole = model.hidden(tokens[:, :length], 1)
            torch.testing.assert_close(model.hidden(tokens[:, :length], 1, cache), whole, rtol=1e-5, atol=1e-5)
            if length == 15:  # one text has ended
                tokens = tokens[1:]
                cache.keep(torch.tensor([False, True, True]))
        cache.start()
        other = tokens[:, 2:9]
        torch.testing.assert_close(model.hidden(other, 1, cache), model.hidden(other, 1), rtol=1e-5, atol=1e-5)
