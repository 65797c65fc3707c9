"""The page: what comes in is escaped, drawings are well-formed and keep to their frame."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pgolf.page import drawing, html

RUDE = "<b>\"&' "


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 1.0), (1.9, 2.37), (-3e-4, 2e-3), (0.0, 62_021_632.0)):
        found = drawing.ticks(low, high)
        assert 3 <= len(found) <= 8
        assert low - 1e-12 <= found[0] < found[-1] <= high + 1e-12
    assert drawing.ticks(2.0, 2.0) == [2.0]


def test_thinning_keeps_the_mean():
    values = np.arange(1000.0)
    x, y = drawing.thin(values, values**2, points=100)
    assert len(x) == 100
    assert y.mean() == pytest.approx((values**2).mean())


@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize("zero", [False, True])
def test_a_line_chart_stays_in_its_frame(count, zero):
    x = np.arange(count, dtype=float)
    drawn = drawing.lines([(RUDE, x, np.sin(x))], RUDE, "y", zero=zero)
    root = ElementTree.fromstring(drawn)
    _, _, width, height = map(float, root.get("viewBox").split())
    for line in root.iter("polyline"):
        for point in line.get("points").split():
            across, down = map(float, point.split(","))
            assert 0 <= across <= width
            assert 0 <= down <= height


def test_bars_and_shares_are_well_formed():
    for drawn in (
        drawing.bars([(RUDE, 1.8, "1.8"), ("b", 1.7, "1.7")], 1.6),
        drawing.bars([("only", 2.0, "2")], 2.0),
        drawing.stacked([(RUDE, 3.0), ("b", 1.0)], cap=10.0),
        drawing.stacked([("nothing", 0.0)]),
    ):
        ElementTree.fromstring(drawn)


def test_text_is_escaped_wherever_it_enters():
    parts = [
        html.facts([(RUDE, RUDE)]),
        html.section(RUDE, html.table((RUDE,), [(RUDE,)]), html.paragraph(RUDE), html.folded(RUDE, RUDE)),
        html.chain([(RUDE, html.join(RUDE, html.code(RUDE)))]),
        html.figure(drawing.stacked([("a", 1.0)]), RUDE, (RUDE, "b")),
        html.verdict(RUDE),
    ]
    page = html.page(RUDE, RUDE, parts)
    assert "<b>&quot;" not in page.replace("<b>&lt;b&gt;", "")
    assert RUDE not in page
    assert "<script" not in page
