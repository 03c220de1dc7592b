"""monitoring/dashboard.json as its picture needs it: the panels, what they ask, and a fingerprint of both."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from devstack.settings import CHECKOUT

DASHBOARD = CHECKOUT / "monitoring" / "dashboard.json"


@dataclass(frozen=True)
class Target:
    """One question of a panel, and the pattern of its series' names."""

    expr: str
    legend: str

    def asked(self, rate_seconds: int) -> str:
        """Return the question with Grafana's variables filled in: all jobs, and that window of rates."""
        return self.expr.replace("$__rate_interval", f"{rate_seconds}s").replace("$job", ".*")

    def name(self, labels: Mapping[str, str]) -> str:
        """Return what a series with these labels is called."""
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), self.legend)


@dataclass(frozen=True)
class Panel:
    """
    One panel, in the cells of Grafana's grid of 24 columns.

    Attributes:
        kind: `row` (a heading), `stat` or `timeseries`.
        steps: thresholds: from which value on which colour, lowest first.
    """

    title: str
    kind: str
    unit: str
    x: int
    y: int
    width: int
    height: int
    steps: tuple[tuple[float, str], ...]
    targets: tuple[Target, ...]

    @classmethod
    def read(cls, panel: Mapping[str, Any]) -> Panel:
        """Read a panel of the file."""
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        steps = defaults.get("thresholds", {}).get("steps", ())
        grid = panel["gridPos"]
        return cls(
            panel["title"],
            panel["type"],
            defaults.get("unit", "none"),
            grid["x"],
            grid["y"],
            grid["w"],
            grid["h"],
            tuple((float("-inf") if s["value"] is None else float(s["value"]), s["color"]) for s in steps),
            tuple(Target(target["expr"], target["legendFormat"]) for target in panel.get("targets", ())),
        )


def panels() -> tuple[Panel, ...]:
    """Return all panels of the dashboard, rows included, as they stand in the file."""
    return tuple(map(Panel.read, json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]))


def fingerprint(shown: tuple[Panel, ...]) -> str:
    """Return what changes with each title, place, unit, threshold and question."""
    told = json.dumps([astuple(panel) for panel in shown])
    return hashlib.sha256(told.encode()).hexdigest()[:16]
