"""The audit passes legal evaluators and fails each kind of broken one for its own reason."""

import numpy as np
import pytest
import toy_evaluators as toys

from pgolf import audit as audits
from pgolf.audit import AuditSettings, Claims, Subject
from pgolf.errors import CheckFailed
from pgolf.evaluate.evaluator import Trace


def run(evaluator, plain=None, probes=40, **claims):
    subject = Subject(
        evaluator, toys.text(), vocab_size=toys.VOCAB, bos_id=toys.BOS, plain=plain, claims=Claims(**claims)
    )
    return audits.audit(subject, AuditSettings(probes=probes, sum_positions=4, sum_runs=200)).findings


def failures(findings):
    return {finding.check for finding in findings if finding.failed}


LEGAL = {
    "fixed": (toys.Fixed(), {}),
    "adaptive": (toys.Adaptive(), {"adapts": True, "plain": toys.Fixed(), "periods": (toys.BLOCK,)}),
    "per document": (toys.PerDocument(), {"adapts": True, "documents": "all"}),
    "masked smear": (toys.Smear(masked=True), {"documents": "context"}),
    "smear with crossing contexts": (toys.Smear(masked=False), {}),
    "n-gram tilt": (toys.tilted(), {"adapts": True, "plain": toys.Fixed()}),
    "scores only": (toys.ScoresOnly(toys.Adaptive()), {"adapts": True}),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_evaluator_passes(name):
    evaluator, claims = LEGAL[name]
    findings = run(evaluator, **claims)
    assert not failures(findings), [audits.explain(item) for item in findings if item.failed]
    passed = {finding.check for finding in findings if finding.outcome == audits.PASSED}
    assert {"coverage", "repeatability", "causality", "normalization", "single pass"} <= passed


ADAPTS = {"adapts": True, "plain": toys.Fixed()}
# Evaluator, what is claimed of it, every check that must fail, and words of the reason.
BROKEN = {
    "peeks one token ahead": (toys.PeeksAhead(), {}, {"causality"}, "looks 1 token ahead"),
    "trains on a chunk before scoring it": (
        toys.TrainsBeforeScoring(),
        ADAPTS,
        {"score first", "causality", "own target", "first block"},
        "learned before scored",
    ),
    "keeps the better of two passes": (
        toys.BetterOfTwoPasses(),
        {"adapts": True},
        {"single pass", "score first", "causality", "normalization"},
        "more than one pass",
    ),
    "keeps the better of two models": (toys.BetterOfTwoModels(), {}, {"normalization"}, "the better of several"),
    "normalizes over a part of the vocabulary": (toys.PartOfTheVocabulary(), {}, {"normalization"}, "sums to"),
    "carries state into a second pass": (toys.CarriesStateOver(), {}, {"repeatability"}, "second time"),
    "a hidden first pass": (
        toys.SecondPass(),
        {"adapts": True},
        {"single pass", "score first", "causality", "own target"},
        "more than one pass",
    ),
    "smear over document starts": (toys.Smear(masked=False), {"documents": "context"}, {"documents"}, "reset"),
    "a cache keyed by the target": (toys.TargetCache(), {}, {"own target"}, "changed with the token"),
    "the same, not normalized": (
        toys.TargetCache(normalized=False),
        {},
        {"own target", "normalization", "coverage"},
        "changed with the token",
    ),
    "trained on the text": (toys.TrainedOnVal(), ADAPTS, {"first block"}, "without adaptation"),
    "forgets nothing at documents": (toys.Adaptive(), {"documents": "all"}, {"documents"}, "another"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_evaluator_is_caught_for_its_own_reason(name):
    evaluator, claims, expected, reason = BROKEN[name]
    findings = run(evaluator, **claims)
    assert failures(findings) == expected
    found = [finding for finding in findings if finding.failed and reason in finding.summary]
    assert found, [finding.summary for finding in findings if finding.failed]
    assert found[0].counterexample


@pytest.mark.parametrize(
    "evaluator",
    [toys.BetterOfTwoModels(), toys.PartOfTheVocabulary(), toys.TargetCache(normalized=False)],
    ids=lambda item: type(item).__name__,
)
@pytest.mark.parametrize("runs", [4 * toys.VOCAB, 4 * toys.VOCAB - 8], ids=["exact", "estimated"])
def test_scores_alone_show_a_broken_sum(evaluator, runs):
    subject = Subject(toys.ScoresOnly(evaluator), toys.text(), vocab_size=toys.VOCAB, bos_id=toys.BOS)
    findings = audits.audit(subject, AuditSettings(probes=8, sum_positions=4, sum_runs=runs)).findings
    assert failures(findings) - {"coverage"} == {"normalization"}


def test_a_peek_is_located():
    finding = audits.first_failure(run(toys.PeeksAhead()))
    assert finding.counterexample["tokens_before_the_change"] == 1
    assert finding.counterexample["score_before"] != finding.counterexample["score_after"]
    assert "moved position" in audits.explain(finding)


def test_a_leak_in_the_last_block_alone_is_found():
    class Late(toys.Adaptive):
        def rows(self, counts, tokens, start, stop):
            if stop == len(tokens) - 1:
                counts = counts + toys.pairs(tokens[start : stop + 1])
            return super().rows(counts, tokens, start, stop)

    assert "score first" in failures(run(Late(), adapts=True))


class WrongLength:
    def score(self, tokens, positions=()):
        return Trace(np.ones(len(tokens)), np.zeros(len(tokens), np.int64))


class NotANumber(toys.Fixed):
    def score(self, tokens, positions=()):
        found = super().score(tokens)
        found.nll[7] = np.nan
        return found


@pytest.mark.parametrize(("evaluator", "words"), [(WrongLength(), "targets"), (NotANumber(), "position 8")])
def test_scores_of_the_wrong_form_are_refused(evaluator, words):
    with pytest.raises(CheckFailed, match=words):
        run(evaluator)


def test_noise_below_the_limit_is_not_a_leak():
    generator = np.random.default_rng(0)

    class Noisy(toys.Adaptive):
        def score(self, tokens, positions=()):
            found = super().score(tokens, positions)
            return Trace(found.nll + generator.uniform(-1e-4, 1e-4, len(found.nll)), found.order, found.log_probs)

    assert not failures(run(Noisy(), adapts=True))
