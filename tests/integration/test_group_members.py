"""Members of one group that differ, and groups that were away: nothing is swallowed. On a real broker."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable

import pytest

from devstack import Stack
from rmq_txn import Database, IdempotentConsumer, RocketMQ, Transaction
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.message import Delivery
from rmq_txn.remoting import dead_letters
from rmq_txn.transport import binding
from tests.kit import foreign
from tests.kit.broker_administrator import BrokerAdministrator
from tests.kit.desk import Desk
from tests.kit.processes import child, outcome
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers


def member(name_server: str, url: str, group: str, topic: str, tags: list[str]) -> None:
    """Be a process of the group that has handlers for some tags; at SIGTERM tell its health, and die."""
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    consumer = IdempotentConsumer(group=group, broker=RocketMQ(name_server), database=Database.mysql(url))

    def award(txn: Transaction, delivery: Delivery) -> None:
        txn.execute("INSERT INTO effect VALUES (%s, %s, NULL)", (delivery.json()["id"], str(os.getpid())))

    for tag in tags:
        consumer.handles(topic, tag)(award)
    consumer.start()
    print("ready", flush=True)
    done.wait()
    print(json.dumps(consumer.health().problems), flush=True)
    os._exit(0)  # at once: here a redelivery comes each second, not after 10 s, 30 s, a minute ...


def test_a_tag_that_only_the_new_processes_of_a_deployment_handle_is_handled(desk: Desk) -> None:
    """The old one's filter swallowed half of them, without a word; now it says so and gives them back."""
    here = {"name_server": desk.stack.name_server, "url": desk.url, "group": f"c-{desk.topic}"}
    old = child(member, tags=["created"], topic=desk.topic, **here)
    new = child(member, tags=["created", "paid"], topic=desk.topic, **here)
    probes = itertools.count()

    def both_have_queues() -> bool:
        desk.publish(f"created-{next(probes)}", tag="created")
        return len(rows(desk.url, "SELECT DISTINCT note FROM effect")) == 2

    def paid() -> list[str]:
        return sorted(id_ for id_ in desk.effects() if id_.startswith("paid"))

    try:
        for process in (old, new):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        until(both_have_queues, "both take part", 40)
        ids = sorted(f"paid-{n}" for n in range(20))
        desk.publish(*ids, tag="paid")
        until(paid, "some are handled by the new one", 60)
        old.terminate()  # the deployment goes on: the old one ends
        status, said = outcome(old, 60)
        assert status == 0
        until(lambda: len(paid()) >= 20, "all are handled", 60)
    finally:
        for process in (old, new):
            if process.poll() is None:
                process.terminate()
                outcome(process, 60)
    assert paid() == ids
    assert rows(desk.url, "SELECT 1 FROM rmq_txn_parked WHERE state > 0") == []
    (problem,) = json.loads(said.splitlines()[-1])
    assert problem.startswith(f"no handler for topic '{desk.topic}' with tag 'paid': ")
    assert problem.endswith("given back to the broker; add a handler, or say ignores(topic, tag)")


def test_what_the_group_ignores_is_acknowledged_and_leaves_nothing(desk: Desk) -> None:
    """By an explicit word; what comes behind it is handled, and health has nothing to say."""
    consumer = desk.consumer(start=False)
    consumer.ignores(desk.topic, "noise")
    with consumer:
        desk.publish("a", "b", tag="noise")
        desk.publish("c", tag="gold")
        desk.publish("d")
        desk.wait_effects("c", "d")
        assert sorted(desk.effects()) == ["c", "d"]
        assert consumer.health().problems == ()
    assert rows(desk.url, "SELECT 1 FROM rmq_txn_parked") == []


def test_queues_that_came_while_a_group_was_away_begin_at_their_beginning(
    stack: Stack, desk: Desk, unique: str
) -> None:
    """Also with `new_group_from="latest"`: 9 of 12 messages were never delivered."""
    topic, group = f"q-{unique}", f"c-q-{unique}"
    stack.create_topic(topic, queues=2)
    broker = RocketMQ(stack.name_server, new_group_from="latest")
    seen: list[str] = []

    def run(published: Callable[[], list[str]]) -> None:
        consumer = IdempotentConsumer(group=group, broker=broker, database=desk.database)
        consumer.handles(topic)(lambda _txn, delivery: seen.append(delivery.json()["id"]))
        with consumer:
            ids = published()
            until(lambda: set(ids) <= set(seen), f"{ids} are handled", 60)

    def send(queue: int, id_: str) -> str:
        foreign.send(stack.broker_address, topic, queue, json.dumps({"id": id_}).encode())
        return id_

    send(0, "history")
    run(lambda: [send(0, "first"), send(1, "second")])
    stack.create_topic(topic, queues=6)
    ids = [send(queue, f"{queue}-{n}") for queue in range(2, 6) for n in range(3)]
    run(lambda: ids)
    assert "history" not in seen
    assert sorted(seen) == sorted([*ids, "first", "second"])


@pytest.mark.parametrize("way", ["ours", pytest.param("library", marks=pytest.mark.long)])
def test_a_group_whose_broker_would_bury_at_once_is_parked_by_its_own_count(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """`retryMaxTimes` of the group won over `max_attempts`: buried after 2 calls, not parked after 5."""
    cluster = RocketMQ(desk.stack.name_server)
    (address,) = (broker.master_address for broker in cluster.route(desk.topic).brokers)
    BrokerAdministrator(address or "").set_group(f"c-{desk.topic}", retryMaxTimes=1)
    if way == "library":
        monkeypatch.setattr(binding, "read_place", lambda _message: None)
    calls: list[int] = []

    def broken(_txn: Transaction, delivery: Delivery) -> None:
        calls.append(delivery.redeliveries)
        raise ValueError("no such user")

    desk.consumer(broken, max_attempts=5)
    desk.publish("m")
    until(
        lambda: rows(desk.url, "SELECT state, attempts FROM rmq_txn_parked") == [(ParkedState.EXHAUSTED, 5)],
        "parked after five failures",
        60,
    )
    assert calls == [0, 1, 2, 3, 4]
    assert list(dead_letters.unread(cluster, f"c-{desk.topic}")) == []
