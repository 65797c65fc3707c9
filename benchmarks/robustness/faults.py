"""Kills and failures at the file operations of every command, fresh and over a finished stage.

    python benchmarks/robustness/faults.py --per-case 12 --commands train quantize

Each run adds its rows to benchmarks/results/faults.json, in place of older ones of the same commands.

For each command the file operations below the run are counted once; then the command is repeated, each time
with one operation that fails (EIO, ENOSPC) or at which the process is killed, or with a limit on the size of files.
Afterwards the old stage or the new one must be there and complete, as the exit code indicates; files of the user must
be as they were; and one more command must leave no working folder. Prints a row per command and fault.
"""

import argparse
import errno
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))

from benchmarks.robustness import injection  # noqa: E402

SMALL = [
    *("tokenizer.vocab_size=330", "model.vocab_size=330", "model.dim=16", "model.num_layers=2", "model.num_heads=2"),
    *("model.num_kv_heads=1", "train.iterations=3", "train.seconds=0", "train.batch_tokens=64", "train.seq_len=16"),
    *("train.compile=false", "train.holdout_tokens=50", "quantize.method=rtn", "ttt.chunk_tokens=64"),
]
COMMANDS = ("tokenize", "train", "ema-finalize", "quantize", "eval-sliding", "eval-ttt", "package")
FAULTS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "kill": injection.KILL}


class Failed(Exception):
    """A command that ended with an exit code other than 0."""


def command(words: list[str]) -> None:
    """Run `pgolf WORDS` in this process. Raises Failed with its exit code."""
    from typer.testing import CliRunner

    from cli.app import app

    result = CliRunner().invoke(app, [*words, "--threads", "1"])
    if result.exit_code:
        raise Failed(f"{result.exit_code} {result.stderr.strip().splitlines()[-1:]} {result.exception!r}")


def words_of(name: str, folder: Path) -> list[str]:
    words = [name, *([str(folder / "train.jsonl"), "--val", str(folder / "val.jsonl")] if name == "tokenize" else [])]
    words += [word for setting in SMALL for word in ("--set", setting)] if name in ("tokenize", "train") else []
    return [*words, "--artifacts", str(folder / "artifacts"), "--run", "r", "--force"]


def whole(stage: Path) -> str | None:
    """SHA-256 of the manifest of a stage whose every file was checked; None when nothing is there."""
    from pgolf.store import stage_directory

    if not stage.exists():
        return None
    found = stage_directory.open_stage(stage)
    for name in found.manifest.outputs:
        found.file(name)
    if extra := {path.name for path in stage.iterdir()} - {"manifest.json", *found.manifest.outputs}:
        raise AssertionError(f"not in the manifest: {extra}")
    return found.manifest_sha256


def one(name: str, base: Path, before: bool, at: int, action: int, limit: int | None) -> tuple[str, int]:
    """Inject one fault into one command; returns the violation or an empty string, and the number of operations."""
    from pgolf.store import stage_directory

    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(base, Path(place) / "work", symlinks=True))
        run = folder / "artifacts" / "r"
        if not before:
            shutil.rmtree(run / name)
        (run / ".git").mkdir()
        (run / ".git" / "HEAD").write_text("precious")
        old = whole(run / name)
        ending = injection.run(lambda: command(words_of(name, folder)), folder / "artifacts", at, action, limit)
        if ending.how == "failed" and not ending.text.startswith("2 "):
            return f"ended with {ending.error} {ending.text[:300]}", ending.operations
        with stage_directory.locked(run):
            pass
        try:
            new = whole(run / name)
        except Exception as error:
            return f"broken: {error}", ending.operations
        wrong = [
            text
            for text, bad in (
                ("neither the old nor the new", new is None and before),
                ("done, but not replaced", ending.how == "done" and new == old),
                ("failed, but replaced", ending.how == "failed" and new != old),
                ("a file of the user changed", (run / ".git" / "HEAD").read_text() != "precious"),
                ("leftovers", any(path.name.startswith(".pgolf-") for path in run.iterdir())),
            )
            if bad
        ]
        return ", ".join(wrong), ending.operations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-case", type=int, default=12, help="faults per command, kind of fault and state")
    parser.add_argument("--commands", nargs="*", default=COMMANDS)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "results" / "faults.json")
    options = parser.parse_args()
    rows, lost = [], 0
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        for file, first, count in (("train.jsonl", 0, 40), ("val.jsonl", 40, 3)):
            lines = [
                {"text": f"Note {n}. " + hashlib.sha256(str(n).encode()).hexdigest() * 4}
                for n in range(first, first + count)
            ]
            (base / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        for name in COMMANDS:
            command(words_of(name, base))
        for name in options.commands:
            for before in (False, True):
                _, total = one(name, base, before, 0, 0, None)
                cases = [(fault, at) for fault in FAULTS for at in _spread(total, options.per_case)]
                cases += [("limit", size) for size in (0, 100, 3000)]
                wrong = []
                for fault, at in cases:
                    limit = at if fault == "limit" else None
                    text, _ = one(name, base, before, 0 if limit is not None else at, FAULTS.get(fault, 0), limit)
                    if text:
                        wrong.append(f"{fault} at {at}: {text}")
                lost += len(wrong)
                rows.append(
                    {"command": name, "over": before, "operations": total, "faults": len(cases), "wrong": wrong}
                )
                print(json.dumps(rows[-1]), flush=True)
    print(f"{sum(row['faults'] for row in rows)} faults, {lost} wrong")
    kept = json.loads(options.out.read_text("utf-8")) if options.out.exists() else []
    rows += [row for row in kept if row["command"] not in options.commands]
    rows.sort(key=lambda row: (COMMANDS.index(row["command"]), row["over"]))
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if lost else 0


def _spread(total: int, count: int) -> list[int]:
    """Operation numbers: the last half of `count` at the end, where a stage is moved into place, the others before."""
    last = list(range(max(1, total - count // 2 + 1), total + 1))
    rest = [1 + index * total // count for index in range(count - len(last))]
    return sorted({*rest, *last})


if __name__ == "__main__":
    sys.exit(main())
