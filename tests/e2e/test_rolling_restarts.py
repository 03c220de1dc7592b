"""Two processes of the points service, restarted in turn while they work off a backlog."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from devstack.services import points_service, start_together
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.cluster import ClusterSettings
from tests.e2e.conftest import SEEDS, Demo
from tests.kit.wait import until

pytestmark = pytest.mark.servers

RESTARTS = int(os.environ.get("RMQ_TXN_TEST_RESTARTS", "4"))
BACKLOG = int(os.environ.get("RMQ_TXN_TEST_BACKLOG", "800"))
SETTLED_SECONDS = 120.0


def dead_letters(demo: Demo) -> int:
    """Return how many messages the points service's dead-letter topic has."""
    cluster = ClusterSettings(demo.stack.name_server)
    topic = "%DLQ%points-service"
    try:
        masters = cluster.masters(topic)
    except BrokerUnavailableError:
        return 0  # no such topic: there never was one
    return sum(
        cluster.ask(master.address).max_offset(topic, queue)
        for master in masters
        for queue in range(master.queues)
    )


@pytest.mark.long
def test_rolling_restarts_over_a_backlog_lose_nothing(
    demo: Demo, unique: str, request: pytest.FixtureRequest
) -> None:
    """C3, H6: every transfer earns its points once, and none lies among the dead letters."""
    second = points_service(demo.stack, demo.folder / "second-points", port=demo.first_port + 3)
    request.addfinalizer(second.stop)
    names, done = (f"{unique}-{n}" for n in itertools.count()), threading.Event()

    def transfer(name: str) -> None:
        assert demo.transfer(name).status == 201

    def traffic() -> None:
        while not done.is_set():
            transfer(next(names))

    demo.points.stop()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(transfer, itertools.islice(names, BACKLOG)))
        backlog = len(demo.ledger.read().missing)
        assert backlog >= BACKLOG
        start_together(demo.points, second)
        busy = pool.submit(traffic)  # a restart that finds nothing to do would prove nothing
        try:
            for service in itertools.islice(itertools.cycle((demo.points, second)), RESTARTS):
                service.stop()
                assert service.exit_code == 0
                service.start()
        finally:
            done.set()
        busy.result()
    until(lambda: not demo.ledger.read().missing, "points for every transfer", SETTLED_SECONDS)
    assert demo.ledger.read().problems(sum(SEEDS.values())) == []
    assert dead_letters(demo) == 0
