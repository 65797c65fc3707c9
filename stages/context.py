"""The stage contract: inputs and configuration in, one new stage directory with a manifest out.

A stage is a function that opens a `StageBuild` in a `with` statement:

    with context.build("quantize", inputs={"model": source}, sections=("quantize",)) as build:
        if build.existing is None:
            ...  # write payload with build.writer.path("name"), fill build.metrics
    return build.stage

Leaving the block without an exception writes the manifest and commits the directory; an exception leaves nothing.
"""

import dataclasses
import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pgolf.store import lineage, runs, stage_directory
from pgolf.store import manifest as manifests
from pgolf.store.manifest import Input, Manifest
from pgolf.store.stage_directory import Stage, StageWriter
from stages.views.repeat import package_versions

ASK_SECONDS = 60.0
"""A finished stage that took longer is not replaced without `--force` or a yes."""
_SHOWN = 4  # reasons in one line


class WouldRun(Exception):
    """Raised by a dry run where a stage would be made, with the reasons."""

    def __init__(self, label: str, reasons: Sequence[str]) -> None:
        super().__init__(f"{label}: {', '.join(reasons)}")
        self.label, self.reasons = label, list(reasons)


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
    """The environment of a stage: run directory, configuration, device and progress reporter."""

    run: Path
    config: Config
    runtime: Runtime
    reporter: Reporter
    command: tuple[str, ...]
    name: str | None = None
    """Variant: the output becomes `<stage>@<name>`."""
    force: bool = False
    assignments: tuple[str, ...] | None = None
    """`--set` of a command without preset and file, for `adopt`; None: `config` is complete."""
    dry_run: bool = False
    """Raise WouldRun in place of making a stage that is not up to date."""
    ask: Callable[[str], bool] | None = None
    """Asks the user a yes-or-no question; None: there is no terminal, and the answer is no."""

    def label(self, stage: str) -> str:
        return stage if self.name is None else f"{stage}@{self.name}"

    def input(self, given: Path | None, *wanted: str, also: Sequence[str] = ()) -> Stage:
        """The input stage: the directory given with `--from`, or the newest of the run's own that are of a kind in
        `wanted`: of the same variant, or of the plain stages where the variant has none.

        Newest is the one that no other was made from. also: kinds that are taken when given, but never chosen.
        Raises PgolfError when there is none, when two are not made one from the other, or for a kind not wanted.
        """
        if given is not None:
            return stage_directory.open_stage(given, (*wanted, *also))
        found: list[Stage] = []
        for label in (self.label, str) if self.name else (str,):
            places = [self.run / label(kind) for kind in wanted]
            found = found or [stage_directory.open_stage(place, wanted) for place in places if _exists(place)]
        made_from = {digest for stage in found for digest in lineage.input_hashes(stage)}
        newest = [stage for stage in found if stage.manifest_sha256 not in made_from]
        if len(newest) == 1:
            return newest[0]
        if newest:
            names = " and ".join(stage.label for stage in newest)
            raise PgolfError(
                f"{self.run} holds {names}, none made from the other as they are now; name the input with --from"
            )
        others = [path for path in stage_directory.stage_folders(self.run) if path.name.partition("@")[0] in wanted]
        if others:
            names = ", ".join(path.name for path in others)
            raise PgolfError(
                f"{self.run} has no plain {' or '.join(wanted)} stage, but {names}: choose with --name or --from"
            )
        if not stage_directory.stage_folders(self.run):
            raise PgolfError(f"{runs.missing(self.run)}; pgolf tokenize or pgolf run begins one, --from names an input")
        raise PgolfError(
            f"{self.run} has no {' or '.join(wanted)} stage; run pgolf {wanted[0]} first or name one with --from"
        )

    def own(self, kind: str) -> Stage | None:
        """The finished stage of that kind and of this variant, if there is one."""
        place = self.run / self.label(kind)
        return stage_directory.open_stage(place) if _exists(place) else None

    def adopt(self, *made: Stage | None) -> "StageContext":
        """The context with the settings that the first stage in `made` was made with, and the assignments of this
        command over them. Unchanged when the command named a preset or a file: then those are the settings."""
        if self.assignments is None:
            return self
        values = next((stage.manifest.config for stage in made if stage is not None), None)
        base = None if values is None else configs.recorded(values)
        return self.replace(config=configs.load(assignments=self.assignments, base=base))

    def inherit_model(self, stage: Stage) -> "StageContext":
        """The context with the configuration of model and optimizer taken from `stage` and its `train` stage, where
        that is in reach: what is made from a model describes that model, whatever preset the command was given."""
        try:
            optim = configs.recorded(stage.ancestor("train").manifest.config).optim
        except PgolfError:
            optim = self.config.optim
        model = configs.recorded(stage.manifest.config).model
        return self.replace(config=dataclasses.replace(self.config, model=model, optim=optim))

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
            whether an existing directory is still up to date; fields may be exempt (`pgolf.config.effects`).
        options: settings outside the configuration, such as the name of a text field; kept under `config.options`.
        resumable: the payload folder is `<label>.partial` and survives an exception or a kill, so that the next
            attempt continues from what it holds.
        """
        label = self.label(stage)
        destination = self.run / label
        entries = {role: _entry(item, destination) for role, item in inputs.items()}
        resolved: dict[str, Any] = configs.to_dict(self.config) | {"options": dict(options or {})}
        with ExitStack() as held:
            held.enter_context(self.reporter.progress(label))
            if self.runtime.is_main and not self.dry_run:
                held.enter_context(stage_directory.locked(self.run))
            old = stage_directory.open_stage(destination) if _exists(destination) and not self._blind() else None
            reasons = self._reasons(stage, old, entries, resolved, sections)
            existing = None if reasons else old
            if self.dry_run and reasons:
                raise WouldRun(label, reasons)
            if reasons:
                stage_directory.refuse_foreign(destination)  # before the work, not after it
                self._announce(label, old, reasons)
            writer = StageWriter(destination, resumable=resumable, writes=self.runtime.is_main)
            build = StageBuild(stage_name=stage, label=label, writer=writer, existing=existing)
            self.runtime.wait()  # every process has looked at the old directory before one replaces it
            if existing is not None:
                made_by = existing.manifest.pgolf.get("version")
                other = f", made by pgolf {made_by}" if made_by != pgolf.__version__ else ""
                self.reporter.message(
                    f"{label} is up to date in {destination}{_from(entries)}{other} (--force redoes it)"
                )
                yield build
                return
            started, clock, commit = datetime.now(UTC), time.monotonic(), git_commit()
            try:
                yield build
                if self.runtime.is_main:
                    build.result = writer.commit(
                        Manifest(
                            stage=stage,
                            name=label,
                            pgolf={"version": pgolf.__version__, "commit": commit},
                            command=list(self.command),
                            config=resolved,
                            inputs=entries,
                            outputs=writer.outputs(),
                            metrics=build.metrics,
                            environment=self.runtime.describe() | {"packages": package_versions()},
                            seed=self.config.seed,
                            started=started.isoformat(timespec="seconds"),
                            seconds=round(build.earlier_seconds + time.monotonic() - clock, 3),
                            details=build.details,
                        )
                    )
            except BaseException as error:
                if self.runtime.is_main and not writer.has_scratch:  # nothing to resume from
                    writer.discard()
                if isinstance(error, SafetensorError):
                    raise PgolfError(f"{label} was not written: {explain(error, destination)}") from error
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = str(destination)  # writes to an open file do not name it
                raise
            self.reporter.message(f"{label} is in {destination}{_from(entries)}")
            self.runtime.wait()
            if not self.runtime.is_main:
                build.result = stage_directory.open_stage(destination)

    def _blind(self) -> bool:
        return self.force and not self.dry_run

    def _reasons(
        self,
        kind: str,
        old: Stage | None,
        entries: Mapping[str, Input],
        resolved: Mapping[str, Any],
        sections: Sequence[str],
    ) -> list[str]:
        """Why the stage has to be made, one short text per difference; none when it is up to date."""
        if self.force:
            return ["--force"]
        if old is None:
            return ["missing"]
        recorded = {key: value for key, value in old.manifest.config.items() if key != "options"}
        try:
            before = {**configs.settings_of(configs.recorded(recorded), kind, sections), "seed": recorded.get("seed")}
        except PgolfError as error:  # a model that this version does not understand
            return [str(error)]
        now = {**configs.settings_of(self.config, kind, sections), "seed": self.config.seed}
        before |= {f"options.{key}": value for key, value in old.manifest.config.get("options", {}).items()}
        now |= {f"options.{key}": value for key, value in resolved["options"].items()}
        found = [
            f"{key.removeprefix('options.')} {_shown(before.get(key))} -> {_shown(now.get(key))}"
            for key in {**before, **now}
            if _canonical(before.get(key)) != _canonical(now.get(key))
        ]
        theirs = old.manifest.inputs
        for role in {**theirs, **entries}:
            item = entries.get(role) or theirs[role]
            name = item.name or Path(item.path).name
            if role not in entries or role not in theirs:
                found.append(f"{name} {'added' if role in entries else 'removed'} as {role}")
            elif theirs[role].sha256 != entries[role].sha256:
                found.append(f"{name} changed")
        return found

    def _announce(self, label: str, old: Stage | None, reasons: Sequence[str]) -> None:
        """Report why a stage is redone. Raises PgolfError instead of replacing more than a minute's work without
        consent."""
        if old is None:
            return
        shown = ", ".join(reasons[:_SHOWN]) + (f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else "")
        took = old.manifest.seconds
        question = f"{label} took {took:.0f} s and would be redone ({shown}). Redo it?"
        if took > ASK_SECONDS and not (self.ask and self.ask(question)):
            raise PgolfError(
                f"{label} took {took:.0f} s and would be redone ({shown}): --force replaces it, --name VARIANT "
                "makes a separate variant"
            )
        self.reporter.message(f"redoing {label}: {shown}")

    def replace(self, **changes: Any) -> "StageContext":
        return dataclasses.replace(self, **changes)


@functools.cache  # of the code that this process began with, whatever is checked out while it runs
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


def _exists(place: Path) -> bool:
    return stage_directory.exists(place)


def _from(entries: Mapping[str, Input]) -> str:
    names = [
        entry.name for role, entry in entries.items() if entry.kind == "stage" and role in ("model", "tokens", "train")
    ]
    return f", made from {', '.join(map(str, names))}" if names else ""


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _entry(item: Stage | Path | Input, destination: Path) -> Input:
    if isinstance(item, Input):
        return item
    if isinstance(item, Stage):
        return item.as_input(destination)
    if not item.is_file():
        raise PgolfError(f"{item} does not exist")
    hashed = manifests.hash_file(item)
    return Input(kind="file", path=item.resolve().as_posix(), sha256=hashed.sha256, bytes=hashed.bytes)
