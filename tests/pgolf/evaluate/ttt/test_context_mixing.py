"""Context mixing against a plain version: counts in dictionaries, a decision as sums over the tokens below it."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from pgolf.evaluate.ttt import context_mixing as mixing
from pgolf.evaluate.ttt.context_mixing import ContextMixing
from pgolf.evaluate.ttt.token_tree import Tree, build
from pgolf.evaluate.windows import Window

VOCAB, BOS, RATE = 12, 1, 0.02


def tree() -> Tree:
    rng = np.random.default_rng(0)
    return build(rng.normal(size=(VOCAB, 4)), rng.dirichlet(np.ones(VOCAB)))


def text() -> tuple[np.ndarray, np.ndarray]:
    """Tokens (301,) in four documents that repeat a phrase, and two models' distributions (2, 300, VOCAB)."""
    rng = np.random.default_rng(1)
    tokens = np.resize(rng.integers(2, VOCAB, 9), 301)
    tokens[rng.random(301) < 0.2] = rng.integers(2, VOCAB)
    tokens[[0, 40, 41, 150]] = BOS
    return tokens, rng.dirichlet(np.ones(VOCAB), size=(2, 300))


def tokens_below(tree: Tree, child: int) -> list[int]:
    if child < 0:
        return [-1 - child]
    return tokens_below(tree, int(tree.nodes[child, 3])) + tokens_below(tree, int(tree.nodes[child, 4]))


def plain(tree: Tree, tokens: np.ndarray, models: np.ndarray) -> np.ndarray:
    """(n, VOCAB) distribution of every target."""

    def odds(right: float, left: float) -> float:
        bound, least = mixing.LARGEST, mixing.SMALLEST
        return min(max(math.log((right + least) / (left + least)), -bound), bound)

    def mixed(weights: np.ndarray, inputs: np.ndarray) -> float:
        return float(np.clip(weights @ inputs, -mixing.FARTHEST, mixing.FARTHEST))

    sides = [[tokens_below(tree, int(node[3])), tokens_below(tree, int(node[4]))] for node in tree.nodes]
    counts: dict[tuple, Counter] = defaultdict(Counter)
    weights: dict[tuple, np.ndarray] = defaultdict(lambda: np.array(mixing.START))
    times = Counter[tuple]()
    document, begin, found = 0, 0, []
    for at, target in enumerate(tokens[1:].tolist()):
        if tokens[at] == BOS:
            document, begin = document + 1, at
        lengths = range(min(at + 1 - begin, mixing.LENGTHS) + 1)
        chains = [
            [("stream", *tokens[at + 1 - k : at + 1].tolist()) for k in lengths if k],
            [("document", document, *tokens[at + 1 - k : at + 1].tolist()) for k in lengths],
        ]
        longest = [max((k for k, key in enumerate(chain, 1) if counts[key]), default=0) for chain in chains]
        logs, learned = np.zeros(VOCAB), []

        def visit(number: int, depth: int) -> None:
            mass = [sum(models[0, at, token] for token in side) for side in sides[number]]  # noqa: B023
            x = [odds(mass[1], mass[0]), odds(*(sum(models[1, at, t] for t in side) for side in sides[number][::-1]))]  # noqa: B023
            for chain in chains:  # noqa: B023
                split = list(mass)
                for seen in (counts[key] for key in chain if counts[key]):
                    for side in range(2):
                        held = sum(seen[t] - mixing.DISCOUNT for t in sides[number][side] if seen[t])
                        split[side] = (held + mixing.DISCOUNT * len(seen) * split[side]) / seen.total()
                x.append(odds(split[1], split[0]) - x[0])
            inputs = np.array([*x, mixing.CONSTANT])
            step = min(int(2 * (min(max(x[0], -6.0), 6.0) + 6.0)), mixing.STEPS - 1)
            place = (min(depth, mixing.DEPTHS - 1), step)
            sets = [(0, number), (1, *longest), (2, *place), (3, int(tokens[at]))]  # noqa: B023
            outputs = np.array([mixed(weights[s], inputs) for s in sets])
            z = float(outputs.mean())
            for side, sign in ((0, 1.0), (1, -1.0)):
                logs[sides[number][side]] -= math.log1p(math.exp(sign * z))  # noqa: B023
                child = int(tree.nodes[number, 3 + side])
                if child >= 0:
                    visit(child, depth + 1)
                if target in sides[number][side]:  # noqa: B023
                    learned.append((side, sets, inputs, outputs))  # noqa: B023

        visit(0, 0)
        found.append(np.exp(logs))
        for bit, sets, inputs, outputs in learned[::-1]:
            for s, output in zip(sets, outputs, strict=True):
                times[s] += 1
                rate = RATE * (1 + mixing.WARM / (1 + mixing.COOL * times[s]))
                weights[s] = weights[s] + rate * (bit - 1 / (1 + math.exp(-output))) * inputs
        for chain in chains:
            for key in chain:
                counts[key][target] += 1
    return np.array(found)


