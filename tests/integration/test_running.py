"""A consumer as the main program of a process, ended by signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import LocalStack
from rmq_txn import Database, Message, RocketMQ, TransactionProducer
from rmq_txn.remoting.client import RemotingClient
from tests.conftest import CHECKOUT
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: signal.Signals(number).name
)
def test_a_signal_lets_the_handler_finish_and_ends_the_process_with_0(
    stack: LocalStack,
    topic: str,
    database_url: str,
    database: Database,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """Its effect is committed and acknowledged: the broker has nothing more for this group."""
    inside, go_on = tmp_path / "inside", tmp_path / "go-on"
    group = f"c-{topic}"
    arguments = {
        "name_server": stack.name_server,
        "url": database_url,
        "topic": topic,
        "group": group,
        "inside": str(inside),
        "go_on": str(go_on),
    }
    with TransactionProducer(
        group=f"g-{topic}", broker=RocketMQ(stack.name_server), database=database, topics=[topic]
    ) as producer:
        producer.send_in_transaction(Message(topic, {"id": "one"}), lambda _txn: None)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.runner", json.dumps(arguments)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(inside.exists, "the handler runs", 60)
        process.send_signal(number)
        go_on.touch()
        said, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert said == "closed\n"
    assert rows(database_url, "SELECT id FROM effect") == [("one",)]
    broker = RemotingClient(stack.broker_address)
    assert sum(broker.consumer_offset(group, topic, queue) or 0 for queue in range(4)) == 1


def test_an_idle_producer_is_registered_with_the_broker_from_the_first_second(
    stack: LocalStack, topic: str, database: Database
) -> None:
    """The broker names it among the producers of the group as soon as start() returned."""
    group = f"g-{topic}"
    broker = RemotingClient(stack.broker_address)
    assert broker.producer_connections(group) == ()
    with TransactionProducer(
        group=group, broker=RocketMQ(stack.name_server), database=database, topics=[topic]
    ):
        assert len(broker.producer_connections(group)) == 1
    until(lambda: broker.producer_connections(group) == (), "the farewell", 10)
