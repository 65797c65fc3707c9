"""Potential savings of richer contexts in coding real symbols, compared with the coder's own model.

    python benchmarks/codec/coder_contexts.py QUANTIZED.safetensors [...]

Every symbol of the plain and the centered set is walked with the coder's own model, its table and cost noted. Then, in
percent of the coded bits (magnitudes and signs):

- neighbours: the class shifted according to the symbols to the left and above, by the best shift in each of ten ranges;
- state: tables by the whole trellis state in place of the quantizer alone, role and matrix: tables for each; these are
  empirical entropies, which do not count the cost of learning the tables, so each is compared with the same for the
  context shuffled: only the excess is real;
- signs: information of the neighbour's sign (left or above) about a sign;
- two rates: the probabilities of two models that forget at different rates, averaged with the best weight.
"""

import argparse
from pathlib import Path

import numpy as np

from pgolf.codec import container, tables
from pgolf.codec.symbols import Plane, Scan
from pgolf.quantized import storage

RANGES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
MEMORIES = (5, 6, 7, 8, 10, 12, 15)


class Walk:
    """All symbols of one set, in the order of the walk."""

    def __init__(self, planes: list[Plane], matrices: list[np.ndarray], alphabet: int, centered: bool) -> None:
        self.planes, self.matrices, self.alphabet, self.centered = planes, matrices, alphabet, centered
        self.flat = np.concatenate([matrix.ravel() for matrix in matrices]).astype(np.int64)
        costs = {memory: self.walk(memory) for memory in MEMORIES}
        self.best = min(costs, key=lambda memory: float(costs[memory].sum()))
        self.costs = costs
        self.walk(self.best)  # leaves its contexts

    def walk(self, memory: int) -> np.ndarray:
        """Bits of every magnitude and sign."""
        scan = Scan(self.planes, self.alphabet, memory, self.centered)
        contexts, positions, magnitudes, signs, states, costs = [], [], [], [], [], []
        for at in scan:
            here = self.flat[at]
            distance = (here - scan.center) * scan.direction if self.centered else here
            size = np.minimum(np.abs(distance), self.alphabet - 1)
            cost = _bits(scan.table, scan.contexts, size)
            some = size > 0
            if self.centered:
                cost[some] += _bits(scan.sign_table, scan.sign_contexts(size), (distance[some] < 0).astype(np.int64))
            else:
                cost[some] += 1.0
            contexts.append(scan.contexts)
            positions.append(at)
            magnitudes.append(size)
            signs.append(np.sign(distance))
            states.append(np.broadcast_to(scan._at[5], len(at)))
            costs.append(cost)
            scan.learn(size, here)
        self.contexts, self.positions, self.magnitudes, self.signs, self.states = (
            np.concatenate(parts) for parts in (contexts, positions, magnitudes, signs, states)
        )
        return np.concatenate(costs)

    def neighbour(self, values: list[np.ndarray], down: int, right: int) -> np.ndarray:
        """For every symbol, in the order of the walk, the value the given rows above and columns to the left; outside:
        0."""
        moved = []
        for value in values:
            out = np.zeros_like(value)
            out[down:, right:] = value[: value.shape[0] - down, : value.shape[1] - right]
            moved.append(out.ravel())
        return np.concatenate(moved)[self.positions]


