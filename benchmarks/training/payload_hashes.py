"""SHA-256 of every payload file of a small fixed-iteration run, to compare two versions of the code.

    python benchmarks/training/payload_hashes.py FOLDER > after.json     # in each checkout, then diff the two files

Runs `tokenize`, `train`, `ema-finalize` and `quantize` through the command line on the topics of Python's language
reference, on one CPU thread and without a clock, and prints the hashes by stage and file as JSON. A refactoring must
not change any of them; `metrics.jsonl`, `train.log`, `loss.png` and packaged scripts hold times and are left out. The
train stage runs twice: once straight, once with several micro-batches, sizes that change in the middle, and a loop.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

SETTINGS = (
    *("tokenizer.vocab_size=400", "model.vocab_size=400", "model.dim=32", "model.num_layers=3", "model.num_heads=2"),
    *("model.num_kv_heads=1", "train.iterations=40", "train.seconds=0", "train.batch_tokens=512", "train.seq_len=64"),
    *("train.compile=false", "train.holdout_tokens=2000", "average.ema_decays=[0.8, 0.9]", "average.tail_from=0.7"),
    *("quantize.calibration_tokens=2048",),
)
VARIED = (
    *(
        "model.loop_first=1",
        "model.loop_last=1",
        "model.loop_passes=2",
        "model.loop_from=0.4",
        "train.micro_tokens=256",
    ),
    *("train.batch_schedule=[[0.5, 1024]]", "train.seq_schedule=[[0.6, 128]]", "optim.neuron_beta=0.9"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the runs; must not hold any yet")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    names = sorted(topics)
    for path, some in (("train.jsonl", names[:40]), ("val.jsonl", names[40:42])):
        lines = [json.dumps({"text": topics[name][:4000]}) + "\n" for name in some]
        (folder / path).write_text("".join(lines), "utf-8")
    found: dict[str, str] = {}
    for run, settings in (("plain", SETTINGS), ("varied", (*SETTINGS, *VARIED))):
        options = [word for setting in settings for word in ("--set", setting)]
        documents = [str(folder / "train.jsonl"), "--val", str(folder / "val.jsonl")]
        for words in (["tokenize", *documents], ["train"], ["ema-finalize"], ["quantize"]):
            where = ["--artifacts", str(folder), "--run", run, "--threads", "1", "--device", "cpu"]
            subprocess.run([sys.executable, "-m", "cli", *words, *where, *options], check=True)
            manifest = json.loads((folder / run / words[0] / "manifest.json").read_text("utf-8"))
            found |= {
                f"{run}/{words[0]}/{name}": output["sha256"]
                for name, output in manifest["outputs"].items()
                if name not in ("metrics.jsonl", "train.log", "loss.png")
            }
    print(json.dumps(found, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
