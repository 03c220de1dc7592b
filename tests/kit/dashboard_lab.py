"""
Break things under load, one after the other, and draw what the dashboard showed meanwhile.

    .venv/bin/python -m tests.kit.dashboard_lab docs/images/dashboard.svg [SEEN]

Two processes of each demo service, real servers, a real Prometheus which is asked what each panel asks.
SEEN keeps what was seen: if that file exists, it is drawn again, and nothing is run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from devstack.chaos import problems
from devstack.faults import Fault, Happened
from devstack.lab import Lab
from devstack.load import USERS
from devstack.services import DemoService
from tests.kit.dashboard import Panel, panels
from tests.kit.dashboard_picture import Band, Line, Scene, drawn
from tests.kit.prometheus import Answered, Prometheus, Scraped
from tests.kit.wait import until

_SCRAPE_SECONDS = 4
# What Grafana makes of that: four scrapes, so that a rate bears one that fails.
_RATE_SECONDS = 4 * _SCRAPE_SECONDS
# RocketMQ's own. A broker notes verdicts in batches, up to 3 s later: asked after 3 s, as in tests, it asks
# about many that it was told of.
_ASKS_AFTER_SECONDS = 6.0
_CALM_SECONDS = 20.0
_WARM_SECONDS = 300.0
_CLIENTS, _PAUSE_SECONDS = 4, 0.25
_LOST, _FAILED = "verdicts", "a handler"
_FAULTS = (
    ("kill -9", "broker", 25.0, "the broker is killed"),
    ("pause", "database", 25.0, "the database is frozen"),
    ("read-only", "writes to the databases", 25.0, "the database refuses writes"),
    ("lost", _LOST, 20.0, "verdicts are lost"),
    ("kill -9", "points-1", 25.0, "one of two consumers is killed"),
    ("pause", "account-1", 25.0, "one of two producers is frozen"),
    ("fails", _FAILED, 30.0, "a handler fails for one message"),
)
_NAMES = {(kind, target): name for kind, target, _seconds, name in _FAULTS}


class Buttons:
    """Faults of single transfers, which the services of a lab take as from the demo page."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._done = threading.Event()
        self._thread = threading.Thread()

    def lose_verdicts(self, on: bool) -> None:
        """Send a transfer a second whose verdict gets lost; the load goes on beside them."""
        if on:
            self._done.clear()
            self._thread = threading.Thread(target=self._lose, daemon=True)
            self._thread.start()
        else:
            self._done.set()
            self._thread.join()

    def break_handler(self, on: bool) -> None:
        """Send a transfer whose handler fails to the last attempt; in the end it is mended and replayed."""
        if on:
            for service in self._lab.points:
                _post(service, "/faults", {"fault": "poison", "transfer_id": "poisoned"})
            _post(self._lab.accounts[0], "/transfers", _transfer("poisoned"))
        else:
            for service in self._lab.points:  # one that did not see it fail has nothing to mend
                _post(service, "/mend", {"transfer_id": "poisoned"})

    def _lose(self) -> None:
        number = 0
        while not self._done.wait(1.0):
            number += 1
            service, name = self._lab.accounts[number % 2], f"lost-{number}"
            _post(service, "/faults", {"fault": "slow_check_back", "transfer_id": name})
            _post(service, "/transfers", _transfer(name))


def _post(service: DemoService, path: str, body: dict[str, Any]) -> None:
    answer = service.post(path, body)
    if answer.status >= 300:
        raise RuntimeError(f"{path} of the {service.name} answers {answer.status} {answer.body}")


def _transfer(name: str) -> dict[str, Any]:
    return {"transfer_id": name, "from": USERS[0], "to": USERS[1], "amount": 100}


def seen_in_a_run(folder: Path, shown: tuple[Panel, ...]) -> Scene:
    """Run the lab; return what the panels showed. The books must agree in the end."""
    with Lab(folder, buttons=True, asks_after_seconds=_ASKS_AFTER_SECONDS) as lab:
        buttons = Buttons(lab)
        lab.switches[_LOST] = {"lost": buttons.lose_verdicts}
        lab.switches[_FAILED] = {"fails": buttons.break_handler}
        scraped = [
            Scraped(service.name.rpartition("-")[0] + "-service", service.name, service.port)
            for service in (*lab.accounts, *lab.points)
        ]
        cache = lab.stack.settings.cache_folder
        with Prometheus(cache, folder / "prometheus", scraped, every=_SCRAPE_SECONDS) as prometheus:
            load = lab.start_load(_CLIENTS, pause_seconds=_PAUSE_SECONDS)
            # Rates need a window of scrapes, gauges a look of their client: the picture begins later.
            until(lambda: _window_is_full(prometheus, len(scraped)), "scrapes for a rate", _WARM_SECONDS)
            began = time.time()
            faults = [Fault(0.0, kind, target, seconds) for kind, target, seconds, _name in _FAULTS]
            happened = lab.run_in_turn(faults, calm_seconds=_CALM_SECONDS)
            ended = time.time()
            found = problems(lab.heal(load), load)
            if found:
                raise RuntimeError("; ".join(found))
            day = datetime.fromtimestamp(began, timezone.utc).date()
            note = f"RocketMQ {lab.stack.settings.rocketmq_version}, Prometheus {prometheus.version}, {day}"
            lines = {
                panel.title: tuple(_lines(prometheus, panel, began, ended))
                for panel in shown
                if panel.targets
            }
        bands = tuple(_band(noted, began) for noted in happened)
        return Scene(ended - began, _SCRAPE_SECONDS, note, bands, lines)


def _window_is_full(prometheus: Prometheus, processes: int) -> bool:
    """Whether each process was scraped once more than a window of rates holds."""
    now = time.time()
    scrapes = prometheus.over_time("sum_over_time(up[1h])", now, now, step=_SCRAPE_SECONDS)
    counts = [one.points[-1][1] for one in scrapes if one.points]
    return len(counts) == processes and min(counts) > _RATE_SECONDS / _SCRAPE_SECONDS


def _lines(prometheus: Prometheus, panel: Panel, began: float, ended: float) -> list[Line]:
    found = []
    for target in panel.targets:
        series: list[Answered] = prometheus.over_time(
            target.asked(_RATE_SECONDS), began, ended, step=_SCRAPE_SECONDS
        )
        for one in series:
            points = tuple((round(second - began, 3), value) for second, value in one.points)
            found.append(Line(target.name(one.labels), points))
    return [line for line in found if line.points]


def _band(noted: Happened, began: float) -> Band:
    name = _NAMES[noted.fault.kind, noted.fault.target]
    return Band(name, noted.began - began, noted.ended - began)


def read(text: str) -> Scene:
    """Return a scene that was kept."""
    told = json.loads(text)
    lines = {
        title: tuple(Line(line["name"], tuple(map(tuple, line["points"]))) for line in found)
        for title, found in told["lines"].items()
    }
    bands = tuple(Band(**band) for band in told["bands"])
    return Scene(told["seconds"], told["step"], told["note"], bands, lines)


def main(picture: Path, seen: Path | None) -> None:
    """Draw what was seen, or look."""
    shown = panels()
    if seen is not None and seen.exists():
        scene = read(seen.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            scene = seen_in_a_run(Path(folder) / "lab", shown)
        if seen is not None:
            seen.write_text(json.dumps(asdict(scene)), encoding="utf-8")
    picture.write_text(drawn(shown, scene), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
