"""Files in each layout that the challenge's scripts publish, written here by the formulas alone, read by `interop`."""

import functools
import io
import lzma
import zlib
from pathlib import Path

import brotli
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from pgolf import config as configs
from pgolf import interop
from pgolf.config import ModelConfig
from pgolf.data import decompress
from pgolf.errors import PgolfError
from pgolf.interop import containers
from pgolf.model.gpt import GPT

# The parts of record 1.0611, small; what tensors do not tell stands in SETTINGS.
SETTINGS = {
    "mlp_slope": 0.5, "rope_dims": 8, "norm_scale": True, "xsa_from": 0, "head_gate_factor": 0.5,
    "loop_first": 1, "loop_last": 2, "loop_passes": 2,
}  # fmt: skip
PARTS = {
    "vocab_size": 300, "dim": 32, "num_layers": 5, "num_heads": 2, "num_kv_heads": 1, "mlp_ratio": 2.0, "skips": True,
    "smear_gate": True, "head_gate": "sparse", "parallel_from": 3, "parallel_lanes": 2,
}  # fmt: skip
TOKENS = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(1))


def model_config(**values: object) -> ModelConfig:
    return configs.from_dict({"model": values}).model


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Weights under pgolf's names, none of them at its start."""
    torch.manual_seed(5)
    return {name: value + 0.1 * torch.randn_like(value) for name, value in GPT(config).state_dict().items()}


def losses(config: ModelConfig, weights: dict[str, Tensor]) -> Tensor:
    model = GPT(config).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.token_losses(TOKENS[:, :-1], TOKENS[:, 1:])


def record_names(weights: dict[str, Tensor], layers: int = 5, lanes_from: int = 3, banks: bool = True):
    """As the scripts from 2026-04-10 on name them: banks, and lane weights for every layer."""
    found = dict(weights)
    out = {
        "skip_weights": found.pop("skips.weights"),
        "skip_gates": found.pop("skips.gates"),
        "smear_gate.weight": found.pop("smear.weight")[None],
        "smear_lambda": found.pop("smear.strength")[None],
        "parallel_resid_lambdas": torch.cat([torch.full((lanes_from, 2), 1.1), found.pop("lanes.keep")]),
        "parallel_post_lambdas": torch.cat([torch.ones(lanes_from, 2, 2), found.pop("lanes.write")]),
    }
    for layer in range(layers):
        out[f"blocks.{layer}.attn.attn_gate_w"] = found.pop(f"blocks.{layer}.attn.gate.weight")
    if banks:
        matrices = {
            part: [found.pop(f"blocks.{layer}.{part}.weight") for layer in range(layers)]
            for part in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
        }
        out["qo_bank"] = torch.stack(matrices["attn.c_q"] + matrices["attn.proj"])
        out["kv_bank"] = torch.stack(matrices["attn.c_k"] + matrices["attn.c_v"])
        out["mlp_up_bank"] = torch.stack(matrices["mlp.fc"])
        out["mlp_down_bank"] = torch.stack(matrices["mlp.proj"])
    return out | found


def integers(value: Tensor, bits: int, sigmas: float = 12.85) -> tuple[Tensor, Tensor]:
    """SDClip (PR #1394): one step per row, so many standard deviations over the largest integer."""
    top = 2 ** (bits - 1) - 1
    scale = (sigmas * value.std(1) / top).half()
    return (value / scale.float()[:, None]).round().clamp(-top, top).to(torch.int8), scale


def torch_bytes(found: object) -> bytes:
    stream = io.BytesIO()
    torch.save(found, stream)
    return stream.getvalue()


def shuffled(data: bytes, stride: int = 2, width: int = 1) -> bytes:
    """The bytes at positions 0, stride, 2 stride, ..., then those at 1, 1 + stride, ...: BSHF of the records."""
    return b"BSHF" + stride.to_bytes(width, "little") + b"".join(data[start::stride] for start in range(stride))


PACKED = {
    "brotli": lambda data: brotli.compress(shuffled(data), quality=5),
    "lzma": lambda data: lzma.compress(shuffled(data), preset=0),
    "zlib": lambda data: zlib.compress(data),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "marked zstd": lambda data: b"ZSTD" + zstandard.ZstdCompressor().compress(data),  # record 2026-03-21
    "stride in two bytes": lambda data: brotli.compress(shuffled(data, 2, 2), quality=5),  # record 2026-03-31
    "not shuffled": lambda data: brotli.compress(data, quality=5),
}


