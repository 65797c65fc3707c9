"""The container `model.pgz`: a quantized model as few bytes as possible, refused unless every byte is right.

docs/FORMAT.md describes every byte. A digest over the whole file is checked before anything else, limits on everything
declared before anything is allocated, and a digest of the decoded integers at the end, so that a decoder that strays
(another library, another machine) reports an error instead of returning a wrong model.
"""

import dataclasses
import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from pgolf.codec import baseline, compressors, side_information
from pgolf.codec import coder as coders
from pgolf.codec import controls as control_tensors
from pgolf.codec import directory as directories
from pgolf.codec.coder import Coded, Streams, read_numbers, write_numbers
from pgolf.codec.directory import Directory, MatrixEntry
from pgolf.codec.side_information import Prediction
from pgolf.codec.symbols import Plane
from pgolf.errors import PgolfError
from pgolf.quantized.tensors import VECTOR, QuantizedModel, QuantizedTensor

MAGIC = b"PGZ\x01"
"""With version 1. Version 2: a trellis has more than 8 states, or a matrix is a vector."""
_DIGEST, _CONTENT_DIGEST = 16, 8
_START = len(MAGIC) + _DIGEST
PLAIN, CENTERED, ZERO = 0, 1, 2
_MEMORIES = (6, 8, 15)
_MEMORY_TRIAL = 1 << 20  # weights that memories are tried on
_CENTER_TRIAL = 1 << 23  # weights up to which both models are tried on a matrix whose rows resemble each other


@dataclass(frozen=True)
class Parts:
    """A container split into its sections, still coded, as the ledger counts them."""

    directory: Directory
    text: bytes
    """The JSON of the directory as stored, decompressed."""
    directory_bytes: int
    scales: Streams
    plain: Streams
    centered: Streams
    packed: bytes
    """Symbols under a general compressor: empty with the range coder."""
    control_kind: int
    controls: bytes
    content_digest: bytes


@dataclass(frozen=True)
class Choices:
    """What the range coder found best for a model by trying, two thirds of the time of encoding it."""

    centered: frozenset[str]
    """Names of the matrices coded around a running mean."""
    memories: tuple[int, int]


def choose(model: QuantizedModel) -> Choices:
    """The choices that give the fewest bytes."""
    centered = frozenset(_choose_centered(model))
    directory, _ = _describe(model, "range", centered)
    return Choices(centered, (_choose_memory(model, directory, PLAIN), _choose_memory(model, directory, CENTERED)))


def encode(model: QuantizedModel, coder: str = "range", choices: Choices | None = None) -> bytes:
    """The container's bytes; `decode` gives back exactly the same model.

    coder: `range` is the entropy coder of this package; `zlib`, `brotli` and `lzma` put the symbols and scales through
    that compressor instead, for comparison. choices: those of a similar model, where about the size is enough; None:
    the model's own. Raises PgolfError for a model that cannot be stored.
    """
    if coder not in directories.CODERS:
        raise PgolfError(f"no coder named {coder!r}; choose one of {', '.join(directories.CODERS)}")
    if twice := set(model.matrices) & set(model.controls):
        raise PgolfError(f"tensor {min(twice)} is stored twice")
    for name, tensor in model.matrices.items():
        _check(name, tensor)
    if coder == "range":
        choices = choices or choose(model)
        directory, vectors = _describe(model, coder, choices.centered)
        directory = dataclasses.replace(directory, memories=choices.memories)
    else:
        directory, vectors = _describe(model, coder, frozenset())
    controls = [control_tensors.to_bytes(control) for control in model.controls.values()]
    split = control_tensors.split(controls, directory)
    sections: list[bytes] = []
    text = directories.write(directory)
    kind, stored = compressors.smallest(text)
    sections += [write_numbers(np.array([len(text), kind, len(stored)])), stored]
    if coder == "range":
        for coded in _code(model, directory, vectors, by_plane=False):
            sections += [write_numbers(np.array([*map(len, coded.streams)])), *coded.streams]
    else:
        packed = compressors.compress(baseline.pack(model, directory), coder)
        sections += [write_numbers(np.array([len(packed)])), packed]
    kind, stored = compressors.smallest(split)
    sections += [write_numbers(np.array([kind, len(stored)])), stored]
    sections.append(_content_digest(model, text))
    body = b"".join(sections)
    directories.check_size(directory, len(body))
    return MAGIC[:3] + bytes([_version(directory)]) + hashlib.sha256(body).digest()[:_DIGEST] + body


