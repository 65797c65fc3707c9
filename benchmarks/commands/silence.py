"""The longest silence of every command, written to a pipe and on a terminal of 80 columns.

    python benchmarks/commands/silence.py FOLDER [--only train,quantize] [--iterations 60] > silence.md

Makes a run of the `demo` preset with a few steps in FOLDER, on Python's documentation, and runs every command in it,
the stages with `--force`: once with all output into a pipe, once on a pseudo-terminal. Prints, as a Markdown table, the
seconds that each took, its longest time without a byte of output, and the last words before that. On a machine that
does other work, `--processor` counts the command's own processor seconds in place of those of the clock.
"""

import argparse
import fcntl
import itertools
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

SMALL = ("train.seconds=0", "train.checkpoint_every=20", "evaluate.stride=128", "ttt.lr=0")
COMMANDS = (
    "tokenize --preset demo --force",
    "train --preset demo {small} --force",
    "ema-finalize --force",
    "quantize --target-bytes 190000 --force",
    "quantize --method gptq --name gptq --force",
    "quantize --target-bytes 170000 180000 --score --force",
    "eval-sliding --force",
    "eval --ttt --seconds 60 --force",
    "package --force",
    "audit --tokens 2000 --probes 16 --force",
    "prove --score sliding --tokens 4000 --force",
    "verify artifacts/default/package --run-code",
    "sample The --tokens 40",
    "report --force",
    "compress short.jsonl --output short.pgt",
    "decompress short.pgt --output again.jsonl",
    "run --preset demo {small} --dry-run",
    "inspect --check",
    "runs",
    "budget",
    "compare eval-sliding eval-sliding@170000",
    "config train",
    "share default --out sent.lineage.json",
    "submission default --name Silence --author me --github-id me --out records",
    "clean",
)
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def processor_seconds(pid: int) -> float:
    """That a process and its finished children have used; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measured(words: list[str], folder: Path, terminal: bool, processor: bool) -> tuple[int, float, float, str]:
    """(exit code, seconds, longest silence in seconds, last words before it)."""
    if terminal:
        reading, writing = pty.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    else:
        reading, writing = os.pipe()
    command = [sys.executable, "-m", "cli", *words]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, env=environment
    )
    os.close(writing)
    clock = (lambda: processor_seconds(process.pid)) if processor else time.monotonic
    begun = last = clock()
    longest, shown, before = 0.0, b"", "the start"
    while True:
        ready, _, _ = select.select([reading], [], [], 0.05)
        try:
            data = os.read(reading, 65536) if ready else b""
        except OSError:  # a pseudo-terminal whose other side is closed
            data, ready = b"", [reading]
        now = clock() or last
        if ready:
            if now - last > longest:
                longest = now - last
                lines = [line.strip() for line in _ESCAPES.sub(b"\n", shown).splitlines() if line.strip()]
                before = lines[-1].decode("utf-8", "replace")[:60] if lines else "the start"
            last = now
            shown = (shown + data)[-4000:]
            if not data:
                break
    os.close(reading)
    return process.wait(), last - begun, longest, before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="beginnings of the commands to run, comma-separated; all")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--terminal", action=argparse.BooleanOptionalAction, default=None, help="only one of the two")
    parser.add_argument("--processor", action="store_true", help="count processor seconds")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "short.jsonl").write_text('{"text": "The function returns a list of the names."}\n' * 5)
    small = " ".join(f"--set {setting}" for setting in (f"train.iterations={given.iterations}", *SMALL))
    print("| command | seconds | silent in a pipe | after | seconds | silent on a terminal | after |")
    print("|---|---|---|---|---|---|---|")
    for line in COMMANDS:
        if given.only and not line.startswith(tuple(given.only.split(","))):
            continue
        words = shlex.split(line.format(small=small))
        cells = [f"`{line.format(small='...')}`"]
        for terminal in (False, True) if given.terminal is None else (given.terminal,):
            for option, made in itertools.pairwise(words):
                if option in ("--output", "--out"):
                    subprocess.run(["rm", "-rf", str(given.folder / made)], check=True)
            code, seconds, silent, before = measured(words, given.folder, terminal, given.processor)
            failed = f" (exit code {code})" if code else ""
            cells += [f"{seconds:.1f}{failed}", f"{silent:.1f}", before.replace("|", "/")]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
