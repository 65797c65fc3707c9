"""The order of a run's stages."""

from types import SimpleNamespace

from pgolf.store import runs


def test_stages_of_one_second_stand_in_the_order_of_the_chain():
    def stage(kind, started="2026-11-29T08:00:00+00:00"):
        return SimpleNamespace(label=kind, manifest=SimpleNamespace(stage=kind, started=started))

    made = [
        stage("ema-finalize"),
        stage("quantize"),
        stage("tokenize"),
        stage("train"),
        stage("eval-ttt", "2026-11-28"),
    ]
    assert [one.label for one in sorted(made, key=runs.age)] == [
        "eval-ttt",
        "tokenize",
        "train",
        "ema-finalize",
        "quantize",
    ]