def _version(directory: Directory) -> int:
    return 1 + any(entry.trellis > 8 or entry.role == VECTOR for entry in directory.matrices)


def decode(data: bytes) -> QuantizedModel:
    """The quantized model in a container. Raises PgolfError for anything but an undamaged one."""
    parts = take_apart(data)
    directory = parts.directory
    controls = control_tensors.read(directory, parts.control_kind, parts.controls)
    if directory.coder == "range":
        vectors = _decode_scales(directory, parts.scales)
        matrices = _decode_matrices(directory, parts, vectors)
    else:
        matrices = baseline.unpack(directory, parts.packed)
    model = QuantizedModel(matrices=matrices, controls=controls, header=directory.header)
    if _content_digest(model, parts.text) != parts.content_digest:
        raise PgolfError(
            "the container does not decode to the model that was packed: it is damaged, or the coder another version"
        )
    return model


def take_apart(data: bytes) -> Parts:
    """Check the digest, read the directory, and cut the rest into sections."""
    if data[:3] != MAGIC[:3]:
        raise PgolfError("this is not a model.pgz: it does not begin with PGZ")
    if data[3:4] not in (b"\x01", b"\x02"):
        raise PgolfError(
            f"the container has version {data[3:4].hex() or 'none'}, this pgolf reads 01 and 02: use a newer one"
        )
    body = memoryview(data)[_START:]
    if hashlib.sha256(body).digest()[:_DIGEST] != data[len(MAGIC) : _START]:
        raise PgolfError("model.pgz is damaged: its digest does not match its bytes; copy or package it again")
    reader = _Reader(body)
    raw, kind, size = reader.numbers(3)
    if raw > directories.MAX_HEADER or kind >= len(compressors.NAMES):
        raise PgolfError("the container's directory is larger than 4 MB: it is damaged")
    stored = reader.take(size)
    text = compressors.decompress(stored, compressors.NAMES[kind], raw)
    directory = directories.read(text)
    directories.check_size(directory, len(body))
    if _version(directory) != data[3]:
        raise PgolfError("the container's directory is inconsistent; package the model again")
    nothing = Streams(b"", b"", b"")
    scales = plain = centered = nothing
    packed = b""
    if directory.coder == "range":
        scales, plain, centered = (Streams(*[reader.take(length) for length in reader.numbers(3)]) for _ in range(3))
    else:
        packed = reader.take(reader.numbers(1)[0])
    kind, size = reader.numbers(2)
    controls = reader.take(size)
    digest = reader.take(_CONTENT_DIGEST)
    if not reader.finished:
        raise PgolfError("corrupt model: the container has data after its end")
    return Parts(directory, text, len(stored), scales, plain, centered, packed, kind, controls, digest)


def code_again(model: QuantizedModel, directory: Directory) -> list[Coded]:
    """Re-encode the three sets of a decoded container (scales, plain, centered) to measure the cost of each tensor."""
    centered = {entry.name for entry in directory.matrices if entry.part == CENTERED}
    _, left = _describe(model, directory.coder, centered)
    return _code(model, directory, left, by_plane=True)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def numbers(self, count: int) -> list[int]:
        """So many LEB128 numbers, each of at most 9 bytes."""
        found = []
        for _ in range(count):
            end = self._at
            while end < len(self._data) and self._data[end] >= 128 and end - self._at < 9:
                end += 1
            found.append(int(read_numbers(bytes(self._data[self._at : end + 1]))[0]) if end < len(self._data) else -1)
            if found[-1] < 0:
                raise PgolfError("the container ends early: it is damaged")
            self._at = end + 1
        return found

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise PgolfError("the container ends early: it is damaged")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    @property
    def finished(self) -> bool:
        return self._at == len(self._data)


def _check(name: str, tensor: QuantizedTensor) -> None:
    rows, columns = tensor.shape
    if tensor.row_scale.shape != (rows,) or tensor.col_scale.shape != (columns,):
        raise PgolfError(f"{name}: {rows}x{columns} symbols do not go with its scales")
    if max(rows, columns) > directories.MAX_SIDE:
        raise PgolfError(
            f"{name}: {rows}x{columns} is larger than the {directories.MAX_SIDE} a side that a container holds"
        )
    if tensor.symbols.size and int(np.abs(tensor.symbols.astype(np.int64)).max()) >= 1 << 29:
        raise PgolfError(f"{name}: a symbol of 2^29 or more; choose a larger step")


