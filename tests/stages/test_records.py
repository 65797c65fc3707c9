"""What the stages of a whole run write is what the records of their kinds list."""

from pgolf.store import kinds, runs


def test_a_run_writes_the_fields_of_its_records(chain):
    stages = runs.stages_of(chain.packaged.path.parent)
    assert {stage.manifest.stage for stage in stages} >= {"tokenize", "train", "ema-finalize", "quantize", "package"}
    for stage in stages:
        kind = kinds.KINDS[stage.manifest.stage]
        assert set(stage.manifest.metrics) <= set(kind.metrics.__annotations__), stage.label
        assert set(stage.manifest.details) <= set(kind.details.__annotations__), stage.label