def test_equals_the_plain_version_at_every_token_of_the_vocabulary() -> None:
    tokens, models = text()
    made, expected = ContextMixing(BOS, RATE, tree()), plain(tree(), tokens, models)
    for a, b in ((0, 17), (17, 300)):
        part = models[:, a:b]
        nll, found = made.score(tokens[a:b], tokens[a + 1 : b + 1], part, set(range(b - a)))
        got = np.exp(np.stack([found[row] for row in range(b - a)]))
        np.testing.assert_allclose(got, expected[a:b], atol=1e-9)
        np.testing.assert_allclose(got.sum(1), 1.0, atol=1e-12)
        np.testing.assert_allclose(np.exp(-nll), got[np.arange(b - a), tokens[a + 1 : b + 1]], atol=1e-12)


def test_later_tokens_leave_scores_as_they_are_to_the_bit() -> None:
    tokens, models = text()
    other = tokens.copy()
    other[200:] = np.where(tokens[200:] == BOS, BOS, 2 + (tokens[200:] - 1) % (VOCAB - 2))
    first, second = (
        ContextMixing(BOS, RATE, tree()).score(stream[:-1], stream[1:], models, {199}) for stream in (tokens, other)
    )
    np.testing.assert_array_equal(first[0][:199], second[0][:199])
    np.testing.assert_array_equal(first[1][199], second[1][199])
    assert not np.array_equal(first[0][199:], second[0][199:])


def test_repeated_text_costs_less() -> None:
    tokens, models = text()
    nll, _ = ContextMixing(BOS, RATE, tree()).score(tokens[:-1], tokens[1:], models, set())
    gain = -np.log(models[0, np.arange(300), tokens[1:]]) - nll
    assert gain[150:].mean() > 0.5


def test_the_tree_holds_every_token_once_and_reaches_frequent_ones_soon() -> None:
    mass = np.array([0.5, 0.25] + [0.25 / 14] * 14)
    made = build(np.random.default_rng(0).normal(size=(16, 3)), mass)
    assert sorted(tokens_below(made, 0)) == list(range(16))
    assert sorted(made.places.tolist()) == list(range(16))
    depths = dict.fromkeys(range(16), 0)
    for node in made.nodes.tolist():
        for token in range(16):
            depths[token] += node[0] <= made.places[token] < node[2]
    assert sum(mass[token] * depths[token] for token in range(16)) < 3.5  # a balanced tree takes 4 decisions
    for node in made.nodes.tolist():
        assert node[0] < node[1] < node[2]


@pytest.mark.parametrize(("scored", "most"), [(64, 128), (512, 128), (300, 128), (7, 1), (512, 1024)])
def test_shorter_contexts_score_every_target_of_a_window_once(scored: int, most: int) -> None:
    window = Window(1000, 1512, scored)
    parts = mixing.shorter(window, most)
    targets = np.concatenate([np.arange(part.stop - part.scored, part.stop) for part in parts])
    np.testing.assert_array_equal(targets, np.arange(window.stop - scored, window.stop))
    assert all(part.start >= window.start and part.length <= most for part in parts)
    assert all(part.start == window.start or part.length - part.scored >= most // 2 for part in parts)


def test_a_window_that_scores_a_stride_has_one_shorter_context() -> None:
    assert mixing.shorter(Window(0, 512, 64), 128) == [Window(384, 512, 64)]