def _planes(directory: Directory, part: int, scales: Sequence[np.ndarray]) -> list[Plane]:
    """The planes of one part; scales: the row scales of all matrices."""
    return [
        Plane(
            rows=entry.rows,
            columns=entry.columns,
            trellis=entry.trellis,
            segment=entry.segment,
            base=entry.base,
            row_inertia=entry.row_inertia,
            column_inertia=entry.column_inertia,
            row_scale=scale,
            resolution=entry.resolution,
        )
        for entry, scale in zip(directory.matrices, scales, strict=True)
        if entry.part == part
    ]


def _vector_planes(directory: Directory) -> list[Plane]:
    """The vectors of scales as matrices of one row: each matrix's row scales, then its column scales."""
    nothing = np.zeros(1, dtype=np.int16)
    return [
        Plane(1, length, 0, 1, prediction.base, 3, side_information.MAX_INERTIA, nothing, 1)
        for entry in directory.matrices
        for length, prediction in ((entry.rows, entry.row_scale), (entry.columns, entry.column_scale))
    ]


def _choose_centered(model: QuantizedModel) -> set[str]:
    """Names of the matrices that take fewer bytes when coded around a running mean."""
    chosen = set()
    for name, tensor in model.matrices.items():
        if not side_information.resembles(tensor):
            continue
        tried = tensor
        if tensor.symbols.size > _CENTER_TRIAL:
            rows = _CENTER_TRIAL // tensor.shape[1]
            tried = dataclasses.replace(tensor, symbols=tensor.symbols[:rows], row_scale=tensor.row_scale[:rows])
        alphabet = side_information.alphabet_for([tried.symbols])
        sizes = []
        for centered in (False, True):
            plane = side_information.plane_of(tried, centered)
            sizes.append(
                sum(map(len, coders.encode([plane], [tried.symbols], alphabet, _MEMORIES[0], centered).streams))
            )
        if sizes[1] < sizes[0]:
            chosen.add(name)
    return chosen


def _choose_memory(model: QuantizedModel, directory: Directory, part: int) -> int:
    """Choose a set's memory (adaptation rate) by trying each on its smallest matrices."""
    scales = [model.matrices[entry.name].row_scale for entry in directory.matrices]
    names = [entry.name for entry in directory.matrices if entry.part == part]
    members = sorted(zip(_planes(directory, part, scales), names, strict=True), key=lambda item: item[0].weights)
    chosen: list[tuple[Plane, str]] = []
    for plane, name in members:
        if not chosen or sum(item.weights for item, _ in chosen) + plane.weights <= _MEMORY_TRIAL:
            chosen.append((plane, name))
    if not chosen:
        return _MEMORIES[-1]
    planes, symbols = [plane for plane, _ in chosen], [model.matrices[name].symbols for _, name in chosen]

    def size(memory: int) -> int:
        streams = coders.encode(planes, symbols, directory.alphabets[1 + part], memory, part == CENTERED).streams
        return len(streams.magnitudes) + len(streams.signs)

    return min(_MEMORIES, key=size)


def _describe(model: QuantizedModel, coder: str, centered: Set[str]) -> tuple[Directory, list[np.ndarray]]:
    """The directory, and the prediction residual of each vector of scales."""
    entries: list[MatrixEntry] = []
    earlier: list[np.ndarray] = []
    left: list[np.ndarray] = []
    for name, tensor in model.matrices.items():
        part = ZERO if not tensor.symbols.any() else CENTERED if name in centered else PLAIN
        if coder != "range":
            part = baseline.width_of(tensor.symbols)
        plane = side_information.plane_of(tensor, name in centered)
        predictions = []
        for vector in (tensor.row_scale, tensor.col_scale):
            prediction, remainder = side_information.describe_vector(vector, earlier)
            predictions.append(prediction if coder == "range" else Prediction(0, 0, 0))
            earlier.append(vector)
            left.append(remainder)
        entries.append(
            MatrixEntry(
                name=name,
                role=tensor.role,
                rows=plane.rows,
                columns=plane.columns,
                resolution=tensor.resolution,
                trellis=tensor.trellis,
                segment=tensor.segment,
                part=part,
                base=plane.base,
                row_inertia=plane.row_inertia,
                column_inertia=plane.column_inertia,
                row_scale=predictions[0],
                column_scale=predictions[1],
            )
        )
    controls = []
    for name, control in model.controls.items():
        if control.dtype not in control_tensors.TYPE_NAMES:
            raise PgolfError(f"{name}: control tensors are float16, bfloat16 or float32, not {control.dtype}")
        controls.append((name, control_tensors.TYPE_NAMES[control.dtype], tuple(control.shape)))
    alphabets = tuple(
        side_information.alphabet_for(matrices)
        for matrices in (left, *([model.matrices[e.name].symbols for e in entries if e.part == p] for p in (0, 1)))
    )
    directory = Directory(coder, tuple(entries), tuple(controls), alphabets, (15, 15), dict(model.header))  # type: ignore[arg-type]
    return directory, left