def record_file(weights: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """A `{"w", "m"}` file as record 1.0611 quantizes, and the weights that the formulas give back.

    weights: under the names of the scripts, no banks.
    """
    tensors, how, plain = {}, {}, {}
    for index, (name, value) in enumerate(weights.items()):
        if name.endswith("attn_gate_w"):
            scale = (value.abs().amax(1) / 127).half()
            tensors[f"{name}.gq"] = (value / scale.float()[:, None]).round().to(torch.int8)
            tensors[f"{name}.gs"], how[name] = scale, "gate_int8_row"
            plain[name] = torch.from_numpy(tensors[f"{name}.gq"].numpy() * scale.float().numpy()[:, None])
        elif value.ndim < 2 or value.numel() < 200 or "skip" in name or "resid_mix" in name:
            tensors[name], how[name] = value.half(), "passthrough (float16)"
            plain[name] = tensors[name].float()
        else:
            bits = 7 if name == "tok_emb.weight" else 6
            q, scale = integers(value, bits)
            tensors[f"{name}.q"], tensors[f"{name}.scale"], how[name] = q, scale, f"gptq (int{bits})"
            plain[name] = torch.from_numpy(np.float32(q.numpy()) * np.float32(scale.numpy())[:, None])
            repair(name, index % 3, value - plain[name], tensors, how, plain)
    return {"w": tensors, "m": how}, plain


def repair(name: str, kind: int, error: Tensor, tensors: dict, how: dict, plain: dict) -> None:
    """LQER (PR #1797): the largest directions of the error, themselves in integers; kind 0: none."""
    u, s, v = torch.linalg.svd(error, full_matrices=False)
    a, b = u[:, :2] * s[:2], v[:2]
    if kind == 1:
        a_scale, groups = (a.abs().max() / 1.5).half(), b.reshape(-1, 8)
        b_scale = (groups.abs().amax(1) / 7.5).half()
        qa = (a / a_scale.float()).round().clamp(-2, 1).to(torch.int8)
        qb = (groups / b_scale.float()[:, None]).round().clamp(-8, 7).to(torch.int8)
        product = (qa.double() * float(a_scale)) @ (qb.double() * b_scale.double()[:, None]).reshape(b.shape)
        stored, end = (qa, a_scale, qb.reshape(b.shape), b_scale), "_a"
    elif kind == 2:
        a_scale, b_scale = ((part.abs().amax(1) / 7).half() for part in (a, b))
        qa, qb = ((p / s.float()[:, None]).round().to(torch.int8) for p, s in ((a, a_scale), (b, b_scale)))
        product = (qa.double() * a_scale.double()[:, None]) @ (qb.double() * b_scale.double()[:, None])
        stored, end = (qa, a_scale, qb, b_scale), ""
    else:
        return
    for part, tensor in zip(("lqA", "lqAs", "lqB", "lqBs"), stored, strict=True):
        tensors[f"{name}.{part}{end}"] = tensor
    how[name] += "+lqer_asym" if end else "+lqer"
    plain[name] = (plain[name].double() + product).float()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def as_ours(plain: dict[str, Tensor], names: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dequantized weights under pgolf's names; `names`: weights under pgolf's names that begin from the same model."""
    swapped = record_names({name: torch.full_like(value, 0) for name, value in names.items()}, banks=False)
    assert set(swapped) == set(plain)
    ours = {name: plain[name] for name in names if name in plain}
    ours |= {f"blocks.{i}.attn.gate.weight": plain[f"blocks.{i}.attn.attn_gate_w"] for i in range(5)}
    return ours | {
        "skips.weights": plain["skip_weights"], "skips.gates": plain["skip_gates"],
        "smear.weight": plain["smear_gate.weight"][0], "smear.strength": plain["smear_lambda"][0],
        "lanes.keep": plain["parallel_resid_lambdas"][3:], "lanes.write": plain["parallel_post_lambdas"][3:],
    }  # fmt: skip


def test_float_banks_of_the_newest_records_give_the_same_losses(tmp_path):
    config = model_config(**PARTS, **SETTINGS)
    weights = random_weights(config)
    torch.save(record_names(weights), tmp_path / "final_model.pt")
    found, ours = interop.read(tmp_path / "final_model.pt").fit(model_config(**SETTINGS))
    assert found == config  # the first parallel layer too: the lane weights of the layers before it have their start
    torch.testing.assert_close(losses(found, ours), losses(config, weights), rtol=0, atol=1e-6)


@pytest.mark.parametrize("packing", PACKED)
def test_integers_of_the_records_give_the_losses_of_their_formulas(tmp_path, packing):
    config = model_config(**PARTS, **SETTINGS)
    weights = random_weights(config)
    content, plain = record_file(record_names(weights, banks=False))
    path = written(tmp_path / "final_model.int6.ptz", PACKED[packing](torch_bytes(content)))
    found, ours = interop.read(path).fit(model_config(**SETTINGS))
    assert found == config
    expected = losses(config, as_ours(plain, weights))
    torch.testing.assert_close(losses(found, ours), expected, rtol=0, atol=1e-5)
    assert float((expected - losses(config, weights)).abs().max()) > 1e-3  # the quantization can be seen


def test_columns_on_a_finer_scale(tmp_path):
    """AWQ-lite (PR #2014): groups of columns whose integers belong to a second scale."""
    config = model_config(**{**PARTS, "parallel_lanes": 1, "smear_gate": False, "head_gate": "none"})
    weights = random_weights(config)
    name = "blocks.1.mlp.fc.weight"
    q, scale = integers(weights[name], 6)
    fine, starts = (scale.float() / 3).half(), [4, 20]
    stored = {other: value for other, value in weights.items() if other != name}
    stored |= {f"{name}.q": q, f"{name}.scale": scale, f"{name}.awqg_start": torch.tensor(starts, dtype=torch.int16)}
    stored |= {f"{name}.awqg_s_hi": fine, f"{name}.awqg_size": torch.tensor(8)}
    how = dict.fromkeys(weights, "passthrough") | {name: "gptq (int6)+awqgrpint8"}
    path = written(tmp_path / "a.ptz", torch_bytes({"w": stored, "m": how}))
    expected = q.numpy() * scale.float().numpy()[:, None]
    for start in starts:
        expected[:, start : start + 8] = q.numpy()[:, start : start + 8] * fine.float().numpy()[:, None]
    np.testing.assert_array_equal(interop.read(path).weights[name].numpy(), expected)


@pytest.mark.parametrize("layout", ["int8_clean_per_row_v1", "int6_sdclip_v1", "mixed_int8_int6_v1", "psionic", None])
def test_integers_of_the_baseline_and_its_relatives(tmp_path, layout):
    weights = random_weights(model_config(**{**PARTS, "parallel_lanes": 1, "smear_gate": False, "head_gate": "none"}))
    rows = {name: integers(value, 6) for name, value in weights.items() if value.ndim == 2 and len(value) > 20}
    kept = {name: value for name, value in weights.items() if name not in rows}
    assert len(rows) > 20
    if layout == "psionic":
        flat = kept | {f"{name}.__q": q for name, (q, _) in rows.items()}
        flat |= {f"{name}.__scale": scale for name, (_, scale) in rows.items()}
        data = save(flat, {"psionic.parameter_golf.quant_format": "int8_clean_per_row_v1"})
    else:
        content = {"quantized": {name: q for name, (q, _) in rows.items()}, "passthrough": kept}
        content |= {"scales": {name: scale for name, (_, scale) in rows.items()}, "dtypes": {}}
        data = torch_bytes(content | ({"__quant_format__": layout} if layout else {}))
    found = interop.read(written(tmp_path / "final_model.int8.ptz", zlib.compress(data))).weights
    assert set(found) == set(weights)
    for name, (q, scale) in rows.items():
        np.testing.assert_array_equal(found[name].numpy(), q.numpy() * scale.float().numpy()[:, None])
    assert all(torch.equal(found[name], value) for name, value in kept.items())


@pytest.mark.parametrize("width", [8, 16])
def test_value_embeddings_of_record_2026_04_01(tmp_path, width):
    """Its table has a scale, each layer another, and no projection where it is as wide as the values (16)."""
    config = model_config(**{**PARTS, "parallel_lanes": 1, "smear_gate": False, "head_gate": "none"},
                          value_embed_layers=[3, 4], value_embed_dim=width)  # fmt: skip
    weights = random_weights(config)
    if width == 16:
        weights["value_emb.proj.weight"] = torch.eye(16)
    named = {name: value for name, value in weights.items() if not name.startswith("value_emb.")}
    named |= {"ve_shared.embed.weight": weights["value_emb.table.weight"], "ve_shared.scale": torch.tensor(0.1)}
    named |= {f"ve_layer_scales.{i}": weights["value_emb.scales"][i : i + 1] / 0.1 for i in range(2)}
    if width == 8:
        named["ve_shared.proj.weight"] = weights["value_emb.proj.weight"]
    torch.save(named, tmp_path / "a.pt")
    found, ours = interop.read(tmp_path / "a.pt").fit(model_config(parallel_from=3))
    assert found == config
    torch.testing.assert_close(losses(found, ours), losses(config, weights), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("smear.gate", "SmearGate that blends"),
        ("bigram.embed.weight", "hashed bigrams"),
        ("blocks.0.attn.attn_gate_proj.weight", "output gate of twice"),
        ("lane_merge", "learned merge"),
    ],
)
def test_parts_that_the_model_lacks_are_named(tmp_path, name, match):
    torch.save(random_weights(model_config(**PARTS)) | {name: torch.ones(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(PgolfError, match=f"parts that pgolf's model does not: .*{match}"):
        interop.read(tmp_path / "a.pt")


def test_what_does_not_fit_is_said_with_the_setting_to_change(tmp_path):
    weights = record_names(random_weights(model_config(**PARTS, **SETTINGS)))
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(PgolfError, match=r"has 3 skips, so its model runs 6 or 7 blocks; its 5 layers .* run 5: set"):
        interop.read(tmp_path / "a.pt").fit(model_config())
    weights["parallel_post_lambdas"] = torch.randn(5, 2, 2)
    torch.save(weights, tmp_path / "b.pt")
    with pytest.raises(PgolfError, match=r"set model\.parallel_from"):
        interop.read(tmp_path / "b.pt").fit(model_config(**SETTINGS))
    assert interop.read(tmp_path / "b.pt").fit(model_config(**SETTINGS, parallel_from=3))[0].parallel_from == 3


def _broken(change: dict, how: dict) -> bytes:
    content, _ = record_file(record_names(random_weights(model_config(**PARTS)), banks=False))
    return torch_bytes({"w": content["w"] | change, "m": content["m"] | how})


MATRIX = "blocks.0.mlp.fc.weight"
HOSTILE = {
    "groups packed by lrzip": (lambda: b"PGRP" + bytes(40), "packed by the program lrzip"),
    "a view that repeats one number": (
        lambda: torch_bytes({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}),
        "a is .* more than the 4 bytes stored for it",
    ),
    "one storage under many names": (
        lambda: torch_bytes({str(i): value for value in [torch.zeros(1 << 12)] for i in range(900)}),
        "repeats its tensors",
    ),
    "bytes behind the end": (lambda: brotli.compress(_broken({}, {}), quality=1) + b"x", "brotli"),
    "cut brotli": (lambda: brotli.compress(_broken({}, {}), quality=1)[:-9], "cut short"),
    "packed five times": (lambda: functools.reduce(lambda data, _: zlib.compress(data), range(5), b""), "more than 4"),
    "a shuffle of nothing": (lambda: b"BSHF\2" + bytes(40), "behind its byte shuffle"),
    "integers that are floats": (lambda: _broken({f"{MATRIX}.q": torch.ones(64, 32)}, {}), "expected int8"),
    "scales for other rows": (lambda: _broken({f"{MATRIX}.scale": torch.ones(3)}, {}), "expected one, or one per row"),
    "an unknown form": (lambda: _broken({}, {MATRIX: "int6+new"}), "stored with 'new', which is not known"),
    "a part that nothing names": (lambda: _broken({"zz": torch.ones(2)}, {}), "format of zz is not recorded"),
    "a repair of another size": (
        lambda: _broken({f"tok_emb.weight.lq{p}": torch.ones(9, 9, dtype=torch.int8) for p in "AB"}
                        | {f"tok_emb.weight.lq{p}s": torch.ones(9) for p in "AB"}, {"tok_emb.weight": "int6+lqer"}),
        "repair of tok_emb.weight is 9 x 9",
    ),
    "no number": (lambda: torch_bytes({"a": torch.tensor([float("nan")])}), "a holds numbers that are not finite"),
    "another format": (lambda: torch_bytes({"__quant_format__": "int3_v9"}), "its format is 'int3_v9'; known: int8"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_and_hostile_files_are_refused_in_one_line(tmp_path, case, monkeypatch):
    monkeypatch.setattr(decompress, "FREE_BYTES", 1 << 20)
    make, match = HOSTILE[case]
    with pytest.raises(PgolfError, match=match) as error:
        interop.read(written(tmp_path / "a.ptz", make()))
    assert "\n" not in str(error.value)
    assert "a.ptz" in str(error.value)


@pytest.mark.parametrize("packing", ["brotli", "lzma", "zlib", "zstd"])
def test_bombs_are_refused(tmp_path, packing, monkeypatch):
    monkeypatch.setattr(decompress, "FREE_BYTES", 1 << 20)
    path = written(tmp_path / "a.ptz", PACKED[packing](bytes(12 << 20)))
    with pytest.raises(PgolfError, match="unpacks to more than 100 times its size"):
        interop.read(path)


@given(st.binary(max_size=60), st.integers(1, 9), st.sampled_from([1, 2]))
def test_the_byte_shuffle_is_undone(rest, stride, width):
    data = b"PK\3\4" + rest
    assert containers._unshuffled(shuffled(data, stride, width), Path("a")) == data
