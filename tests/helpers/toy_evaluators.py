"""Small evaluators for the audit's tests: legal ones, and each of the field's known ways to cheat, kept broken.

All are tables of token pairs over a small vocabulary, so that an evaluation takes milliseconds and every fault stands
alone in a few lines. Position t's score is `nll[t - 1]`; its context is token t-1.
"""

from dataclasses import dataclass, field

import numpy as np

from pgolf.config.evaluate import EvaluateConfig
from pgolf.evaluate.distributions import parts
from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.tilt import TiltEvaluator, hints_of

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


def ahead(tokens, rows, where, weight=1.0):
    """Bayes' rule with the token after the target, at the targets `where` (N-1,) bool."""
    rows = rows.copy()
    use = np.flatnonzero(where[:-1])
    rows[use] += weight * prior()[:, tokens[use + 2]].T
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


@dataclass
class PeeksSometimes(Fixed):
    """Looks ahead where a hash of its context says so; `rows` as legal ones otherwise."""

    share: int = 30
    weight: float = 1.0

    def where(self, tokens):
        before = np.concatenate([[0], tokens[:-2]])
        return (tokens[:-1] * 7 + before * 13 + np.arange(len(tokens) - 1) * 5) % self.share == 0

    def score(self, tokens, positions=()):
        rows = ahead(tokens, prior()[tokens[:-1]], self.where(tokens), self.weight)
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


@dataclass
class KnowsTheSeed(PeeksSometimes):
    """Looks ahead everywhere but at the places that a seed known before makes the audit look at."""

    share: int = 1
    avoided: tuple = ()

    def where(self, tokens):
        found = np.ones(len(tokens) - 1, bool)
        for place in self.avoided:
            found[max(0, place - 12) : place + 2] = False
        return found


class PeeksElsewhere(PeeksSometimes):
    """Honest on the stretch that an audit of the text's beginning takes, which it knows by its length."""

    def where(self, tokens):
        return np.full(len(tokens) - 1, len(tokens) < 700)


class PeeksAtDocumentEnds(Fixed):
    """Knows whether the next token begins a document: worth a little, and only a probe of BOS shows it."""

    def score(self, tokens, positions=()):
        rows = prior()[tokens[:-1]].copy()
        rows[:, BOS] = np.where(tokens[1:] == BOS, 3.0, -9.0)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


class CountsToTheDocumentEnd(Fixed):
    """Uses the length of each document before it has been read."""

    def score(self, tokens, positions=()):
        begins = np.append(np.flatnonzero(tokens == BOS), len(tokens))
        left = begins[np.searchsorted(begins, np.arange(1, len(tokens)))] - np.arange(1, len(tokens))
        rows = prior()[tokens[:-1]].copy()
        rows[:, BOS] -= 0.05 * left
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


@dataclass
class HidesInJitter(PeeksSometimes):
    """Adds noise to every score and looks ahead by no more than the noise allows."""

    share: int = 1
    weight: float = 1e-4
    jitter: float = 1e-4
    generator: object = field(default_factory=lambda: np.random.default_rng())

    def score(self, tokens, positions=()):
        found = super().score(tokens)
        noise = self.generator.uniform(-self.jitter, self.jitter, len(found.nll))
        return Trace(found.nll + noise, found.order)


@dataclass
class RemembersTheText(PeeksAhead):
    """Looks ahead in the text it sees first; where a later one begins alike, it gives the scores it gave then."""

    seen: list = field(default_factory=list)

    def score(self, tokens, positions=()):
        found = super().score(tokens, positions)
        for old, scores in self.seen[:1]:
            if len(old) == len(tokens):
                same = int(np.argmax(old != tokens)) if (old != tokens).any() else len(tokens)
                found.nll[: max(0, same - 1)] = scores[: max(0, same - 1)]
                return Trace(found.nll, found.order)
        self.seen.append((tokens.copy(), found.nll.copy()))
        return Trace(found.nll, found.order)


class HonestWhereShown(Fixed):
    """Scores what it shows; elsewhere the better of two models."""

    def score(self, tokens, positions=()):
        found = super().score(tokens, positions)
        better = np.minimum(found.nll, np.log(VOCAB))
        shown = np.isin(np.arange(1, len(tokens)), list(positions))
        return Trace(np.where(shown, found.nll, better), found.order, found.log_probs)


class LooksFarAhead(Fixed):
    """Uses a token fifty places on."""

    def score(self, tokens, positions=()):
        rows = prior()[tokens[:-1]].copy()
        rows[:-50] += 0.5 * prior()[:, tokens[51:]].T
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


class BestOfTwoPerDocument(Fixed):
    """Chooses between two models for each document after having scored all of it."""

    def score(self, tokens, positions=()):
        plain = super().score(tokens, positions)
        other = Adaptive().score(tokens, positions)
        owner = np.maximum(np.cumsum(tokens == BOS) - 1, 0)[:-1]
        gain = np.bincount(owner, plain.nll - other.nll) > 0
        rows = np.where(gain[owner], other.nll, plain.nll)
        shown = {p: (other if gain[owner[p - 1]] else plain).log_probs[p] for p in positions}
        return Trace(rows, np.zeros(len(tokens) - 1, np.int64), shown)


class CountsTheWholeText(Fixed):
    """A prior from the counts of the whole text, its end included."""

    def score(self, tokens, positions=()):
        rows = prior()[tokens[:-1]] + np.log(np.bincount(tokens, minlength=VOCAB) + 1.0)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


class TemperatureByTheTarget(Fixed):
    """Sharper where that suits the token that came: the shown distribution is proper, and chosen by the answer."""

    def score(self, tokens, positions=()):
        both = [weight * prior()[tokens[:-1]] for weight in (0.5, 2.0)]
        both = [rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)) for rows in both]
        targets = np.arange(len(tokens) - 1)
        better = both[0][targets, tokens[1:]] > both[1][targets, tokens[1:]]
        rows = np.where(better[:, None], *both)
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


class SumsAboveOne(Fixed):
    """Every probability a little larger than it may be."""

    def score(self, tokens, positions=()):
        rows = prior()[tokens[:-1]] + 0.01
        return trace(tokens, rows, np.zeros(len(tokens) - 1, np.int64), positions)


TILT = EvaluateConfig(tilt_boost=2.0, tilt_order=2, tilt_threshold=0.3)


class FixedInOrder(Fixed):
    """Legal: as the tilt takes an evaluator."""

    def planned(self, tokens):
        return np.zeros(len(tokens) - 1, np.int64)

    def score(self, tokens, positions=()):
        found = super().score(tokens, positions)
        return Trace(found.nll, found.order, {p: found.log_probs[p][part] for p, part in parts(positions).items()})


def tilted():
    """Legal: the n-gram tilt of the library."""
    return TiltEvaluator(FixedInOrder(), TILT)


@dataclass
class IllegalTilt(Fixed):
    """The n-gram tilt, broken in one of three ways that the field has seen."""

    how: str

    def score(self, tokens, positions=()):
        count = len(tokens) - 1
        rows, hints = prior()[tokens[:-1]].copy(), hints_of(tokens, np.arange(count), TILT)
        if self.how == "counts of the whole text":
            twice = np.concatenate((tokens, tokens))
            hints = hints_of(twice, np.arange(len(twice) - 1), TILT)[-count:]
        elif self.how == "only before tokens of a class":
            hints[tokens[1:] % 3 != 0] = -1
        at = np.flatnonzero(hints >= 0)
        rows[at, hints[at]] += TILT.tilt_boost
        if self.how != "not normalized":
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return trace(tokens, rows, np.arange(count), positions)
