"""Debian's Prometheus on loopback for as long as a block runs: it scrapes, and is asked about a time."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devstack.debian import downloaded
from devstack.machine import free_port_block
from tests.kit.wait import until

_READY_SECONDS = 60.0
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Scraped:
    """A process: its service, its name, and where /metrics is."""

    job: str
    instance: str
    port: int


@dataclass(frozen=True)
class Answered:
    """One series of an answer: its labels, and its points as epoch seconds and value."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """
    A server of its own, which keeps nothing when it ends.

    Args:
        cache_folder: where the package is kept once it was downloaded.
        folder: for its configuration, its data and its log.
        scraped: whom it asks.
        every: seconds between two scrapes, and the time that each of them has.
    """

    def __init__(self, cache_folder: Path, folder: Path, scraped: Sequence[Scraped], *, every: int) -> None:
        self._program = downloaded("prometheus", cache_folder) / "usr/bin/prometheus"
        self._folder = folder
        self._port = free_port_block()
        self._url = f"http://127.0.0.1:{self._port}"
        jobs = [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [f"127.0.0.1:{one.port}"], "labels": {"instance": one.instance}}
                    for one in scraped
                    if one.job == job
                ],
            }
            for job in sorted({one.job for one in scraped})
        ]
        pace = {"scrape_interval": f"{every}s", "scrape_timeout": f"{every}s"}
        self._settings = {"global": pace, "scrape_configs": jobs}

    def __enter__(self) -> Prometheus:
        """Start it; return when it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(self._settings), encoding="utf-8")
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={path}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            until(self._ready, "an answer of Prometheus", _READY_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    @property
    def version(self) -> str:
        """Return its version, without that of the package."""
        return str(self._ask("status/buildinfo", {})["version"]).partition("+")[0]

    def over_time(self, expr: str, began: float, ended: float, *, step: int) -> list[Answered]:
        """Return the series between two moments in epoch seconds; points that are no number are left out."""
        asked = {"query": expr, "start": f"{began:.3f}", "end": f"{ended:.3f}", "step": str(step)}
        return [
            Answered(
                {name: told for name, told in series["metric"].items() if name != "__name__"},
                tuple((float(second), float(value)) for second, value in series["values"] if value != "NaN"),
            )
            for series in self._ask("query_range", asked)["result"]
        ]

    def _ready(self) -> bool:
        assert self._process.poll() is None, f"it ended, see {self._folder / 'prometheus.log'}"
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=1.0):
                return True
        except OSError:
            return False

    def _ask(self, path: str, asked: Mapping[str, str]) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
            return json.loads(answer.read())["data"]
