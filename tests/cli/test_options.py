"""Options that take several values, as DESIGN has them: `pgolf tokenize TRAIN... --val VAL...`."""

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from cli.common import Common, command


@pytest.fixture
def seen():
    return {}


@pytest.fixture
def app(seen):
    app = typer.Typer()

    @command(app, "take")
    def take(
        common: Common,
        train: Annotated[list[str] | None, typer.Argument()] = None,
        val: Annotated[list[str] | None, typer.Option("--val", metavar="VAL...")] = None,
    ) -> None:
        seen.update(train=train, val=val, run=common.run, set=common.set)

    return app


@pytest.mark.parametrize(
    ("words", "train", "val"),
    [
        (["a", "b", "--val", "c", "d"], ["a", "b"], ["c", "d"]),
        (["a", "--val", "c", "--val", "d"], ["a"], ["c", "d"]),
        (["a", "--val", "c", "d", "--run", "r"], ["a"], ["c", "d"]),
        (["--run", "r", "a", "--val", "c", "--set", "x=1"], ["a"], ["c"]),
        (["--val", "c", "--", "a"], ["a"], ["c"]),
    ],
)
def test_values_belong_to_their_option(app, seen, words, train, val):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (list(seen["train"]), list(seen["val"])) == (train, val)


def test_an_ordinary_option_takes_one_value(app, seen):
    assert CliRunner().invoke(app, ["--set", "x=1", "a"]).exit_code == 0
    assert (list(seen["train"]), list(seen["set"])) == (["a"], ["x=1"])
