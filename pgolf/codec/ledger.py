"""Byte ledger of a container: by tensor and role, compared with the symbols' entropy and the coder's model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pgolf.codec import container
from pgolf.codec import directory as directories
from pgolf.codec.coder import Coded, Streams
from pgolf.codec.container import CENTERED, PLAIN
from pgolf.quantized.tensors import QuantizedModel

CONTROL = "control"


@dataclass(frozen=True)
class Line:
    """One matrix, one role, or all. Symbols of several tensors share a stream: its bytes are shared out by cost."""

    name: str
    role: str
    weights: int
    symbol_bytes: float
    scale_bytes: float
    control_bytes: float
    entropy_bits: float
    """Bytes of each tensor's symbols under an ideal coder without context (the entropy of its histogram)."""
    model_bits: float
    """Cross-entropy of the symbols by the coder's model; 0 for general compressors, which have none."""

    @property
    def bytes(self) -> float:
        return self.symbol_bytes + self.scale_bytes + self.control_bytes

    @property
    def bits_per_weight(self) -> float:
        """Scales included."""
        return 8 * self.bytes / self.weights if self.weights else 0.0

    @property
    def entropy(self) -> float:
        """Bits per weight."""
        return self.entropy_bits / self.weights if self.weights else 0.0

    @property
    def against_entropy(self) -> float:
        """Bytes of the symbols over those of their zero-order entropy, less 1: negative where context helps."""
        return 8 * self.symbol_bytes / self.entropy_bits - 1 if self.entropy_bits else 0.0

    @property
    def coder_distance(self) -> float:
        """Bytes of the symbols over the model's cross-entropy, minus 1: the overhead of the coding itself."""
        return 8 * self.symbol_bytes / self.model_bits - 1 if self.model_bits else 0.0


@dataclass(frozen=True)
class Ledger:
    coder: str
    tensors: tuple[Line, ...]
    """Matrices, then control tensors."""
    header_bytes: int
    """Magic, digests, directory and lengths."""
    total_bytes: int

    def roles(self) -> tuple[Line, ...]:
        """One line per role, in the model's order; control tensors last."""
        groups: dict[str, list[Line]] = {}
        for line in self.tensors:
            groups.setdefault(line.role, []).append(line)
        return tuple(total(role, lines) for role, lines in groups.items())

    def total(self) -> Line:
        return total("all", self.tensors)


def total(name: str, lines: Iterable[Line]) -> Line:
    """The sum of several lines under one name."""
    some = list(lines)
    return Line(
        name,
        name,
        sum(line.weights for line in some),
        sum(line.symbol_bytes for line in some),
        sum(line.scale_bytes for line in some),
        sum(line.control_bytes for line in some),
        sum(line.entropy_bits for line in some),
        sum(line.model_bits for line in some),
    )


def entropy_bits(symbols: np.ndarray) -> float:
    """Zero-order entropy of integers in bits, all of them together."""
    _, counts = np.unique(symbols, return_counts=True)
    return float((counts * np.log2(symbols.size / counts)).sum()) if symbols.size else 0.0


def ledger(data: bytes) -> Ledger:
    """The ledger of a container. Raises PgolfError for a damaged one."""
    parts = container.take_apart(data)
    model = container.decode(data)
    directory = parts.directory
    entropies = {name: entropy_bits(tensor.symbols) for name, tensor in model.matrices.items()}
    if directory.coder == "range":
        symbols, scales, bits = _of_range(parts, model)
    else:
        weight = {name: max(value, 1.0) for name, value in entropies.items()}
        share = len(parts.packed) / sum(weight.values()) if weight else 0.0
        symbols = {name: value * share for name, value in weight.items()}
        scales = bits = dict.fromkeys(weight, 0.0)
    lines = [
        Line(
            entry.name,
            entry.role,
            entry.rows * entry.columns,
            symbols[entry.name],
            scales[entry.name],
            0.0,
            entropies[entry.name],
            bits[entry.name],
        )
        for entry in directory.matrices
    ]
    raw = [directories.CONTROL_BYTES[kind] * int(np.prod(shape)) for _, kind, shape in directory.controls]
    share = len(parts.controls) / sum(raw) if sum(raw) else 0.0
    lines += [
        Line(name, CONTROL, int(np.prod(shape)), 0.0, 0.0, size * share, 0.0, 0.0)
        for (name, _, shape), size in zip(directory.controls, raw, strict=True)
    ]
    coded = sum(line.bytes for line in lines)
    return Ledger(directory.coder, tuple(lines), len(data) - round(coded), len(data))


def _of_range(
    parts: container.Parts, model: QuantizedModel
) -> tuple[Mapping[str, float], Mapping[str, float], Mapping[str, float]]:
    """By matrix: bytes of symbols, bytes of scales, and bits by the model."""
    directory = parts.directory
    scale_set, plain, centered = container.code_again(model, directory)
    names = [entry.name for entry in directory.matrices]
    symbols, bits = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for part, coded in ((PLAIN, plain), (CENTERED, centered)):
        members = [entry.name for entry in directory.matrices if entry.part == part]
        symbols |= dict(zip(members, _shared(coded), strict=True))
        bits |= dict(zip(members, coded.bits_by_plane.tolist(), strict=True))
    by_vector = _shared(scale_set)
    scales = {name: by_vector[2 * i] + by_vector[2 * i + 1] for i, name in enumerate(names)}
    return symbols, scales, bits


def _shared(coded: Coded) -> list[float]:
    size, bits = _size(coded.streams), coded.bits_by_plane
    if not bits.sum():
        return [size / max(len(bits), 1)] * len(bits)
    return [float(value) for value in size * bits / bits.sum()]


def _size(streams: Streams) -> int:
    return sum(map(len, streams))
