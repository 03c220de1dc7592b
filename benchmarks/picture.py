"""Bars of what was measured, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.everything import Figure

_WIDTH, _LABEL, _BAR, _GAP, _HEAD = 900, 190, 16, 4, 30
_OURS = ("form A", "form A, 3 messages", "form B", "form B, 3 messages", "delivery")


def draw(figures: Sequence[Figure]) -> str:
    """Draw a block of bars for each place of each table: rates, or where there are none, p50."""
    parts: list[str] = []
    y = 10
    for (table, threads, processes), group in groupby(
        figures, lambda figure: (figure.table, figure.threads, figure.processes)
    ):
        block = list(group)
        rates = block[0].rate is not None
        unit = "a second" if rates else "p50 in ms"
        title = f"{table}: {processes} x {threads} thread{'' if threads == 1 else 's'}, {unit}"
        parts.append(f'<text x="10" y="{y + 16}" font-weight="bold">{escape(title)}</text>')
        y += _HEAD
        values = [figure.rate if figure.rate is not None else figure.p50 or 0.0 for figure in block]
        scale = (_WIDTH - _LABEL - 90) / max(values)
        for figure, value in zip(block, values, strict=True):
            parts += _bar(figure, value, scale, y, "0" if rates else "2")
            y += _BAR + _GAP
        y += 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _bar(figure: Figure, value: float, scale: float, y: int, digits: str) -> list[str]:
    ours = figure.contestant in _OURS or figure.contestant.endswith(" rows")
    colour = "#1f6feb" if ours else "#9aa4b2"
    middle, width = y + _BAR - 4, value * scale
    parts = [
        f'<text x="{_LABEL - 8}" y="{middle}" text-anchor="end">{escape(figure.contestant)}</text>',
        f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<text x="{_LABEL + width + 6:.1f}" y="{middle}">{value:.{digits}f}</text>',
    ]
    if figure.rate_half is not None:  # where half of the rounds lay
        low, high = (_LABEL + bound * scale for bound in figure.rate_half)
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + _BAR / 2}" y2="{y + _BAR / 2}" stroke="black"/>'
        )
    return parts
