"""
Draw one trace of the real demo, from the request to the points: an SVG for docs/telemetry.md.

    .venv/bin/python -m tests.kit.tracing docs/images/trace.svg

The verdict of its transfer is lost on purpose, so the broker asks back: that span is in a trace of its own,
and linked. Nothing is drawn that is no span of the two services.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from devstack import LocalStack, StackSettings
from devstack.services import start_together
from tests.e2e.conftest import DELIVERY_SECONDS, Demo
from tests.kit.wait import until

_TRANSFER = "traced-transfer"
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 960, 300, 96, 28, 64
_COLOURS = {"account-service": "#00796b", "points-service": "#e64a19"}
_TEXT, _FAINT = "#37474f", "#cfd8dc"
_LEAST_PIXELS = 3.0


@dataclass(frozen=True)
class Bar:
    """One span."""

    name: str
    service: str
    began: float
    ended: float
    span_id: str
    parent_id: str | None
    trace_id: str
    links: tuple[str, ...]
    keys: tuple[str, ...]

    @classmethod
    def read(cls, span: Mapping[str, Any]) -> Bar:
        """Read what OpenTelemetry's SDK writes."""
        return cls(
            span["name"],
            span["resource"]["attributes"]["service.name"],
            _seconds(span["start_time"]),
            _seconds(span["end_time"]),
            span["context"]["span_id"],
            span["parent_id"],
            span["context"]["trace_id"],
            tuple(link["context"]["span_id"] for link in span["links"]),
            tuple(span["attributes"].get("messaging.rocketmq.message.keys", ())),
        )


def main(path: Path) -> None:
    """Run the demo, and draw."""
    with tempfile.TemporaryDirectory() as folder, LocalStack(StackSettings.for_tests(Path(folder))) as stack:
        demo = Demo(stack)
        try:
            start_together(*demo.services)
            assert demo.transfer("warming-up").status == 201
            demo.wait_for_points("warming-up")
            fault = {"fault": "slow_check_back", "transfer_id": _TRANSFER}
            assert demo.account.post("/faults", fault).status == 200
            assert demo.transfer(_TRANSFER).status == 201
            bars = until(lambda: of_transfer(demo.spans, _TRANSFER), "all spans", DELIVERY_SECONDS) or []
        finally:
            demo.close()
    path.write_text(drawn(bars), encoding="utf-8")


def of_transfer(files: Iterable[Path], transfer_id: str) -> list[Bar]:
    """Return the spans of one transfer's trace, and those linked to it; [] until it was delivered."""
    bars = [
        Bar.read(json.loads(line)) for path in files for line in path.read_text("utf-8").splitlines() if line
    ]
    traces = {bar.trace_id for bar in bars if transfer_id in bar.keys}
    own = [bar for bar in bars if bar.trace_id in traces]
    ids = {bar.span_id for bar in own}
    found = own + [bar for bar in bars if bar not in own and ids & {*bar.links}]
    done = {bar.name.split()[0] for bar in found} >= {"POST", "process", "check-back"}
    return sorted(found, key=lambda bar: (bar.began, -bar.ended)) if done else []


def drawn(bars: list[Bar]) -> str:
    """Return the SVG."""
    began, ended = min(bar.began for bar in bars), max(bar.ended for bar in bars)
    scale = (_WIDTH - _LEFT - _RIGHT) / (ended - began)
    by_id = {bar.span_id: number for number, bar in enumerate(bars)}
    height = _TOP + _ROW * len(bars) + 16
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            'font-family="sans-serif" font-size="13">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (service, colour) in enumerate(_COLOURS.items()):
        x = 16 + 170 * number
        parts.append(f'<rect x="{x}" y="14" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, 25, service))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        parts.append(f'<path d="M{x:.1f} {_TOP - 8}V{height - 8}" stroke="{_FAINT}"/>')
        parts.append(_text(x, _TOP - 14, f"{share * (ended - began):.1f} s", anchor="middle"))
    for number, bar in enumerate(bars):
        y = _TOP + _ROW * number
        x = _LEFT + (bar.began - began) * scale
        width = max((bar.ended - bar.began) * scale, _LEAST_PIXELS)
        linked = bar.parent_id is None and bar.links
        indent = 16 + 14 * _depth(bar, bars, by_id)
        parts.append(_text(indent, y + 16, f"{'linked: ' if linked else ''}{bar.name}"))
        dashes = f' fill-opacity="0.35" stroke="{_COLOURS[bar.service]}" stroke-dasharray="4 2"'
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="16" rx="2" '
            f'fill="{_COLOURS[bar.service]}"{dashes if linked else ""}/>'
        )
        parts.append(_text(x + width + 6, y + 16, f"{(bar.ended - bar.began) * 1000:.1f} ms"))
    return "\n".join([*parts, "</svg>", ""])


def _depth(bar: Bar, bars: list[Bar], by_id: Mapping[str, int]) -> int:
    return 0 if bar.parent_id not in by_id else 1 + _depth(bars[by_id[bar.parent_id]], bars, by_id)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{_TEXT}" text-anchor="{anchor}">{escape(text)}</text>'


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
