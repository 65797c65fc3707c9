"""Tests over seeds and documents against closed forms and simulation."""

import math

import numpy as np
import pytest

from pgolf.errors import PgolfError
from pgolf.evaluate import compare
from pgolf.evaluate.compare import Documents, Sample


@pytest.mark.parametrize("t", [-40.0, -3.0, -0.2, 0.0, 0.5, 2.0, 31.42, 1e4])
def test_student_tail_has_its_closed_forms(t):
    assert compare.student_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-9, abs=1e-15)
    two = 1 / ((2 + t * t) * (1 + t / math.sqrt(2 + t * t))) if t > 0 else 0.5 - t / (2 * math.sqrt(2 + t * t))
    assert compare.student_tail(t, 2) == pytest.approx(two, rel=1e-9)


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [(2.776445, 4, 0.025), (1.812461, 10, 0.05), (2.457262, 30, 0.01), (31.42, 2, 0.000506), (3.290527, 1e7, 0.0005)],
)
def test_student_tail_at_tabulated_points(t, degrees, p):
    assert compare.student_tail(t, degrees) == pytest.approx(p, rel=1e-3)


def test_welch_of_a_worked_example():
    """Two samples whose t and degrees of freedom follow by hand from means 3 and 1, variances 1 and 4, n 3 and 3."""
    result = compare.welch([2.0, 3.0, 4.0], [-1.0, 1.0, 3.0])
    assert result.t == pytest.approx(2 / math.sqrt(5 / 3))
    assert result.degrees == pytest.approx((5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2))


def test_welch_rejects_at_its_nominal_rate():
    generator = np.random.default_rng(0)
    below = 0
    for _ in range(2000):
        below += compare.welch(generator.normal(0, 1, 3), generator.normal(0, 3, 5)).p < 0.05
    assert 0.03 < below / 2000 < 0.07


def test_welch_needs_an_estimate_of_noise():
    with pytest.raises(PgolfError, match="two seeds"):
        compare.welch([1.0], [1.0, 2.0])
    with pytest.raises(PgolfError, match="copies"):
        compare.welch([1.0, 1.0], [0.9, 0.9])


def test_margin_depends_on_the_tokenizer():
    """0.005 nats per token in bits per byte, for the ratios of the challenge's sp1024 and sp8192."""
    for ratio, margin in ((2.435930, 0.002961), (3.726631, 0.001936)):
        assert Sample((1.0,), ratio).margin_bits_per_byte(0.005) == pytest.approx(margin, abs=5e-7)


def test_readings_differ_in_what_they_allow():
    reference = Sample((1.2003, 1.2000, 1.1998), 2.4359)
    candidate = Sample((1.1953, 1.1950, 1.1949), 2.4359)
    found = {reading.name: reading.holds for reading in compare.readings(reference, candidate)}
    assert list(found.values()) == [True, True, False]
    text = " ".join(compare.verdict(reference, candidate, compare.readings(reference, candidate), None))
    assert "can be claimed" in text
    assert 'cannot be claimed that B is "better by 0.005 nats per byte"' in text


def test_one_seed_claims_nothing():
    reference, candidate = Sample((1.2,), 2.4), Sample((1.1, 1.1), 2.4)
    text = " ".join(compare.verdict(reference, candidate, compare.readings(reference, candidate), None))
    assert "Nothing can be claimed about seeds" in text


def test_by_document_keeps_every_nat_and_byte():
    tokens = np.array([1, 5, 6, 1, 7, 1])
    found = compare.by_document(np.arange(1.0, 6.0), np.array([2, 3, 0, 4, 0]), tokens, bos_id=1)
    assert found.nats.tolist() == [3.0, 7.0, 5.0]
    assert found.bytes.tolist() == [5, 4, 0]


def test_bootstrap_covers_the_true_difference():
    generator = np.random.default_rng(1)
    lengths = generator.integers(50, 400, 500)
    hardness = generator.gamma(20, 0.05, 500) * lengths
    reference = Documents(hardness, lengths)
    candidate = Documents(hardness * 0.99 + generator.normal(0, 1, 500), lengths)
    result = compare.bootstrap(reference, candidate, margin=0.0)
    assert result.low < result.difference < result.high < 0
    assert result.better == 1.0
    paired_width = result.high - result.low
    shuffled = generator.permutation(500)
    unpaired = compare.bootstrap(reference, Documents(candidate.nats[shuffled], lengths[shuffled]), margin=0.0)
    assert paired_width < (unpaired.high - unpaired.low) / 2, "pairing must remove the spread of the documents"


def test_bootstrap_refuses_other_documents():
    one, two = Documents(np.ones(3), np.ones(3, int)), Documents(np.ones(4), np.ones(4, int))
    with pytest.raises(PgolfError, match="same ones"):
        compare.bootstrap(one, two, 0.0)
