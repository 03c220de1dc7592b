"""
What Prometheus would make of real scrapes: its own `promtool` evaluates our rules over them.

A scrape is the text of /metrics of each service. Two of them, before and after a fault, become series of
an hour: the first holds for half of it, then the second one; or things go on as they went between them.
"""

from __future__ import annotations

import http.client
import shutil
import subprocess
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from devstack.debian import downloaded
from devstack.errors import StackError
from devstack.settings import CHECKOUT

RULES = CHECKOUT / "monitoring" / "alerts.yml"

BEFORE, AFTER = "30m", "37m"
LATER = "55m"
"""Moments of that hour: the fault begins at 30; the longest `for` of a gauge is 5 minutes."""
_MINUTES = 30
_SCRAPE_SECONDS = 10.0  # `scrape_timeout`, unless somebody changes it

Series = Mapping[str, float]


def find(cache_folder: Path) -> Path:
    """
    Return `promtool` of this machine, or of its package, which is unpacked and not installed.

    Raises:
        StackError: there is none to be had.
    """
    if installed := shutil.which("promtool"):
        return Path(installed)
    program = downloaded("prometheus", cache_folder) / "usr/bin/promtool"
    if not program.exists():
        raise StackError(f"the package prometheus has no {program.name}, install promtool")
    return program


def scraped(url: str) -> str | None:
    """Return what a service says at /metrics within the time that Prometheus grants; None: nothing."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_SCRAPE_SECONDS) as answer:
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException):
        return None


def series(scrapes: Mapping[str, str | None]) -> dict[str, float]:
    """
    Return the value of each series of rmq_txn, and of `up`, by its name with labels.

    `scrapes` is by job; None is one that failed, of which Prometheus knows `up` alone.
    """
    found: dict[str, float] = {}
    for job, text in scrapes.items():
        found[f'up{{instance="{job}:8000",job="{job}"}}'] = float(text is not None)
        if text is None:
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {**sample.labels, "job": job, "instance": f"{job}:8000"}
                told = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
                if family.name.startswith("rmq_txn"):
                    found[f"{sample.name}{{{told}}}"] = sample.value
    return found


def metric_names(scrapes: Iterable[str]) -> set[str]:
    """Return the names that can be queried."""
    return {
        sample.name
        for text in scrapes
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def problems(
    promtool: Path,
    folder: Path,
    before: Series,
    after: Series,
    alerts: Iterable[str],
    *,
    goes_on: bool = False,
) -> str:
    """
    Evaluate our rules over an hour; return "" if exactly these alerts fire in the end, and none before.

    Args:
        promtool: see `find`.
        folder: for its input.
        before: a scrape; it holds for half an hour.
        after: a later one; it holds from then on.
        alerts: the names of those that shall fire.
        goes_on: from then on each minute the same happens again as between the two.
    """
    fed = []
    for name in {**before, **after}:
        held = f"{before[name]}+0x{_MINUTES - 1}" if name in before else f"_x{_MINUTES}"
        step = after.get(name, 0) - before.get(name, after.get(name, 0)) if goes_on else 0
        then = f"{after[name]}+{step}x{_MINUTES}" if name in after else ""
        fed.append({"series": name, "values": f"{held} {then}".replace("+-", "-")})
    firing = 'group by (alertname) (ALERTS{alertstate="firing"})'
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in alerts]
    moments = ((BEFORE.replace("30", "29"), []), (LATER if goes_on else AFTER, expected))
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": fed,
                "promql_expr_test": [
                    {"expr": firing, "eval_time": moment, "exp_samples": samples}
                    for moment, samples in moments
                ],
            }
        ],
    }
    path = folder / "alerts_test.yml"
    path.write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", path], capture_output=True, text=True, timeout=60, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def check_rules(promtool: Path, rules: Path) -> None:
    """Assert that Prometheus can read a file of rules."""
    done = subprocess.run(
        [promtool, "check", "rules", rules], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
