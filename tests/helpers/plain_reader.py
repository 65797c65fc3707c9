"""A reader of `model.pgz` written from docs/FORMAT.md alone: one symbol after the other, no NumPy, no pgolf, no library
but brotli and zlib. It is the proof that the document suffices, and the plain version that the fast one is held to."""

import hashlib
import json
import math
import struct
import zlib
from decimal import Decimal, getcontext
from functools import cache
from pathlib import Path
from typing import Any

import brotli

getcontext().prec = 50
WRAP = (1 << 64) - 1
NEXT = {
    4: [(0, 2), (2, 0), (1, 3), (3, 1)],
    8: [(0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)],
}
for states, g, h in ((16, 9, 2), (32, 18, 4), (64, 33, 10)):
    NEXT[states] = [((s >> 1) ^ (s & 1) * g, (s >> 1) ^ (s & 1) * g ^ h) for s in range(states)]
OFFSETS = (0.0, 0.0, 1 / 16, 3 / 16, 5 / 16, 7 / 16)
ERF = (0.0705230784, 0.0422820123, 0.0092705272, 0.0001520143, 0.0002765672, 0.0000430638)


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def take(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]


@cache
def power(numerator: int, denominator: int) -> float:
    """2^(numerator / denominator), the fraction correctly rounded."""
    octaves, rest = divmod(numerator, denominator)
    return math.ldexp(float(Decimal(2) ** (Decimal(rest) / Decimal(denominator))), octaves)


