"""Data for reproducing a stage: its command, the commit of pgolf, and the versions of its libraries."""

import importlib.metadata
import shlex
from pathlib import PurePath

from pgolf.store.stage_directory import Stage

_PACKAGES = ("numpy", "safetensors", "sentencepiece", "constriction", "numba")
"""Packages whose version can change a number, besides torch and Python, which the environment names already."""


def package_versions() -> dict[str, str]:
    """The installed version of each."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # numba is optional on some systems
            continue
    return found


def lines(stage: Stage) -> list[tuple[str, str]]:
    """(what, value) for the last lines of a score's table and of the report."""
    manifest = stage.manifest
    environment, program = manifest.environment, manifest.command[:1]
    versions = {"python": environment.get("python"), "torch": environment.get("torch")}
    versions |= environment.get("packages", {})
    return [
        ("command", shlex.join([*(PurePath(word).name for word in program), *manifest.command[1:]])),
        ("pgolf", f"{manifest.pgolf.get('version')}, commit {manifest.pgolf.get('commit') or 'unknown'}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]
