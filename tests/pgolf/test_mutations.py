"""A sample of the damaged files that benchmarks/robustness/mutations.py reads by the thousand."""

import mutation
import pytest


@pytest.mark.parametrize("kind", mutation.KINDS)
def test_a_damaged_file_means_the_same_or_is_refused_in_one_line(kind, tmp_path):
    cases = list(mutation.run(kind, range(20), tmp_path))
    assert len(cases) == 20
    assert [case for case in cases if case.outcome in mutation.FAULTS] == []
    assert any(case.outcome != "same" for case in cases)
