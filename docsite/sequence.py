"""
Sequence diagrams of Mermaid, drawn as SVG when the site is built: no script of megabytes for the browser.

A part of the language: participants, arrows, `Note over`, blocks of `alt`, `opt` and `loop`. Anything else
is an error of the build. GitHub and editors draw the same source with Mermaid itself.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from html import escape
from typing import Any

from pymdownx.superfences import SuperFencesException

_PARTICIPANT = re.compile(r"(?:participant|actor)\s+(\w+)(?:\s+as\s+(.+))?")
_MESSAGE = re.compile(r"(\w+)\s*(--?)>>\s*(\w+)\s*:\s*(.+)")
_NOTE = re.compile(r"Note over (\w+)(?:\s*,\s*(\w+))?\s*:\s*(.+)")
_BLOCK = re.compile(r"(alt|opt|loop|else|end)\b\s*(.*)")

_FONT, _LINE, _MARGIN, _HEAD, _PADDING = 13, 17, 14, 34, 12
_SMALLEST = 600  # on a phone a wider diagram shrinks to this, then it scrolls
_LONGEST = 195  # a text on an arrow wider than this is broken into lines


@dataclass(frozen=True)
class Step:
    """A line of the source after the participants; `kind` is call, reply, note or the word of a block."""

    kind: str
    start: str
    end: str
    text: str


def read(source: str) -> tuple[dict[str, str], list[Step]]:
    """
    Return the labels of the participants by their short names, and the steps.

    Raises:
        SuperFencesException: not a sequence diagram, or a part of the language that is not drawn.
    """
    first, *rest = (line.strip() for line in source.strip().splitlines())
    if first != "sequenceDiagram":
        raise SuperFencesException(f"the site draws only sequenceDiagram, not {first!r}: docsite/sequence.py")
    labels: dict[str, str] = {}
    steps: list[Step] = []
    depth = 0
    for line in filter(None, rest):
        if found := _PARTICIPANT.fullmatch(line):
            labels[found[1]] = found[2] or found[1]
        elif found := _MESSAGE.fullmatch(line):
            steps.append(Step("reply" if found[2] == "--" else "call", found[1], found[3], found[4]))
        elif found := _NOTE.fullmatch(line):
            steps.append(Step("note", found[1], found[2] or found[1], found[3]))
        elif found := _BLOCK.fullmatch(line):
            steps.append(Step(found[1], "", "", found[2]))
            depth += {"end": -1, "else": 0}.get(found[1], 1)
            if depth < (found[1] == "else"):
                raise SuperFencesException(f"a diagram has {line!r} outside of a block")
        else:
            raise SuperFencesException(f"the site can't draw {line!r}: docsite/sequence.py")
        for name in (steps[-1].start, steps[-1].end) if steps else ():
            if name:
                labels.setdefault(name, name)
    if depth:
        raise SuperFencesException("a block of a diagram has no `end`")
    return labels, steps


def width(text: str) -> float:
    """Return about how wide a text is, in pixels: fonts differ, so on the wide side."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return _FONT * (wide + 0.57 * (len(text) - wide))


