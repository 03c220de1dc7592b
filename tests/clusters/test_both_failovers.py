"""RocketMQ and the database both with failover, real messages under way: each is killed, and both at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from devstack import StackSettings
from devstack.chaos import CLUSTERS, problems
from devstack.database_cluster import Follower
from devstack.replicas import ReplicatedCluster
from tests.clusters.scene import Scene, running

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

STEP = 60


@pytest.fixture(scope="module", params=CLUSTERS.values(), ids=CLUSTERS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Start both services on clusters of their own; brokers ask on and on, the relay is not hurried."""
    folder = tmp_path_factory.mktemp("clusters")
    settings = StackSettings.for_tests(folder / "rocketmq", transaction_check_max=1000)
    with (
        request.param(folder / "nodes") as databases,
        closing(Follower(databases)),
        running(ReplicatedCluster(settings, databases=databases), databases) as scene,
    ):
        yield scene


def require_books(scene: Scene) -> None:
    """Every committed transfer has its points once, nothing else has, and clients were told the truth."""
    books = scene.settle()
    scene.tell(books)
    assert problems(books, scene.load) == []


def test_a_killed_database_primary_costs_no_message(scene: Scene) -> None:
    """kill -9 of the primary while transfers commit and points are booked; it comes back as a member."""
    scene.begin_load()
    scene.wait_for_more(STEP, "before")
    killed = scene.kill_primary()
    scene.wait_for_more(STEP, "on the next primary")
    scene.tell_pause("a database primary was killed")
    scene.bring_back_node(killed)
    scene.wait_for_more(STEP, "with all nodes")
    require_books(scene)


def test_a_primary_that_is_demoted_and_comes_back_costs_no_message(scene: Scene) -> None:
    """Its connections stay open and are refused; then the same happens to the node that stood in for it."""
    scene.begin_load()
    scene.wait_for_more(STEP, "before")
    demoted = scene.demote_primary()
    scene.wait_for_more(STEP, "on the next primary")
    scene.tell_pause("a database primary was demoted")
    scene.promote(demoted)
    scene.wait_for_more(STEP, "on the first primary")
    scene.tell_pause("it was made the primary again")
    require_books(scene)


def test_a_master_and_a_database_primary_killed_at_once_cost_no_message(scene: Scene) -> None:
    """Each has its successor in seconds; what was under way then is asked about, and answered by the next."""
    scene.begin_load()
    scene.wait_for_more(STEP, "before")
    master, primary = scene.kill_both()
    scene.wait_for_more(STEP, "on both successors")
    scene.tell_pause("both were killed")
    scene.bring_back(master)
    scene.bring_back_node(primary)
    scene.wait_for_more(STEP, "with all servers")
    require_books(scene)
