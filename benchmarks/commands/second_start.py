"""What every command compiles, and how long it is silent, when it starts a second time on a machine.

    python benchmarks/commands/second_start.py FOLDER [--only train,quantize] > second_start.md

Makes a run of the `demo` preset with a few steps on a few documents in FOLDER, with new cache folders for kernels,
numba and inductor, as after an installation, and runs every command in it twice (the stages with `--force`): what the
first time needs may be compiled then. Prints a Markdown table of the second: C compilers started, numba functions
compiled, processor seconds until its first line beyond those that `import torch` takes alone, and in all. Exits 1 where
something was compiled, or the first line took more than 3 s.
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = {
    "tokenizer.vocab_size": 512, "model.vocab_size": 512, "train.seconds": 0, "train.iterations": 10,
    "train.holdout_tokens": 2000, "quantize.calibration_tokens": 4096, "quantize.sensitivity_tokens": 2048,
    "quantize.distill_steps": 2,
}  # fmt: skip
COMMANDS = (
    "train --force",
    "ema-finalize --force",
    "quantize --force",
    "eval-sliding --force",
    "eval-ttt --force",
    "package --force",
    "audit --tokens 200 --probes 4 --force",
    "prove --score sliding --tokens 100 --force",
    "verify artifacts/default/package",
    "sample The --tokens 8",
    "report --force",
    "inspect",
    "runs",
    "budget",
    "config train",
)
FIRST_LINE = 3.0
"""Most seconds from the import of torch to the first line (issue 16)."""
# Loaded by every Python below PYTHONPATH: counts what a process compiles and appends it to a file at its end.
RECORDER = """
import atexit, json, os, sys
compilers = []
def hook(event, arguments):
    if event == "subprocess.Popen" and os.path.basename(str(arguments[0])) in ("cc", "gcc", "g++", "c++", "clang"):
        words = [str(word) for word in arguments[1]]
        if any(word.endswith((".cpp", ".c")) or word == "-" for word in words):
            compilers.append(" ".join(words)[-200:])
def leave():
    functions = []
    if "numba" in sys.modules:
        from numba.core.dispatcher import Dispatcher
        for name, module in list(sys.modules.items()):
            for key, value in list(vars(module).items()) if name.startswith("pgolf") else ():
                if isinstance(value, Dispatcher) and value.__module__ == name:
                    missed = sum(value.stats.cache_misses.values())
                    kept = sum(value.stats.cache_hits.values())
                    functions += [f"{name}.{key}"] * max(missed, len(value.overloads) - kept if not kept else missed)
    with open(os.environ["COMPILED"], "a") as file:
        print(json.dumps([compilers, functions]), file=file)
sys.addaudithook(hook)
atexit.register(leave)
"""


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measured(words: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float, list[str]]:
    """Processor seconds until the first output and in all, and what was compiled. Stops where the command fails."""
    record = folder / "compiled.jsonl"
    record.unlink(missing_ok=True)
    before = os.times()
    with subprocess.Popen(
        words, cwd=folder, env=environment | {"COMPILED": str(record)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        assert child.stdout is not None
        head = child.stdout.read1(1 << 16)
        first = processor_seconds(child.pid) if head else 0.0
        shown = head + child.stdout.read()
    if child.returncode:
        sys.exit(f"{shlex.join(words)} failed:\n{shown.decode('utf-8', 'replace')[-2000:]}")
    after = os.times()
    whole = after.children_user + after.children_system - before.children_user - before.children_system
    lines = record.read_text().splitlines() if record.exists() else []
    found = [json.loads(line) for line in lines]
    return (
        first,
        whole,
        [*(f"cc: {name}" for one in found for name in one[0]), *(name for one in found for name in one[1])],
    )


def documents(path: Path, count: int, seed: int) -> None:
    letters, common = "etaoinshrdlucmfwypvbgkjqxz", random.Random(0)
    words = ["".join(common.choices(letters, range(26, 0, -1), k=common.randint(2, 9))) for _ in range(2000)]
    draw = random.Random(seed)
    lines = (json.dumps({"text": " ".join(draw.choices(words, k=60)) + f" {draw.random()}."}) for _ in range(count))
    path.write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="beginnings of the commands to run, comma-separated; all")
    given = parser.parse_args()
    folder = given.folder.resolve()
    (folder / "hook").mkdir(parents=True, exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(RECORDER)
    caches = {key: str(folder / key) for key in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    environment = {**os.environ, **caches, "PYTHONPATH": f"{folder / 'hook'}{os.pathsep}{ROOT}"}
    (folder / "XDG_CACHE_HOME").mkdir(exist_ok=True)
    pgolf = [sys.executable, "-m", "cli"]
    if not (folder / "artifacts" / "default" / "package").exists():
        documents(folder / "train.jsonl", 600, 0)
        documents(folder / "val.jsonl", 12, 1)
        small = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
        run = [*pgolf, "run", "train.jsonl", "--val", "val.jsonl", "--no-float", "--preset", "demo", *small]
        _, whole, compiled = measured(run, folder, environment)
        print(f"first run: {whole:.1f} s, {len(compiled)} compilations", file=sys.stderr, flush=True)
    torch = measured([sys.executable, "-c", "import torch"], folder, environment)[1]
    print(f"`import torch` alone: {torch:.1f} s\n")
    print("| command | compiled the second time | first line, s beyond torch's import | whole, s |\n|---|---|---|---|")
    wrong = []
    for line in COMMANDS:
        if given.only and not line.startswith(tuple(given.only.split(","))):
            continue
        words = [*pgolf, *shlex.split(line)]
        measured(words, folder, environment)
        first, whole, compiled = measured(words, folder, environment)
        beyond = first - torch
        print(f"| `{line}` | {', '.join(compiled) or '-'} | {beyond:.1f} | {whole:.1f} |", flush=True)
        wrong += [line] if compiled or beyond > FIRST_LINE else []
    sys.exit(f"compiled again, or slow to begin: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
