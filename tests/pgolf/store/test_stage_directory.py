"""Stage directories: whole or absent, verified when read, swept up after a kill."""

import dataclasses
import errno
import json
import shutil
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.robustness import injection
from pgolf.errors import PgolfError
from pgolf.store import lineage, stage_directory, work_folder
from pgolf.store import manifest as manifests
from pgolf.store.manifest import Input, Manifest
from pgolf.store.stage_directory import StageWriter


def make_stage(folder, stage="tokenize", payload=b"tokens", inputs=None, resumable=False):
    writer = StageWriter(folder, resumable)
    writer.path("payload.bin").write_bytes(payload)
    return writer.commit(
        Manifest(
            stage=stage,
            name=folder.name,
            pgolf={"version": "0", "commit": None},
            command=["pgolf"],
            config={},
            inputs={role: item.as_input(folder) for role, item in (inputs or {}).items()},
            outputs=writer.outputs(),
            metrics={},
            environment={},
            seed=0,
            started="2026-01-01T00:00:00+00:00",
            seconds=0.0,
        )
    )


def test_a_written_stage_is_read_back(tmp_path):
    stage = make_stage(tmp_path / "tokenize")
    again = stage_directory.open_stage(tmp_path / "tokenize", ("tokenize",))
    assert again == stage
    assert again.file("payload.bin").read_bytes() == b"tokens"
    assert [path.name for path in tmp_path.iterdir()] == ["tokenize"]


@pytest.mark.parametrize("payload", [b"", b"tokenS", b"tokens+"])
def test_changed_payload_is_named(tmp_path, payload):
    stage = make_stage(tmp_path / "tokenize")
    (stage.path / "payload.bin").write_bytes(payload)
    with pytest.raises(PgolfError, match=r"payload\.bin was changed: expected 6 bytes"):
        stage.file("payload.bin")


def test_missing_payload_and_foreign_kind(tmp_path):
    stage = make_stage(tmp_path / "tokenize")
    (stage.path / "payload.bin").unlink()
    with pytest.raises(PgolfError, match="is missing"):
        stage.file("payload.bin")
    with pytest.raises(PgolfError, match="holds a tokenize stage; this needs train"):
        stage_directory.open_stage(stage.path, ("train",))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema": 1}', '{"schema": 99}', "\x00"])
def test_damaged_manifests_are_refused(tmp_path, text):
    (tmp_path / manifests.FILE_NAME).write_text(text)
    with pytest.raises(PgolfError, match="manifest"):
        stage_directory.open_stage(tmp_path)


def test_lineage_is_checked_by_hash(tmp_path):
    tokens = make_stage(tmp_path / "tokenize")
    trained = make_stage(tmp_path / "train", "train", inputs={"tokens": tokens})
    assert trained.ancestor("tokenize").manifest_sha256 == tokens.manifest_sha256
    file = tokens.path / manifests.FILE_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": 1}))
    with pytest.raises(PgolfError, match="is not the tokenize that"):
        trained.ancestor("tokenize")


def test_a_run_can_be_moved_as_a_whole(tmp_path):
    tokens = make_stage(tmp_path / "a" / "tokenize")
    make_stage(tmp_path / "a" / "train", "train", inputs={"tokens": tokens})
    (tmp_path / "a").rename(tmp_path / "b")
    assert stage_directory.open_stage(tmp_path / "b" / "train").ancestor("tokenize").path == tmp_path / "b" / "tokenize"


def test_lock_keeps_others_out(tmp_path):
    with (
        stage_directory.locked(tmp_path / "run"),
        pytest.raises(PgolfError, match="in use"),
        stage_directory.locked(tmp_path / "run"),
    ):
        pass


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    killed = injection.run(lambda: committed(tmp_path / "train", b"new"), tmp_path, 9, injection.KILL)
    assert killed.how == "killed"
    assert [path.name[:13] for path in tmp_path.iterdir()] == [".pgolf-train-"]
    with stage_directory.locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_resumable_writer_keeps_its_folder_but_not_its_scratch(tmp_path):
    writer = StageWriter(tmp_path / "train", resumable=True)
    writer.path("model.bin").write_bytes(b"m")
    (writer.scratch / "checkpoint").write_bytes(b"c")
    assert set(writer.outputs()) == {"model.bin"}
    assert writer.folder == tmp_path / "train.partial"
    stage = make_stage(tmp_path / "tokenize")
    finished = writer.commit(dataclasses.replace(stage.manifest, stage="train", name="train", outputs=writer.outputs()))
    assert sorted(path.name for path in finished.path.iterdir()) == ["manifest.json", "model.bin"]


def committed(folder, payload, resumable=False):
    """Write and commit a stage as `make_stage` does, resumable or not."""
    return make_stage(folder, "train", payload, resumable=resumable)


def contents(run):
    return {
        path.relative_to(run).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(run.rglob("*"))
        if path.name != ".lock"
    }


