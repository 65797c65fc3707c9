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