def wrapped(text: str) -> list[str]:
    """Return a text in lines of about equal width, none wider than `_LONGEST` if words allow it."""
    count = int(width(text) // _LONGEST) + 1
    words = re.findall(r"[\u2e80-\uffef]|[^\s\u2e80-\uffef]+\s*|\s+", text)
    lines = [""]
    for word in words:
        full = width(lines[-1] + word.rstrip()) > width(text) / count + 3 * _FONT
        if full and lines[-1] and word.strip() not in "，。；：、）" and not lines[-1].endswith("（"):
            lines.append("")
        lines[-1] += word
    return [line.strip() for line in lines]


def columns(labels: dict[str, str], steps: list[Step]) -> tuple[dict[str, float], float]:
    """Return the middle of each participant's line, and the width of the whole."""
    names = list(labels)
    half = {name: width(labels[name]) / 2 + _PADDING for name in names}
    gaps = [half[a] + half[b] + 20 for a, b in itertools.pairwise(names)] + [half[names[-1]]]
    arrows = [step for step in steps if step.kind in ("call", "reply")]
    for step in sorted(arrows, key=lambda step: abs(names.index(step.start) - names.index(step.end))):
        left, right = sorted((names.index(step.start), names.index(step.end)))
        needed = max(map(width, wrapped(step.text))) + 2 * _PADDING
        if left == right:  # to itself: the text stands right of the line
            gaps[left] = max(gaps[left], needed + 30)
        elif (lack := needed - sum(gaps[left:right])) > 0:
            for column in range(left, right):
                gaps[column] += lack / (right - left)
    x, at = _MARGIN + half[names[0]] + 6, {}
    for name, gap in zip(names, gaps, strict=True):
        at[name] = x
        x += gap
    for step in steps:
        if step.kind not in ("call", "reply"):
            x = max(x, width(step.text) + 2 * _MARGIN + 60)
    return at, x + _MARGIN


def svg(source: str) -> str:
    """Return a diagram as one SVG element; its colours are those of the page (`site.css`)."""
    labels, steps = read(source)
    at, whole = columns(labels, steps)
    y = float(_MARGIN + _HEAD)
    drawn: list[str] = []
    blocks: list[tuple[float, list[str]]] = []  # the top of each open block, and what is drawn with it
    for step in steps:
        if step.kind in ("call", "reply"):
            room = abs(at[step.start] - at[step.end]) - 2 * _PADDING
            lines = [step.text] if width(step.text) <= room else wrapped(step.text)
            y += 20 + _LINE * len(lines)
            drawn.append(_arrow(step.kind, at[step.start], at[step.end], y, lines))
            y += 12 if step.start == step.end else 0
        elif step.kind == "note":
            y += 46
            left, right = sorted((at[step.start], at[step.end]))
            room = max(right - left + 60, width(step.text) + 2 * _PADDING)
            middle = min(max((left + right) / 2, room / 2 + 12), whole - room / 2 - 12)
            drawn.append(_box("note", middle - room / 2, y - 30, room, 28))
            drawn.append(_text("middle", middle, y - 11, step.text))
        elif step.kind == "end":
            y += 16
            top, inside = blocks.pop()
            left = 4 + 6 * len(blocks)
            drawn.insert(0, _box("frame", left, top, whole - 2 * left, y - top) + "".join(inside))
        else:
            y += 40
            left = 4 + 6 * (len(blocks) - (step.kind == "else"))
            condition = _text("start", left + 46, y - 4, f"[{step.text}]", "condition") if step.text else ""
            if step.kind == "else":
                blocks[-1][1].append(_line("else", left, y - 22, whole - left, y - 22) + condition)
            else:
                blocks.append((y - 22, [_text("start", left + 8, y - 4, step.kind, "kind") + condition]))
    lives = [_line("life", x, _MARGIN + _HEAD, x, y + 22) for x in at.values()]
    heads = []
    for name, x in at.items():
        room = width(labels[name]) + 2 * _PADDING
        heads.append(_box("head", x - room / 2, _MARGIN, room, _HEAD))
        heads.append(_text("middle", x, _MARGIN + _HEAD / 2 + 5, labels[name]))
    described = escape("sequence diagram: " + ", ".join(labels.values()))
    size = f'viewBox="0 0 {whole:g} {y + 22 + _MARGIN:g}"'
    style = f'style="width:{whole:g}px;min-width:{min(whole, _SMALLEST):g}px"'
    return (
        f'<svg role="img" aria-label="{described}" {size} {style}>{"".join([*lives, *drawn, *heads])}</svg>'
    )


def _box(kind: str, x: float, y: float, wide: float, high: float) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="3"/>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def _text(anchor: str, x: float, y: float, text: str, kind: str = "label") -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _arrow(kind: str, start: float, end: float, y: float, lines: list[str]) -> str:
    upwards = list(enumerate(reversed(lines)))
    if start == end:
        texts = [_text("start", start + 36, y + 4 - _LINE * n, line) for n, line in upwards]
        loop = f'<path class="{kind}" d="M{start:g} {y - 8:g}h28v16h-22"/>'
        return f'{loop}<path class="tip" d="M{start:g} {y + 8:g}l8 -4v8z"/>{"".join(texts)}'
    way = 1 if end > start else -1
    middle = (start + end) / 2
    texts = [_text("middle", middle, y - 7 - _LINE * n, line) for n, line in upwards]
    shaft = f'<path class="{kind}" d="M{start:g} {y:g}H{end - 7 * way:g}"/>'
    return f'{shaft}<path class="tip" d="M{end:g} {y:g}l{-8 * way} -4v8z"/>{"".join(texts)}'


def fence(source: str, _language: str, _css: str, _options: Any, _md: Any, **_: Any) -> str:
    """Draw a block of Mermaid: a formatter of `pymdownx.superfences`."""
    return f'<div class="sequence" data-search-exclude>{svg(source)}</div>'
