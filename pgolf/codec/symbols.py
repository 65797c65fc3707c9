"""The model of the symbols: which probability each one is coded with.

Weights of a trained matrix are nearly Gaussian given their scale, and the scale is nearly a product of a row's and a
column's. So every symbol gets an expected magnitude, `base * row factor * column factor`, with the two factors learned
from what has already been decoded; it picks one of 128 tables, and those learn by counting.

Unusual here is the order. A matrix is walked along its anti-diagonals: the symbols of one do not depend on each
other, yet each has its whole row to the left and its whole column above already decoded. So both factors are learned
without a byte of side information, and one step is one vector operation over a diagonal of every matrix at once.

Rows of an embedding whose tokens are rare or never seen resemble each other. A matrix may therefore be *centered*: a
running mean of each column, times a factor learned along the row, predicts the symbol, and the distance
from there is coded. Model the variance, and the mean only where it is not noise.

All arithmetic is in integers, so that every machine computes the same tables. docs/FORMAT.md specifies it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.codec import tables
from pgolf.quantized.tensors import KAPPA, NEXT_STATE, octave_table

_FIXED = 12  # fractional bits of the row and column factors, and of a row's step in a centered matrix
_MAX_FACTOR = 64 << _FIXED
_OWN, _NEIGHBOR = 8192, 4096  # increments of the table of the symbol's class and of the two neighboring classes
_SIGN_COUNT = 64
_FIRST_BLOCK, _GROWTH = 256, 16  # tables are rebuilt when 256 symbols and a sixteenth of all so far are new
_MEAN_ROWS = 6  # rows that the running mean of a column looks back, in rows that follow it closely
_MAX_LEVEL = 1 << 10  # half steps; larger values enter the mean as this one

# The trellises as one machine: state 0 is "no trellis", 1 .. 4 that of four states, 5 .. 12 that of eight, and so on.
_ENTRY = {0: 0} | {states: states - 3 for states in NEXT_STATE}
_NEXT = np.concatenate([np.zeros(2), *(_ENTRY[n] + table.ravel() for n, table in NEXT_STATE.items())]).astype(np.int64)
_KAPPA: np.ndarray = np.concatenate([np.zeros(1), *KAPPA.values()]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Plane:
    """Side information of one matrix; the model learns everything else."""

    rows: int
    columns: int
    trellis: int
    """Number of trellis states, 0 for none."""
    segment: int
    """Rows after which the trellis restarts."""
    base: int
    """Mean magnitude, as a class of `tables` (an eighth octave)."""
    row_inertia: int
    """A row's factor starts at 1 with the weight of `2 ** row_inertia` symbols."""
    column_inertia: int
    """The same for columns."""
    row_scale: np.ndarray
    """(rows,) scale indices of the rows: centered matrices compare rows in units of the weights."""
    resolution: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    def row_steps(self) -> np.ndarray:
        """(rows,) int64: each row's step over the largest one, with 12 fractional bits, at least 1."""
        below = self.row_scale.astype(np.int64).max() - self.row_scale.astype(np.int64)
        octaves, fraction = np.divmod(-below, self.resolution)
        steps = np.ldexp(octave_table(self.resolution)[fraction], np.maximum(octaves, -40) + _FIXED)
        return np.maximum(np.floor(steps).astype(np.int64), 1)


