"""Stage directories: whole or absent, verified when read, swept up after a kill."""

import dataclasses
import json

import pytest

from pgolf.errors import PgolfError
from pgolf.store import manifest as manifests
from pgolf.store import stage_directory
from pgolf.store.manifest import Manifest
from pgolf.store.stage_directory import StageWriter


def make_stage(folder, stage="tokenize", payload=b"tokens", inputs=None):
    writer = StageWriter(folder)
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


def test_what_is_written_is_read(tmp_path):
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
    make_stage(tmp_path / "train")
    (tmp_path / ".train.123").mkdir()
    (tmp_path / "train").rename(tmp_path / ".train.77.old")  # killed between the two renames of a commit
    (tmp_path / ".quantize.77.old").mkdir()
    make_stage(tmp_path / "quantize")
    with stage_directory.locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["quantize", "train"]


def test_resumable_writer_keeps_its_folder_but_not_its_scratch(tmp_path):
    writer = StageWriter(tmp_path / "train", resumable=True)
    writer.path("model.bin").write_bytes(b"m")
    (writer.scratch / "checkpoint").write_bytes(b"c")
    assert set(writer.outputs()) == {"model.bin"}
    assert writer.folder == tmp_path / "train.partial"
    stage = make_stage(tmp_path / "tokenize")
    finished = writer.commit(dataclasses.replace(stage.manifest, stage="train", name="train", outputs=writer.outputs()))
    assert sorted(path.name for path in finished.path.iterdir()) == ["manifest.json", "model.bin"]
