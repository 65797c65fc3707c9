"""Checkpoints a killed run resumes from: one safetensors file with its JSON in the header, replaced atomically.

The new file is written next to the old one, flushed, and renamed over it, so that there always is a complete
checkpoint on the disk; a full disk leaves the previous one untouched. `Writer` does this in a thread while training
goes on.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pgolf.errors import PgolfError, explain
from pgolf.training.trainer import Trainer

FILE_NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """The checkpoint's JSON: position in the run and configuration."""

    def restore(self, trainer: Trainer) -> float:
        """Put a trainer where the checkpoint was taken; returns the seconds on the clock. `Hooks.resume`."""
        trainer.restore(self.tensors, self.values)
        return float(self.values["elapsed"])


def save(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder`. Raises PgolfError when it cannot be written; the old one is then intact."""
    final, new = folder / FILE_NAME, folder / (FILE_NAME + ".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        host = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        state = json.dumps(values)
        save_file(host, new, {"state": state, "sha256": _digest(host, state)})
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        new.replace(final)
        _flush_folder(folder)
    except (OSError, SafetensorError) as error:
        # Free what the attempt took; a folder that cannot be written cannot be cleaned either.
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        kept = "the previous checkpoint is intact, run the same command to continue" if final.is_file() else "none yet"
        raise PgolfError(f"cannot write the checkpoint {explain(error, final, kept)}") from error


class Writer:
    """Saves checkpoints to a folder from a thread, one at a time; leaving its `with` block waits for the last one."""

    def __init__(self, folder: Path, constant: Mapping[str, Any]) -> None:
        """constant: values that every checkpoint of this run holds."""
        self._folder, self._constant = folder, constant
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; nothing may change the tensors any more. Raises PgolfError when the one before
        could not be written."""
        self.wait()
        self._writing = self._thread.submit(save, self._folder, tensors, {**self._constant, **values})

    def take(self, trainer: Trainer, elapsed: float) -> None:
        """Check that all ranks hold the same weights; begin to write a checkpoint on rank 0. `Hooks.save`."""
        trainer.check_ranks()
        if trainer.is_main:
            tensors, values = trainer.snapshot()
            self.save(tensors, values | {"elapsed": elapsed})

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises PgolfError when it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()


def load(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None when there is none. Raises PgolfError for one that cannot be read."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            state, expected = file.metadata()["state"], file.metadata()["sha256"]
            found = Checkpoint(tensors, json.loads(state))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PgolfError(f"{path} is damaged ({error}); start over with --force") from error
    if (digest := _digest(tensors, state)) != expected:
        raise PgolfError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}…, expected {expected[:12]}…; start over with --force"
        )
    return found


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    """SHA-256 over the JSON state and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(state.encode("utf-8"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder
        return
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder; the file itself is on the disk
        os.fsync(descriptor)
    os.close(descriptor)
