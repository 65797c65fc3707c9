r"""Byte targets: does the coded model land between 99.9% and 100% of each, and with the script in it as well?

    python benchmarks/quantize/targets.py artifacts/mini/ema-finalize [MORE_STAGES...] [--bits 2.2 2.7 3.2 3.8 \
        4.6] [--packaged]

Per checkpoint one calibration, then what `pgolf quantize --target-bytes` does for each target, named here by its bits
per weight of the matrices: measured shares, the search over real containers. `--packaged` also quantizes and packages
once per checkpoint through the stages, with the script counted, at the middle target plus room for a script. Prints a
table and writes targets.json beside it.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.codec import container
from pgolf.config import Config
from pgolf.progress import Silent
from pgolf.quant import pipeline
from pgolf.runtime import Runtime
from pgolf.saved import models
from pgolf.store import stage_directory
from pgolf.store.stage_directory import Stage
from pgolf.tokens.shards import TokenStream
from stages.context import StageContext
from stages.package import package
from stages.quantize import quantize, train_shards

ROOM = 53_000  # for a script


def row(name: str, what: str, target: int, size: int, started: float) -> dict[str, Any]:
    found = {"checkpoint": name, "what": what, "target": target, "bytes": size, "share": round(size / target, 6)}
    found["processor_seconds"] = round(time.process_time() - started, 1)
    print(f"{name:28s} {what:18s} {target:>10,} {size:>10,} {size / target:.4%}", flush=True)
    return found


def settings_of(stage: Stage, calibration_tokens: int) -> Config:
    config = configs.load(None, None, [f"quantize.calibration_tokens={calibration_tokens}"])
    return dataclasses.replace(config, model=models.model_config(stage))


def model_alone(stage: Stage, name: str, config: Config, bits: list[float], runtime: Runtime) -> list[dict[str, Any]]:
    model = models.load_model(stage, runtime)
    stream, length = TokenStream.open(train_shards(stage.ancestor("tokenize"))), models.training_length(stage)
    source = pipeline.calibrate(model, config, stream, length, runtime, Silent())
    count, rows = sum(source.weights[key].numel() for key in source.roles), []
    for each in bits:
        started, target = time.process_time(), round(count * each / 8)
        size = len(container.encode(pipeline.finish(source, target).model, config.package.coder))
        rows.append(row(name, f"model, {each:g} bits", target, size, started))
    return rows


def with_script(stage: Stage, name: str, config: Config, bits: float, runtime: Runtime) -> dict[str, Any]:
    started, count = time.process_time(), sum(map(torch.numel, models.load_weights(stage).values()))
    target = round(count * bits / 8) + ROOM
    aimed = dataclasses.replace(config.quantize, target_bytes=target)
    counted = dataclasses.replace(config.package, cap_bytes=target, count_code=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = dataclasses.replace(config, quantize=aimed, package=counted)
        context = StageContext(Path(folder), whole, runtime, Silent(), ("benchmark",))
        packed = package(context, quantize(context, stage))
        return row(name, "model and script", target, packed.manifest.metrics["total_bytes"], started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", type=Path)
    parser.add_argument("--bits", nargs="+", type=float, default=[2.2, 2.7, 3.2, 3.8, 4.6])
    parser.add_argument("--calibration-tokens", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    parser.add_argument("--packaged", action="store_true")
    arguments = parser.parse_args()
    runtime = runtimes.choose("cpu", arguments.threads)
    rows = []
    for path in arguments.stages:
        stage = stage_directory.open_stage(path)
        name, config = f"{path.parent.name}/{path.name}", settings_of(stage, arguments.calibration_tokens)
        rows += model_alone(stage, name, config, arguments.bits, runtime)
        if arguments.packaged:
            rows.append(with_script(stage, name, config, arguments.bits[len(arguments.bits) // 2], runtime))
    (Path(__file__).parents[1] / "results" / Path(__file__).with_suffix(".json").name).write_text(
        json.dumps(rows, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
