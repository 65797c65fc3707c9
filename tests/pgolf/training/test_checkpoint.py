"""Checkpoints: exact, replaced whole, and intact when a new one cannot be written."""

import errno
from pathlib import Path

import pytest
import torch

from pgolf.errors import PgolfError
from pgolf.training import checkpoint as checkpoints


def test_round_trip(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path) is None
    tensors = {"weights": torch.randn(5), "steps": torch.tensor(3.0), "random": torch.get_rng_state()}
    checkpoints.save(tmp_path, tensors, {"iteration": 7, "identity": {"model.dim": 8}})
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found.values == {"iteration": 7, "identity": {"model.dim": 8}}
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)


def test_full_disk_keeps_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, {"weights": torch.ones(3)}, {"iteration": 1})

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(PgolfError, match="No space left on device; the previous checkpoint is intact"):
        checkpoints.save(tmp_path, {"weights": torch.zeros(3)}, {"iteration": 2})
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found.values["iteration"] == 1
    assert torch.equal(found.tensors["weights"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.FILE_NAME]


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PgolfError, match="cannot write the checkpoint"):
        checkpoints.save(tmp_path / "file", {"weights": torch.ones(3)}, {})


def test_damaged(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, {"weights": torch.ones(300)}, {"iteration": 1})
    path = tmp_path / checkpoints.FILE_NAME
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(PgolfError, match="is damaged"):
        checkpoints.load(tmp_path)


def test_a_changed_bit_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, {"weights": torch.arange(8.0)}, {"iteration": 1})
    path = tmp_path / checkpoints.FILE_NAME
    whole = path.read_bytes()
    data = len(whole) - 32  # eight float32 at the end of the file
    for at in [*range(data, len(whole)), whole.index(b"iteration") + 14]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PgolfError, match=r"is damaged.*start over with --force"):
            checkpoints.load(tmp_path)
    path.write_bytes(whole)
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found.values == {"iteration": 1}
