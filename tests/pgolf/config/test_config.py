"""Configuration: composition order, errors that name the nearest key, and a lossless way through JSON."""

import dataclasses
import json

import pytest

from pgolf import config as configs
from pgolf.errors import PgolfError


def test_later_sources_win(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("seed = 5\n[model]\ndim = 192\nnum_heads = 6\n")
    composed = configs.load("demo", file, ["model.dim=384"])
    assert (composed.seed, composed.model.dim, composed.model.num_heads) == (5, 384, 6)
    assert composed.tokenizer == configs.load("demo").tokenizer


@pytest.mark.parametrize("preset", configs.preset_names())
def test_presets_survive_json(preset):
    composed = configs.load(preset)
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(composed)))) == composed


def test_a_preset_overrides_its_base():
    plain, caseops = configs.load("record"), configs.load("record-caseops")
    assert (plain.tokenizer.caseops, caseops.tokenizer.caseops) == (False, True)
    assert dataclasses.replace(caseops, tokenizer=plain.tokenizer) == plain


# The list of hyperparameters at the head of #2135's logs, by the preset's names.
PR_2135 = {
    "model": {
        **{"num_layers": 11, "dim": 512, "num_heads": 8, "num_kv_heads": 4, "mlp_ratio": 4.0, "vocab_size": 8192},
        **{"embed_init_std": 0.005, "qk_gain": 5.0, "rope_base": 10000.0, "rope_dims": 16, "norm_scale": True},
        **{"logit_softcap": 30.0, "asymmetric_softcap": True, "xsa_from": 0, "head_gate": "sparse"},
        **{"head_gate_factor": 0.5, "smear_gate": True, "skips": True, "skip_gates": True, "parallel_from": 8},
        **{"parallel_lanes": 2, "loop_first": 3, "loop_last": 5, "loop_passes": 3, "loop_from": 0.35},
    },
    "train": {"iterations": 20000, "seconds": 600.0, "batch_tokens": 786432, "seq_len": 2048},
    "optim": {
        **{
            "matrix_lr": 0.028,
            "momentum": 0.97,
            "momentum_start": 0.92,
            "momentum_warmup": 1500,
            "matrix_decay": 0.095,
        },
        **{"newton_schulz": "polar-express", "newton_schulz_steps": 5, "row_equalize": True, "adam_epsilon": 1e-8},
        **{"embed_lr": 0.03, "embed_decay": 0.085, "scalar_lr": 0.02, "scalar_decay": 0.02, "warmdown": 0.85},
        **{"embed_betas": (0.9, 0.99), "scalar_betas": (0.9, 0.99), "lr_floor": 0.1, "grad_clip": 0.3},
    },
    "evaluate": {"seq_len": 2560, "stride": 64, "tilt_boost": 2.625, "tilt_order": 16, "tilt_threshold": 0.8},
    "ttt": {
        **{"method": "phased", "chunk_tokens": 48, "optimizer": "sgd", "lr": 0.001, "epochs": 1, "lora_rank": 80},
        **{"lora_alpha": 144.0, "lora_lr": 8e-5, "lora_decay": 2.0, "lora_without": ("attn.c_k",), "lora_chunks": ()},
        **{"lora_documents": 64, "phases": 2, "phase_share": 0.05},
    },
}


def test_the_record_is_set_as_its_script():
    preset = configs.load("record")
    for section, values in PR_2135.items():
        assert {key: getattr(getattr(preset, section), key) for key in values} == values
    assert preset.average.ema_decays[0] == 0.9965
    assert preset.train.reserve_seconds == 8.0  # not #2135's: see docs/RECORD.md


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.dimm=64", "did you mean model.dim?"),
        ("modell.dim=64", "did you mean model?"),
        ("model.dim=wide", "model.dim must be a whole number, got 'wide'"),
        ("model.dim=true", "model.dim must be a whole number"),
        ("model=3", "model is a section"),
        ("model.dim", "write it as section.key=value"),
        ("model.num_heads=7", "does not divide"),
        ("tokenizer.vocab_size=70000", "65,536"),
    ],
)
def test_nonsense_is_refused(assignment, message):
    with pytest.raises(PgolfError, match=r"^[^\n]*$") as caught:
        configs.load(assignments=[assignment])
    assert message in str(caught.value)


def test_unknown_preset_and_unreadable_file(tmp_path):
    with pytest.raises(PgolfError, match="did you mean demo"):
        configs.load("demmo")
    with pytest.raises(PgolfError, match="cannot read"):
        configs.load(file=tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(PgolfError, match="not valid TOML"):
        configs.load(file=broken)


def test_values_of_two_sources_are_judged_together(tmp_path):
    """A head count that divides only the other source's width is not refused before the two are composed."""
    file = tmp_path / "own.toml"
    file.write_text("[model]\nnum_heads = 10\nnum_kv_heads = 5\n")
    assert configs.load(None, file, ["model.dim=160"]).model.num_heads == 10


def test_another_versions_configuration_is_read():
    values = configs.to_dict(configs.load("demo"))
    values["ttt"]["retired"] = 1
    values["evaluate"]["stride"] = "wide"
    values["gone"] = {"a": 1}
    values["options"] = {}
    assert configs.recorded(values).model == configs.load("demo").model
    assert configs.recorded(values).evaluate.stride == configs.load().evaluate.stride
    values["model"]["unknown_part"] = True
    with pytest.raises(PgolfError, match=r"unknown key model\.unknown_part"):
        configs.recorded(values)
