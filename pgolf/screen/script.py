"""Read a record's script without running it: unpack self-extracting wrappers, measure it, find features that rulings
name.

A pattern in a text proves nothing in either direction (static checkers called per-sample SLOT clean and flagged
ordinary bigram embeddings), so every finding here is evidence for a reader and never a contradiction.
"""

import ast
import base64
import io
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import brotli
import python_minifier

from pgolf.screen.folder import Text

_MAX_SOURCE = 4 * 1024 * 1024  # bytes of an unpacked script; the largest record has 190 kB
_DEPTH = 4


@dataclass(frozen=True)
class Feature:
    name: str
    ruling: str
    pattern: re.Pattern[str]


def _feature(name: str, ruling: str, pattern: str) -> Feature:
    return Feature(name, ruling, re.compile(pattern, re.IGNORECASE))


FEATURES = (
    _feature(
        "n-gram or hashed cache at evaluation",
        "#779, #886: invalid unless normalized over the vocabulary",
        r"\bn_?gram\w*(cache|hash|table|bucket|tilt|hint)|hash\w*_(bucket|cache)",
    ),
    _feature(
        "gate that may depend on the target's class",
        "#1420, #1437, #2118: invalid when the target gates",
        r"\b(within|word)_(gate|boost|hint)",
    ),
    _feature("byte-level PPM mixture", "#1872, #1905: not a distribution over the tokens", r"\bppm_?d?\b|ppm_mix"),
    _feature(
        "vector fitted on the scored window (SLOT)",
        "#1240: invalid when fitted on the targets it scores",
        r"\bslot_(lr|steps|delta|eval|bias)|eval_\w*slot",
    ),
    _feature(
        "training on validation text before quantization",
        "#1376, #1972: invalid",
        r"pre_?quant_?ttt(?!\W*(=|:)\W*(0|false))",
    ),
    _feature(
        "second pass over the validation text",
        "#846, #868: invalid when scores are replaced",
        r"\b(second|two|2nd)_?pass|pass_?2\b|rescor",
    ),
    _feature(
        "calibration on validation text",
        "avoided since the first form of #1019",
        r"calib\w*\W{0,12}val_(tokens|data|loader)|val_(tokens|data)\W{0,12}calib",
    ),
    _feature("logit bias fitted at evaluation (ETLB)", "no ruling found (#1399, #1420)", r"\betlb\b"),
    _feature(
        "other program started",
        "binaries outside the image: #1855 (lrzip), #1514 (g++)",
        r"\bsubprocess\.(run|popen|check_)|os\.system\(|\blrzip\b|\bg\+\+",
    ),
    _feature(
        "network access",
        "forbidden at evaluation",
        r"\b(urllib|requests\.(get|post)|hf_hub_download|snapshot_download|socket\.socket)\b",
    ),
    _feature(
        "tail windows scored again",
        "#174: targets at the end scored several times",
        r"range\(0,\s*total_tokens,\s*(args\.|h\.)?(eval_)?stride\)",
    ),
    _feature(
        "a target in MiB",
        "#1399, #1019: 16 MiB is not the cap",
        r"target_mb\W.*1024\s*\*\s*1024|1024\s*\*\s*1024.*target_mb",
    ),
)


@dataclass(frozen=True)
class Found:
    feature: Feature
    file: str
    lines: tuple[int, ...]


def unpack(script: Text) -> list[Text]:
    """The script, then the unpacked contents of its string literals: base64 or base85 around lzma, zlib or brotli."""
    texts, layer = [script], [script]
    for _ in range(_DEPTH):
        layer = [Text(f"{text.name} (unpacked)", inner) for text in layer for inner in _packed(text.text)]
        if not layer:
            break
        texts += layer
    return texts


def parsed(source: str) -> ast.Module | None:
    """The syntax tree of a script; None for a text that is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _packed(source: str) -> Iterator[str]:
    tree = parsed(source)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) > 1_000:
            raw = node.value.encode("latin-1", "replace") if isinstance(node.value, str) else node.value
            for decode in (base64.b85decode, base64.b64decode, bytes):
                try:
                    data = decode(raw)
                except ValueError:
                    continue
                inner = _decompress(data)
                if inner is not None:
                    yield inner
                    break


def _decompress(data: bytes) -> str | None:
    readers: tuple[Callable[[], bytes], ...] = (
        lambda: lzma.LZMADecompressor(memlimit=256 << 20).decompress(data, _MAX_SOURCE),
        lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]).decompress(
            data, _MAX_SOURCE
        ),
        lambda: zlib.decompressobj().decompress(data, _MAX_SOURCE),
        lambda: zlib.decompressobj(-15).decompress(data, _MAX_SOURCE),
        lambda: brotli.Decompressor().process(data, output_buffer_limit=_MAX_SOURCE),
    )
    for read in readers:
        try:
            text = read().decode("utf-8")
        except (lzma.LZMAError, zlib.error, brotli.error, ValueError, TypeError, MemoryError):
            continue
        if len(text) > 200 and ("import" in text or "def " in text):
            return text
    return None


def packed_sizes(text: str) -> dict[str, int]:
    """Bytes of a script packed by lzma, as it is and minified, without the line that unpacks it (about 60 bytes)."""
    sizes = {"packed": len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))}
    try:
        small = python_minifier.minify(text, rename_locals=True)
        sizes["minified and packed"] = len(lzma.compress(small.encode(), preset=9 | lzma.PRESET_EXTREME))
    except Exception:  # any script may defeat a minifier; the reading is then left out
        pass
    return sizes


def features(script: Text) -> list[Found]:
    """The FEATURES that occur in the code of a script, comments excluded."""
    found: dict[str, list[int]] = {}
    for number, line in enumerate(io.StringIO(script.text), 1):
        code = line.split("#", 1)[0]
        for feature in FEATURES:
            if feature.pattern.search(code):
                found.setdefault(feature.name, []).append(number)
    return [Found(feature, script.name, tuple(found[feature.name])) for feature in FEATURES if feature.name in found]
