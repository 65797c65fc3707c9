"""Acceptance tests of packaged runs, in an empty folder and a separate virtual environment.

    python benchmarks/package/package.py artifacts/demo artifacts/mini [--venv DIR] [--iterations 50] [--threads 1]

For each finished run with a package: the environment gets `requirements.txt` and nothing else; the script scores (with
and without test-time training, as claimed) and trains, and its losses are held to those of `pgolf train` on the same
tokens; the ledger is held to the files; one byte of each file, and the claimed score, are changed; hostile folders are
made of the package. Writes package.json beside itself. Exits 1 if anything is not as it must be.
"""

import argparse
import json
import pickle
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.progress import Silent
from pgolf.store import stage_directory
from pgolf.store.manifest import hash_file
from stages.context import StageContext
from stages.train import train
from stages.verify import Options, verify
from stages.views.claims import recorded_config

HERE = Path(__file__).resolve().parent
MOST_CODE = 56_000
ALONE = ("train_gpt.py", "model.pgz", "tokenizer.model")
SAME = 1e-6  # bits per byte, of the same model on the same machine
LOSS_TOLERANCE = 2e-6  # losses are printed with six digits


def environment(folder: Path, requirements: Path) -> Path:
    """The Python of a virtual environment that has the requirements, made when it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
    return python


def script(python: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run([python, "-I", "train_gpt.py", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def scores(python: Path, package: Path, tokens: Path, claimed: dict[str, Any], threads: int) -> dict[str, Any]:
    """Compare the score of the script, alone in a folder, with the claims."""
    found: dict[str, Any] = {}
    for name, claim in claimed["scores"].items():
        with tempfile.TemporaryDirectory() as place:
            for file in ALONE:
                shutil.copyfile(package / file, Path(place) / file)
            started = time.perf_counter()
            options = ["--val", str(tokens), "--device", "cpu", "--threads", str(threads)]
            printed = script(python, Path(place), "eval", *options, *(["--ttt"] if name == "ttt" else []))
            seconds = time.perf_counter() - started
        score = json.loads(printed)["bits_per_byte"]
        found[name] = {"script": score, "claimed": claim["bits_per_byte"], "seconds": round(seconds, 1)}
    return found


def losses(python: Path, run: Path, package: Path, tokens: Path, iterations: int, threads: int) -> dict[str, Any]:
    """The greatest difference between the losses of the script and of `pgolf train`, step by step."""
    model = stage_directory.open_stage(package).parent("model")
    recorded = recorded_config(model, {}, configs.load(None, None, []))
    changed = {"iterations": iterations, "seconds": 0.0, "log_every": 1}
    values = recorded | {"train": recorded.get("train", {}) | changed}
    with tempfile.TemporaryDirectory() as place:
        context = StageContext(
            run=Path(place) / "run",
            config=configs.from_dict(values),
            runtime=runtimes.choose("cpu", threads),
            reporter=Silent(),
            command=tuple(sys.argv),
        )
        trained = train(context, stage_directory.open_stage(tokens))
        mine = [json.loads(line)["loss"] for line in trained.file("metrics.jsonl").read_text("utf-8").splitlines()]
        shutil.copyfile(package / "train_gpt.py", Path(place) / "train_gpt.py")
        options = ["--data", str(tokens), "--iterations", str(iterations), "--threads", str(threads), "--device", "cpu"]
        printed = script(python, Path(place), "train", *options)
        theirs = [float(loss) for loss in re.findall(r"loss:(\S+)", printed)]
        made = (Path(place) / "model.pgz").stat().st_size
    if len(mine) != len(theirs) or len(mine) != iterations:
        raise SystemExit(f"{len(mine)} losses here, {len(theirs)} from the script; expected {iterations}")
    gaps = [abs(one - other) for one, other in zip(mine, theirs, strict=True)]
    return {"iterations": iterations, "greatest_difference": max(gaps), "container_bytes": made}


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))

    return change


def agree(folder: Path, change: Callable[[dict[str, Any]], None] = lambda claimed: None) -> None:
    """Make the folder's claims and hashes agree with its files, as a liar would."""
    claimed = json.loads((folder / "claims.json").read_text("utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    change(claimed)
    for name in claimed["files"]:
        found = hash_file(folder / name)
        claimed["files"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    (folder / "claims.json").write_text(json.dumps(claimed), "utf-8")
    manifest["details"]["claims"] = claimed
    for name in manifest["outputs"]:
        found = hash_file(folder / name)
        manifest["outputs"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    ledger = manifest["details"]["ledger"]
    for row in ledger["files"]:
        row["bytes"] = (folder / row["file"]).stat().st_size
    sizes = {row["file"]: row["bytes"] for row in ledger["files"]}
    ledger["counted_bytes"] = sum(row["bytes"] for row in ledger["files"] if row["counted"])
    ledger["total_bytes"] = sizes["model.pgz"] + sizes["train_gpt.py"]
    manifest["metrics"] |= {
        "model_bytes": sizes["model.pgz"],
        "code_bytes": sizes["train_gpt.py"],
        "total_bytes": ledger["total_bytes"],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def lower_score(folder: Path) -> None:
    def change(claimed: dict[str, Any]) -> None:
        claimed["scores"]["sliding"]["bits_per_byte"] -= 1e-5

    agree(folder, change)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def pickled(folder: Path) -> None:
    (folder / "model.pgz").write_bytes(pickle.dumps(Evil(folder.parent / "touched")))
    agree(folder)


def declares_terabytes(folder: Path) -> None:
    """A container whose directory says that one matrix has 10 TB of weights, with the hashes set right."""
    import hashlib
    from dataclasses import replace

    from pgolf.codec import compressors, container, directory
    from pgolf.codec.coder import write_numbers

    data = (folder / "model.pgz").read_bytes()
    parts = container.take_apart(data)
    big = replace(parts.directory.matrices[0], rows=1 << 20, columns=10_000_000)
    text = directory.write(replace(parts.directory, matrices=(big, *parts.directory.matrices[1:])))
    kind, stored = compressors.smallest(text)
    import numpy as np

    body = write_numbers(np.array([len(text), kind, len(stored)])) + stored + data[len(data) // 2 :]
    (folder / "model.pgz").write_bytes(data[:4] + hashlib.sha256(body).digest()[:16] + body)
    agree(folder)


def climbs_out(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["outputs"]["../../outside"] = manifest["outputs"]["model.pgz"]
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def calls_home(folder: Path) -> None:
    """A script that opens a connection and then does as it should."""
    code = (
        (folder / "train_gpt.py")
        .read_bytes()
        .replace(b"import brotli,", b"import socket;socket.socket()\nimport brotli,", 1)
    )
    (folder / "train_gpt.py").write_bytes(code)
    agree(folder)


FILES = ("model.pgz", "train_gpt.py", "tokenizer.model", "claims.json", "requirements.txt", "README.md")
CHANGES: dict[str, Callable[[Path], None]] = {
    **{f"one byte of {name}": flip(name) for name in FILES},
    "a score 0.00001 lower, everything else agreeing": lower_score,
    "a pickle in place of the container": pickled,
    "a container that declares 10 TB": declares_terabytes,
    "a name that climbs out of the folder": climbs_out,
    "a script that opens a connection": calls_home,
}


def verdicts(package: Path, tokens: Path, threads: int, trust: bool) -> dict[str, Any]:
    """Verdicts of `verify` on the package and on each changed copy of it."""

    def judge(folder: Path, run_code: bool) -> dict[str, Any]:
        chosen = Options(val=tokens, device="cpu", threads=threads, run_code=run_code, trust=run_code and trust)
        checks = verify(folder, chosen, Silent())
        last = checks[-1]
        return {"true": not any(check.failed for check in checks), "reason": f"{last.what}: {last.detail}"}

    found = {"unchanged": judge(package, True)}
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(shutil.copytree(package, Path(place) / "package"))
            change(folder)
            before = {path: path.read_bytes() for path in folder.iterdir()}
            found[name] = judge(folder, change is calls_home)
            if (Path(place) / "touched").exists() or before != {path: path.read_bytes() for path in folder.iterdir()}:
                found[name] = {"true": True, "reason": "the folder did something"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--venv", type=Path, help="made when it is not there; none: a temporary one")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trust", action="store_true", help="run the packages' scripts where no sandbox works, too")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "package.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        for run in options.runs:
            package, tokens = run / "package", run / "tokenize"
            python = environment(options.venv or Path(place) / "venv", package / "requirements.txt")
            stage = stage_directory.open_stage(package)
            ledger, claimed = stage.manifest.details["ledger"], stage.manifest.details["claims"]
            sizes = {name: (package / name).stat().st_size for name in ("train_gpt.py", "model.pgz")}
            row: dict[str, Any] = {"run": run.name, "bytes": sizes, "ledger": ledger["total_bytes"]}
            row["scores"] = scores(python, package, tokens, claimed, options.threads)
            row["losses"] = losses(python, run, package, tokens, options.iterations, options.threads)
            row["verify"] = verdicts(package, tokens, options.threads, options.trust)
            rows.append(row)
            checks = {
                "code bytes": sizes["train_gpt.py"] <= MOST_CODE,
                "ledger": ledger["total_bytes"] == sum(sizes.values()),
                "losses": row["losses"]["greatest_difference"] <= LOSS_TOLERANCE,
                "unchanged": row["verify"]["unchanged"]["true"],
                **{name: abs(one["script"] - one["claimed"]) <= SAME for name, one in row["scores"].items()},
                **{name: not row["verify"][name]["true"] for name in CHANGES},
            }
            wrong += [f"{run.name}: {name}" for name, right in checks.items() if not right]
            print(json.dumps(row, indent=1), flush=True)
    result = {"machine": platform.processor() or platform.machine(), "wrong": wrong, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    sys.exit(f"not as it must be: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
