"""`pgolf import`: settings before the sizes are known, assumptions named, contradictions refused."""

import json

import pytest
import torch
from typed import pgolf

from pgolf import config as configs
from pgolf.model.gpt import GPT

MODEL = {
    "vocab_size": 300, "dim": 16, "num_layers": 7, "num_heads": 2, "num_kv_heads": 1, "skips": True,
    "loop_first": 3, "loop_last": 5, "loop_passes": 3, "rope_dims": 6, "value_embed_layers": [6],
}  # fmt: skip
LOOPS = ["--set", "model.loop_passes=3", "--set", "model.loop_first=3", "--set", "model.loop_last=5"]


@pytest.fixture
def words(tmp_path) -> list[object]:
    """An import of a file whose layers and heads are not those of the default configuration."""
    torch.save(GPT(configs.from_dict({"model": MODEL}).model).state_dict(), tmp_path / "a.pt")
    return ["import", tmp_path / "a.pt", "--artifacts", tmp_path / "artifacts", "--json"]


def test_settings_may_be_given_before_the_sizes_are_known(words):
    result = pgolf(*words, *LOOPS, "--set", "model.rope_dims=6", "--set", "model.num_layers=7")
    assert result.exit_code == 0, result.output
    model = json.loads(result.stdout)["config"]["model"]
    assert {name: model[name] for name in MODEL} == MODEL


def test_what_the_tensors_do_not_tell_is_named(words):
    result = pgolf(*words, *LOOPS)
    assumed = json.loads(result.stdout)["details"]["imported_assumed"]
    assert assumed["model.rope_dims"] == 0
    assert assumed["model.mlp_slope"] == 0.0
    assert assumed["model.value_embed_layers"] == [6]
    assert not {"model.loop_passes", "model.loop_first", "model.dim"} & set(assumed)
    said = " ".join(result.stderr.split())
    assert "assumed: mlp_slope 0.0, rope_dims 0," in said


@pytest.mark.parametrize(("option", "factor"), [((), 0.5), (("--set", "model.head_gate_factor=1.0"), 1.0)])
def test_the_factor_of_sparse_gates_is_named_and_can_be_set(tmp_path, option, factor):
    torch.save(GPT(configs.from_dict({"model": MODEL | {"head_gate": "sparse"}}).model).state_dict(), tmp_path / "a.pt")
    result = pgolf("import", tmp_path / "a.pt", "--artifacts", tmp_path / "artifacts", "--json", *LOOPS, *option)
    found, said = json.loads(result.stdout), " ".join(result.stderr.split())
    assert found["config"]["model"]["head_gate_factor"] == factor
    assert found["details"]["imported_assumed"].get("model.head_gate_factor") == (None if option else factor)
    assert ("head_gate_factor 0.5 (0.5 in record 1.0611 (#1855), 1.0 in #1787 and #1851)" in said) == (not option)


def test_a_format_that_nobody_documents_is_named_as_an_assumption(tmp_path):
    weights = GPT(configs.from_dict({"model": MODEL}).model).state_dict()
    for form, named in (("int6_sdclip_v1", True), ("int8_clean_per_row_v1", False)):
        content = {"quantized": {}, "scales": {}, "passthrough": weights, "__quant_format__": form}
        torch.save(content, tmp_path / "a.pt")
        result = pgolf("import", tmp_path / "a.pt", "--artifacts", tmp_path / form, "--json", *LOOPS)
        assumed = json.loads(result.stdout)["details"]["imported_assumed"]
        assert ("format" in assumed) == named
        assert ("int6_sdclip_v1 has the baseline's layout" in " ".join(result.stderr.split())) == named


def test_a_preset_is_no_assumption(words):
    result = pgolf(*words, "--preset", "record", *LOOPS, "--set", "model.rope_dims=6", "--set", "model.num_layers=7")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["config"]["model"]["mlp_slope"] == 0.5
    assert not {"model.mlp_slope", "model.xsa_from", "train.seq_len"} & set(found["details"]["imported_assumed"])


def test_a_setting_that_the_tensors_contradict_is_refused(words):
    result = pgolf(*words, *LOOPS, "--set", "model.num_heads=4")
    assert result.exit_code == 2
    assert "--set model.num_heads=4: the tensors of" in json.loads(result.stdout)["error"]
    assert "say 2; leave it out" in json.loads(result.stdout)["error"]