EDGES = [math.ceil(power(b, 8)) for b in range(128)]
CENTERS = [math.floor(math.ldexp(power(1, 16) * power(b % 8, 8), b // 8)) for b in range(128)]


def tail(b: int, d: float) -> float:
    x = min(d * (1024 / CENTERS[b]) * 0.5641895835477563, 32.0)
    series, raised = 1.0, 1.0
    for a in ERF:
        raised = raised * x
        series = series + a * raised
    for _ in range(4):
        series = series * series
    return 1.0 / series


@cache
def start_frequencies(shape: int, b: int, alphabet: int) -> list[int]:
    o = OFFSETS[shape]
    bounds = [1.0]
    for k in range(1, alphabet):
        if shape == 1:
            bounds.append(tail(b, 0.25 if k == 1 else k - 1.0))
        else:
            bounds.append(0.5 * (tail(b, k - 0.5 - o) + tail(b, k - 0.5 + o)))
    bounds.append(0.0)
    return [math.floor(max(bounds[k] - bounds[k + 1], 0.0) * (1 << 20)) + 1 for k in range(alphabet)]


def start_sign_frequencies(shape: int, group: int, above: int) -> list[int]:
    o, b, near, far = OFFSETS[shape], 8 * group + 4, 0.5 + above, 1.5 + above
    toward = tail(b, near - o) - tail(b, far - o) + 1e-6
    away = tail(b, near + o) - tail(b, far + o) + 1e-6
    share = min(max(away / (toward + away), 1e-3), 0.5)
    one = math.floor(share * 4096) + 1
    return [4096 - one, one]


class RangeDecoder:
    def __init__(self, data: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))[::-1]
        self.lower, self.range = 0, WRAP
        self.point = (self.word() << 32) | self.word()

    def word(self) -> int:
        return self.words.pop() if self.words else 0

    def decode(self, frequencies: list[int]) -> int:
        n = len(frequencies)
        scale = (2**24 - n) / sum(frequencies)
        part = self.range >> 24
        target = ((self.point - self.lower) & WRAP) // part
        assert target < 2**24
        below = 0
        for i, frequency in enumerate(frequencies):
            left = math.floor(below * scale) + i
            below += frequency
            right = 2**24 if i == n - 1 else math.floor(below * scale) + i + 1
            if target < right:
                break
        self.lower = (self.lower + part * left) & WRAP
        self.range = part * (right - left)
        if self.range < 1 << 32:
            self.lower, self.range = (self.lower << 32) & WRAP, self.range << 32
            self.point = ((self.point << 32) & WRAP) | self.word()
        return i


class Matrix:
    def __init__(self, rows: int, columns: int, base: int, row_inertia: int, column_inertia: int, **facts: Any) -> None:
        self.rows, self.columns, self.mean = rows, columns, CENTERS[base]
        self.trellis, self.segment = facts.get("trellis", 0), facts.get("segment", 1)
        self.symbols = [[0] * columns for _ in range(rows)]
        self.x_row, self.x_column = [self.mean << row_inertia] * rows, [self.mean << column_inertia] * columns
        self.y_row, self.y_column = list(self.x_row), list(self.x_column)
        self.states = [0] * columns
        self.u, self.p, self.q = [0] * columns, [0] * rows, [0] * rows
        self.row_step = facts.get("row_step", [1] * rows)


def sign(value: int) -> int:
    return (value > 0) - (value < 0)


def clamp(value: int, least: int, most: int) -> int:
    return max(least, min(most, value))


def read_set(data: Bytes, matrices: list[Matrix], alphabet: int, memory: int, centered: bool) -> None:
    lengths = [data.number() for _ in range(3)]
    magnitudes, signs, escapes = (
        RangeDecoder(data.take(lengths[0])),
        data.take(lengths[1]),
        Bytes(data.take(lengths[2])),
    )
    sign_decoder = RangeDecoder(signs) if centered else None
    bit = 0
    tables: dict[tuple[int, int], list[int]] = {}
    sign_tables: dict[tuple[int, int, int], list[int]] = {}
    new: list[tuple[int, int, int]] = []
    new_signs: list[tuple[tuple[int, int, int], int]] = []
    seen = 0
    live = [matrix for matrix in matrices if matrix.rows and matrix.columns]
    for t in range(max((m.rows + m.columns - 1 for m in live), default=0)):
        step = []
        for m in live:
            if m.columns <= m.rows or centered:
                places = [(t - c, c) for c in range(m.columns) if 0 <= t - c < m.rows]
            else:
                places = [(r, t - r) for r in range(m.rows) if 0 <= t - r < m.columns]
            step += [(m, r, c, m.columns <= m.rows or centered) for r, c in places]
        told = []
        for m, r, c, by_column in step:
            f_row = min((m.x_row[r] << 12) // m.y_row[r], 1 << 18)
            f_column = min((m.x_column[c] << 12) // m.y_column[c], 1 << 18)
            g_row, g_column = (m.mean * f_row) >> 12, (m.mean * f_column) >> 12
            expected = min((g_row * f_column if by_column else g_column * f_row) >> 12, 65535)
            b = max(i for i in range(128) if EDGES[i] <= max(expected, 1))
            if m.trellis and r % m.segment == 0:
                m.states[c] = 0
            kappa = (m.states[c] >> 1 if m.trellis == 4 else m.states[c] & 1) if m.trellis else 0
            shape, center, direction = kappa, 0, 1
            if centered:
                u = m.u[c]
                v = clamp(((m.p[r] + 4 * u * u) << 8) // (m.q[r] + 4 * u * u + 1), 0, 512)
                guess = clamp((((v * u) >> 8) << 7) // m.row_step[r], -(1 << 18), 1 << 18)
                odd = kappa == 1 and abs(guess) >= 64
                guess += 128 * sign(guess) if odd else 0
                center = 0 if kappa and not odd else (guess + 128) >> 8
                off = guess - (center << 8)
                direction = -1 if off < 0 else 1
                shape = 1 if kappa and center == 0 else 2 + min(abs(off) >> 5, 3)
            if (shape, b) not in tables:
                tables[shape, b] = list(start_frequencies(shape, b, alphabet))
            k = magnitudes.decode(tables[shape, b])
            new.append((shape, b, k))
            told.append((m, r, c, f_row, g_row, g_column, kappa, shape, b, center, direction, k))
        for m, r, c, f_row, g_row, g_column, kappa, shape, b, center, direction, k in told:
            negative = 0
            if k and sign_decoder is None:
                negative = signs[bit // 8] >> (7 - bit % 8) & 1
                bit += 1
            elif k and sign_decoder is not None:
                key = (shape, b // 8, int(k > 1))
                sign_tables.setdefault(key, start_sign_frequencies(*key))
                negative = sign_decoder.decode(sign_tables[key])
                new_signs.append((key, negative))
            whole = k + (escapes.number() if k == alphabet - 1 else 0)
            symbol = center + direction * (-whole if negative else whole)
            m.symbols[r][c] = symbol
            grown = 512 * (2 * k - int(shape == 1 and k > 0))
            m.x_row[r] += grown
            m.x_column[c] += grown
            m.y_row[r] += g_column
            m.y_column[c] += g_row
            for sums, at in ((m.x_row, r), (m.x_column, c), (m.y_row, r), (m.y_column, c)):
                sums[at] -= sums[at] >> memory
            if m.trellis:
                m.states[c] = NEXT[m.trellis][m.states[c]][symbol & 1]
            if centered:
                u = m.u[c]
                level = clamp(2 * symbol - sign(symbol) * kappa, -1024, 1024) * m.row_step[r]
                m.p[r] += level * u
                m.q[r] += u * u
                m.u[c] = u + (level - u) // (min(r + 1, 6) * (1 + ((f_row * f_row) >> 22)))
        if len(new) >= max(256, seen // 16):
            for shape, b, k in new:
                for other, amount in ((b, 8192), (b - 1, 4096), (b + 1, 4096)):
                    if 0 <= other < 128:
                        tables.setdefault((shape, other), list(start_frequencies(shape, other, alphabet)))[k] += amount
            for key, negative in new_signs:
                sign_tables[key][negative] += 64
            seen += len(new)
            new, new_signs = [], []
    assert escapes.at == len(escapes.data)


def read(
    file: bytes,
) -> tuple[dict[str, Any], list[tuple[str, list[list[int]], list[int], list[int]]], dict[str, bytes]]:
    """The directory; name, symbols, row scales and column scales of each matrix; the bytes of each control."""
    assert file[:3] == b"PGZ"
    assert hashlib.sha256(file[20:]).digest()[:16] == file[4:20]
    data = Bytes(file[20:])
    size, kind, stored = data.number(), data.number(), data.number()
    text = unpack(kind, data.take(stored))
    assert len(text) == size
    directory = json.loads(text)
    columns = {
        key: [value["all"]] * value["count"] if isinstance(value, dict) else value
        for key, value in directory["matrices"].items()
    }
    entries = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert file[3] == (2 if any(e["trellis"] > 8 or e["role"] == "vector" for e in entries) else 1)
    told = [(e[side + "s"], e, f"{side}_scale_") for e in entries for side in ("row", "column")]
    vectors = [Matrix(1, length, e[key + "base"], 3, 12) for length, e, key in told]
    read_set(data, vectors, directory["alphabets"][0], 15, centered=False)
    scales: list[list[int]] = []
    for (length, e, key), vector in zip(told, vectors, strict=True):
        first, kind, d = e[key + "first"], e[key + "kind"], vector.symbols[0]
        if kind == 0:
            scales.append([first + x for x in d])
        elif kind == 1:
            scales.append([first + sum(d[: i + 1]) for i in range(length)])
        else:
            v = [earlier for earlier in scales if len(earlier) == length][::-1][kind - 2]
            scales.append([first + v[i] - v[0] + d[i] for i in range(length)])
    matrices = []
    for i, e in enumerate(entries):
        facts = {
            key: e[key] for key in ("rows", "columns", "base", "row_inertia", "column_inertia", "trellis", "segment")
        }
        steps = [
            max(1, math.floor(4096 * power(max(s - max(scales[2 * i]), -40 * e["resolution"]), e["resolution"])))
            for s in scales[2 * i]
        ]
        matrices.append(Matrix(**facts, row_step=steps))
    for part in (0, 1):
        chosen = [m for m, e in zip(matrices, entries, strict=True) if e["part"] == part]
        read_set(data, chosen, directory["alphabets"][1 + part], directory["memories"][part], centered=part == 1)
    kind, stored = data.number(), data.number()
    raw, at, controls = unpack(kind, data.take(stored)), 0, {}
    lists = [value["all"] if isinstance(value, dict) else value for value in directory["controls"].values()]
    for wanted, width in (("f16", 2), ("bf16", 2), ("f32", 4)):
        some = [(name, math.prod(shape)) for name, type_, shape in zip(*lists, strict=True) if type_ == wanted]
        count = sum(n for _, n in some)
        planes = [raw[at + i * count : at + (i + 1) * count] for i in range(width)]
        at, start = at + width * count, 0
        for name, n in some:
            controls[name] = bytes(planes[j][start + i] for i in range(n) for j in range(width))
            start += n
    digest = hashlib.sha256(text)
    for i, m in enumerate(matrices):
        digest.update(b"".join(struct.pack(f"<{m.columns}i", *row) for row in m.symbols))
        digest.update(b"".join(struct.pack(f"<{len(s)}h", *s) for s in scales[2 * i : 2 * i + 2]))
    digest.update(b"".join(controls[name] for name in lists[0]))
    assert digest.digest()[:8] == data.take(8)
    assert data.at == len(data.data)
    found = [
        (e["name"], m.symbols, *scales[2 * i : 2 * i + 2])
        for i, (e, m) in enumerate(zip(entries, matrices, strict=True))
    ]
    return directory, found, controls


def unpack(kind: int, data: bytes) -> bytes:
    if kind == 4:
        appendix = (
            (Path(__file__).resolve().parents[2] / "docs" / "FORMAT.md").read_text("utf-8").split("## Appendix")[1]
        )
        dictionary = "".join(appendix.split("```")[1].strip().splitlines()).encode()
        return zlib.decompressobj(-15, zdict=dictionary).decompress(data)
    return {0: bytes, 1: zlib.decompress, 2: brotli.decompress}[kind](data)
