"""`docs/guarantees.md` names a test for each row: they exist, and each row has one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
GUARANTEES = (CHECKOUT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NODE_ID = re.compile(r"`(tests/[\w/]+\.py(?:::\w+)+)`")


def test_every_row_names_one_test() -> None:
    """A promise without a test is an opinion."""
    rows = [line for line in GUARANTEES.splitlines() if line.startswith("|")]
    promises = [row for row in rows if not row.startswith(("|---", "| failure point"))]
    assert promises
    assert [row for row in promises if not NODE_ID.search(row.split("|")[-2])] == []


def not_collected(document: str) -> set[str]:
    """Return the tests a document names and pytest would not run."""
    named = set(NODE_ID.findall(document))
    files = sorted({node_id.split("::")[0] for node_id in named})
    asked = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *files],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=300,  # five seconds of work; a busy machine took more than 60
        check=False,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    collected = {line.split("[")[0] for line in asked.stdout.splitlines() if "::" in line}
    return named - collected


def test_every_named_test_is_collected() -> None:
    """Asked of pytest itself, which knows what it would run."""
    assert not_collected(GUARANTEES) == set()