def _code(model: QuantizedModel, directory: Directory, left: Sequence[np.ndarray], by_plane: bool) -> list[Coded]:
    """The three sets: scales, plain matrices, centered matrices."""
    scales = [model.matrices[entry.name].row_scale for entry in directory.matrices]
    vectors = [vector[None, :] for vector in left]
    vector_planes = _vector_planes(directory)
    made = [coders.encode(vector_planes, vectors, directory.alphabets[0], directories.SCALES_MEMORY, False, by_plane)]
    for part in (PLAIN, CENTERED):
        symbols = [model.matrices[entry.name].symbols for entry in directory.matrices if entry.part == part]
        planes = _planes(directory, part, scales)
        alphabet, memory = directory.alphabets[1 + part], directory.memories[part]
        made.append(coders.encode(planes, symbols, alphabet, memory, part == CENTERED, by_plane))
    return made


def _decode_scales(directory: Directory, streams: Streams) -> list[np.ndarray]:
    """All vectors of scales: row and column scales of each matrix in turn, int16."""
    planes = _vector_planes(directory)
    left = coders.decode(planes, streams, directory.alphabets[0], directories.SCALES_MEMORY, centered=False)
    vectors: list[np.ndarray] = []
    predictions = [side for entry in directory.matrices for side in (entry.row_scale, entry.column_scale)]
    for prediction, remainder in zip(predictions, left, strict=True):
        wide = remainder[0].astype(np.int64)
        try:
            expected = (
                side_information.predict(prediction.kind, prediction.first, len(wide), vectors) if len(wide) else wide
            )
        except IndexError as error:
            raise PgolfError("corrupt model: a scale vector is predicted from a vector that does not exist") from error
        wide = np.cumsum(wide) + prediction.first if expected is None else wide + expected
        if len(wide) and (wide.min() < -(1 << 15) or wide.max() >= 1 << 15):
            raise PgolfError("corrupt model: a scale does not fit 16 bits; package it again")
        vectors.append(wide.astype(np.int16))
    return vectors


def _decode_matrices(directory: Directory, parts: Parts, vectors: Sequence[np.ndarray]) -> dict[str, QuantizedTensor]:
    found: dict[str, np.ndarray] = {}
    for part, streams in ((PLAIN, parts.plain), (CENTERED, parts.centered)):
        planes = _planes(directory, part, vectors[::2])
        entries = [entry for entry in directory.matrices if entry.part == part]
        alphabet, memory = directory.alphabets[1 + part], directory.memories[part]
        decoded = coders.decode(planes, streams, alphabet, memory, part == CENTERED)
        found |= {entry.name: symbols for entry, symbols in zip(entries, decoded, strict=True)}
    matrices = {}
    for index, entry in enumerate(directory.matrices):
        symbols = found.get(entry.name)
        if symbols is None:
            symbols = np.zeros((entry.rows, entry.columns), dtype=np.int32)
        matrices[entry.name] = _tensor(entry, symbols, vectors[2 * index], vectors[2 * index + 1])
    return matrices


def _tensor(entry: MatrixEntry, symbols: np.ndarray, row_scale: np.ndarray, col_scale: np.ndarray) -> QuantizedTensor:
    return QuantizedTensor(entry.role, symbols, row_scale, col_scale, entry.resolution, entry.trellis, entry.segment)


def _content_digest(model: QuantizedModel, text: bytes) -> bytes:
    """First bytes of the SHA-256 of everything that decoding gives: the directory, all integers, all controls."""
    digest = hashlib.sha256(text)
    for tensor in model.matrices.values():
        digest.update(np.ascontiguousarray(tensor.symbols, dtype="<i4").data)
        digest.update(np.ascontiguousarray(tensor.row_scale, dtype="<i2").data)
        digest.update(np.ascontiguousarray(tensor.col_scale, dtype="<i2").data)
    for control in model.controls.values():
        digest.update(control_tensors.to_bytes(control))
    return digest.digest()[:_CONTENT_DIGEST]
