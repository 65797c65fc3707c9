"""The contract every stage keeps: inputs and configuration in, one new stage directory out, a manifest beside it.

A stage is a function that opens a `StageBuild` in a `with` statement:

    with context.build("quantize", inputs={"model": source}, sections=("quantize",)) as build:
        if build.existing is None:
            ...  # write payload with build.writer.path("name"), fill build.metrics
    return build.stage

Leaving the block without an exception writes the manifest and commits the directory; an exception leaves nothing.
"""

import dataclasses
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import pgolf
from pgolf import config as configs
from pgolf.config import Config
from pgolf.errors import PgolfError, explain
from pgolf.progress import Reporter
from pgolf.runtime import Runtime
from pgolf.store import manifest as manifests
from pgolf.store import stage_directory
from pgolf.store.manifest import Input, Manifest
from pgolf.store.stage_directory import Stage, StageWriter


@dataclass
class StageBuild:
    """A stage being made. The stage function fills `metrics` and `details` and writes payload through `writer`."""

    stage_name: str
    label: str
    writer: StageWriter
    existing: Stage | None
    """The finished directory when it was already made from the same inputs and configuration."""
    metrics: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    """Seconds that interrupted attempts at this stage have already taken."""
    result: Stage | None = None

    @property
    def stage(self) -> Stage:
        """The finished stage; available once the `with` block has been left."""
        found = self.result or self.existing
        assert found is not None, "the stage is not finished"
        return found


@dataclass(frozen=True)
class StageContext:
    """What every stage is handed: where to write, how it was configured, where it computes, whom it tells."""

    run: Path
    config: Config
    runtime: Runtime
    reporter: Reporter
    command: tuple[str, ...]
    name: str | None = None
    """Variant: the output becomes `<stage>@<name>`."""
    force: bool = False

    def label(self, stage: str) -> str:
        return stage if self.name is None else f"{stage}@{self.name}"

    def input(self, given: Path | None, *kinds: str) -> Stage:
        """The input stage: the directory given with `--from`, or the run's own newest of `kinds`, in that order.

        With `--name` a variant of that name is preferred over the plain stage, so that a chain of variants holds
        together. Raises PgolfError when there is none, or the one given is of another kind.
        """
        if given is not None:
            return stage_directory.open_stage(given, kinds)
        labels = [label for kind in kinds for label in ((self.label(kind), kind) if self.name else (kind,))]
        for label in labels:
            if stage_directory.exists(self.run / label):
                return stage_directory.open_stage(self.run / label, kinds)
        raise PgolfError(
            f"{self.run} has no {' or '.join(kinds)} stage; run pgolf {kinds[0]} first or name one with --from"
        )

    @contextmanager
    def build(
        self,
        stage: str,
        inputs: Mapping[str, Stage | Path | Input],
        sections: Sequence[str],
        options: Mapping[str, Any] | None = None,
        resumable: bool = False,
    ) -> Iterator[StageBuild]:
        """Open one stage for writing; see the module docstring.

        sections: the configuration sections (`("model", "train")`) whose values, with the seed and `options`, decide
            whether an existing directory is still up to date.
        options: settings outside the configuration, such as the name of a text field; kept under `config.options`.
        resumable: the payload folder is `<label>.partial` and survives an exception or a kill, so that the next
            attempt continues from what it holds.
        """
        label = self.label(stage)
        destination = self.run / label
        entries = {role: _entry(item, destination) for role, item in inputs.items()}
        resolved: dict[str, Any] = configs.to_dict(self.config) | {"options": dict(options or {})}
        with ExitStack() as held:
            if self.runtime.is_main:
                held.enter_context(stage_directory.locked(self.run))
            existing = None if self.force else self._up_to_date(destination, entries, resolved, sections)
            if existing is None and self.runtime.is_main:
                stage_directory.refuse_foreign(destination)  # before the work, not after it
            writer = StageWriter(destination, resumable=resumable, writes=self.runtime.is_main)
            build = StageBuild(stage_name=stage, label=label, writer=writer, existing=existing)
            self.runtime.wait()  # every process has looked at the old directory before one replaces it
            if existing is not None:
                self.reporter.message(f"{label} is up to date in {destination} (--force redoes it)")
                yield build
                return
            started, clock = datetime.now(UTC), time.monotonic()
            try:
                yield build
                if self.runtime.is_main:
                    build.result = writer.commit(
                        Manifest(
                            stage=stage,
                            name=label,
                            pgolf={"version": pgolf.__version__, "commit": git_commit()},
                            command=list(self.command),
                            config=resolved,
                            inputs=entries,
                            outputs=writer.outputs(),
                            metrics=build.metrics,
                            environment=self.runtime.describe(),
                            seed=self.config.seed,
                            started=started.isoformat(timespec="seconds"),
                            seconds=round(build.earlier_seconds + time.monotonic() - clock, 3),
                            details=build.details,
                        )
                    )
            except BaseException as error:
                if not resumable:
                    writer.discard()
                if isinstance(error, SafetensorError):
                    raise PgolfError(f"{label} was not written: {explain(error, destination)}") from error
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = str(destination)  # writes to an open file do not name it
                raise
            self.runtime.wait()
            if not self.runtime.is_main:
                build.result = stage_directory.open_stage(destination)

    def _up_to_date(
        self,
        destination: Path,
        entries: Mapping[str, Input],
        resolved: Mapping[str, Any],
        sections: Sequence[str],
    ) -> Stage | None:
        if not stage_directory.exists(destination):
            return None
        found = stage_directory.open_stage(destination)
        old = found.manifest
        keys = (*sections, "seed", "options")
        same_config = all(_canonical(old.config.get(key)) == _canonical(resolved.get(key)) for key in keys)
        return found if same_config and stage_directory.same_inputs(old.inputs, entries) else None

    def replace(self, **changes: Any) -> "StageContext":
        return dataclasses.replace(self, **changes)


def git_commit() -> str | None:
    """The commit of the source tree that pgolf runs from, with `+` when it has changes; None outside a checkout."""
    folder = Path(pgolf.__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _entry(item: Stage | Path | Input, destination: Path) -> Input:
    if isinstance(item, Input):
        return item
    if isinstance(item, Stage):
        return item.as_input(destination)
    if not item.is_file():
        raise PgolfError(f"no such file: {item}")
    hashed = manifests.hash_file(item)
    return Input(kind="file", path=item.resolve().as_posix(), sha256=hashed.sha256, bytes=hashed.bytes)
