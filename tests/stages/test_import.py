"""Checkpoints of the challenge's scripts become a stage that is quantized, scored and packaged like any other."""

import io
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pgolf import config as configs
from pgolf import interop
from pgolf.data import decompress
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.saved.models import load_model, load_weights
from stages.eval_sliding import eval_sliding
from stages.import_checkpoint import import_checkpoint
from stages.package import package
from stages.quantize import quantize
from stages.views.evaluation import Documents

SEED = {"vocab_size": 384, "dim": 16, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "mlp_ratio": 2.0}
BASELINE = {**SEED, "num_layers": 4, "skips": True, "skip_gates": False}


def state_dict(model: dict) -> dict[str, Tensor]:
    """Weights under pgolf's names, none of them at its start."""
    torch.manual_seed(5)
    return {name: value + 0.1 * torch.randn_like(value) for name, value in GPT(config_of(model)).state_dict().items()}


def config_of(model: dict) -> configs.ModelConfig:
    return configs.from_dict({"model": model}).model


def baseline_state_dict() -> dict[str, Tensor]:
    """As the baseline's script saves it: the skips under its own name, in bfloat16, from a compiled model."""
    found = {name.replace("skips.weights", "skip_weights"): value for name, value in state_dict(BASELINE).items()}
    return {f"_orig_mod.{name}": value.bfloat16() for name, value in found.items()}


def int8_file(path: Path, weights: dict[str, Tensor]) -> None:
    """A `.ptz`: matrices as int8 with a scale per row, the rest as it is."""
    quantized, scales, passthrough = {}, {}, {}
    for name, value in weights.items():
        if value.ndim == 2 and value.numel() > 64:
            scales[name] = (value.abs().amax(1) / 127).half()
            quantized[name] = torch.round(value / scales[name].float()[:, None]).clamp(-127, 127).to(torch.int8)
        else:
            passthrough[name] = value
    content = {
        "__quant_format__": "int8_clean_per_row_v1", "quantized": quantized, "scales": scales,
        "dtypes": dict.fromkeys(quantized, "float32"), "passthrough": passthrough,
    }  # fmt: skip
    stream = io.BytesIO()
    torch.save(content, stream)
    path.write_bytes(zlib.compress(stream.getvalue(), 9))


def test_seed_checkpoint_is_quantized_scored_and_packaged(chain, documents, tmp_path, context):
    weights = state_dict(SEED)
    torch.save({"model": weights, "step": 3}, tmp_path / "final.pt")
    # Without a tokenize stage in its lineage it can be quantized, on any shards.
    alone = context(tmp_path / "alone")
    bare = quantize(alone, import_checkpoint(alone, interop.read(tmp_path / "final.pt")), calibration=chain.tokens.path)
    assert load_weights(bare)["tok_emb.weight"].shape == (384, 16)
    # With one, everything that comes after works.
    run = context(tmp_path / "run")
    imported = import_checkpoint(run, interop.read(tmp_path / "final.pt"), chain.tokens)
    assert imported.manifest.stage == "ema-finalize"
    found = load_weights(imported)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    quantized = quantize(run, imported)
    scored = eval_sliding(run, quantized)
    other = eval_sliding(run.replace(name="other"), quantized, Documents.of([documents[1]]))
    assert scored.manifest.metrics["bits_per_byte"] == pytest.approx(other.manifest.metrics["bits_per_byte"], abs=1e-9)
    packaged = package(run, quantized)
    score = packaged.manifest.details["claims"]["scores"]["sliding"]
    assert score["bits_per_byte"] == scored.manifest.metrics["bits_per_byte"]


def baseline_skips(model: GPT, tokens: Tensor) -> Tensor:
    """Hidden states with the skips as the baseline's script writes them."""
    from pgolf.model.attention_mask import view
    from pgolf.model.forward_context import Step
    from pgolf.model.layers import rms_norm
    from pgolf.model.rotary import rotary_tables

    x = rms_norm(model.tok_emb(tokens))
    step = Step(x, *rotary_tables(tokens.shape[1], 8, 10_000.0, tokens.device), None)
    skips: list[Tensor] = []
    for index in range(4):
        if index >= 2:
            x = x + model.skips.weights[index - 2] * skips.pop()
        x = model.blocks[index](x, step, view(None, 0, tokens, False))
        if index < 2:
            skips.append(x)
    return rms_norm(x)


