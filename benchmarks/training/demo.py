"""Seconds of each stage of `pgolf run --preset demo` with empty caches.

    python benchmarks/training/demo.py [--isa avx2] [--preset demo] [--set train.iterations=10]

The run is a child process held to the instruction set (`LEVELS` in speed.py), with new cache folders for kernels, numba
and inductor, as after an installation. What commands need to start again: benchmarks/commands/second_start.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import LEVELS


def timed(words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds to the first line on stderr or stdout, and to the end. Stops where the command fails."""
    begun = time.perf_counter()
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        first = time.perf_counter() - begun
        lines += child.stdout.readlines()
    if child.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{''.join(lines[-20:])}")
    return first, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="avx2", choices=LEVELS)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--set", action="append", default=[], help="settings of the run, as the commands take them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = {key: str(folder / key) for key in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        environment = {**os.environ, **LEVELS[options.isa], **caches}
        (folder / "XDG_CACHE_HOME").mkdir()
        pgolf = [sys.executable, "-m", "cli"]
        where = ["--artifacts", str(folder), "--run", "demo"]
        settings = [word for value in options.set for word in ("--set", value)]
        first, whole = timed([*pgolf, "run", "--preset", options.preset, *settings, *where], environment)
        print(f"pgolf run --preset {options.preset}, {options.isa}: {whole:.1f} s, the first line after {first:.1f} s")
        for path in sorted((folder / "demo").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime):
            manifest = json.loads(path.read_text("utf-8"))
            found = {
                key: manifest["metrics"][key] for key in ("seconds", "bits_per_byte") if key in manifest["metrics"]
            }
            print(f"  {path.parent.name:20} {manifest['seconds']:7.1f} s  {found}", flush=True)


if __name__ == "__main__":
    main()
