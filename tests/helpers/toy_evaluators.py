"""Small evaluators for the audit's tests: legal ones, and each of the field's known ways to cheat, kept broken.

All are tables of token pairs over a small vocabulary, so that an evaluation takes milliseconds and every fault stands
alone in a few lines. Position t's score is `nll[t - 1]`; its context is token t-1.
"""

from dataclasses import dataclass, field

import numpy as np

from pgolf.evaluate.evaluator import Trace

VOCAB = 24
BOS = 1
BLOCK = 48


def text(length=960, seed=5, document=150):
    """Documents over a small alphabet with structure to learn: each token likes a few successors, new in this text."""
    generator = np.random.default_rng(seed)
    liked = generator.integers(2, VOCAB, size=(VOCAB, 3))
    tokens = [BOS]
    while len(tokens) < length:
        if len(tokens) % document == 0:
            tokens.append(BOS)
        else:
            likes = generator.random() < 0.8
            tokens.append(int(generator.choice(liked[tokens[-1]]) if likes else generator.integers(2, VOCAB)))
    return np.array(tokens)


def prior():
    """A fixed model: (V, V) log-probabilities of the next token given one."""
    logits = np.random.default_rng(7).normal(0, 1, (VOCAB, VOCAB))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def pairs(tokens):
    counts = np.zeros((VOCAB, VOCAB))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1.0)
    return counts


def trace(tokens, rows, order, positions, nll=None):
    """rows: (N-1, V) log-probabilities; the scores are read from them unless given."""
    targets = np.arange(len(tokens) - 1)
    scores = -rows[targets, tokens[1:]] if nll is None else nll
    return Trace(nll=scores, order=order, log_probs={position: rows[position - 1] for position in positions})


@dataclass
class Fixed:
    """Legal: the model alone, nothing learned, context of one token."""

    def score(self, tokens, positions=()):
        return trace(tokens, prior()[tokens[:-1]], np.zeros(len(tokens) - 1, np.int64), positions)


@dataclass
class Adaptive:
    """Legal: scores a block, then learns its pairs."""

    block: int = BLOCK

    def learn(self, counts, tokens, start, stop):
        """Add what is learned from the targets start+1..stop."""
        counts += pairs(tokens[start : stop + 1])

    def rows(self, counts, tokens, start, stop):
        mixed = counts + 4 * np.exp(prior())
        table = np.log(mixed / mixed.sum(axis=1, keepdims=True))
        return table[tokens[start:stop]]

    def begin(self, tokens):
        return np.zeros((VOCAB, VOCAB))

    def score(self, tokens, positions=()):
        counts, found = self.begin(tokens), []
        for start in range(0, len(tokens) - 1, self.block):
            stop = min(start + self.block, len(tokens) - 1)
            found.append(self.rows(counts, tokens, start, stop))
            self.learn(counts, tokens, start, stop)
        order = np.arange(len(tokens) - 1) // self.block
        return trace(tokens, np.concatenate(found), order, positions)


@dataclass
class PerDocument:
    """Legal: learns token by token and forgets everything at a document's beginning."""

    def score(self, tokens, positions=()):
        count = len(tokens) - 1
        rows = np.empty((count, VOCAB))
        base, counts = np.exp(prior()), np.zeros((VOCAB, VOCAB))
        for index in range(count):
            if tokens[index] == BOS:
                counts[:] = 0
            mixed = counts[tokens[index]] + 4 * base[tokens[index]]
            rows[index] = np.log(mixed / mixed.sum())
            counts[tokens[index], tokens[index + 1]] += 1
        return trace(tokens, rows, np.arange(count), positions)


class PeeksAhead(Fixed):
    """Bayes' rule with the token after the target: normalized, blind to the target, and not causal."""

    def score(self, tokens, positions=()):
        rows = prior()[tokens[:-1]].copy()
        rows[:-1] += prior()[:, tokens[2:]].T
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


class TrainsBeforeScoring(Adaptive):
    def rows(self, counts, tokens, start, stop):
        return super().rows(counts + pairs(tokens[start : stop + 1]), tokens, start, stop)


class BetterOfTwoPasses(Adaptive):
    """Scores the stream, learns all of it, scores it again and keeps the better score of each token."""

    def score(self, tokens, positions=()):
        first = super().score(tokens, positions)
        rows = self.rows(pairs(tokens), tokens, 0, len(tokens) - 1)
        second = trace(tokens, rows, first.order, positions)
        return Trace(np.minimum(first.nll, second.nll), first.order, first.log_probs)


class BetterOfTwoModels(Fixed):
    """Causal in every way, and no distribution: an oracle picks the better of two models by the token that came."""

    def score(self, tokens, positions=()):
        first = super().score(tokens, positions)
        return Trace(np.minimum(first.nll, np.log(VOCAB)), first.order, first.log_probs)


class PartOfTheVocabulary(Fixed):
    """The softmax runs over the text's frequent half of the vocabulary and the token that came."""

    def score(self, tokens, positions=()):
        rows = prior()[tokens[:-1]].copy()
        rows -= np.log(np.exp(rows[:, : VOCAB // 2]).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


@dataclass
class CarriesStateOver(Adaptive):
    """What it learned in one evaluation is still there in the next."""

    kept: np.ndarray = field(default_factory=lambda: np.zeros((VOCAB, VOCAB)))

    def begin(self, tokens):
        return self.kept


class SecondPass(Adaptive):
    """A first pass over the whole stream leaves its state to the one that is reported."""

    def begin(self, tokens):
        return pairs(tokens)


@dataclass
class Smear:
    """Mixes the token before into each token's vector; `masked` stops that at a document's beginning."""

    masked: bool

    def score(self, tokens, positions=()):
        before = np.concatenate([[BOS], tokens[:-2]])
        weight = np.where(self.masked & (tokens[:-1] == BOS), 0.0, 0.3)[:, None]
        rows = prior()[tokens[:-1]] + weight * prior()[before]
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


@dataclass
class TargetCache:
    """A cache looked up with the token that came: hit or miss decides the distribution, which is then normalized."""

    normalized: bool = True

    def score(self, tokens, positions=()):
        count = len(tokens) - 1
        rows, seen = prior()[tokens[:-1]].copy(), set()
        for index in range(count):
            key = (int(tokens[index]), int(tokens[index + 1]))
            if key in seen:
                rows[index, key[1]] += 2.0
            seen.add(key)
        if self.normalized:
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.arange(count), positions)


class TrainedOnVal(Adaptive):
    """Its state holds something of the text before the first token is scored."""

    def begin(self, tokens):
        return pairs(text())


@dataclass
class ScoresOnly:
    """Hides the distributions of another evaluator."""

    inner: object

    def score(self, tokens, positions=()):
        found = self.inner.score(tokens)
        return Trace(found.nll, found.order)
