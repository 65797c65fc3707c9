"""What all commands share: the common options, and turning errors into one line and an exit code."""

import dataclasses
import functools
import inspect
import json
import math
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import platformdirs
import typer

from cli import interrupts
from cli.help import Command

if TYPE_CHECKING:
    from cli.screen import Screen
    from pgolf.store.stage_directory import Stage
    from stages.context import StageContext


@dataclass(frozen=True)
class Common:
    """The options that every stage command takes."""

    artifacts: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all runs.")] = Path("artifacts")
    run: Annotated[str, typer.Option(help="Name of the run: a folder in --artifacts.")] = "default"
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="Input stage directory; default: the newest of the same --name, else of the plain stages.",
        ),
    ] = None
    name: Annotated[str | None, typer.Option(metavar="VARIANT", help="Variant: the output is <stage>@VARIANT.")] = None
    force: Annotated[bool, typer.Option("--force", help="Redo the stage even if it is up to date.")] = False
    preset: Annotated[str | None, typer.Option(help="Settings to start from; pgolf presets lists them.")] = None
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file of settings, over the preset.")] = None
    set: Annotated[
        list[str],
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting, over everything else."),
    ] = ()  # type: ignore[assignment]
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Device that computes.")] = "auto"
    threads: Annotated[int, typer.Option(help="CPU threads; 0: every core.")] = 0
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every table.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False

    @property
    def run_dir(self) -> Path:
        from pgolf.errors import PgolfError

        if not self.run.strip() or self.run in (".", "..") or "/" in self.run or "\0" in self.run:
            raise PgolfError(f"--run {self.run!r}: give the name of a folder in --artifacts, not a path")
        return self.artifacts / self.run

    @property
    def screen(self) -> "Screen":
        from cli.screen import Screen

        return Screen(self.json, self.verbose)

    def context(self, *extra: str) -> "StageContext":
        """Everything a stage needs, from these options: preset, file, `--set`, then `extra` assignments that a
        command's own options set.

        Without preset and file the stage's own earlier settings are the base, or its input's: see `prepare` and
        `StageContext.adopt`.
        """
        from pgolf import config as configs
        from pgolf import runtime
        from pgolf.errors import PgolfError
        from pgolf.evaluate.ttt import methods as ttt
        from pgolf.progress import Silent
        from pgolf.quant import methods
        from stages.context import StageContext

        if self.name is not None and (not re.fullmatch(r"\w[\w.+-]*", self.name) or self.name.endswith(".partial")):
            raise PgolfError(f"--name {self.name!r}: a variant's name is letters, digits, and . + - _ inside")
        if self.threads < 0:
            raise PgolfError(f"--threads {self.threads}: 0 for every core, or how many")
        chosen = runtime.choose(self.device, self.threads, cache=_cache_folder())
        assignments = (*self.set, *extra)
        complete = self.preset is not None or self.config is not None
        config = configs.load(self.preset, self.config, assignments) if complete else configs.Config()
        methods.of(config.quantize)
        ttt.of(config.ttt)
        return StageContext(
            run=self.run_dir,
            config=config,
            runtime=chosen,
            reporter=self.screen if chosen.is_main else Silent(),
            command=tuple(sys.argv),
            name=self.name,
            force=self.force,
            assignments=None if complete else assignments,
            ask=self._ask,
        )

    def prepare(self, kind: str, *extra: str) -> tuple["StageContext", "Stage"]:
        """The context and the input of a stage of `kind`, with the settings of its own lineage."""
        from pgolf.evaluate.ttt import methods as ttt
        from pgolf.quant import methods
        from pgolf.store import kinds

        context = self.context(*extra)
        row = kinds.KINDS[kind]
        source = context.input(self.source, *row.after, also=row.also)
        context = context.adopt(context.own(kind), source)
        if self.set or extra:
            methods.of(context.config.quantize)
            ttt.of(context.config.ttt)
        return context, source

    def _ask(self, question: str) -> bool:
        """A yes or no of the person at the terminal; no where there is none."""
        from cli.screen import activity

        if self.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        with activity.hidden():
            return typer.confirm(question, err=True)

    def finish(self, stage: "Stage") -> None:
        """With `--json`, the finished stage's path and manifest on stdout."""
        from cli.screen import say_json

        if self.json:
            value = json.loads(stage.manifest.to_json()) | {"path": str(stage.path)}
            say_json(value)


