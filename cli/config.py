"""`pgolf config`: every setting with its meaning; `pgolf presets`: the sets of settings that come with pgolf."""

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import Common, command

if TYPE_CHECKING:
    from pgolf.config.catalog import Setting

_EXAMPLES = ("pgolf config train.seconds", "pgolf config model --json", "pgolf config --preset mini")


def add_to(app: typer.Typer) -> None:
    @command(app, "config", ("artifacts", "preset", "config", "set", "json", "debug"), _EXAMPLES)
    def config(
        common: Common,
        names: Annotated[
            list[str] | None, typer.Argument(metavar="KEY...", help="Sections or keys, such as train or model.dim.")
        ] = None,
        diff: Annotated[
            tuple[str, str] | None,
            typer.Option(metavar="A B", help="Settings in which two runs or stage directories differ."),
        ] = None,
    ) -> None:
        """Show settings: meaning, default, unit, choices.

        With --preset, --config or --set: only what these change. Without KEY: everything.
        """
        from cli.screen import say_json
        from pgolf import config as configs
        from pgolf.config import catalog

        if diff is not None:
            pairs = catalog.differences(*(_recorded(common, place) for place in diff))
            if common.json:
                say_json({key: {"a": a, "b": b} for key, (a, b) in pairs.items()})
            elif not pairs:
                common.screen.result("no setting differs")
            else:
                common.screen.table(
                    "", ("setting", *diff), [(key, _text(a), _text(b)) for key, (a, b) in pairs.items()]
                )
            return
        found = [item for name in names for item in catalog.find(name)] if names else catalog.settings()
        values: dict[str, Any] = {}
        if common.preset or common.config or common.set:
            chosen = configs.load(common.preset, common.config, common.set)
            values = {key: value for key, (_, value) in catalog.changed(chosen).items()}
            found = [item for item in found if item.key in values]
        if common.json:
            rows = [dataclasses.asdict(item) | {"value": values.get(item.key, item.default)} for item in found]
            say_json({"settings": rows})
            return
        for item in found:
            common.screen.result(_entry(item, values))

    @command(app, "presets", ("json", "debug"), ("pgolf presets",))
    def presets(common: Common) -> None:
        """List the presets and what each is for."""
        from cli.screen import say_json
        from pgolf.config import catalog

        found = catalog.presets()
        if common.json:
            say_json(found)
            return
        common.screen.table("", ("preset", "what it is for"), list(found.items()))
        common.screen.result("pgolf config --preset NAME shows what a preset changes")


def _entry(item: "Setting", values: dict[str, Any]) -> str:
    default = f"{_text(item.default)}{f' {item.unit}' if item.unit else ''}"
    head = f"{item.key} = {default}"
    if item.key in values:
        head = f"{item.key} = {_text(values[item.key])}   (default {default})"
    text = item.meaning + (f" Choices: {', '.join(item.choices)}." if item.choices else "")
    text += "" if item.changes_results else " Changes no result."
    return f"{head}\n{textwrap.fill(text, 78, initial_indent='    ', subsequent_indent='    ')}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _recorded(common: Common, place: str) -> dict[str, Any]:
    """The settings of a stage directory, or of the stage of a run that comes last in the chain."""
    from pgolf.store import runs

    return dict(runs.last_stage(runs.find(common.artifacts, place)).manifest.config)
