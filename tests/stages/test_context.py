"""The stage contract: up to date means untouched, an exception leaves nothing, a variant stands beside."""

import json
import time

import pytest

from pgolf import config as configs
from pgolf import runtime
from pgolf.errors import PgolfError
from pgolf.progress import Silent
from pgolf.store import stage_directory
from stages.context import StageContext, WouldRun


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


def test_a_variant_gets_its_own_directory(context):
    plain = write(context).stage
    variant = write(context.replace(name="int5"), payload=b"v").stage
    assert variant.path.name == "quantize@int5"
    assert plain.file("payload.bin").read_bytes() == b"x"
    assert context.replace(name="int5").input(None, "quantize").path == variant.path
    assert context.input(None, "quantize").path == plain.path


def test_a_missing_input_names_the_command_that_makes_it(context, tmp_path):
    with pytest.raises(PgolfError, match="pgolf tokenize or pgolf run begins one"):
        context.input(None, "train")
    with pytest.raises(PgolfError, match="not a stage directory"):
        context.input(tmp_path, "train")


class Heard(Silent):
    """Keeps the messages."""

    def __init__(self):
        self.lines = []

    def message(self, text, detail=False):
        self.lines.append(text)


def make(context, stage, *sources, sections=(), **changes):
    context = context.replace(**changes)
    with context.build(stage, {source.manifest.stage: source for source in sources}, sections) as build:
        if build.existing is None:
            build.writer.path("payload.bin").write_bytes(stage.encode())
    return build.stage


@pytest.fixture
def chained(context):
    """A run with train, ema-finalize and quantize, each made from the one before."""
    trained = make(context, "train")
    averaged = make(context, "ema-finalize", trained)
    return trained, averaged, make(context, "quantize", averaged)


MODELS = ("package", "quantize", "ema-finalize", "train")


def test_the_newest_is_the_one_that_no_other_was_made_from(context, chained):
    assert context.input(None, *MODELS).label == "quantize"


def test_the_inputs_of_a_stage_are_reported(context, chained):
    heard = Heard()
    for _ in range(2):
        with context.replace(reporter=heard).build("eval-sliding", {"model": chained[2]}, ()):
            pass
    place = context.run / "eval-sliding"
    assert heard.lines == [
        f"eval-sliding is in {place}, made from quantize",
        f"eval-sliding is up to date in {place}, made from quantize (--force redoes it)",
    ]


def test_a_variant_comes_before_every_plain_stage(context, chained):
    make(context, "package", chained[2])
    variant = make(context, "quantize", chained[1], name="again")
    again = context.replace(name="again")
    assert again.input(None, *MODELS).path == variant.path
    assert again.input(None, "ema-finalize", "train").label == "ema-finalize"
    assert context.input(None, *MODELS).label == "package"
    assert context.input(None, "quantize", "ema-finalize", "train").label == "quantize"


def test_two_that_are_not_made_from_one_another_are_asked_about(context, chained):
    make(context, "train", force=True, config=configs.load("demo", assignments=["seed=9"]))
    with pytest.raises(PgolfError, match=r"holds quantize and train, none made from the other.*--from"):
        context.input(None, "quantize", "train")
    for name in "ab":
        make(context, "package", chained[2], name=name)
    with pytest.raises(PgolfError, match=r"no plain package stage, but package@a, package@b: choose with --name"):
        context.input(None, "package")


def test_a_kind_that_is_not_chosen_can_be_given(context, chained):
    packed = make(context, "package", chained[2])
    assert context.input(None, "quantize", also=("package",)).label == "quantize"
    assert context.input(packed.path, "quantize", also=("package",)).label == "package"


