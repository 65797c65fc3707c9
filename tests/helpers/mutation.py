"""Damaged files of every kind that pgolf reads, and what reading each must come to.

A `Kind` makes one good file and has a reader. Reading a mutated file either gives what the good one gives, or raises
PgolfError; where nothing in a format can tell (a plain text, a TOML file), another value is allowed too. Any other
exception, a crash, more than 5 s or 1 GB more of memory is a fault. Reading is done in a child process, which the
parent ends when it hangs.
"""

import gzip
import io
import json
import lzma
import multiprocessing
import random
import re
import resource
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pyarrow
import pyarrow.parquet
import quantized_models
import texts
import torch
import zstandard
from safetensors.torch import save_file

from pgolf import config as configs
from pgolf import data as documents
from pgolf import interop
from pgolf.codec import container
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.quantized import storage
from pgolf.store import manifest as manifests
from pgolf.store import stage_directory
from pgolf.tokens import shards
from pgolf.tokens.byte_counts import ByteTable
from pgolf.tokens.tokenizer import Tokenizer
from pgolf.training import checkpoint as checkpoints

SECONDS, MEMORY_BYTES = 5.0, 1 << 30
OUTCOMES = ("same", "refused", "other value", "SILENT CHANGE", "FOREIGN", "TOO SLOW", "TOO MUCH MEMORY", "CRASH")
FAULTS = OUTCOMES[3:]


