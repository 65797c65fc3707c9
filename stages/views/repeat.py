"""Data for reproducing a stage: its command, the commit of pgolf, and the versions of its libraries."""

import importlib.metadata
import os
import shlex

from pgolf.errors import PgolfError
from pgolf.store import kinds
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


def typed(stage: Stage) -> str:
    """The command line that made a stage, as it was typed: `pgolf`, not the path of the program that ran."""
    return shlex.join(["pgolf", *stage.manifest.command[1:]])


def command(stage: Stage) -> str:
    """The command line that makes a score once more, of the same model and text with the settings that are recorded;
    of another stage, or where the model is gone, the one that made it."""
    manifest = stage.manifest
    recorded = typed(stage)
    if manifest.stage not in kinds.SCORED:
        return recorded
    try:
        model = stage.parent("model").path
    except PgolfError:
        return recorded
    run, environment = stage.path.resolve().parent, manifest.environment
    words = ["pgolf", manifest.stage, "--artifacts", os.path.relpath(run.parent), "--run", run.name]
    words += ["--name", variant] if (variant := manifest.name.partition("@")[2]) else []
    words += ["--from", os.path.relpath(model), "--device", environment["device"]]
    texts = [entry.path for role, entry in manifest.inputs.items() if role.startswith("documents:")]
    if texts:
        words += ["--documents", *texts, "--text-field", manifest.config["options"]["text_field"]]
    words += ["--tune"] if manifest.config.get("options", {}).get("tune") else []
    ranks = environment["world_size"]
    words += ["--threads", str(environment["threads"])] if ranks == 1 else ["--nproc", str(ranks)]
    return shlex.join([*words, "--force"])


def lines(stage: Stage) -> list[tuple[str, str]]:
    """(what, value) for the lines after a score's table and for the report."""
    manifest = stage.manifest
    environment = manifest.environment
    versions = {"python": environment.get("python"), "torch": environment.get("torch")}
    versions |= environment.get("packages", {})
    return [
        ("repeat it" if manifest.stage in kinds.SCORED else "made by", command(stage)),
        ("pgolf", f"{manifest.pgolf.get('version')}, commit {manifest.pgolf.get('commit') or 'unknown'}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]