def _bits(table: np.ndarray, rows: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    return np.log2(table.sum(axis=1))[rows] - np.log2(table[rows, symbols])


def entropy(keys: np.ndarray, symbols: np.ndarray) -> float:
    """Bits of the symbols under the best table for each key."""
    _, keys = np.unique(keys, return_inverse=True)
    width = int(symbols.max()) + 1
    counts = np.bincount(keys * width + symbols, minlength=(keys.max() + 1) * width).reshape(-1, width)
    used = counts > 0
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return -float((counts[used] * np.log2(share[used])).sum())


def by_neighbours(walk: Walk) -> float:
    """Bits saved when the neighbours of a symbol may shift its class."""
    shape, scale = np.divmod(walk.contexts, tables.CLASSES)
    counts = np.zeros((shape.max() + 1, tables.CLASSES, walk.alphabet))
    np.add.at(counts, (shape, scale, walk.magnitudes), 1.0)
    smooth = counts + 1e-3
    smooth[:, 1:] += counts[:, :-1] / 2
    smooth[:, :-1] += counts[:, 1:] / 2
    cost = np.log2(smooth.sum(axis=2, keepdims=True)) - np.log2(smooth)
    sizes = [np.abs(matrix).astype(np.float64) for matrix in walk.matrices]
    around = sum(walk.neighbour(sizes, *step) for step in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))) / 5
    where = np.digitize(around * tables.UNIT / tables.class_centers()[scale], RANGES)
    saved = 0.0
    for part in range(len(RANGES) + 1):
        mine = where == part
        moved = [np.clip(scale[mine] + move, 0, tables.CLASSES - 1) for move in range(-8, 9)]
        totals = [float(cost[shape[mine], each, walk.magnitudes[mine]].sum()) for each in moved]
        saved += totals[8] - min(totals)
    return saved


def by_tables(walk: Walk, extra: np.ndarray) -> tuple[float, float]:
    """Empirical bits saved by tables for each value of `extra` as well, and the same with `extra` shuffled."""
    shape, scale = np.divmod(walk.contexts, tables.CLASSES)
    key = shape * tables.CLASSES + scale // 4  # half octaves: enough for the question, and fewer tables to learn
    found = []
    for context in (extra, np.random.default_rng(0).permutation(extra)):
        found.append(entropy(key, walk.magnitudes) - entropy(key * (extra.max() + 1) + context, walk.magnitudes))
    return found[0], found[1]


def by_signs(walk: Walk) -> float:
    saved, matrices = 0.0, [np.sign(matrix).astype(np.int64) for matrix in walk.matrices]
    for step in ((0, 1), (1, 0)):
        other = walk.neighbour(matrices, *step)
        both = (walk.signs != 0) & (other != 0)
        saved += np.count_nonzero(both) - entropy(other[both] + 1, (walk.signs[both] > 0).astype(np.int64))
    return saved


def by_two_rates(walk: Walk) -> float:
    one = walk.costs[walk.best]
    mixed = min(
        float(-np.log2(weight * 2.0**-one + (1 - weight) * 2.0**-other).sum())
        for memory, other in walk.costs.items()
        if memory != walk.best
        for weight in (0.5, 0.7, 0.85)
    )
    return float(one.sum()) - mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    for path in parser.parse_args().models:
        model = storage.load(path)
        centered = container._choose_centered(model)
        directory, _ = container._describe(model, "range", centered)
        scales = [model.matrices[entry.name].row_scale for entry in directory.matrices]
        for part in (container.PLAIN, container.CENTERED):
            entries = [entry for entry in directory.matrices if entry.part == part]
            if not entries:
                continue
            matrices = [model.matrices[entry.name].symbols for entry in entries]
            planes = container._planes(directory, part, scales)
            walk = Walk(planes, matrices, directory.alphabets[1 + part], part == container.CENTERED)
            total = float(walk.costs[walk.best].sum())
            place = np.repeat(np.arange(len(entries)), [matrix.size for matrix in matrices])[walk.positions]
            roles = sorted({entry.role for entry in entries})
            role = np.array([roles.index(entry.role) for entry in entries])[place]
            percent = lambda bits: f"{100 * bits / total:.3f}%"  # noqa: B023, E731
            print(f"{path}, {'centered' if part else 'plain'}: {walk.flat.size:,} weights, {total / 8:,.0f} bytes")
            print(f"  memory {walk.best}; all others of {MEMORIES} take at most "
                  f"{percent(max(float(cost.sum()) for cost in walk.costs.values()) - total)} more")  # fmt: skip
            print(f"  neighbours {percent(by_neighbours(walk))}, signs {percent(by_signs(walk))}")
            for name, extra in (("state", walk.states), ("role", role), ("matrix", place)):
                print(f"  {name}: {' against shuffled '.join(map(percent, by_tables(walk, extra)))}")
            print(f"  two rates: {percent(by_two_rates(walk))}", flush=True)


if __name__ == "__main__":
    main()
