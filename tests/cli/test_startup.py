"""What a command imports before it starts: the heavy libraries only where it computes with them."""

import json
import subprocess
import sys
from pathlib import Path

from cli import interrupts
from cli.app import COMMANDS

HEAVY = ("torch", "numba", "matplotlib", "sentencepiece", "constriction", "pyarrow", "fsspec", "python_minifier")
SCRIPT = """
import json, sys
from cli.main import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["pgolf", *words]
    try:
        codes.append(main())
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps([codes, [name for name in json.loads(sys.stdin.read()) if name in sys.modules]]))
"""


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.argv = ["pgolf", "runs"]
from cli.main import main
main()
"""


def imported(*commands: list[str]) -> list[str]:
    """The heavy libraries that a new process has imported after these commands, all of which must succeed."""
    words = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(words, input=json.dumps(HEAVY), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    codes, found = json.loads(done.stdout.splitlines()[-1])
    assert not any(codes), f"{codes}\n{done.stdout}\n{done.stderr}"
    return found


def test_ctrl_c_while_modules_are_loaded_is_one_line_and_130() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"pgolf: {interrupts.TEXT}\n")


def test_help_imports_no_heavy_library() -> None:
    names = [name.replace("_", "-") for modules in COMMANDS.values() for name in modules]
    commands = [name for name in names if name not in ("screen-record", "import-checkpoint")]
    assert imported(["--help"], *([name, "--help"] for name in commands)) == []


def test_commands_that_only_read_manifests_import_no_heavy_library(made: Path) -> None:
    where = ["--artifacts", str(made)]
    run = [*where, "--run", "tiny"]
    assert imported(["runs", *where], ["inspect", *run], ["inspect", "--check", *run], ["config"]) == []


def test_training_imports_no_library_that_packs_or_reads_parquet(copy: Path) -> None:
    found = imported(["train", "--artifacts", str(copy), "--run", "tiny", "--force", "--set", "train.iterations=1"])
    assert "torch" in found
    assert not {"pyarrow", "fsspec", "python_minifier"} & set(found)  # matplotlib draws the loss curve at the end
