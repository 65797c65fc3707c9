#!/usr/bin/env bash
# The first hour on a GPU in 10 minutes: every stage of the challenge's job once, as one table to paste into an issue.
#
#     benchmarks/gpu_first_hour.sh [FOLDER]          on a machine with GPUs, from the repository; nothing is downloaded
#     benchmarks/gpu_first_hour.sh --try [FOLDER]    the same commands with a tiny model on a CPU, in a few minutes
#
# It trains preset record on this Python's documentation: times do not depend on the text, scores mean nothing. Every GPU
# takes 98,304 tokens a step, as each of the record's eight does, so that a step's time can be compared with its 95.9 ms
# before and 140.9 ms after looping. A step that fails is a row of the table, and the others still run.
set -u
try=no
[ "${1:-}" = --try ] && { try=yes; shift; }
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
pgolf() { "$python" -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); from cli.main import main; sys.exit(main())' \
    "$root" "$@"; }

if [ $try = yes ]; then
    gpus=2 seconds=${FIRST_HOUR_SECONDS:-10}
    common=(--preset record --device cpu --threads 1)
    for setting in tokenizer.vocab_size=512 tokenizer.val_fraction=0.01 model.vocab_size=512 model.dim=32 \
        model.num_layers=6 model.num_heads=2 \
        model.num_kv_heads=1 model.parallel_from=4 model.loop_first=1 model.loop_last=2 model.rope_dims=8 \
        train.batch_tokens=1024 train.seq_len=128 train.micro_tokens=0 train.reserve_seconds=4 train.compile=false \
        train.holdout_tokens=4096 optim.momentum_warmup=20 quantize.target_bytes=60000 package.count_code=false \
        quantize.calibration_tokens=4096 quantize.sensitivity_tokens=1024 evaluate.seq_len=128 ttt.lora_rank=4 \
        ttt.lora_documents=8; do common+=(--set $setting); done
else
    gpus=$(nvidia-smi -L | wc -l)
    [ "$gpus" -gt 0 ] || { echo "nvidia-smi finds no GPU; --try runs the same on a CPU" >&2; exit 2; }
    seconds=120
    common=(--preset record --device cuda --set "train.batch_tokens=$((98304 * gpus))" --set train.checkpoint_seconds=40)
fi
common+=(--artifacts "$folder/artifacts")
share=(); [ "$gpus" -gt 1 ] && share=(--nproc "$gpus")

: > "$folder/times"
timed() { # NAME COMMAND...: run it, log it, note its seconds and exit code
    local name=$1 begun code; shift
    echo "== $name: pgolf $*" >&2
    begun=$(date +%s.%N)
    pgolf "$@" > "$folder/$name.out" 2> "$folder/$name.log"; code=$?
    [ $code -eq 0 ] || tail -n 3 "$folder/$name.log" >&2
    echo "$name $begun $(date +%s.%N) $code" >> "$folder/times"
}
timed tokenize tokenize "${common[@]}"
timed train train "${common[@]}" --seconds "$seconds" ${share[@]+"${share[@]}"}
timed ema-finalize ema-finalize "${common[@]}"
timed quantize quantize "${common[@]}"
timed eval-sliding eval-sliding "${common[@]}" ${share[@]+"${share[@]}"}
timed eval-ttt eval-ttt "${common[@]}" ${share[@]+"${share[@]}"}
timed package package "${common[@]}"
timed audit audit "${common[@]}" --seconds 30
timed verify verify "$folder/artifacts/default/package" --val "$folder/artifacts/default/tokenize"

"$python" - "$folder" "$gpus" "$seconds" <<'TABLE' | tee "$folder/table.md"
import json
import subprocess
import sys
from pathlib import Path

folder, gpus, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
VAL_TOKENS = 40_540_160  # the challenge's val text
run = folder / "artifacts" / "default"


def manifest(stage):
    path = run / stage / "manifest.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def git(*arguments):
    found = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path.cwd())
    return found.stdout.strip() or "unknown"


rows = []
trained = manifest("train")
environment = trained.get("environment", {})
names = "device_name", "device", "dtype", "world_size", "torch", "threads"
rows.append(("machine", ", ".join(f"{name} {environment[name]}" for name in names if name in environment)))
rows.append(("commit", git("rev-parse", "--short", "HEAD")))
log = run / "train" / "metrics.jsonl"
if trained and log.is_file():
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    batch, looping = trained["config"]["train"]["batch_tokens"], trained["config"]["model"]["loop_from"] * seconds
    before = sorted(line["tokens_per_second"] for line in lines if line["seconds"] < looping)
    after = sorted(line["tokens_per_second"] for line in lines if line["seconds"] > 1.1 * looping)
    for name, rates in (("before looping", before), ("after looping", after)):
        if rates:
            rate = rates[len(rates) // 2]
            rows.append((f"a step {name}", f"{1e3 * batch / rate:.1f} ms, {rate:,.0f} tokens/s (median of the log's lines)"))
    metrics, details = trained["metrics"], trained.get("details", {})
    rows.append(("training", f"{metrics['iterations']:,} steps, {metrics['tokens']:,} tokens in {metrics['seconds']:.2f} s"))
    rows.append(("utilization", f"{metrics.get('flops_utilization', float('nan')):.1%} of a large matrix product's rate"))
    rows.append(("path", str(details.get("path", "unknown"))))
    rows.append(("checkpoints, clock paused", f"{details.get('paused_seconds', 'unknown')} s in all"))
for line in (folder / "times").read_text().splitlines():
    name, begun, ended, code = line.split()
    took = float(ended) - float(begun)
    words = f"{took:.1f} s" + ("" if code == "0" else f", exit code {code}")
    if name.startswith("eval-") and code == "0":
        metrics = manifest(name).get("metrics", {})
        scoring, tokens = metrics.get("seconds", took), metrics.get("tokens_scored", 0)
        if tokens:
            whole = scoring / tokens * VAL_TOKENS * gpus / 8
            words += f", {scoring:.1f} s of it for {tokens:,} tokens: {whole:,.0f} s for the challenge's val on 8 GPUs"
    rows.append((f"`{name}`", words))
print("| what | measured |\n|---|---|")
for name, words in rows:
    print(f"| {name} | {words} |")
TABLE
echo "everything is in $folder" >&2
awk '$4 != 0 { bad = 1 } END { exit bad }' "$folder/times"
