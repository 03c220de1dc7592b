"""
The dashboard over the time of a run as an SVG: a function of its panels, of real series, and of the faults.

Places, titles, units and thresholds are those of dashboard.json. A `stat`, of which Grafana shows the last
value, is drawn as a strip over time: its value, in the colour that it had at that moment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tests.kit.dashboard import Panel, fingerprint

_WIDTH, _MARGIN, _CELL, _GAP = 1200, 12, 28, 3
_HEAD, _HEAD_ROW, _BANDS_A_ROW = 44, 18, 4
_LEFT, _RIGHT, _TITLE, _NUMBERS, _TIMES, _LEGEND_ROW = 48, 12, 22, 14, 16, 15
_STRIP, _STRIP_TEXT = 15, 15
_TEXT, _FAINT, _EDGE, _BAND = "#263238", "#607d8b", "#cfd8dc", "#ffe0b2"
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8d6e00", "#56b4e9", "#5e35b1", "#000000")
_STATES = {"red": "#d32f2f", "green": "#2e7d32"}
_APART = 34  # pixels between two minutes
_LETTER = 6.3  # a letter of 11 px is about so wide
NOTHING = "no series: nothing of it was ever said"


@dataclass(frozen=True)
class Line:
    """One series: its name and its points, in seconds since the begin of the run."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Band:
    """One fault, in seconds since the begin of the run."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Scene:
    """
    What was seen in a run.

    Attributes:
        seconds: how long it took.
        step: seconds between two points of a series.
        note: versions and date.
        bands: the faults, in order.
        lines: the series of each panel, by its title.
    """

    seconds: float
    step: float
    note: str
    bands: tuple[Band, ...]
    lines: Mapping[str, tuple[Line, ...]]


@dataclass(frozen=True)
class _Box:
    """The part of a panel in which time runs from left to right."""

    x: float
    y: float
    width: float
    height: float
    seconds: float

    def at(self, second: float) -> float:
        return self.x + self.width * min(max(second / self.seconds, 0.0), 1.0)


def drawn(panels: tuple[Panel, ...], scene: Scene) -> str:
    """Return the SVG."""
    rows = math.ceil(len(scene.bands) / _BANDS_A_ROW)
    top = _HEAD + rows * _HEAD_ROW
    height = top + _CELL * max(panel.y + panel.height for panel in panels) + _MARGIN
    faults = ", ".join(band.name for band in scene.bands)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            'font-family="sans-serif" font-size="11">'
        ),
        f"<title>The dashboard while faults come and go: {escape(faults)}</title>",
        f"<metadata>{json.dumps({'dashboard': fingerprint(panels)})}</metadata>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(_MARGIN, 20, "The dashboard under the fault lab", size=16, weight="bold"),
        _text(_WIDTH - _MARGIN, 20, scene.note, fill=_FAINT, anchor="end"),
    ]
    for number, band in enumerate(scene.bands):
        x = _MARGIN + number % _BANDS_A_ROW * (_WIDTH - 2 * _MARGIN) / _BANDS_A_ROW
        y = _HEAD - 4 + number // _BANDS_A_ROW * _HEAD_ROW
        parts.append(f'<rect x="{x:.1f}" y="{y - 11}" width="15" height="14" fill="{_BAND}"/>')
        parts.append(_text(x + 7.5, y, str(number + 1), anchor="middle", weight="bold"))
        parts.append(_text(x + 20, y, f"{band.name} ({_clock(band.began)} to {_clock(band.ended)})"))
    cell = (_WIDTH - 2 * _MARGIN) / 24
    for panel in panels:
        x, y = _MARGIN + panel.x * cell, top + panel.y * _CELL
        if panel.kind == "row":
            parts.append(_text(x + _GAP, y + 19, panel.title, size=13, weight="bold"))
        else:
            parts += _panel(panel, scene, x + _GAP, y + _GAP, panel.width * cell - 2 * _GAP)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, scene: Scene, x: float, y: float, width: float) -> list[str]:
    height = panel.height * _CELL - 2 * _GAP
    lines = sorted(scene.lines.get(panel.title, ()), key=lambda line: line.name)
    left = 8 if panel.kind == "stat" else _LEFT
    legend = [] if panel.kind == "stat" else _legend_rows(lines, width - left)
    plot = height - _TITLE - _NUMBERS - _TIMES - _LEGEND_ROW * len(legend)
    box = _Box(x + left, y + _TITLE + _NUMBERS, width - left - _RIGHT, plot, scene.seconds)
    parts = [
        "<g>",
        (
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="3" '
            f'fill="none" stroke="{_EDGE}"/>'
        ),
        _text(x + 8, y + 16, panel.title, size=12, weight="bold"),
        *_bands(scene, box),
    ]
    if not lines:
        parts.append(_text(box.x, box.y + box.height / 2, NOTHING, fill=_FAINT))
    elif panel.kind == "stat":
        parts += _strips(panel, lines, box, scene.step)
    else:
        parts += _curves(panel, lines, box, scene.step)
    for number, row in enumerate(legend):
        at = x + left
        for index in row:
            row_y = y + height - 6 - _LEGEND_ROW * (len(legend) - 1 - number)
            parts.append(f'<path d="M{at:.1f} {row_y - 4}h14" stroke="{_colour(index)}" stroke-width="3"/>')
            parts.append(_text(at + 18, row_y, lines[index].name))
            at += _legend_width(lines[index])
    return [*parts, "</g>"]


def _bands(scene: Scene, box: _Box) -> list[str]:
    """The faults, with their numbers above, and the minutes below."""
    parts = []
    for number, band in enumerate(scene.bands):
        began, ended = box.at(band.began), box.at(band.ended)
        parts.append(
            f'<rect x="{began:.1f}" y="{box.y:.1f}" width="{ended - began:.1f}" height="{box.height:.1f}" '
            f'fill="{_BAND}"/>'
        )
        parts.append(_text((began + ended) / 2, box.y - 3, str(number + 1), fill=_FAINT, anchor="middle"))
    ends = int(scene.seconds // 60)
    apart = next((m for m in (1, 2, 5) if box.width * 60 * m / scene.seconds > _APART), 10)
    for minute in range(apart, ends + 1, apart):  # that of 0 would meet the numbers of the other axis
        word = f"{minute} min" if minute + apart > ends else str(minute)
        parts.append(_text(box.at(60 * minute), box.y + box.height + 12, word, fill=_FAINT, anchor="middle"))
    return parts


def _strips(panel: Panel, lines: Sequence[Line], box: _Box, step: float) -> list[str]:
    """Each series as a strip: equal values are one piece, which is labelled where there is room."""
    parts = []
    for number, line in enumerate(lines):
        y = box.y + 2 + number * (_STRIP + _STRIP_TEXT)
        parts.append(_text(box.x, y + 11, line.name))
        for began, ended, value in _pieces(line, step):
            left, right = box.at(began), box.at(ended)
            colour = [name for least, name in panel.steps if value >= least][-1]
            parts.append(
                f'<rect x="{left:.1f}" y="{y + _STRIP_TEXT:.1f}" width="{right - left:.1f}" '
                f'height="{_STRIP}" fill="{_STATES[colour]}"/>'
            )
            if right - left > 2 + _LETTER * len(f"{value:g}"):
                parts.append(
                    _text(
                        (left + right) / 2, y + _STRIP_TEXT + 11, f"{value:g}", fill="#fff", anchor="middle"
                    )
                )
    return parts


def _pieces(line: Line, step: float) -> list[tuple[float, float, float]]:
    """Return begin, end and value of each piece without a change or a gap."""
    found: list[tuple[float, float, float]] = []
    for second, value in line.points:
        if found and found[-1][2] == value and second - found[-1][1] < step / 2:
            found[-1] = (found[-1][0], second + step, value)
        else:
            found.append((second, second + step, value))
    return found


def _curves(panel: Panel, lines: Sequence[Line], box: _Box, step: float) -> list[str]:
    top = _nice(max((value for line in lines for _, value in line.points), default=0.0))
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = box.y + box.height * (1 - share)
        parts.append(f'<path d="M{box.x:.1f} {y:.1f}h{box.width:.1f}" stroke="{_EDGE}"/>')
        parts.append(_text(box.x - 5, y + 4, amount(share * top, panel.unit), fill=_FAINT, anchor="end"))
    for index, line in enumerate(lines):
        path, last = "", -math.inf
        for second, value in line.points:
            apart = second - last > 1.5 * step
            path += (
                f"{'M' if apart else 'L'}{box.at(second):.1f} {box.y + box.height * (1 - value / top):.1f}"
            )
            path += "h0" if apart else ""  # a point alone is a dot
            last = second
        parts.append(
            f'<path d="{path}" fill="none" stroke="{_colour(index)}" stroke-width="1.6" '
            'stroke-linecap="round" stroke-linejoin="round"/>'
        )
    return parts


def amount(value: float, unit: str) -> str:
    """Return a value in words short enough for an axis: 250 ms, 12/s, 1.5k."""
    if unit == "s":
        return f"{value * 1000:g} ms" if 0 < value < 1 else f"{value:g} s"
    short = f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
    return f"{short}/s" if unit == "ops" else short


def _nice(most: float) -> float:
    """Return a round number that is not below `most`, and whose half is round as well."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(float(f"{factor * power:g}") for factor in (1, 2, 4, 6, 8, 10) if factor * power >= most)


def _legend_rows(lines: Sequence[Line], width: float) -> list[list[int]]:
    rows: list[list[int]] = []
    room = 0.0
    for index, line in enumerate(lines):
        if not rows or room < _legend_width(line):
            rows.append([])
            room = width
        rows[-1].append(index)
        room -= _legend_width(line)
    return rows


def _legend_width(line: Line) -> float:
    return 30 + _LETTER * len(line.name)


def _colour(index: int) -> str:
    return _LINES[index % len(_LINES)]


def _clock(second: float) -> str:
    minutes, seconds = divmod(round(second), 60)
    return f"{minutes}:{seconds:02}"


def _text(
    x: float, y: float, text: str, *, fill: str = _TEXT, anchor: str = "", size: int = 0, weight: str = ""
) -> str:
    more = {"text-anchor": anchor, "font-size": size, "font-weight": weight}
    told = "".join(f' {name}="{value}"' for name, value in more.items() if value)
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}"{told}>{escape(text)}</text>'
