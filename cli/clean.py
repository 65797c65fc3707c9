"""`pgolf clean`: remove variants and attempts that were given up."""

from typing import Annotated

import typer

from cli.common import LOOK, Common, command

_EXAMPLES = ("pgolf clean", "pgolf clean short --force")


def add_to(app: typer.Typer) -> None:
    @command(app, "clean", (*LOOK, "force"), _EXAMPLES)
    def clean(
        common: Common,
        names: Annotated[
            list[str] | None, typer.Argument(metavar="VARIANT...", help="Only these variants; default: all.")
        ] = None,
    ) -> None:
        """Remove a run's variants and unfinished attempts.

        Lists them first; --force removes. A stage that another was made from stays, and so do all plain stages.
        """
        from cli.screen import say_json
        from pgolf.errors import PgolfError
        from pgolf.store import cleaning, runs

        if not common.run_dir.is_dir():
            raise PgolfError(runs.missing(common.run_dir))
        found = cleaning.leftovers(common.artifacts, common.run_dir, names or ())
        free = [item for item in found if not item.kept_for]
        rows = [(item.path.name, f"{item.bytes:,}", item.kept_for and f"stays: {item.kept_for}") for item in found]
        if rows:
            common.screen.table(str(common.run_dir), ("what", "bytes", ""), rows)
        if common.force and free:
            cleaning.remove(common.run_dir, [item.path for item in free])
        verb = "removed" if common.force else "--force removes"
        if free:
            common.screen.result(f"{verb} {len(free)}, {sum(item.bytes for item in free):,} bytes")
        else:
            common.screen.result(f"{common.run_dir}: there is nothing to remove")
        if common.json:
            listed = [{"path": str(item.path), "bytes": item.bytes, "kept_for": item.kept_for} for item in found]
            say_json({"removed": common.force, "found": listed})