def test_baseline_checkpoint_has_its_plain_skips(tmp_path, context):
    torch.save(baseline_state_dict(), tmp_path / "final_model.pt")
    run = context(tmp_path / "run")
    model = load_model(import_checkpoint(run, interop.read(tmp_path / "final_model.pt")), run.runtime)
    assert model.config == config_of(BASELINE)
    tokens = torch.randint(2, 384, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(tokens), baseline_skips(model, tokens))


def test_quantized_file_is_its_integers_times_their_scales(tmp_path, context):
    weights = state_dict(SEED)
    int8_file(tmp_path / "final.int8.ptz", weights)
    found = load_weights(import_checkpoint(context(tmp_path / "run"), interop.read(tmp_path / "final.int8.ptz")))
    assert set(found) == set(weights)
    for name, value in weights.items():
        assert float((found[name] - value).abs().max()) <= float(value.abs().max()) / 127


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_other_files_are_refused(tmp_path, context):
    run = context(tmp_path / "run")

    def refuses(name: str, match: str) -> None:
        with pytest.raises(PgolfError, match=match):
            import_checkpoint(run, interop.read(tmp_path / name))

    torch.save({"model": _Evil(tmp_path / "pwned")}, tmp_path / "evil.pt")
    refuses("evil.pt", "not a checkpoint that holds only tensors")
    assert not (tmp_path / "pwned").exists()
    refuses("none.pt", "does not exist")
    (tmp_path / "text.pt").write_text("hello")
    refuses("text.pt", "not a checkpoint that holds only tensors")
    int8_file(tmp_path / "cut.ptz", state_dict(SEED))
    (tmp_path / "cut.ptz").write_bytes((tmp_path / "cut.ptz").read_bytes()[:500])
    refuses("cut.ptz", "cut short")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    refuses("linear.pt", "matches neither the challenge's baseline nor the seed")
    odd = state_dict(SEED)
    odd["blocks.0.mlp.extra"] = torch.zeros(2)
    torch.save(odd, tmp_path / "odd.pt")
    refuses("odd.pt", "blocks.0.mlp.extra")
    assert not (tmp_path / "run" / "ema-finalize").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tok_emb.weight": torch.zeros(8)}, "not two dimensions"),
        ({"tok_emb.weight": torch.zeros(384, 0)}, "empty tensors"),
        ({"blocks.0.attn.c_k.weight": torch.tensor(1.0)}, "not two dimensions"),
        ({"blocks.99999999.attn.q_gain": torch.zeros(2)}, "unexpected tensor blocks.99999999"),
        ({"blocks.7.attn.q_gain": torch.zeros(2)}, "tensors of 4 layers, the last called blocks.7"),
        ({"tok_emb.weight": torch.eye(384, 16).to_sparse()}, "tok_emb.weight is not a dense tensor"),
        ({"module.tok_emb.weight": torch.zeros(384, 16)}, "holds tok_emb.weight twice"),
        ({"tok_emb.weight": [1.0]}, "is not a state dict"),
    ],
)
def test_odd_checkpoints_are_refused_for_their_own_reason(tmp_path, context, change, match):
    torch.save(state_dict(SEED) | change, tmp_path / "odd.pt")
    with pytest.raises(PgolfError, match=match):
        import_checkpoint(context(tmp_path / "run"), interop.read(tmp_path / "odd.pt"))


def test_prefixes_of_wrappers_in_any_order(tmp_path, context):
    weights = state_dict(SEED)
    for index, prefix in enumerate(("module._orig_mod.", "_orig_mod.module.", "module.module.")):
        torch.save({prefix + name: value for name, value in weights.items()}, tmp_path / "wrapped.pt")
        found = load_weights(import_checkpoint(context(tmp_path / str(index)), interop.read(tmp_path / "wrapped.pt")))
        assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_checkpoints_that_unpack_to_far_more_than_they_are(tmp_path, context, monkeypatch):
    monkeypatch.setattr(decompress, "FREE_BYTES", 1 << 16)
    (tmp_path / "bomb.ptz").write_bytes(zlib.compress(bytes(8 << 20), 9))
    torch.save(state_dict(SEED), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, bytes(1 << 20) if "data/" in name else plain.read(name))
    for name, match in (
        ("bomb.ptz", "unpacks to more than 100 times its size"),
        ("bomb.pt", "holds compressed records"),
    ):
        with pytest.raises(PgolfError, match=match):
            import_checkpoint(context(tmp_path / "run"), interop.read(tmp_path / name))
