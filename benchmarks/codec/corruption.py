"""Refuse 10,000 damaged and hostile containers: flips, cuts, additions, splices, and directories made to mislead.

    python benchmarks/codec/corruption.py [--cases 10000] [--seed 0]

Half of them have accidental damage, which the digest detects. The other half is *sealed*: the digest is recomputed
after the damage, as an attacker would do, so that every later check must hold by itself. Writes
results/corruption.json. Exits 1 if any case is accepted with another model, ends in anything but one line of
PgolfError, takes more than a second of CPU time, or raises the peak of this process by more than 200 MB.
"""

import argparse
import hashlib
import json
import platform
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.codec import compressors, container, directory
from pgolf.codec.coder import write_numbers
from pgolf.errors import PgolfError
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor

SECONDS, MEGABYTES = 1.0, 200.0
_START = 20


def model(shapes: tuple[tuple[int, int], ...], trellis: int, seed: int) -> QuantizedModel:
    random = np.random.default_rng(seed)
    matrices = {}
    for index, (rows, columns) in enumerate(shapes):
        sigma = 2.5 * np.exp(random.normal(0, 0.3, (rows, 1)) + random.normal(0, 0.3, columns))
        symbols = np.rint(random.normal(size=(rows, columns)) * sigma)
        if rows > 3 * columns:
            symbols[: rows // 2] = np.rint(random.normal(0, 3, columns) + random.normal(0, 0.3, (rows // 2, columns)))
        scale = (random.integers(-3, 4, rows) - 40).astype(np.int16)
        matrices[f"blocks.{index}.weight"] = QuantizedTensor(
            "mlp", symbols.astype(np.int32), scale, np.zeros(columns, np.int16), 8, trellis, 32
        )
    controls = {f"scale.{index}": torch.from_numpy(random.normal(1, 0.1, 64)).half() for index in range(4)}
    return QuantizedModel(matrices, controls, {"model": {"dim": 64}})


def sealed(body: bytes) -> bytes:
    return container.MAGIC + hashlib.sha256(body).digest()[:16] + body


def damaged(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Flip, cut, add, double or splice."""
    at, kind = int(random.integers(len(data))), int(random.integers(6))
    size = int(random.integers(1, 64))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << int(random.integers(8)))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + random.bytes(size) + data[at:]
    if kind == 3:
        return data[:at] + data[at + size :]
    if kind == 4:
        return data[:at] + random.bytes(size) + data[at + size :]
    return data[:at] + other[min(at, len(other)) :]


def hostile(data: bytes, random: np.random.Generator) -> bytes:
    """A directory with one value replaced by something it should not be, sealed."""
    parts = container.take_apart(data)
    text = directory.write(parts.directory)
    kind, stored = compressors.smallest(text)
    start = _START + len(write_numbers(np.array([len(text), kind, len(stored)])))
    value = json.loads(text)
    group = value[str(random.choice(["matrices", "controls", "matrices"]))]
    key = str(random.choice(sorted(group)))
    odd: list[Any] = [
        -1,
        0,
        1,
        2,
        7,
        255,
        1 << 20,
        1 << 31,
        1 << 62,
        10**30,
        0.5,
        None,
        True,
        "x",
        [],
        {},
        [1 << 20] * 3,
    ]
    chosen = odd[int(random.integers(len(odd)))]
    if random.random() < 0.2:
        value["alphabets"] = [chosen] * 3
    elif isinstance(group[key], list) and group[key]:
        group[key][int(random.integers(len(group[key])))] = chosen
    else:
        group[key] = chosen if random.random() < 0.5 else {"all": chosen, "count": len(parts.directory.matrices)}
    new = json.dumps(value).encode()
    packed = compressors.compress(new, "brotli")
    return sealed(write_numbers(np.array([len(new), 2, len(packed)])) + packed + data[start + len(stored) :])


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    small = [model(((40, 24), (24, 40), (96, 24)), trellis, trellis) for trellis in (0, 4, 8)]
    large = model(((1024, 96), (288, 96), (96, 288), (96, 96)) * 2, 8, 9)
    models = {container.encode(item): item for item in (*small, large)}
    datas = list(models)
    for data in datas:
        container.decode(data)
    before, slowest, ways = peak_megabytes(), 0.0, Counter[str]()
    failures: list[str] = []
    for case in range(arguments.cases):
        # the large one is in a twentieth of the cases
        data = datas[3] if case % 20 == 0 else datas[case % 3]
        other = datas[int(random.integers(len(datas)))]
        way = ("accident", "accident", "sealed", "hostile")[case % 4]
        if way == "hostile":
            bad = hostile(data, random)
        elif way == "sealed":
            bad = sealed(damaged(data[_START:], other[_START:], random))
        else:
            bad = damaged(data, other, random)
        if bad in models:  # a splice in the first bytes is the other container
            ways["unchanged"] += 1
            continue
        begun = time.process_time()
        try:
            found = container.decode(bad)
        except PgolfError as error:
            ways[f"{way}: refused"] += 1
            if "\n" in str(error):
                failures.append(f"case {case} ({way}): more than one line")
        except Exception as error:
            failures.append(f"case {case} ({way}): {type(error).__name__}: {error}")
        else:
            # a sealed container may pass only if it encodes the same model
            if way == "accident" or container.encode(found) not in models:
                failures.append(f"case {case} ({way}): accepted")
            ways[f"{way}: the same model, spelt differently"] += 1
        slowest = max(slowest, time.process_time() - begun)
    grown = peak_megabytes() - before
    result = {
        "cases": arguments.cases,
        "outcomes": dict(sorted(ways.items())),
        "failures": failures[:20],
        "slowest_cpu_seconds": round(slowest, 3),
        "peak_growth_megabytes": round(grown, 1),
        "container_bytes": [len(data) for data in datas],
        "machine": platform.platform(),
    }
    (Path(__file__).parents[1] / "results" / Path(__file__).with_suffix(".json").name).write_text(
        json.dumps(result, indent=2) + "\n"
    )
    print(json.dumps(result, indent=2))
    sys.exit(bool(failures or slowest > SECONDS or grown > MEGABYTES))


if __name__ == "__main__":
    main()
