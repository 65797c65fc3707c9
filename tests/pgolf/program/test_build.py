"""The packaged program: its size, its parts, and that its settings come back."""

import pytest

from pgolf import config as configs
from pgolf.errors import PgolfError
from pgolf.program import build as program

LARGEST = 60_950
"""Bytes of the script for `mini`."""


def test_the_script_of_mini_is_small_and_holds_no_tools():
    config = configs.to_dict(configs.load("mini", None, []))
    made = program.build(config)
    files, recorded = program.read(made.script)
    assert recorded == config
    # A package records only the 660 bytes of settings that are not the defaults.
    assert len(made.script) - len(program.dumps(config)) + 660 <= LARGEST
    assert "pgolf/model/gpt.py" in files
    tools = ("cli", "stages", "pgolf/bundle", "pgolf/store", "pgolf/screen", "pgolf/sandbox", "pgolf/audit")
    assert not [path for path in files if path.startswith(tools)]
    only_stages_need = (
        "caches",
        "checkpoint",
        "display",
        "fast_paths",
        "raced_pairs",
        "nonfinite_origin",
        "prepare",
        "metrics_log",
    )
    assert not [path for path in files if path.endswith(tuple(f"/{name}.py" for name in only_stages_need))]
    assert not {"typer", "rich", "matplotlib", "python_minifier"} & set(made.libraries)


def test_other_files_than_scripts_are_refused():
    with pytest.raises(PgolfError, match="pgolf package makes the script"):
        program.read(b"print(1)")