@dataclass(frozen=True)
class Kind:
    """One kind of file: how it is made in a folder, and how it is read there (a value that compares with ==)."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    tells: bool = True
    """Whether the format, or a hash kept elsewhere, tells every change."""


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    small = {"vocab_size": 320, "dim": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    return dict(GPT(configs.from_dict({"model": small}).model).state_dict())


def _key(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Any, bytes]]:
    return {name: (tuple(value.shape), value.contiguous().numpy().tobytes()) for name, value in tensors.items()}


def _written(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return make


def _stage(folder: Path) -> stage_directory.Stage:
    """A stage with a payload of every loaded kind, made once."""
    writer = stage_directory.StageWriter(Path(tempfile.mkdtemp(dir=folder)) / "train")  # a child may be the second
    save_file(_weights(), writer.path("model.safetensors"))
    for path in shards.write_shards(writer.payload, "fineweb_val", [np.arange(300, dtype=np.uint16)], 1000):
        writer.add(path)
    facts = {"pgolf": {"version": "1"}, "command": ["a"], "inputs": {}, "environment": {"threads": 1}}
    values = manifests.Manifest(
        "train", "train", **facts, config=configs.to_dict(configs.Config()), outputs=writer.outputs(),
        metrics={"bits_per_byte": 1.5}, seed=3, started="2026-01-01T00:00:00+00:00", seconds=1.0,
    )  # fmt: skip
    return writer.commit(values)


def _read_manifest(path: Path) -> Any:
    found = stage_directory.open_stage(path.parent).manifest
    configs.recorded({key: value for key, value in found.config.items() if key != "options"})
    return found.to_json()


def _json_lines() -> bytes:
    odd = [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in texts.ODD]
    lines = [json.dumps({"id": 12, "text": text}, ensure_ascii=len(text) % 2 == 0) for text in odd]
    return "".join(line + "\n" for line in lines).encode()


def _parquet() -> bytes:
    stream = io.BytesIO()
    rows = [text.encode("utf-8", "replace").decode() for text in texts.ODD]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows, "n": list(range(len(rows)))}), stream)
    return stream.getvalue()


def _texts(path: Path) -> list[bytes]:
    return list(documents.documents(documents.source(path)))


def _torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"model": _weights(), "step": 3}, stream)
    return stream.getvalue()


def _record_file() -> bytes:
    """Integers as the records write them: brotli over a byte shuffle."""
    weights, how, stream = {}, {}, io.BytesIO()
    for name, value in _weights().items():
        if value.ndim == 2:
            weights[f"{name}.q"], weights[f"{name}.scale"] = (value * 9).to(torch.int8), torch.ones(len(value)).half()
            how[name] = "gptq (int6)"
        else:
            weights[name], how[name] = value.half(), "passthrough (float16)"
    torch.save({"w": weights, "m": how}, stream)
    data = stream.getvalue()
    return brotli.compress(b"BSHF\2" + data[::2] + data[1::2], quality=5)


def _imported(path: Path) -> Any:
    found = interop.read(path)
    return found.kind, _key(found.weights)


def _save_checkpoint(folder: Path) -> Path:
    checkpoints.save(folder, _weights(), {"elapsed": 1.5, "restarts": 0, "identity": {"seed": 1}})
    return folder / checkpoints.FILE_NAME


def _read_checkpoint(path: Path) -> Any:
    found = checkpoints.load(path.parent)
    return None if found is None else (_key(found.tensors), json.dumps(found.values))


def _read_tokenizer(path: Path) -> Any:
    found = Tokenizer.open(path)
    table = ByteTable.from_tokenizer(found)
    encoded = found.encode([b"the cat", " ﬁ½ \U0001f468".encode()])
    return found.pieces, table.base.tolist(), [tokens.tolist() for tokens in encoded], found.lossless


def _read_quantized(path: Path) -> Any:
    return _key(dict(storage.load(path).state_dict()))


def _save_weights(folder: Path) -> Path:
    save_file(_weights(), folder / "a.safetensors")
    return folder / "a.safetensors"


def _save_quantized(folder: Path) -> Path:
    storage.save(folder / "quantized.safetensors", quantized_models.trained_like())
    return folder / "quantized.safetensors"


def _zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


_TOML = b"""seed = 5
[model]
dim = 64
num_heads = 4
[train]
seconds = 1.5
[quantize]
method = "gptq"
"""
KINDS = {
    "manifest": Kind(lambda folder: _stage(folder).path / "manifest.json", _read_manifest, tells=False),
    "payload (safetensors)": Kind(
        lambda folder: _stage(folder).path / "model.safetensors",
        lambda path: stage_directory.open_stage(path.parent).file(path.name).read_bytes(),
    ),
    "payload (shard)": Kind(
        lambda folder: _stage(folder).path / "fineweb_val_000000.bin",
        lambda path: stage_directory.open_stage(path.parent).file(path.name).read_bytes(),
    ),
    "shard": Kind(
        lambda folder: shards.write_shards(folder, "fineweb_train", [np.arange(500, dtype=np.uint16)], 1000)[0],
        lambda path: shards.TokenStream.open([path])[:].tolist(),
        tells=False,
    ),
    "tokenizer": Kind(_written("tokenizer.model", lambda: texts.plain().proto), _read_tokenizer, tells=False),
    "container": Kind(
        _written("model.pgz", lambda: container.encode(quantized_models.trained_like())),
        lambda path: _key(dict(container.decode(path.read_bytes()).state_dict())),
    ),
    "quantized": Kind(_save_quantized, _read_quantized, tells=False),
    "settings (TOML)": Kind(
        _written("a.toml", lambda: _TOML),
        lambda path: configs.to_dict(configs.load(file=path)),
        tells=False,
    ),
    "training checkpoint": Kind(_save_checkpoint, _read_checkpoint, tells=False),
    "checkpoint .pt": Kind(_written("a.pt", _torch_file), _imported, tells=False),
    "checkpoint .ptz": Kind(_written("a.ptz", lambda: zlib.compress(_torch_file())), _imported),
    "checkpoint of a record": Kind(_written("a.int6.ptz", _record_file), _imported, tells=False),
    "checkpoint .safetensors": Kind(
        _save_weights,
        _imported,
        tells=False,
    ),
    "documents .txt": Kind(_written("a.txt", lambda: b"some words\r\n" * 20), _texts, tells=False),
    "documents .jsonl": Kind(_written("a.jsonl", _json_lines), _texts, tells=False),
    "documents .jsonl.gz": Kind(_written("a.jsonl.gz", lambda: gzip.compress(_json_lines())), _texts),
    "documents .jsonl.xz": Kind(_written("a.jsonl.xz", lambda: lzma.compress(_json_lines())), _texts),
    "documents .jsonl.zst": Kind(_written("a.jsonl.zst", lambda: _zstd(_json_lines())), _texts),
    "documents .parquet": Kind(_written("a.parquet", _parquet), _texts, tells=False),
}

_TOKENS = [b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"x"', b"9" * 30, b"9" * 5000, b"[" * 3000, b"true"]
_TOKENS += [b"../../x", b"\\ud800", b"\xff\xfe", b"\x00", b"\n", b'"', b"}"]
_WORDS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


def mutated(good: bytes, chance: random.Random) -> bytes:
    """One to three changes of a file: bits, bytes, numbers, tokens of JSON, pieces cut, doubled, moved or torn off."""
    content = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 3))):
        size = len(content)
        if not size:
            break
        at = chance.randrange(size if chance.random() < 0.6 else min(size, 400))  # headers are small
        length = min(size - at, chance.choice((1, 2, 4, 8, 30, 200)))
        match chance.choice((0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6, 7, 8)):
            case 0:
                content[at] ^= 1 << chance.randrange(8)
            case 1:
                content[at : at + length] = chance.randbytes(length)
            case 2:
                del content[at : at + length]
            case 3:
                del content[at:]
            case 4:
                content[at:at] = content[at : at + length] * chance.choice((1, 2, 50))
            case 5:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(_WORDS) & (2 ** (8 * width) - 1)
                content[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
            case 6:
                content[at : at + length] = chance.choice(_TOKENS)
            case 7:  # a value of JSON or TOML, whole
                values = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"\n]{0,80}"|true|false|null', bytes(content[:20000])))
                if values:
                    span = chance.choice(values).span()
                    content[span[0] : span[1]] = chance.choice(_TOKENS)
            case 8:
                piece = content[at : at + length]
                del content[at : at + length]
                there = chance.randrange(len(content) + 1)
                content[there:there] = piece
    return bytes(content)


@dataclass(frozen=True)
class Case:
    kind: str
    number: int
    outcome: str
    detail: str = ""


def run(kind: str, numbers: range, folder: Path) -> Iterator[Case]:
    """Read that many mutated files of a kind in a child process, which is ended and replaced where it hangs."""
    folder.mkdir(parents=True, exist_ok=True)
    fork = multiprocessing.get_context("fork")
    rest = list(numbers)
    while rest:
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=_work, args=(kind, rest, folder, there))
        child.start()
        there.close()
        while rest:
            outcome, detail = "TOO SLOW", f"more than {10 * SECONDS:.0f} s"
            try:
                if here.poll(10 * SECONDS):
                    outcome, detail = here.recv()
            except EOFError:
                child.join()
                outcome, detail = "CRASH", f"the process ended with {child.exitcode}"
            yield Case(kind, rest.pop(0), outcome, detail)
            if outcome in ("TOO SLOW", "CRASH"):
                break
        child.kill()
        child.join()


def _work(kind: str, numbers: list[int], folder: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    path = KINDS[kind].make(folder)
    good = path.read_bytes()
    value = KINDS[kind].read(path)
    for number in numbers:
        content = mutated(good, random.Random(f"{kind} {number}"))
        path.write_bytes(content)
        before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        outcome, detail = _outcome(KINDS[kind], path, value)
        if content == good:
            outcome = "same"
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        if time.process_time() - clock > SECONDS:
            outcome, detail = "TOO SLOW", f"{time.process_time() - clock:.1f} s of processor time; {detail}"
        elif used > MEMORY_BYTES:
            outcome, detail = "TOO MUCH MEMORY", f"{used >> 20} MiB; {detail}"
        pipe.send((outcome, detail))


def _outcome(kind: Kind, path: Path, value: Any) -> tuple[str, str]:
    try:
        found = kind.read(path)
    except PgolfError as error:
        text = str(error)
        return ("FOREIGN", f"more than one line: {text!r}") if "\n" in text.strip() else ("refused", text)
    except Exception as error:
        return "FOREIGN", f"{type(error).__name__}: {error}"[:300]
    if found == value:
        return "same", ""
    return ("SILENT CHANGE", "") if kind.tells else ("other value", "")


def counts(cases: list[Case]) -> dict[str, Counter[str]]:
    """Outcomes by kind."""
    found: dict[str, Counter[str]] = {}
    for case in cases:
        found.setdefault(case.kind, Counter())[case.outcome] += 1
    return found
