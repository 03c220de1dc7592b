"""The picture of a trace: each span of a transfer is in it, indented by its parent, and no other one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.kit.tracing import drawn, of_transfer


def span(name: str, number: int, parent: int | None, trace: str, **more: Any) -> str:
    """Return a line as OpenTelemetry's SDK writes it."""
    told = {
        "name": name,
        "context": {"trace_id": trace, "span_id": str(number)},
        "parent_id": None if parent is None else str(parent),
        "start_time": f"2026-01-01T00:00:0{number}.000000Z",
        "end_time": "2026-01-01T00:00:09.500000Z",
        "attributes": {"messaging.rocketmq.message.keys": more.get("keys", [])},
        "links": [{"context": {"span_id": str(link)}} for link in more.get("links", ())],
        "resource": {"attributes": {"service.name": more.get("service", "account-service")}},
    }
    return json.dumps(told)


def test_a_transfer_is_drawn_with_what_is_linked_to_it_once_it_was_delivered(tmp_path: Path) -> None:
    account, points = tmp_path / "account", tmp_path / "points"
    lines = [
        span("POST /transfers", 0, None, "a"),
        span("send transfer", 1, 0, "a", keys=["t-1"]),
        span("check-back <g>", 3, None, "b", links=[1]),
        span("POST /transfers", 4, None, "c"),
    ]
    account.write_text("\n".join(lines), encoding="utf-8")
    points.write_text("", encoding="utf-8")
    assert of_transfer([account, points], "t-1") == []
    points.write_text(span("process transfer", 5, 1, "a", service="points-service"), encoding="utf-8")
    bars = of_transfer([account, points], "t-1")
    names = ["POST /transfers", "send transfer", "check-back <g>", "process transfer"]
    assert [bar.name for bar in bars] == names
    picture = drawn(bars)
    told = re.findall(r'<text x="([\d.]+)" y="\d+"[^>]*>([^<]+)</text>\n<rect x="', picture)
    assert told[-4:] == [
        ("16.0", "POST /transfers"),
        ("30.0", "send transfer"),
        ("16.0", "linked: check-back &lt;g&gt;"),
        ("44.0", "process transfer"),
    ]
    assert picture.count("<rect") == 1 + 2 + len(names)