def whole(folder):
    """The payload of the stage in `folder` after all its hashes were checked; None when nothing is there."""
    if not folder.exists():
        return None
    return stage_directory.open_stage(folder).file("payload.bin").read_bytes()


@pytest.mark.parametrize(
    ("before", "resumable", "exchange"), [(None, False, True), (b"old", True, True), (b"old", False, False)]
)
def test_a_fault_at_any_operation_leaves_the_old_or_the_new(tmp_path, monkeypatch, before, resumable, exchange):
    if not exchange:
        monkeypatch.setattr(work_folder, "_exchange", lambda left, right: False)

    def attempt():
        with stage_directory.locked(tmp_path / "run"):
            committed(tmp_path / "run" / "train", b"new", resumable)

    total = None
    for first, action in enumerate((errno.EIO, injection.KILL), 1):  # even numbers the one, odd ones the other
        number = 0
        while number == 0 or number <= total:
            run = tmp_path / "run"
            shutil.rmtree(run, ignore_errors=True)
            (run / ".git").mkdir(parents=True)
            (run / ".git" / "HEAD").write_bytes(b"precious")
            if before is not None:
                committed(run / "train", before)
            ending = injection.run(attempt, run, number, action)
            if number == 0:
                total = ending.operations
                assert total > 12
            with stage_directory.locked(run):  # the next command
                pass
            found = whole(run / "train")
            assert found in (before, b"new"), (number, ending)
            assert ending.how != "done" or found == b"new", (number, ending)
            assert ending.how != "failed" or found == before, (number, ending)
            names = {path.name for path in run.iterdir()} - {"train", ".lock", ".git"}
            assert names <= ({"train.partial"} if resumable and found == before else set()), (number, ending)
            assert (run / ".git" / "HEAD").read_bytes() == b"precious"
            number += 2 if number else first


NAMES = st.one_of(
    st.sampled_from(
        [
            ".git",
            ".venv",
            ".train.77.old",
            ".pgolf-train-1-aa-bb",
            ".pgolf-work.json",
            "train.partial",
            "mine.txt",
            "quantize",
            ".pgolf-lock.json.bak",
            "manifest.json",
            "stage",
            "previous",
            "commit",
            ".tokenize.99",
        ]
    ),
    st.text("ab.-@_é", min_size=1, max_size=12).filter(lambda name: name not in (".", "..", ".lock", "train")),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.sampled_from(["file", "empty", "folder", "marked", "link"]), max_size=6), st.data())
def test_foreign_files_and_folders_stay(tmp_path, foreign, data):
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    for name, kind in foreign.items():
        path = run / name
        if kind == "file":
            path.write_text("precious")
        elif kind == "link":
            path.symlink_to(tmp_path)
        else:
            path.mkdir()
            if kind != "empty":
                (path / "notes.txt").write_text("precious")
            if kind == "marked":  # a marker that was copied from elsewhere
                (path / work_folder.MARKER).write_text('{"made_by": "pgolf", "folder": "x", "destination": "train"}')
    before = contents(run)
    committed(run / "train", b"old")
    ending = injection.run(
        lambda: committed(run / "train", b"new", resumable=data.draw(st.booleans())),
        run,
        data.draw(st.integers(1, 40)),
        data.draw(st.sampled_from([errno.EIO, injection.KILL])),
    )
    with stage_directory.locked(run):
        pass
    after = {name: found for name, found in contents(run).items() if name.partition("/")[0] != "train"}
    if "train.partial" not in foreign:  # what a resumable attempt left
        after = {name: found for name, found in after.items() if name.partition("/")[0] != "train.partial"}
    assert after == before, ending


def spoil_file(folder):
    (folder / "mine.txt").write_text("precious")


def spoil_link(folder):
    (folder / "link").symlink_to(folder.parent)


def spoil_folder(folder):
    (folder / "sub" / "sub").mkdir(parents=True)


def spoil_manifest(folder):
    (folder / manifests.FILE_NAME).write_text("{")


def without_manifest(folder):
    (folder / manifests.FILE_NAME).unlink()


def copy_of_another(folder):
    file = folder / manifests.FILE_NAME
    file.write_text(file.read_text().replace('"name": "train"', '"name": "train@best"'))


