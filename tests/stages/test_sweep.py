"""Several byte targets in one call: shared work, and every variant as if it had been made alone."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from pgolf.errors import PgolfError
from pgolf.quant import hessian
from stages import package
from stages.quantize import quantize
from stages.reports import sweep

TARGETS = [31_500, 30_000]
SETTINGS = {"method": "waterfill", "calibration_tokens": 512, "sensitivity_tokens": 256}
FAST = {"coder": "zlib"}


def test_variants_are_what_single_commands_make(chain, tmp_path, context, monkeypatch) -> None:
    """The same payload and reserved bytes, from one calibration and one script."""
    built, calibrated = [], []
    calibrate = hessian.calibrate
    monkeypatch.setattr(package, "_script", lambda *_: built.append(1) or SimpleNamespace(script=bytes(25_000)))
    monkeypatch.setattr(hessian, "calibrate", lambda *given: calibrated.append(1) or calibrate(*given))
    here = context(tmp_path / "run", quantize=SETTINGS, package=FAST)
    variants = sweep.sweep(here, chain.averaged, TARGETS, score=True)
    assert (len(built), len(calibrated)) == (1, 1)
    assert [variant.stage.path.name for variant in variants] == [f"quantize@{target}" for target in TARGETS]
    assert [variant.score.path.name for variant in variants] == [f"eval-sliding@{target}" for target in TARGETS]
    for variant in variants:
        assert variant.target_bytes - 50 < variant.total_bytes <= variant.target_bytes
        assert variant.score.parent("model").manifest_sha256 == variant.stage.manifest_sha256
    assert len({variant.bits_per_byte for variant in variants}) == 2
    single = context(tmp_path / "alone", quantize=SETTINGS | {"target_bytes": TARGETS[1]}, package=FAST)
    alone, last = quantize(single, chain.averaged).manifest, variants[1].stage.manifest
    assert last.outputs == alone.outputs
    assert (last.details, last.metrics) == (alone.details, alone.metrics)
    assert last.config == alone.config
    picture = tmp_path / "sweep.png"
    sweep.draw(variants, picture)
    assert Image.open(picture).size == (1050, 675)
    rows = json.loads(json.dumps([variant.to_dict() for variant in variants]))
    assert [row["bits_per_byte"] for row in rows] == [variant.bits_per_byte for variant in variants]


@pytest.mark.parametrize(
    ("name", "targets", "names"),
    [
        (None, [9000, 8000], {"9000": 9000, "8000": 8000}),
        ("fine", [9000, 8000], {"fine-9000": 9000, "fine-8000": 8000}),
        ("fine", [9000], {"fine": 9000}),
        (None, [9000], {None: 9000}),
    ],
)
def test_names_of_variants(chain, tmp_path, context, monkeypatch, name, targets, names) -> None:
    asked = []
    monkeypatch.setattr(sweep.quantizing, "sweep", lambda context, source, names, calibration: asked.append(names))
    with pytest.raises(TypeError):  # nothing was made, so there is nothing to show
        sweep.sweep(context(tmp_path / "run").replace(name=name), chain.averaged, targets)
    assert asked == [names]


def test_a_target_named_twice_is_refused(chain, tmp_path, context) -> None:
    with pytest.raises(PgolfError, match="a target twice: 12,000, 12,000"):
        sweep.sweep(context(tmp_path / "run"), chain.averaged, [12_000, 12_000])
