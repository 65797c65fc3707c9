"""Ideas about a model against its preset: same seed, same tokens, scored on the held-out slice of train.

    python benchmarks/training/ladder.py artifacts/mini/tokenize "" "model.canon_taps=3" "model.qk_gain=2" --tokens 3e6

Every quoted argument is one variant, a list of settings over the preset; "" is the preset itself. Tokens are fixed and
the schedules run over the iterations, so a row does not depend on the machine's speed. Each finished run is appended
to `mini_ladder.jsonl` under benchmarks/results (a line per run, so that several processes may write); a run that is
there already is not run again. `mini_ladder.md` beside it is the table.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

from ablation import run

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.store import stage_directory

RESULTS = Path(__file__).parents[1] / "results" / "mini_ladder.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens_stage", type=Path, help="a tokenize stage directory")
    parser.add_argument("variants", nargs="+", help='settings in quotes: "section.key=value section.key=value"')
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--tokens", type=float, default=3e6, help="train tokens of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runtime = runtimes.choose("auto", threads=options.threads)
    tokens = stage_directory.open_stage(options.tokens_stage, ("tokenize",))
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {(row["preset"], row["settings"], row["tokens"], row["seed"]) for row in rows}
    for settings in options.variants:
        config = configs.load(options.preset, None, settings.split())
        iterations = round(options.tokens / config.train.batch_tokens)
        train = dataclasses.replace(config.train, iterations=iterations, seconds=0.0)
        key = (options.preset, settings, iterations * config.train.batch_tokens, options.seed)
        if key in known:
            continue
        row = run(dataclasses.replace(config, train=train, seed=options.seed), tokens, runtime, time.perf_counter)
        named = dict(zip(("preset", "settings", "tokens", "seed"), key, strict=True))
        with options.out.open("a") as file:
            file.write(json.dumps(named | row) + "\n")
        print(f"{row['bits_per_byte']:.4f} {row['parameters']:9,} weights {row['tokens_per_second']:8,.0f} tokens/s "
              f"{settings or 'preset'} (seed {options.seed})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