def as_a_link(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def as_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("precious")


@pytest.mark.parametrize(
    "spoil",
    [spoil_file, spoil_link, spoil_folder, spoil_manifest, without_manifest, copy_of_another, as_a_link, as_a_file],
)
def test_a_commit_never_replaces_what_pgolf_did_not_make(tmp_path, spoil):
    committed(tmp_path / "train", b"old")
    spoil(tmp_path / "train")
    before = contents(tmp_path)
    with pytest.raises(PgolfError, match=r"train.* not replaced.*(move|restore) it"):
        committed(tmp_path / "train", b"new")
    with stage_directory.locked(tmp_path):
        pass
    assert {name: found for name, found in contents(tmp_path).items() if not name.startswith(".pgolf-")} == before


def test_a_partial_folder_of_somebody_else_is_not_written_in(tmp_path):
    (tmp_path / "train.partial").mkdir()
    with pytest.raises(PgolfError, match=r"train\.partial is in the way"):
        StageWriter(tmp_path / "train", resumable=True).path("model.bin")
    assert list((tmp_path / "train.partial").iterdir()) == []


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_readers_see_one_stage_whole_during_replacements(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(work_folder, "_exchange", lambda left, right: False)
    committed(tmp_path / "train", b"0" * 40_000)
    stop = threading.Event()

    def replace():
        number = 0
        while not stop.is_set():
            number += 1
            committed(tmp_path / "train", str(number % 10).encode() * 40_000)

    writer = threading.Thread(target=replace)
    writer.start()
    reads = changes = 0
    until = time.monotonic() + 0.5
    try:
        while time.monotonic() < until:
            stage = stage_directory.open_stage(tmp_path / "train")
            try:
                stage.file("payload.bin")
            except PgolfError as error:
                assert "was replaced by another pgolf process; repeat the command" in str(error)  # noqa: PT017
                changes += 1
            reads += 1
    finally:
        stop.set()
        writer.join()
    assert reads - changes > 20


def test_a_process_killed_between_two_renames_is_recovered_by_a_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(work_folder, "_exchange", lambda left, right: False)
    committed(tmp_path / "train", b"old")
    for number in range(1, 60):
        injection.run(lambda: committed(tmp_path / "train", b"new"), tmp_path, number, injection.KILL)
        if not (tmp_path / "train").exists():
            break
    else:
        pytest.fail("no kill fell between the two renames")
    assert whole_after_wait(tmp_path) == b"old"


def whole_after_wait(run):
    assert [path.name for path in stage_directory.stage_folders(run)] == ["train"] or stage_directory.exists(
        run / "train"
    )
    return whole(run / "train")


def test_unregistered_files_are_never_published(tmp_path):
    writer = StageWriter(tmp_path / "train", resumable=True)
    writer.path("payload.bin").write_bytes(b"p")
    (writer.payload / ".tmp-of-a-killed-write").write_bytes(b"half")
    (writer.payload / "board").mkdir()
    (writer.payload / "board" / "events").write_bytes(b"e")
    writer.add(writer.payload / "board")
    assert set(writer.outputs()) == {"payload.bin", "board/events"}
    stage = writer.commit(
        dataclasses.replace(make_stage(tmp_path / "x").manifest, name="train", outputs=writer.outputs())
    )
    assert sorted(path.name for path in stage.path.rglob("*")) == ["board", "events", "manifest.json", "payload.bin"]


def test_lock_without_flock(tmp_path, monkeypatch):
    def no_flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    (tmp_path / ".lock").write_text("")  # carried over by a copy
    monkeypatch.setattr(work_folder.fcntl, "flock", no_flock)
    refused = pytest.raises(PgolfError, match="in use by another pgolf process")
    with stage_directory.locked(tmp_path), refused, stage_directory.locked(tmp_path):
        pass
    child = injection.run(lambda: work_folder._soft_lock(tmp_path), tmp_path)
    assert child.how == "done"
    assert (tmp_path / ".pgolf-lock.json").is_file()  # of a process that is gone
    with stage_directory.locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_lineage_through_a_symbolic_link(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    tokens = make_stage(tmp_path / "shared" / "tokenize")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "artifacts").symlink_to("../disk/deep")
    train = tmp_path / "home" / "artifacts" / "default" / "train"
    make_stage(train, "train", inputs={"tokens": tokens})
    for folder in (train, train.resolve()):
        assert stage_directory.open_stage(folder).ancestor("tokenize").manifest_sha256 == tokens.manifest_sha256


def test_the_state_of_every_kind_of_input(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("one")
    stage = make_stage(tmp_path / "run" / "tokenize")
    inputs = {
        "folder": Input(kind="folder", path=str(texts), sha256="of the folder", bytes=3),
        "gone": Input(kind="folder", path=str(tmp_path / "gone"), sha256="of the folder", bytes=3),
        "url": Input(kind="url", path="hf://datasets/a/b.jsonl", sha256="any", bytes=3),
        "file": Input(kind="file", path=str(texts / "a.txt"), sha256="another", bytes=3),
    }
    stage = dataclasses.replace(stage, manifest=dataclasses.replace(stage.manifest, inputs=inputs))
    for now, folder in (("of the folder", "ok"), ("another", "changed")):
        found = {item.role: item.state for item in lineage.ancestors(stage, lambda path, now=now: now)}
        assert found == {"folder": folder, "gone": "missing", "url": "unchecked", "file": "changed"}
    assert lineage.ancestors(stage)[0].state == "unchecked"
