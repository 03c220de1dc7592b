"""The picture of the dashboard: what a panel says of given series, and that docs/images has these panels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import pytest

from tests.kit.dashboard import Panel, Target, fingerprint, panels
from tests.kit.dashboard_picture import NOTHING, Band, Line, Scene, amount, drawn
from tests.kit.documents import text_of

STEPS = ((float("-inf"), "red"), (1.0, "green"))
STAT = Panel("Well", "stat", "none", 0, 1, 4, 5, STEPS, (Target("up", "{{job}}"),))
LAG = Panel("Lag", "timeseries", "none", 4, 1, 8, 7, (), (Target("lag", "{{group}}"),))
BANDS = (Band("the broker is killed", 20.0, 59.7),)


def picture(lines: Mapping[str, tuple[Line, ...]], *shown: Panel) -> str:
    """Return the picture of a run of 100 s, a point each 10 s."""
    return drawn(shown, Scene(100.0, 10.0, "versions", BANDS, lines))


def texts(svg: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def curves(svg: str) -> list[str]:
    return re.findall(r'<path d="([^"]+)" fill="none"', svg)


def test_a_curve_is_at_its_values_between_zero_and_a_round_number() -> None:
    line = Line("points", ((0.0, 0.0), (10.0, 19.0), (20.0, 9.5)))
    (curve,) = curves(svg := picture({"Lag": (line,)}, LAG))
    assert {"0", "10", "20", "points"} <= set(texts(svg))
    (x0, y0), (x1, y1), (x2, y2) = points(curve)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)
    lines = [float(y) for y in re.findall(r'<path d="M[\d.]+ ([\d.]+)h[\d.]+" stroke="#cfd8dc"', svg)]
    assert y0 == max(lines)
    assert y1 > min(lines)


def test_what_nobody_said_is_a_gap_and_no_line() -> None:
    """Of a process that can't be scraped."""
    line = Line("points", ((0.0, 1.0), (10.0, 1.0), (50.0, 1.0), (60.0, 1.0)))
    (curve,) = curves(picture({"Lag": (line,)}, LAG))
    pieces = [points(f"M{piece}") for piece in curve.split("M")[1:]]
    assert [len(piece) for piece in pieces] == [2, 2]


def test_a_strip_has_the_colour_of_its_value_and_a_gap_where_nobody_said_one() -> None:
    line = Line("points-service", ((0.0, 1.0), (10.0, 1.0), (20.0, 0.0), (30.0, 0.0), (80.0, 1.0)))
    svg = picture({"Well": (line,)}, STAT)
    pieces = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="15" fill="([^"]+)"', svg)
    green, red = "#2e7d32", "#d32f2f"
    assert [colour for _, _, colour in pieces] == [green, red, green]
    lengths = [float(width) for _, width, _ in pieces]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.2)
    assert lengths[0] == pytest.approx(2 * lengths[2], abs=0.2)
    assert float(pieces[1][0]) + lengths[1] < float(pieces[2][0])


def test_the_faults_are_named_once_and_are_in_each_panel() -> None:
    svg = picture({}, STAT, LAG)
    assert texts(svg).count("the broker is killed (0:20 to 1:00)") == 1
    assert len(re.findall(r'fill="#ffe0b2"', svg)) == 1 + 2


def test_a_panel_without_series_says_so() -> None:
    assert texts(picture({}, STAT, LAG)).count(NOTHING) == 2


def test_names_from_outside_are_text() -> None:
    svg = picture({"Lag": (Line("a<b>&", ((0.0, 1.0),)),)}, replace(LAG, title="<Lag>"), LAG)
    assert "a<b>&" in texts(svg)
    ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (0.25, "s", "250 ms"),
        (0.0, "s", "0 s"),
        (12.0, "s", "12 s"),
        (1.5, "ops", "1.5/s"),
        (4000.0, "none", "4k"),
    ],
)
def test_an_axis_has_the_unit_of_the_panel(value: float, unit: str, told: str) -> None:
    assert amount(value, unit) == told


def test_questions_and_names_are_those_of_grafana() -> None:
    target = Target('sum(rate(a{job=~"$job"}[$__rate_interval]))', "{{cause}}: {{verdict}}")
    assert target.asked(16) == 'sum(rate(a{job=~".*"}[16s]))'
    assert target.name({"cause": "check-back", "verdict": "commit"}) == "check-back: commit"


def test_the_fingerprint_changes_with_what_is_shown() -> None:
    for other in (
        replace(LAG, title="lag"),
        replace(LAG, unit="s"),
        replace(LAG, x=0),
        replace(LAG, targets=(Target("max(lag)", "{{group}}"),)),
    ):
        assert fingerprint((other,)) != fingerprint((LAG,))


def test_the_picture_in_the_documents_is_that_of_this_dashboard() -> None:
    """If not: `.venv/bin/python -m tests.kit.dashboard_lab docs/images/dashboard.svg`, eight minutes."""
    svg = text_of("docs/images/dashboard.svg")
    found = re.search(r"<metadata>(.*)</metadata>", svg)
    assert found
    assert json.loads(found[1]) == {"dashboard": fingerprint(panels())}
    assert {panel.title for panel in panels()} <= set(texts(svg))
    ElementTree.fromstring(svg)
