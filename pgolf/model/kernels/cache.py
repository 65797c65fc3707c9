"""Files kept between runs in a folder that only its owner can write: compiled kernels and measured times.

A file is named `<key>-<SHA-256 of its content>`: a damaged or foreign one is not found. A folder that is a link,
belongs to someone else or is open to others is not used. Every failure means that nothing is cached, never an error.
"""

import contextlib
import hashlib
import os
import platform
import stat
import tempfile
from pathlib import Path

import torch


def key(facts: str, compiler: str | None) -> str:
    """Cache key of a compilation or measurement: it depends on `facts` and on this machine's processor, instruction
    set, compiler (by its path) and torch."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    except OSError:
        processor = [platform.processor()]
    built = "" if compiler is None else f"{Path(compiler).resolve()} {Path(compiler).stat().st_mtime_ns}"
    level = torch.backends.cpu.get_cpu_capability()
    machine = platform.machine(), *processor, level, built, torch.__version__
    return hashlib.sha256(repr((facts, machine)).encode()).hexdigest()


def find(folder: Path | None, key: str) -> Path | None:
    """The intact file kept under `key` (a hexadecimal hash), or None."""
    if folder is None or not _private(folder):
        return None
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{key}-*"):
            if not path.is_symlink() and path.name == f"{key}-{hashlib.sha256(path.read_bytes()).hexdigest()}":
                return path
    return None


def keep(folder: Path | None, key: str, content: bytes) -> None:
    """Store `content` under `key` by an atomic replacement; a failure to write is ignored."""
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(folder):
            return
        handle, scratch = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            destination = folder / f"{key}-{hashlib.sha256(content).hexdigest()}"
            Path(scratch).replace(destination)
            for path in folder.glob(f"{key}-*"):
                if path != destination:
                    path.unlink()
        finally:
            Path(scratch).unlink(missing_ok=True)


def _private(folder: Path) -> bool:
    """True if this is a real folder of this user that nobody else can read or write."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
    return stat.S_ISDIR(found.st_mode) and mine
