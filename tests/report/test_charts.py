"""Charts: round ticks, values at their place, labels that don't overlap."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.metrics.calibration import Bin, Calibration
from locray.report.charts import Frame, Line, line_chart, reliability_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (4.53, 5.9, (4.5, 5, 5.5, 6)),
        (0, 0.002, (0, 0.0005, 0.001, 0.0015, 0.002)),
        (0, 271.3, (0, 100, 200, 300)),
        (-3, 3, (-4, -2, 0, 2, 4)),
    ],
)
def test_ticks(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert ticks(low, high) == expected


def test_ticks_of_few_epochs_are_whole() -> None:
    assert ticks(1, 3, whole=True) == (1, 2, 3)
    assert ticks(1, 1, whole=True) == (0, 1, 2)


@given(
    low=st.floats(-1e9, 1e9, allow_subnormal=False),
    span=st.one_of(st.just(0.0), st.floats(1e-6, 1e9)),
    whole=st.booleans(),
)
def test_ticks_enclose_their_range(low: float, span: float, whole: bool) -> None:
    high = low + span if span > abs(low) * 1e-6 else low
    found = ticks(low, high, whole=whole)
    tolerance = 1e-6 * (found[-1] - found[0])
    assert found[0] <= low + tolerance
    assert found[-1] >= high - tolerance
    assert 2 <= len(found) <= 9
    assert list(found) == sorted(set(found))
    if whole:
        assert all(tick == int(tick) for tick in found)


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_points_are_drawn_at_their_values() -> None:
    chart = line_chart("loss", [Line("a & b", [(1, 2.0), (2, 4.0)], "c0")], x_label="epoch", whole_x=True)
    frame = Frame(ticks(1, 2, whole=True), ticks(2.0, 4.0))
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in parsed(chart.svg).iter("circle")]
    assert dots == [(frame.x(1), frame.y(2)), (frame.x(2), frame.y(4))]
    assert dots[0][0] < dots[1][0]
    assert dots[0][1] > dots[1][1]
    titles = [title.text for title in parsed(chart.svg).iter("title")]
    assert "a & b at 2: 4" in titles
    assert chart.legend == ()


def test_end_labels_do_not_overlap() -> None:
    lines = [Line(f"l{n}", [(0, 0.5), (1, 0.5)], f"c{n}", end_label=f"{n}") for n in range(4)]
    chart = line_chart("t", lines, x_label="x", y_limits=(0, 1))
    heights = [
        float(text.attrib["y"]) for text in parsed(chart.svg).iter("text") if "end" in text.attrib.get("class", "")
    ]
    assert len(heights) == 4
    assert all(below - above >= 12 for above, below in pairwise(heights))
    assert [line.name for line in chart.legend] == ["l0", "l1", "l2", "l3"]


def test_a_line_without_points_draws_nothing() -> None:
    chart = line_chart("t", [Line("none", [], "c0")], x_label="x", x_limits=(0, 1), y_limits=(0, 1))
    assert not list(parsed(chart.svg).iter("circle"))


def test_the_height_of_a_bar_is_its_accuracy() -> None:
    chart = reliability_chart("r", Calibration(0.1, (Bin(0.8, 1.0, 10, 0.9, 0.75),)))
    (bar,) = [path for path in parsed(chart.svg).iter("path") if path.attrib["class"] == "bar"]
    frame = Frame(ticks(0, 1), ticks(0, 1))
    assert f"V{frame.y(0.75)}H" in bar.attrib["d"]
    assert math.isclose(float(bar.attrib["style"].split(":")[1]), 1)
    assert "75.0% correct" in next(bar.iter("title")).text