def test_settings_come_from_the_own_earlier_stage_or_the_input(context):
    seven = configs.load("demo", assignments=["seed=7", "train.iterations=2"])
    plain = make(context, "train")
    other = make(context, "train", name="other", config=seven)
    here = context.replace(assignments=("train.log_every=3",))
    assert here.own("train") == plain
    assert here.adopt(here.own("train")).config.seed == 0
    assert here.adopt(here.own("quantize"), other).config.seed == 7
    assert here.adopt(here.own("quantize"), other).config.train.log_every == 3
    assert context.adopt(other) is context  # a preset or a file was named: nothing is adopted


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("train.log_every=7", None),
        ("train.checkpoint_every=7", None),
        ("train.compile=false", None),
        ("train.tensorboard=true", None),
        ("train.micro_tokens=64", None),
        ("evaluate.batch_windows=3", None),
        ("train.seconds=300.0", "train.seconds 180.0 -> 300.0"),
        ("evaluate.stride=8", "evaluate.stride 64 -> 8"),
        ("seed=7", "seed 0 -> 7"),
        ("package.cap_bytes=9", "package.cap_bytes 16000000 -> 9"),
    ],
)
def test_only_settings_that_change_a_result_redo_a_stage(context, assignment, reason):
    sections = ("train", "evaluate", "package")
    first = make(context, "package", sections=sections)
    heard = Heard()
    changed = context.replace(config=configs.load("demo", assignments=[assignment]), reporter=heard)
    again = make(changed, "package", sections=sections)
    if reason is None:
        assert again == first
        assert heard.lines == [f"package is up to date in {first.path} (--force redoes it)"]
    else:
        assert heard.lines[0] == f"redoing package: {reason}"
    if assignment.startswith("package.cap"):  # the cap is a setting of the package alone
        make(context, "quantize", sections=sections)
        heard.lines.clear()
        make(changed, "quantize", sections=sections)
        assert "up to date" in heard.lines[0]


def test_changed_added_and_removed_inputs_are_named(context, chained, tmp_path):
    trained, _, _ = chained
    heard = Heard()
    time.sleep(1.1)  # manifests give whole seconds
    newer = make(context, "ema-finalize", trained, force=True)
    make(context, "quantize", newer, reporter=heard)
    make(context, "quantize", newer, trained, reporter=heard)
    make(context, "quantize", trained, reporter=heard)
    assert [line for line in heard.lines if line.startswith("redoing")] == [
        "redoing quantize: ema-finalize changed",
        "redoing quantize: train added as train",
        "redoing quantize: ema-finalize removed as ema-finalize",
    ]


def slow(stage, seconds, version=None):
    """Rewrite the manifest of a finished stage as if it had taken so long, or as another version's."""
    file = stage.path / "manifest.json"
    values = json.loads(file.read_text()) | {"seconds": seconds}
    if version:
        values["pgolf"]["version"] = version
    file.write_text(json.dumps(values))


def test_more_than_a_minute_is_not_replaced_unasked(context):
    first = make(context, "train", sections=("train",))
    slow(first, 61.0)
    changed = context.replace(config=configs.load("demo", assignments=["train.seconds=5.0"]))
    with pytest.raises(PgolfError, match=r"train took 61 s and .*\(train\.seconds 180\.0 -> 5\.0\): --force replaces"):
        make(changed, "train", sections=("train",))
    assert stage_directory.open_stage(first.path).manifest.config["train"]["seconds"] == 180.0
    questions = []
    asked = changed.replace(ask=lambda text: questions.append(text) or True)
    assert make(asked, "train", sections=("train",)).manifest.config["train"]["seconds"] == 5.0
    assert "train.seconds 180.0 -> 5.0" in questions[0]
    slow(first, 61.0)
    assert make(context, "train", sections=("train",), force=True).manifest.seconds < 60


def test_another_version_is_named_and_kept(context):
    first = make(context, "train", sections=("train",))
    slow(first, 1.0, version="0.0.9")
    heard = Heard()
    make(context, "train", sections=("train",), reporter=heard)
    assert "up to date" in heard.lines[0]
    assert "made by pgolf 0.0.9" in heard.lines[0]


def test_a_dry_run_writes_nothing(context):
    with pytest.raises(WouldRun) as would:
        make(context, "train", dry_run=True)
    assert would.value.reasons == ["missing"]
    assert not context.run.exists()


def test_a_foreign_folder_is_refused_before_the_work(context):
    (context.run / "train").mkdir(parents=True)
    (context.run / "train" / "mine.txt").write_text("precious")
    with pytest.raises(PgolfError, match=r"train is not replaced: it has no manifest\.json"):
        make(context, "train")
    assert (context.run / "train" / "mine.txt").read_text() == "precious"
