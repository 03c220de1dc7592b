"""The fault lab on servers that fail over, short and with a fixed seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from devstack.chaos import CLUSTERS, build_parser, experiment
from devstack.lab import Lab

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

SEED, SECONDS, FAULTS = 141, 60, 18


@pytest.mark.parametrize("databases", list(CLUSTERS))
def test_the_books_agree_after_random_faults_and_failovers(
    databases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both kinds of failover among kills, pauses, restarts and broken lines; clients were told the truth."""
    with Lab(tmp_path / "lab", databases=CLUSTERS[databases]) as lab:
        arguments = f"--seed {SEED} --seconds {SECONDS} --faults {FAULTS} --clients 3 --longest 12"
        found = experiment(lab, build_parser().parse_args(arguments.split()))
        targets = {*lab.keepers, *lab.lines, *lab.switches}
    output = capsys.readouterr().out
    print(output)
    assert found == [], output
    assert len(targets) <= FAULTS  # so each of them was hit
    assert "0 missing, 0 extra, 0 twice" in output.splitlines()[-1]