class Scan:
    """The walk over a set of matrices, and everything learned on the way.

    For each step, `for positions in scan` gives places in the concatenated row-major matrices. `scan.contexts` are
    the rows of `scan.table` to code the magnitudes with. In a centered scan, a magnitude counts from `scan.center`
    and positive is the direction `scan.direction`; otherwise both are trivial. `scan.learn` ends the step.

    memory: rows and columns forget at the rate of 1 in 2 ** memory symbols.
    """

    def __init__(self, planes: Sequence[Plane], alphabet: int, memory: int, centered: bool) -> None:
        self.alphabet = alphabet
        self._memory = memory
        self.centered = centered
        shapes = tables.SHAPES if centered else 2
        self._frequencies = tables.prior(alphabet)[:shapes]
        self._sign_frequencies = tables.sign_prior().reshape(-1, 2)
        self._tabulate()
        self.contexts = self.center = self.direction = np.zeros(0, dtype=np.int64)
        self._new: list[np.ndarray] = []
        self._new_signs: list[np.ndarray] = []
        self._new_count = 0
        self._seen = 0
        self.bits = 0.0
        """Cost of the symbols up to the last table update under their tables, for reports; coding does not use it."""
        self._lay_out([plane for plane in planes if plane.weights])

    def _lay_out(self, planes: Sequence[Plane]) -> None:
        """One lane for each position along a matrix's shorter side; lane i starts at step i of its matrix."""
        parts: dict[str, list[np.ndarray]] = {}
        empty = np.zeros(0, dtype=np.int64)
        major_sums, row_steps = [empty], [empty]
        offset = majors = lines = 0
        for plane in planes:
            across = plane.columns <= plane.rows or self.centered  # a lane is a column, walked downwards; else a row
            lanes, steps = (plane.columns, plane.rows) if across else (plane.rows, plane.columns)
            stride = plane.columns if across else 1
            i = np.arange(lanes)
            zero = np.zeros(lanes, dtype=np.int64)
            mean = int(tables.class_centers()[plane.base])
            inertia = (plane.column_inertia, plane.row_inertia)
            minor_inertia, major_inertia = inertia if across else inertia[::-1]
            fields = {
                "start": i,
                "end": i + steps,
                "stride": zero + stride,
                "position": offset + i * (1 if across else plane.columns) - i * stride,
                "major": majors - i,
                "base": zero + mean,
                "sum": zero + (mean << minor_inertia),
                "line": lines + (i if across else -i),
                "line_stride": zero + (0 if across else 1),
                "row": -i if across else i,
                "row_stride": zero + (1 if across else 0),
                "segment": zero + plane.segment,
                "entry": zero + _ENTRY[plane.trellis],
            }
            for key, values in fields.items():
                parts.setdefault(key, []).append(values)
            major_sums.append(np.full(steps, mean << major_inertia, dtype=np.int64))
            if self.centered:
                row_steps.append(plane.row_steps())
            offset += plane.weights
            majors += steps
            lines += plane.columns
        self._lanes = {key: np.concatenate(values).astype(np.int64) for key, values in parts.items()}
        self._steps = int(self._lanes["end"].max()) if planes else 0
        self._has_trellis = any(plane.trellis for plane in planes)
        self._state = np.zeros(lines, dtype=np.int64)
        self._minor_sum = self._lanes["sum"].copy() if planes else empty
        self._minor_expected = self._minor_sum.copy()
        self._major_sum = np.concatenate(major_sums)
        self._major_expected = self._major_sum.copy()
        self._row_step = np.concatenate(row_steps)
        self._column_mean: np.ndarray = np.zeros(len(self._minor_sum), dtype=np.int64)
        self._product: np.ndarray = np.zeros(majors, dtype=np.int64)
        self._square: np.ndarray = np.zeros(majors, dtype=np.int64)

    def __iter__(self) -> Iterator[np.ndarray]:
        lanes = self._lanes
        class_of = tables.class_of()
        for step in range(self._steps):
            active = np.flatnonzero((lanes["start"] <= step) & (step < lanes["end"]))
            major = lanes["major"][active] + step
            base = lanes["base"][active]
            major_factor = (self._major_sum[major] << _FIXED) // self._major_expected[major]
            minor_factor = (self._minor_sum[active] << _FIXED) // self._minor_expected[active]
            np.minimum(major_factor, _MAX_FACTOR, out=major_factor)
            np.minimum(minor_factor, _MAX_FACTOR, out=minor_factor)
            by_major = (base * major_factor) >> _FIXED
            by_minor = (base * minor_factor) >> _FIXED
            expected = np.minimum((by_major * minor_factor) >> _FIXED, tables.MAX_MAGNITUDE)
            scale_class = class_of[expected].astype(np.int64)
            row = lanes["row"][active] + step * lanes["row_stride"][active]
            line, state = active, active
            shape = np.zeros(1, dtype=np.int64)
            if self._has_trellis:
                line = lanes["line"][active] + step * lanes["line_stride"][active]
                state = np.where(row % lanes["segment"][active] == 0, lanes["entry"][active], self._state[line])
                shape = _KAPPA[state]
            self._at = (active, major, by_major, by_minor, line, state, row, shape, major_factor)
            if self.centered:
                shape = self._find_center(active, major, shape)
            self.contexts = tables.CLASSES * shape + scale_class
            yield lanes["position"][active] + step * lanes["stride"][active]

    def _find_center(self, active: np.ndarray, major: np.ndarray, kappa: np.ndarray) -> np.ndarray:
        """Set `center` and `direction`; return the shape of each symbol's table."""
        mean = self._column_mean[active]
        energy = mean * mean
        share = ((self._product[major] + 4 * energy) << 8) // (self._square[major] + 4 * energy + 1)
        guess = _clip(share, 0, 512) * mean >> 8  # in half steps of the largest row, 12 fractional bits
        guess = _clip((guess << 7) // self._row_step[major], -(1 << 18), 1 << 18)  # in steps, 8 fractional bits
        odd = (kappa == 1) & (np.abs(guess) >= 64)
        guess += 128 * np.where(odd, np.sign(guess), 0)
        self.center = np.where((kappa == 1) & ~odd, 0, (guess + 128) >> 8)
        off = guess - (self.center << 8)
        self.direction = np.where(off < 0, -1, 1)
        bucket = tables.FIRST_OFFSET + np.minimum(np.abs(off) >> 5, 3)
        return np.where((kappa == 1) & (self.center == 0), tables.ODD, bucket)

    def sign_contexts(self, magnitudes: np.ndarray) -> np.ndarray:
        """Rows of `sign_table` for the step's symbols whose magnitude is not 0."""
        some = magnitudes > 0
        return 2 * (self.contexts[some] // tables.PER_OCTAVE) + (magnitudes[some] > 1)

    def learn(self, magnitudes: np.ndarray, symbols: np.ndarray) -> bool:
        """Update the model with the step's symbols. Returns whether the tables have changed.

        magnitudes: distance from the center, at most the alphabet's last symbol; symbols: the whole symbols.
        """
        active, major, by_major, by_minor, line, state, row, kappa, major_factor = self._at
        doubled = 2 * magnitudes.astype(np.int64)
        doubled -= (self.contexts // tables.CLASSES == tables.ODD) & (magnitudes > 0)
        if self._has_trellis:
            self._state[line] = _NEXT[2 * state + (symbols & 1)]
        size = doubled * (tables.UNIT // 2)
        # a diagonal has at most one symbol of any row or column, so that plain indexing adds every one
        for sums, at, more in (
            (self._major_sum, major, size),
            (self._minor_sum, active, size),
            (self._major_expected, major, by_minor),
            (self._minor_expected, active, by_major),
        ):
            grown = sums[at] + more
            sums[at] = grown - (grown >> self._memory)
        if self.centered:
            wide = symbols.astype(np.int64)
            level = _clip(2 * wide - np.sign(wide) * kappa, -_MAX_LEVEL, _MAX_LEVEL) * self._row_step[major]
            mean = self._column_mean[active]
            self._product[major] += level * mean
            self._square[major] += mean * mean
            # rows far from the mean hardly move it: the live tokens among those never seen
            slowness = np.minimum(row + 1, _MEAN_ROWS) * (1 + (major_factor * major_factor >> (2 * _FIXED - 2)))
            self._column_mean[active] = mean + (level - mean) // slowness
            signs = (symbols - self.center) * self.direction < 0
            self._new_signs.append(2 * self.sign_contexts(magnitudes) + signs[magnitudes > 0])
        self._new.append(self.contexts * self.alphabet + magnitudes)
        self._new_count += len(magnitudes)
        if self._new_count < max(_FIRST_BLOCK, self._seen // _GROWTH):
            return False
        self._rebuild()
        return True

    def _rebuild(self) -> None:
        flat = np.bincount(np.concatenate(self._new), minlength=self._frequencies.size)
        counts = flat.reshape(self._frequencies.shape)
        self.bits += _cost(counts, self._frequencies)
        self._frequencies = self._frequencies + _OWN * counts
        self._frequencies[:, 1:] += _NEIGHBOR * counts[:, :-1]
        self._frequencies[:, :-1] += _NEIGHBOR * counts[:, 1:]
        if self.centered:
            signs = np.bincount(np.concatenate(self._new_signs), minlength=self._sign_frequencies.size)
            self.bits += _cost(signs.reshape(-1, 2), self._sign_frequencies)
            self._sign_frequencies = self._sign_frequencies + _SIGN_COUNT * signs.reshape(-1, 2)
        self._tabulate()
        self._seen += self._new_count
        self._new, self._new_signs, self._new_count = [], [], 0

    def finish(self) -> None:
        """After the last step: bring `bits` up to date."""
        if self._new:
            self._rebuild()

    def _tabulate(self) -> None:
        self.table = self._frequencies.reshape(-1, self.alphabet).astype(np.float64)
        self.sign_table = self._sign_frequencies.astype(np.float64)


def _clip(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """As np.clip, which takes ten times as long on the few values of a step."""
    return np.minimum(np.maximum(values, low), high)


def _cost(counts: np.ndarray, frequencies: np.ndarray) -> float:
    """Bits of the counted symbols under the frequencies they were coded with (last axis: the alphabet)."""
    total = frequencies.sum(axis=-1, keepdims=True)
    used = counts > 0
    return float((counts * (np.log2(total) - np.log2(frequencies)))[used].sum())
