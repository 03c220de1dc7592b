"""Native clients that start, and those that can't: known at once, or refused in a sentence; never a hang."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from devstack import LocalStack
from rmq_txn import RmqTxnError, RocketMQ
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import SCOUT_GROUP
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.transport.native_consumer import NativeConsumer
from rmq_txn.transport.native_producer import NativeProducer
from rmq_txn.verdict import Answer, Verdict
from tests.kit.known import known_producer
from tests.kit.processes import child, outcome
from tests.kit.wait import until

pytestmark = pytest.mark.servers

CLOSE_SECONDS = 10.0


def test_a_started_producer_is_known_at_the_first_question_and_after_its_scout_has_gone(
    stack: LocalStack, topic: str
) -> None:
    """Its topics' brokers name it before start() returns; no try, no pause, no luck."""
    broker = RemotingClient(stack.broker_address)
    with ExitStack() as resources:
        producers = []
        for number in range(5):
            made = RocketMQ(stack.name_server).producer(f"g{number}-{topic}", lambda _check: Verdict.UNKNOWN)
            producers.append(known_producer(lambda made=made: made, topic, resources))
            assert producers[-1].is_registered(topic)
        until(lambda: broker.producer_connections(SCOUT_GROUP) == (), "no scout is left")
        assert all(producer.is_registered(topic) for producer in producers)


def test_a_start_that_the_library_refuses_holds_up_nobody(stack: LocalStack, topic: str) -> None:
    """Other clients start, work and close after it, and the process ends with its own status."""
    process = child(starts_in_vain, name_server=stack.name_server, topic=topic)
    assert outcome(process, 60) == (3, "refused\nstarted\nclosed\n")


@pytest.mark.parametrize("kind", ["consumer", "producer"])
def test_a_log_folder_that_can_not_be_used_is_an_error_not_the_end_of_the_process(
    stack: LocalStack, topic: str, tmp_path: Path, kind: str
) -> None:
    """C7: the library aborts a process whose first client is a consumer."""
    (tmp_path / "file").touch()
    environment = {"ROCKETMQ_CLIENT_LOG_DIR": str(tmp_path / "file")}
    process = child(
        starts_one, environment=environment, name_server=stack.name_server, topic=topic, kind=kind
    )
    status, said = outcome(process, 60)
    assert status == 0
    assert said.startswith(f"SettingsError: the native client can't write its log into '{tmp_path}/file'")


# -- programs, each run in a process of its own


def starts_in_vain(name_server: str, topic: str) -> None:
    """Start a client whose group the library refuses, then one that it takes, and end with 3."""
    broker = RocketMQ(name_server)
    # Past our own refusal of this name: whatever the library refuses must end like this.
    refused = NativeConsumer(broker, "DEFAULT_CONSUMER", {topic: "*"}, 1, lambda _delivery: Answer.ACK)
    try:
        refused.start()
    except BrokerUnavailableError:
        refused.close(0.0, CLOSE_SECONDS)
        print("refused", flush=True)
    producer = NativeProducer(broker, f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    producer.start([topic])
    consumer = NativeConsumer(broker, f"c-{topic}", {topic: "*"}, 1, lambda _delivery: Answer.ACK)
    consumer.start()
    print("started", flush=True)
    producer.close(CLOSE_SECONDS)
    consumer.close(0.0, CLOSE_SECONDS)
    print("closed", flush=True)
    raise SystemExit(3)


def starts_one(name_server: str, topic: str, kind: str) -> None:
    """Start one client and tell what it raised."""
    broker = RocketMQ(name_server)
    try:
        if kind == "producer":
            broker.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN).start([topic])
        else:
            broker.consumer(f"c-{topic}", {topic: ["*"]}, 1, lambda _delivery: Answer.ACK).start()
    except RmqTxnError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
