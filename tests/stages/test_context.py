"""The stage contract: up to date means untouched, an exception leaves nothing, a variant stands beside."""

import pytest

from pgolf import config as configs
from pgolf import runtime
from pgolf.errors import PgolfError
from pgolf.progress import Silent
from stages.context import StageContext


@pytest.fixture
def context(tmp_path):
    return StageContext(
        run=tmp_path / "run",
        config=configs.load("demo"),
        runtime=runtime.choose("cpu", threads=1),
        reporter=Silent(),
        command=("pgolf", "test"),
    )


def write(context, inputs=None, payload=b"x"):
    with context.build("quantize", inputs=inputs or {}, sections=("quantize",)) as build:
        if build.existing is None:
            build.writer.path("payload.bin").write_bytes(payload)
            build.metrics["model_bytes"] = len(payload)
    return build


def test_same_inputs_and_configuration_do_nothing(context):
    first = write(context)
    second = write(context, payload=b"y")
    assert first.existing is None
    assert second.stage == first.stage


@pytest.mark.parametrize("assignment", ["quantize.method='rtn'", "seed=9"])
def test_a_changed_setting_redoes_the_stage(context, assignment):
    write(context)
    changed = context.replace(config=configs.load("demo", assignments=[assignment]))
    assert write(changed, payload=b"y").stage.file("payload.bin").read_bytes() == b"y"


def test_a_setting_of_another_section_does_not(context):
    write(context)
    changed = context.replace(config=configs.load("demo", assignments=["evaluate.stride=32"]))
    assert write(changed).existing is not None


def test_force_and_changed_input(context, tmp_path):
    file = tmp_path / "documents.txt"
    file.write_text("one")
    write(context, {"train:0": file})
    assert write(context, {"train:0": file}).existing is not None
    assert write(context.replace(force=True), {"train:0": file}).existing is None
    file.write_text("two")
    assert write(context, {"train:0": file}).existing is None


def test_an_exception_leaves_nothing_and_keeps_the_old(context):
    write(context)

    def fail():
        with context.replace(force=True).build("quantize", inputs={}, sections=("quantize",)) as build:
            build.writer.path("payload.bin").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert [path.name for path in context.run.iterdir() if path.is_dir()] == ["quantize"]
    assert (context.run / "quantize" / "payload.bin").read_bytes() == b"x"


def test_variant_stands_beside(context):
    plain = write(context).stage
    variant = write(context.replace(name="int5"), payload=b"v").stage
    assert variant.path.name == "quantize@int5"
    assert plain.file("payload.bin").read_bytes() == b"x"
    assert context.replace(name="int5").input(None, "quantize").path == variant.path
    assert context.input(None, "quantize").path == plain.path


def test_missing_input_says_what_to_run(context, tmp_path):
    with pytest.raises(PgolfError, match="run pgolf train first"):
        context.input(None, "train")
    with pytest.raises(PgolfError, match="not a stage directory"):
        context.input(tmp_path, "train")
