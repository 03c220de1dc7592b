"""RocketMQ in controller mode: the master is killed under load, a replica is promoted, books are compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import StackSettings
from devstack.chaos import problems
from devstack.replicas import ReplicatedCluster
from tests.clusters.scene import running
from tests.conftest import CHECKOUT

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

STEP = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder for one cluster."""
    path = CHECKOUT / ".devstack" / f"cluster-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_killed_master_costs_nothing_when_every_replica_confirms(folder: Path) -> None:
    """kill -9 of the master, its return, and then of its successor: without the relay, nothing is missing."""
    settings = StackSettings.for_tests(folder, transaction_check_max=1000)
    with running(ReplicatedCluster(settings)) as scene:
        scene.wait_for_more(STEP, "before")
        for _ in range(2):
            killed = scene.kill_master()
            scene.wait_for_more(STEP, "on the promoted replica")
            scene.say(f"the longest time without a committed transfer: {scene.pauses.longest_seconds:.1f} s")
            scene.bring_back(killed)
            scene.wait_for_more(STEP, "with the killed one as slave")
        books = scene.settle()
        scene.tell(books)
        assert problems(books, scene.load) == []
