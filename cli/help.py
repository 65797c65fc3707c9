"""How commands read their arguments and show their help: plain text of at most a screen, own options first."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

_UsageError: Any = typer.BadParameter.__base__  # click's class, wherever this version of typer has it
_WIDTH = 78


class Command(TyperCommand):
    """A command whose help is its own options, the common ones in a few lines, and examples."""

    common: ClassVar[frozenset[str]] = frozenset()
    """Names of the options that all stage commands share."""
    examples: Sequence[str] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            rest = list(super().parse_args(ctx, self._spread(args)))
            for parameter in self.params:
                # Path("") is the working folder: `--out "$UNSET"` would write there.
                if ctx.params.get(parameter.name) == Path() and not _names_here(args):
                    raise typer.BadParameter("the name is empty", ctx=ctx, param_hint=parameter.opts[-1])
            return rest
        except _UsageError as error:
            raise _usage_error(error, ctx, as_json="--json" in args) from error

    def _spread(self, args: list[str]) -> list[str]:
        """Let an option whose metavar ends in `...` take several values: `--val A B` becomes `--val A --val B`.

        click would read B as another argument: a val document would silently become a train document.
        """
        several = {
            flag
            for parameter in self.params
            if isinstance(parameter, TyperOption) and parameter.multiple and str(parameter.metavar).endswith("...")
            for flag in parameter.opts
        }
        spread: list[str] = []
        option = ""
        for index, word in enumerate(args):
            if word == "--":
                spread += args[index:]
                break
            if word.startswith("--"):
                option = word if word in several else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(word)
        return spread

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"\.\.\.(\W?)\.\.\.$", r"...\1", piece.strip("{}").replace("}...", "")) for piece in pieces]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None and parameter.name != "help":
                what, text = record
                if not what.startswith("-"):  # an argument: no type; the usage shows whether it is required
                    what, text = str(parameter.metavar or what), text.replace("  [required]", "")
                (common if parameter.name in self.common else own).append((re.sub(" <(.+)>", _kind, what), text))
        if own:
            with formatter.section("Options"):
                formatter.write_dl(own)
        if common:
            flags = " ".join(flag.partition(" ")[0] for flag, _ in common)
            text = f"Common options (pgolf help common): {flags}"
            filled = textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
            formatter.write(f"\n{filled}\n")
        if self.examples:
            formatter.write("\n".join(("Examples:", *(f"  {line}" for line in self.examples), "")))


class Group(TyperGroup):
    """The program: commands in panels, one line for a mistyped one."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("Usage: pgolf COMMAND [OPTIONS]\n")
        self.format_help_text(ctx, formatter)
        formatter.write("\n")
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                summary = re.split(r"[.:;]\s| \(", " ".join((command.help or "").split()) + " ")[0].rstrip(".")
                panels.setdefault(str(getattr(command, "rich_help_panel", "")), []).append((name, summary))
        for panel, rows in panels.items():
            formatter.write(f"{panel}:\n")
            with formatter.indentation():
                formatter.write_dl(rows, col_max=14)
        formatter.write("COMMAND -h shows its options, config the settings, docs/GLOSSARY.md the words.\n")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return list(super().parse_args(ctx, args))
        except _UsageError as error:
            raise _usage_error(error, ctx, as_json="--json" in args) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            raise _usage_error(error, ctx, as_json="--json" in args) from error


def _names_here(args: Sequence[str]) -> bool:
    """True if an argument is the working folder by its name, `.` or `--out=.`."""
    return any(word.partition("=")[2] == "." if word.startswith("-") else Path(word or "/") == Path() for word in args)


def _kind(found: re.Match[str]) -> str:
    words = found[1]
    return next((f" {shown}" for kind, shown in _KINDS.items() if kind in words), f" {words.upper()}")


_KINDS = {"int": "N", "float": "X", "path": "PATH", "str": "NAME"}


_SAYS = {
    r"Input should be a valid integer.*": "it must be a whole number",
    r"Input should be a valid number.*": "it must be a number",
    r"Input should be greater than or equal to (\S+)": r"it must be at least \1",
}


def _usage_error(error: Any, ctx: Any, as_json: bool) -> typer.Exit:
    """Say a usage error in one line, on stderr and with --json to a program; the exit that follows."""
    from cli.screen import plain, say_error, say_json

    message = " ".join(plain(error.format_message()).split())
    for theirs, ours in _SAYS.items():
        message = re.sub(theirs, ours, message)
    where = getattr(ctx, "info_name", None) if isinstance(getattr(ctx, "command", None), Command) else None
    text = f"{message.rstrip('.')}; pgolf {f'{where} ' if where else ''}--help shows what there is"
    if as_json:
        say_json({"error": text, "exit_code": error.exit_code})
    say_error(text)
    return typer.Exit(error.exit_code)
