"""Properties of pieces by their spelling."""

from itertools import chain

from pgolf.tokens import spelling


def test_pieces_share_what_they_have_in_common() -> None:
    words = [b" walked", b" talked", b" asked", b" failed", b"walked", b"ness", b"less", b"miss", b"bus", b"42"]
    found = spelling.properties([b"", *words])
    assert set(found.flatten().tolist()) == {0.0, 1.0}
    common = (found @ found.T)[1:, 1:]
    assert common[0, 1] == 4  # a space before, the length, nothing but letters, the last letter
    assert common[0, 4] == 3
    assert common[0, 9] == 0
    assert (found.sum(0) >= spelling.LEAST).all()
    assert not found[0].any()  # one control token is no group


def test_pieces_that_are_no_text() -> None:
    pieces = [*(bytes([value]) for value in range(256)), b"", b"", b"", b"", " \u00e9".encode(), b" "]
    found = spelling.properties(pieces)
    assert len(found) == len(pieces)
    assert found[256:260].sum() == 4  # the property of being none
    assert spelling.properties([]).shape == (0, 0)
    assert list(chain(*spelling.properties([b"a"] * 3).tolist())) == []
