"""Evaluations that use what they may not know, and hide it: the audit catches each, with the power that it states."""

import numpy as np
import pytest
import toy_evaluators as toys

from pgolf import audit as audits
from pgolf.audit import AuditSettings, Claims, Subject, plan


def subject(evaluator, tokens, make=None):
    return Subject(evaluator, tokens, vocab_size=toys.VOCAB, bos_id=toys.BOS, claims=Claims(), make=make)


def run(evaluator, make=None, probes=136, elsewhere=0, seed=None):
    whole = toys.text(4000)
    stretches = [subject(evaluator, whole[at : at + 480]) for at in (1050, 2400, 3300)[:elsewhere]]
    settings = AuditSettings(probes=probes, sum_positions=2, sum_runs=2 * toys.VOCAB, seed=seed)
    return audits.audit(subject(evaluator, whole[:960], make), settings, stretches)


def failures(found):
    return {finding.check for finding in found.findings if finding.failed}


# Evaluator, whether the audit makes it anew for each probe, checks of which one must fail.
CHEATS = {
    "peeks everywhere": (toys.PeeksSometimes(share=1), {"causality"}),
    "peeks at document ends": (toys.PeeksAtDocumentEnds(), {"own target"}),
    "counts to the document's end": (toys.CountsToTheDocumentEnd(), {"causality", "own target"}),
    "honest where shown": (toys.HonestWhereShown(), {"repeatability"}),
    "looks far ahead": (toys.LooksFarAhead(), {"causality", "single pass"}),
    "best of two per document": (toys.BestOfTwoPerDocument(), {"causality"}),
    "counts of the whole text": (toys.CountsTheWholeText(), {"causality", "single pass"}),
    "temperature by the target": (toys.TemperatureByTheTarget(), {"own target"}),
    "sums above one": (toys.SumsAboveOne(), {"normalization"}),
    "a tilt by counts of the whole text": (toys.IllegalTilt("counts of the whole text"), {"single pass", "causality"}),
    "a tilt gated by the target": (toys.IllegalTilt("only before tokens of a class"), {"own target"}),
    "a tilt that is not normalized": (toys.IllegalTilt("not normalized"), {"normalization"}),
    "jitter as large as the gain": (toys.HidesInJitter(weight=3e-2, jitter=1e-2), {"repeatability"}),
    "jitter below the limit": (toys.HidesInJitter(weight=1e-4, jitter=1e-4), {"causality"}),
    "noise alone, too much": (toys.HidesInJitter(weight=0.0, jitter=1e-2), {"repeatability"}),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_hidden_cheat_is_caught(name):
    evaluator, expected = CHEATS[name]
    assert failures(run(evaluator)) & expected


def test_a_peek_at_one_place_in_thirty_is_caught_as_often_as_stated():
    caught = [bool(failures(run(toys.PeeksSometimes(share=30), seed=seed))) for seed in range(30)]
    stated = audits.power(136)
    assert stated > 0.99
    assert sum(caught) >= 28  # 30 tries at 0.99: fewer than 28 happen once in 300,000 times


def test_an_evaluator_that_knows_a_seed_is_caught_by_another():
    whole = toys.text(4000)[:960]
    place = subject(toys.Fixed(), whole)
    order = np.zeros(len(whole) - 1, np.int64)
    known = plan.probes(place, order, 136, np.random.default_rng(0))
    cheat = toys.KnowsTheSeed(avoided=tuple(probe.position for probe in known))
    drawn = {run(cheat).seed for _ in range(2)}
    assert len(drawn) == 2
    assert all(failures(run(cheat, seed=seed)) for seed in drawn)


def test_an_evaluator_honest_at_the_beginning_is_caught_elsewhere():
    assert not failures(run(toys.PeeksElsewhere()))
    assert "causality" in failures(run(toys.PeeksElsewhere(), elsewhere=3))


def test_an_evaluator_that_remembers_the_text_is_made_anew():
    cheat = toys.RemembersTheText()
    assert failures(run(cheat, make=toys.RemembersTheText)) >= {"causality"}


def test_the_report_states_seed_places_and_power():
    found = run(toys.Fixed(), elsewhere=3)
    assert not failures(found)
    assert found.probes >= 136
    assert "1 place in 30" in found.power
    again = run(toys.Fixed(), elsewhere=3, seed=found.seed)
    assert [item.numbers for item in again.findings] == [item.numbers for item in found.findings]
    boundaries = next(item for item in found.findings if item.check == "causality").numbers["boundary_probes"]
    assert boundaries >= 8