def _cache_folder() -> Path | None:
    """Where compiled kernels and measured times are kept; None for a user without a home."""
    try:
        found = platformdirs.user_cache_path("pgolf", appauthor=False)
    except (OSError, RuntimeError):
        return None
    return found if found.is_absolute() else None


ALL = tuple(field.name for field in dataclasses.fields(Common))
LOOK = ("artifacts", "run", "json", "verbose", "debug")
"""The common options of a command that makes nothing."""


def command(
    app: typer.Typer, name: str, uses: Sequence[str] = ALL, examples: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `f(common, ...)` as a command whose options are its own and the common ones.

    uses: names of the common options that it takes. examples: command lines for its help; tests run them.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = [
            field.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for field in inspect.signature(Common).parameters.values()
            if field.name in uses
        ]

        @functools.wraps(function)
        def wrapper(**arguments: Any) -> None:
            common = Common(**{field.name: arguments.pop(field.name) for field in shared})

            def work() -> None:
                _refuse_not_finite(arguments)
                with common.screen.progress("working"):
                    function(common, **arguments)

            guarded(work, debug=common.debug, as_json=common.json)

        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        wrapper.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {item.name: item.annotation for item in [*keyword, *shared]}
        made = type("Command", (Command,), {"common": frozenset(uses), "examples": tuple(examples)})
        app.command(name, cls=made)(wrapper)
        return function

    return register


def guarded(work: Callable[[], None], debug: bool, as_json: bool) -> None:
    """Run a command; whatever ends it becomes one line on stderr and the documented exit code."""
    from pgolf.errors import PgolfError, explain

    try:
        work()
        interrupts.check()
    except (typer.Exit, typer.Abort):
        raise
    except BaseException as error:
        if debug:
            traceback.print_exc()
        # Compiled code turns a KeyboardInterrupt into a SystemError, or loses it.
        if isinstance(error, KeyboardInterrupt) or interrupts.asked:
            _fail(interrupts.TEXT, 130, as_json)
        if isinstance(error, PgolfError):
            _fail(str(error), error.exit_code, as_json, every_rank=error.every_rank)
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(_READER_GONE) from error
        if isinstance(error, MemoryError) or _is_out_of_memory(error):
            _fail(_OUT_OF_MEMORY, 2, as_json)
        if isinstance(error, OSError):
            _fail(explain(error), 2, as_json)
        if not isinstance(error, Exception):
            raise
        _fail(f"unexpected {type(error).__name__}: {error}; {_keep_traceback(debug)}", 2, as_json, every_rank=True)


def _refuse_not_finite(arguments: dict[str, Any]) -> None:
    from pgolf.errors import PgolfError

    for name, value in arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise PgolfError(f"--{name.replace('_', '-')} is {value}; give a finite number")


_READER_GONE = 141  # a shell's exit code for a program that ended by SIGPIPE
_OUT_OF_MEMORY = (
    "out of memory: lower train.micro_tokens or train.batch_tokens (training), evaluate.batch_windows (scoring), "
    "ttt.chunk_tokens (test-time training) or quantize.calibration_tokens (quantizing), or use --device cpu"
)


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for GPUs and for CPUs nothing but a text; neither is worth importing torch for."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _keep_traceback(debug: bool) -> str:
    """Write the traceback of the exception being handled to a private file; says where it is."""
    if debug:
        return "its traceback is above"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="pgolf-", suffix=".log", delete=False, errors="replace") as file:
            file.write(f"{sys.argv}\n{traceback.format_exc()}")
    except OSError:
        return "--debug shows the traceback"
    return f"this is a fault of pgolf, please report it with {file.name}"


def _fail(text: str, code: int, as_json: bool, every_rank: bool = False) -> NoReturn:
    from cli.screen import say_error, say_json
    from pgolf.errors import PgolfError

    # Under torchrun all processes raise the same expected error; rank 0 reports it.
    if every_rank or os.environ.get("RANK", "0") == "0":
        text = " ".join(text.splitlines())
        if as_json:
            with suppress(PgolfError, OSError):  # stdout itself may have failed
                say_json({"error": text, "exit_code": code})
        say_error(text)
    raise typer.Exit(code)
