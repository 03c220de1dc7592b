"""RocketMQ in controller mode: the master is killed under load, a replica is promoted, books are compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import StackSettings, hurried
from devstack.chaos import problems
from devstack.load import SEEDS
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
        scene.begin_load()
        scene.wait_for_more(STEP, "before")
        for _ in range(2):
            killed = scene.kill_master()
            scene.wait_for_more(STEP, "on the promoted replica")
            scene.tell_pause("a master was killed")
            scene.bring_back(killed)
            scene.wait_for_more(STEP, "with the killed one as slave")
        books = scene.settle()
        scene.tell(books)
        assert problems(books, scene.load) == []


def test_what_a_master_confirmed_alone_is_lost_with_it_and_comes_from_the_outbox(folder: Path) -> None:
    """RocketMQ's default setting, and a slave that lags: without its copy such a message is gone."""
    alone = {
        "allAckInSyncStateSet": "false",
        "inSyncReplicas": "1",
        "haMaxTimeSlaveNotCatchup": "600000",  # 15 s by default: a busy machine needs more
    }
    settings = StackSettings.for_tests(
        folder, transaction_check_max=hurried.QUESTIONS, broker_properties=alone
    )
    with running(ReplicatedCluster(settings), account_module="devstack.hurried") as scene:
        scene.begin_load()
        scene.wait_for_more(STEP, "before")
        points = scene.services[1]
        points.stop()  # consumers would see these, and be done with them
        scene.cut_replication()
        before = set(scene.load.committed)
        scene.wait_for_more(STEP, "that only the master has")
        killed = scene.kill_master()
        on_the_master = {id_: txn for id_, txn in scene.load.committed.items() if id_ not in before}
        uncopied = frozenset(sorted(on_the_master)[::2])
        assert scene.forget_copies(on_the_master[id_] for id_ in uncopied) == len(uncopied)
        points.start()
        scene.wait_for_more(STEP, "on the promoted replica")
        scene.bring_back(killed)
        books = scene.settle(lost=uncopied)
        scene.tell(books)
        scene.say(f"of {len(on_the_master)} that only the master had, {len(uncopied)} had lost their copy")
        assert books.missing
        assert books.missing <= uncopied
        assert books.without(books.missing).problems(sum(SEEDS.values())) == []
        assert (scene.load.surprises, scene.load.undecided) == ([], set())
