"""The `pgolf` program with all its commands: one per module of this package."""

import importlib
import inspect
import typing
from typing import Annotated, cast

import typer

import pgolf
from cli.common import Common
from cli.help import Command, Group
from cli.screen import say_error
from pgolf.errors import did_you_mean

COMMANDS: dict[str, tuple[str, ...]] = {
    "Start here": ("run", "sample", "inspect", "config"),
    "Stages": ("tokenize", "train", "ema_finalize", "quantize", "eval", "eval_sliding", "eval_ttt", "package"),
    "Look": ("runs", "budget", "report", "compare"),
    "Prove": ("audit", "prove", "verify", "screen_record"),
    "Exchange": ("submission", "share", "import_checkpoint", "compress", "clean"),
}
"""Modules of commands by panel of `pgolf --help`."""

app = typer.Typer(
    cls=Group,
    help="The best language model for a byte budget, in stages with files between them.",
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pgolf {pgolf.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_version, help="Show pgolf's version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _panel, _modules in COMMANDS.items():
    for _module in _modules:
        _before = len(app.registered_commands)
        importlib.import_module(f"cli.{_module}").add_to(app)
        for _added in app.registered_commands[_before:]:
            _added.rich_help_panel = _panel
            _added.cls = _added.cls if issubclass(_added.cls or object, Command) else Command


@app.command("help", hidden=True, cls=Command)
def _help(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="COMMAND", help="A command, or `common`.")] = "",
) -> None:
    """Show the help of a command."""
    program = context.find_root()
    commands = cast(Group, program.command).commands
    if topic == "common":
        for field in inspect.signature(Common).parameters.values():
            option = typing.get_args(field.annotation)[1]
            flag = next((word for word in option.param_decls or () if word.startswith("--")), f"--{field.name}")
            typer.echo(f"  {flag:<12}{option.help}")
    elif topic in commands:
        command = commands[topic]
        typer.echo(command.get_help(command.make_context(topic, [], parent=program, resilient_parsing=True)))
    elif topic:
        say_error(f"no command {topic!r}{did_you_mean(topic, list(commands))}")
        raise typer.Exit(2)
    else:
        typer.echo(program.get_help())
