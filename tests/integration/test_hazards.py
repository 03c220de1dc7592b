"""
What the native client does behind our back, and what the package does against it: `docs/hazards.md`.

What would crash or hang a process runs in one of its own, with a deadline: the functions at the end.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from devstack import LocalStack
from rmq_txn import (
    BrokerUnavailableError,
    Database,
    Delivery,
    HalfMessageError,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.errors import LifecycleError, SettingsError
from rmq_txn.identity import PROPERTY_TXN_ID, new_txn_id
from rmq_txn.inflight import InFlight
from rmq_txn.message import Outbound
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError
from rmq_txn.transport import Check, Deliver, binding
from rmq_txn.transport.native_consumer import NativeConsumer
from rmq_txn.verdict import Answer, Verdict
from tests.kit.known import known_producer
from tests.kit.processes import child, outcome, together
from tests.kit.rows import rows
from tests.kit.transports import RecordChecks, Wrapped
from tests.kit.wait import until

pytestmark = pytest.mark.servers

CLOSE_SECONDS = 10.0
BROKER_PAUSE_SECONDS = 4.0
"""Longer than one attempt of a send (3 s), shorter than two."""


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    """Return a stack of what the test opens; all is closed at its end, last first."""
    with ExitStack() as opened:
        yield opened


def outbound(topic: str, **body: Any) -> Outbound:
    """Make a message for a bare transport."""
    return Message(topic, body or {"n": 0}).outbound(txn_id=new_txn_id(), position=0, owner="hazards@tests")


def test_only_what_reads_or_writes_one_message_keeps_the_gil() -> None:
    """What waits, or calls back, would hang the process with it."""
    keeps_the_gil = 0x4  # FUNCFLAG_PYTHONAPI of CPython's ctypes
    flags = {name: getattr(function, "_flags_", 0) for name, function in vars(binding.ffi().dll).items()}
    keeping = {name for name, its in flags.items() if its & keeps_the_gil}
    assert keeping == set(binding._KEEPING_THE_GIL)
    plain = ("CreateMessage", "DestroyMessage", "SetMessage", "SetByteMessageBody", "GetMessage")
    assert {name for name in keeping if not name.startswith(plain)} == {binding._GET_BODY}


# -- A: transactions


def test_a_half_message_sent_twice_over_a_frozen_broker_arrives_under_the_id_that_won(
    stack: LocalStack, topic: str, database: Database, resources: ExitStack
) -> None:
    """A1: the client sends again under another id; the orphan is asked about and rolled back."""
    checks, delivered = RecordChecks(), list[str]()
    handled: list[str] = []

    def around(deliver: Deliver) -> Deliver:
        def recorded(delivery: Delivery) -> Answer:
            delivered.append(delivery.message_id)
            return deliver(delivery)

        return recorded

    broker = RocketMQ(stack.name_server)
    consumer = IdempotentConsumer(
        group=f"c-{topic}", broker=Wrapped(broker, around_deliver=around), database=database
    )
    consumer.handles(topic)(lambda _txn, delivery: handled.append(delivery.message_id))
    resources.enter_context(consumer)
    settings: dict[str, Any] = {
        "group": f"g-{topic}",
        "broker": Wrapped(broker, around_check=checks),
        "database": database,
        "topics": [topic],
    }
    producer = resources.enter_context(TransactionProducer(**settings))
    txn_ids: set[str] = set()

    def send(n: int) -> str:
        """Send as users do, again if nothing was committed; return the id that won."""
        for _ in range(20):
            try:
                receipt = producer.send_in_transaction(Message(topic, {"n": n}), lambda _txn: None)
            except HalfMessageError as error:
                txn_ids.add(error.txn_id)
                continue
            txn_ids.add(receipt.txn_id)
            return receipt.message_ids[0]
        raise AssertionError("20 sends failed")

    def answers() -> dict[str, set[Verdict]]:
        found: dict[str, set[Verdict]] = {}
        for check, verdict in checks.seen:
            if check.properties.get(PROPERTY_TXN_ID) in txn_ids:
                found.setdefault(check.message_id, set()).add(verdict)
        return found

    stack.broker.pause()
    resume = threading.Timer(BROKER_PAUSE_SECONDS, stack.broker.resume)
    resume.start()
    try:
        winner = send(1)
    finally:
        resume.join()
    # This one lost its connection and reports itself each 30 s only: another one is asked sooner.
    resources.enter_context(TransactionProducer(**settings))
    until(
        lambda: any(Verdict.ROLLBACK in said for said in answers().values()), "an orphan is rolled back", 60
    )
    later = send(2)
    until(lambda: {winner, later} <= set(handled), "both deliveries")
    final = answers()
    for message_id, said in final.items():
        assert (Verdict.ROLLBACK if message_id in (winner, later) else Verdict.COMMIT) not in said
    assert sorted(handled) == sorted([winner, later])
    assert set(delivered) == {winner, later}


# -- B: what kills a process


def test_a_producer_closed_while_a_check_back_runs_ends_well(stack: LocalStack, topic: str) -> None:
    """B0: the native shutdown under a running check crashes, 4 of 4 times."""
    process = child(closes_while_a_check_runs, name_server=stack.name_server, topic=topic)
    assert outcome(process, 90) == (0, "closed\n")


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("exit-3", 3), ("error", 1)])
def test_a_process_that_closes_nothing_ends_with_its_own_status(
    stack: LocalStack, topic: str, database_url: str, database: Database, how: str, status: int
) -> None:
    """B5: after a send, with a consumer running, the library's own exit hangs."""
    process = child(
        leaves_without_close, name_server=stack.name_server, url=database_url, topic=topic, how=how
    )
    assert process.stdout is not None
    first = process.stdout.readline()  # it may take its time to get there, but not to end
    assert (first, *outcome(process, 10)) == ("leaving\n", status, "")


# -- C: one native world a process


def test_each_client_of_a_process_has_a_client_id_of_its_own(
    stack: LocalStack, topic: str, resources: ExitStack
) -> None:
    """C1: clients of one id share name servers and connections; two clusters would be mixed up."""
    transport, asked = RocketMQ(stack.name_server), RemotingClient(stack.broker_address)
    # Not one group for both: a consumer's client reports itself as a producer of its group, too.
    group, consumer_group = f"g-{topic}", f"c-{topic}"
    for _ in range(2):
        known_producer(partial(transport.producer, group, lambda _check: Verdict.UNKNOWN), topic, resources)
        consumer = transport.consumer(consumer_group, {topic: ["*"]}, 1, lambda _delivery: Answer.ACK)
        resources.callback(consumer.close, 0.0, CLOSE_SECONDS)
        consumer.start()

    def client_ids() -> list[str]:
        found = [*asked.producer_connections(group), *asked.consumer_connections(consumer_group)]
        return [connection.client_id for connection in found]

    until(lambda: len(client_ids()) == 4, "four registered clients")
    assert len(set(client_ids())) == 4
    assert all(f"rmq_txn-{os.getpid()}-" in client_id for client_id in client_ids())


def test_after_a_fork_every_use_is_refused_at_once_and_both_processes_end(
    stack: LocalStack, topic: str, database_url: str, database: Database
) -> None:
    """C2: the library's threads do not survive a fork, a child would hang."""
    process = child(
        uses_everything_after_a_fork, name_server=stack.name_server, url=database_url, topic=topic
    )
    status, said = outcome(process, 60)
    assert status == 0
    forked, parent = said.splitlines()
    assert parent == "the forked process ended with 0, the parent sends"
    for what, (error, seconds) in json.loads(forked).items():
        assert error.startswith("LifecycleError"), what
        assert "fork" in error, what
        assert seconds < 2, what


def test_closing_on_a_backlog_is_quick_and_the_next_consumer_gets_the_rest(
    stack: LocalStack, topic: str, database_url: str, database: Database, resources: ExitStack
) -> None:
    """C3: the native shutdown works a backlog off first, without bound."""
    broker, total = RocketMQ(stack.name_server), 500
    producer = resources.enter_context(
        TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    )
    for first in range(0, total, 25):
        with producer.transaction() as txn:
            for n in range(first, first + 25):
                txn.publish(topic, {"n": n})
    never = threading.Event()

    def consumer(seconds: float) -> IdempotentConsumer:
        made = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)

        @made.handles(topic)
        def award(txn: Transaction, delivery: Delivery) -> None:
            never.wait(seconds)
            txn.execute("INSERT INTO effect (id) VALUES (%s)", (delivery.json()["n"],))

        return resources.enter_context(made)

    def handled() -> list[int]:
        return sorted(int(row[0]) for row in rows(database_url, "SELECT id FROM effect"))

    slow = consumer(0.1)
    until(lambda: len(handled()) >= 10, "some are handled")
    slow.close()
    assert len(handled()) < total, "the backlog was worked off first"
    consumer(0.0)
    until(lambda: len(handled()) >= total, "the rest", 90)
    assert handled() == list(range(total))


def kept_a_queue(transport: NativeConsumer) -> int:
    """Return of how many messages the library takes a queue for full."""
    getter = binding.ffi().dll._ZNK8rocketmq21DefaultMQPushConsumer26getMaxCacheMsgSizePerQueueEv
    getter.argtypes = [ctypes.c_void_p]
    return int(getter(transport._handle))


@pytest.mark.parametrize(
    ("seconds", "answer", "kept"),
    [(0.0, Answer.ACK, 1_000), (0.1, Answer.ACK, 100), (0.0, Answer.RETRY, 1_000)],
    ids=["quick", "slow", "failing"],
)
def test_a_consumer_keeps_two_seconds_of_work_of_each_queue_and_pulls_next_to_nothing_while_it_drains(
    stack: LocalStack,
    topic: str,
    database: Database,
    resources: ExitStack,
    seconds: float,
    answer: Answer,
    kept: int,
) -> None:
    """C10: a full queue is asked again after a second, so a hundred quick messages left it idle mostly."""
    producer = TransactionProducer(
        group=f"g-{topic}", broker=RocketMQ(stack.name_server), database=database, topics=[topic]
    )
    resources.enter_context(producer)
    for _ in range(4):
        with producer.transaction() as txn:
            for n in range(25):
                txn.publish(topic, {"n": n})
    handled, pause = list[Delivery](), threading.Event()

    def deliver(delivery: Delivery) -> Answer:
        pause.wait(seconds)
        handled.append(delivery)
        return answer

    consumer = RocketMQ(stack.name_server).consumer(f"c-{topic}", {topic: ["*"]}, 4, deliver)
    consumer.start()
    assert kept_a_queue(consumer) == 100
    until(lambda: len(handled) >= 100, "all are handled", 60)
    until(lambda: kept_a_queue(consumer) == kept, f"{kept} are kept")
    seen: list[int] = []

    def while_it_drains(quiet_seconds: float, timeout_seconds: float) -> bool:
        seen.append(kept_a_queue(consumer))
        return InFlight.wait_until_quiet(consumer._in_flight, quiet_seconds, timeout_seconds)

    with mock.patch.object(consumer._in_flight, "wait_until_quiet", while_it_drains):
        consumer.close(0.0, CLOSE_SECONDS)
    assert seen[0] == 1


def test_clients_start_and_stop_one_at_a_time_and_the_first_send_is_alone(
    stack: LocalStack, topic: str
) -> None:
    """C4, C5: the library's tables have no locks, and its first connection fails those who share it."""
    status, said = outcome(child(starts_and_stops_together, name_server=stack.name_server, topic=topic), 90)
    assert status == 0
    assert json.loads(said) == {"starts_and_stops_at_once": 1, "sends_beside_the_first": 0}


@pytest.mark.parametrize("chosen", [True, False], ids=["chosen", "default"])
def test_the_native_log_goes_where_an_unprivileged_process_may_write(
    stack: LocalStack, topic: str, tmp_path_factory: pytest.TempPathFactory, chosen: bool
) -> None:
    """C7: left alone it is /logs of the file system, and clients of other users fail at start."""
    user = 65534 if os.geteuid() == 0 else None
    folder = tmp_path_factory.mktemp("native-logs")
    for path in (folder, *folder.parents):  # pytest's own folders are closed to others
        if not path.stat().st_mode & stat.S_IXOTH:
            path.chmod(0o755)
    if user is not None:
        os.chown(folder, user, user)
    environment = {"TMPDIR": str(folder), "HOME": "/nowhere"}
    expected = folder / f"rmq_txn-native-logs-{user if user is not None else os.getuid()}"
    if chosen:
        expected = folder / "chosen"
        environment["ROCKETMQ_CLIENT_LOG_DIR"] = str(expected)
    process = child(sends_one, environment=environment, user=user, name_server=stack.name_server, topic=topic)
    assert outcome(process, 60) == (0, "sent\n")
    assert [path.name for path in expected.iterdir() if path.name.startswith(f"{process.pid}_")]
    assert not list(Path("/logs/rocketmq-client").glob(f"{process.pid}_*"))


# -- D: memory


def test_five_thousand_messages_leave_nothing_behind(stack: LocalStack, topic: str) -> None:
    """D: each native message is destroyed, A3: none is sent twice; threads, files, memory do not grow."""
    process = child(sends_and_receives, name_server=stack.name_server, topic=topic, count=5_000)
    status, said = outcome(process, 120)
    assert status == 0
    counts = json.loads(said)
    assert counts["created"] == counts["destroyed"] == counts["sent"] == 5_000
    assert counts["received"] == 5_000
    # The client opens a connection late now and then; a leak would be thousands.
    assert counts["threads"][1] <= counts["threads"][0] + 16
    assert counts["files"][1] <= counts["files"][0] + 16
    assert counts["resident_mib"][1] <= counts["resident_mib"][0] + 32


# -- E: consumers


def test_an_idle_consumer_uses_no_processor(stack: LocalStack, topic: str) -> None:
    """E12: a synchronous pull that does not wait on the broker asks again at once: 3 s in 5 s."""
    process = child(
        idles, name_server=stack.name_server, broker=stack.broker_address, topic=topic, seconds=5.0
    )
    status, said = outcome(process, 60)
    assert status == 0
    assert float(said) < 1.0


def test_handlers_share_the_connections_of_the_pool(
    stack: LocalStack, topic: str, database: Database, resources: ExitStack
) -> None:
    """E2b: a native thread forgets its thread-locals, a connection bound to it would be new each time."""
    broker, connections, handled = RocketMQ(stack.name_server), Counter[int](), list[int]()
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)

    @consumer.handles(topic)
    def look(txn: Transaction, delivery: Delivery) -> None:
        txn.execute("SELECT CONNECTION_ID()")
        row = txn.fetchone()
        assert row is not None
        connections[row[0]] += 1
        handled.append(delivery.json()["n"])

    resources.enter_context(consumer)
    producer = resources.enter_context(
        TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    )
    for n in range(60):
        producer.send_in_transaction(Message(topic, {"n": n}), lambda _txn: None)
    until(lambda: set(handled) == set(range(60)), "all handled")
    assert len(connections) <= database.pool_size


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_new_group_has_an_offset_in_every_queue_before_it_consumes(
    stack: LocalStack, topic: str, resources: ExitStack, start: Any
) -> None:
    """E7, E13: the client would choose its own beginning, and skip what was stored just before."""
    broker, group, queues = RemotingClient(stack.broker_address), f"c-{topic}", range(4)
    transport = RocketMQ(stack.name_server, new_group_from=start)
    producer = transport.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    resources.callback(producer.close, CLOSE_SECONDS)
    producer.start()
    for n in range(8):
        producer.send_half(outbound(topic, n=n), lambda _id: Verdict.COMMIT)
    ends = until(lambda: _all_of(broker, topic, 8), "all stored")
    assert [broker.consumer_offset(group, topic, queue) for queue in queues] == [None] * 4
    hold = threading.Event()
    resources.callback(hold.set)

    def deliver(_delivery: Delivery) -> Answer:
        hold.wait(20)
        return Answer.ACK

    consumer = transport.consumer(group, {topic: ["*"]}, 1, deliver)
    resources.callback(consumer.close, 0.0, CLOSE_SECONDS)
    resources.callback(hold.set)
    consumer.start()
    expected = [0] * 4 if start == "earliest" else ends
    assert [broker.consumer_offset(group, topic, queue) for queue in queues] == expected


def _all_of(broker: RemotingClient, topic: str, count: int) -> list[int]:
    """Return the ends of the queues once `count` messages are stored in them."""
    ends = [broker.max_offset(topic, queue) for queue in range(4)]
    return ends if sum(ends) == count else []


def test_the_first_redelivery_of_a_new_group_does_not_wait_for_its_topic(
    stack: LocalStack, topic: str, resources: ExitStack
) -> None:
    """E14: the topic of redeliveries is there before the client looks for it, at start and 10 s later."""
    transport, arrived = RocketMQ(stack.name_server), list[float]()

    def deliver(_delivery: Delivery) -> Answer:
        arrived.append(time.monotonic())
        return Answer.RETRY if len(arrived) == 1 else Answer.ACK

    RemotingClient(stack.name_server).topic_route(topic)
    with pytest.raises(RemotingError):
        RemotingClient(stack.name_server).topic_route(f"%RETRY%c-{topic}")
    consumer = transport.consumer(f"c-{topic}", {topic: ["*"]}, 1, deliver)
    resources.callback(consumer.close, 0.0, CLOSE_SECONDS)
    consumer.start()
    producer = transport.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    resources.callback(producer.close, CLOSE_SECONDS)
    producer.start()
    producer.send_half(outbound(topic), lambda _id: Verdict.COMMIT)
    until(lambda: len(arrived) >= 2, "the redelivery")
    assert arrived[1] - arrived[0] < 6


# -- F: errors


def test_a_dead_name_server_is_named_at_start(topic: str, database: Database, resources: ExitStack) -> None:
    """F1: the native client starts well with any address, and every failure has the same text."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    consumer = IdempotentConsumer(group="c", broker=RocketMQ(address), database=database)
    consumer.handles(topic)(lambda _txn, _delivery: None)
    producer = TransactionProducer(group="g", broker=RocketMQ(address), database=database, topics=[topic])
    for start in (producer.start, consumer.start):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailableError, match=address):
            start()
        assert time.monotonic() - began < 5


def test_a_name_server_that_says_nothing_is_named_at_start(
    topic: str, database: Database, resources: ExitStack
) -> None:
    """F1: it takes the connection and never answers."""
    listener = resources.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    consumer = IdempotentConsumer(group="c", broker=RocketMQ(address), database=database)
    consumer.handles(topic)(lambda _txn, _delivery: None)
    producer = TransactionProducer(group="g", broker=RocketMQ(address), database=database, topics=[topic])
    for start in (producer.start, consumer.start):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailableError, match=address):
            start()
        assert time.monotonic() - began < 10


def test_a_missing_topic_is_named_at_start(stack: LocalStack, unique: str, database: Database) -> None:
    """E8, H8: the native consumer starts well and never gets anything."""
    broker = RocketMQ(stack.name_server)
    consumer = IdempotentConsumer(group="c", broker=broker, database=database)
    consumer.handles(unique)(lambda _txn, _delivery: None)
    producer = TransactionProducer(group="g", broker=broker, database=database, topics=[unique])
    for start in (consumer.start, producer.start):
        with pytest.raises(BrokerUnavailableError, match=unique):
            start()


@pytest.mark.parametrize(
    "address", ["", ";", "127.0.0.1", "127.0.0.1:9876,127.0.0.1:9877", "http://a:1", "[::1]:9876", "a:0"]
)
def test_an_address_the_client_would_not_understand_is_refused(address: str) -> None:
    """F1, F4: it starts with garbage and fails at the first send; it knows no IPv6."""
    with pytest.raises(SettingsError, match="allowed is host:port, several separated by ';'"):
        RocketMQ(address)


# -- H: the database


@pytest.mark.parametrize("call", ["commit", "rollback", "begin", "close"])
def test_business_code_can_not_end_the_transaction_on_its_connection(
    stack: LocalStack, topic: str, database_url: str, database: Database, resources: ExitStack, call: str
) -> None:
    """H5: an early COMMIT moved the money without log row and message."""
    producer = resources.enter_context(
        TransactionProducer(
            group=f"g-{topic}", broker=RocketMQ(stack.name_server), database=database, topics=[topic]
        )
    )

    def sneaky(txn: Transaction) -> None:
        txn.execute("INSERT INTO effect (id) VALUES ('early')")
        getattr(txn.connection, call)()

    with pytest.raises(LifecycleError, match=f"connection.{call} would end"):
        producer.send_in_transaction(Message(topic, {"n": 1}), sneaky)
    assert rows(database_url, "SELECT id FROM effect") == []


# -- programs, each run in a process of its own


def closes_while_a_check_runs(name_server: str, topic: str) -> None:
    """Close a producer while it answers one check-back, and more wait behind it."""
    entered, never = threading.Event(), threading.Event()

    def slow(_check: Check) -> Verdict:
        entered.set()
        never.wait(1.0)
        return Verdict.UNKNOWN

    resources = ExitStack()
    producer = known_producer(partial(RocketMQ(name_server).producer, f"g-{topic}", slow), topic, resources)
    for n in range(8):
        producer.send_half(outbound(topic, n=n), lambda _id: Verdict.UNKNOWN)
    assert entered.wait(60)
    resources.close()
    print("closed", flush=True)


def leaves_without_close(name_server: str, url: str, topic: str, how: str) -> None:
    """Send and receive, then end without closing anything."""
    broker, database, handled = RocketMQ(name_server), Database.mysql(url), threading.Event()
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
    consumer.handles(topic)(lambda _txn, _delivery: handled.set())
    consumer.start()
    producer.start()
    producer.send_in_transaction(Message(topic, {"n": 1}), lambda _txn: None)
    assert handled.wait(40)
    print("leaving", flush=True)
    if how == "exit-3":
        raise SystemExit(3)
    if how == "error":
        raise RuntimeError("unhandled")


def uses_everything_after_a_fork(name_server: str, url: str, topic: str) -> None:
    """Start a producer and a consumer, fork, and try them and new ones in the forked process."""
    broker, database = RocketMQ(name_server), Database.mysql(url)
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
    consumer.handles(topic)(lambda _txn, _delivery: None)
    consumer.start()
    producer.start()
    message = Message(topic, {"n": 1})
    producer.send_in_transaction(message, lambda _txn: None)
    forked = os.fork()
    if forked == 0:
        own = Database.mysql(url)
        new_consumer = IdempotentConsumer(group=f"d-{topic}", broker=broker, database=own)
        new_consumer.handles(topic)(lambda _txn, _delivery: None)
        uses: dict[str, Callable[[], object]] = {
            "form A": lambda: producer.transaction().__enter__(),
            "form B": lambda: producer.send_in_transaction(message, lambda _txn: None),
            "database": lambda: database.begin(new_txn_id()),
            "new producer": TransactionProducer(
                group=f"h-{topic}", broker=broker, database=own, topics=[topic]
            ).start,
            "new consumer": new_consumer.start,
            "bare client": broker.producer(f"i-{topic}", lambda _check: Verdict.UNKNOWN).start,
        }
        print(json.dumps({what: _refusal(use) for what, use in uses.items()}), flush=True)
        consumer.close()
        producer.close()
        database.close()
        sys.exit(0)
    _, status = os.waitpid(forked, 0)
    producer.send_in_transaction(message, lambda _txn: None)
    print(f"the forked process ended with {os.waitstatus_to_exitcode(status)}, the parent sends", flush=True)
    producer.close()
    consumer.close()


def _refusal(use: Callable[[], object]) -> tuple[str, float]:
    began, said = time.monotonic(), "nothing was raised"
    try:
        use()
    except Exception as error:  # noqa: BLE001 - told to the test
        said = f"{type(error).__name__}: {error}"
    return said, time.monotonic() - began


class Watched:
    """A native function that counts its calls and how many ran at once."""

    lock = threading.Lock()

    def __init__(self, function: Any, running: Counter[str], most: Counter[str], what: str) -> None:
        self._function, self._running, self._most, self._what = function, running, most, what
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, counted."""
        with self.lock:
            self.calls += 1
            self._running[self._what] += 1
            self._most[self._what] = max(self._most[self._what], self._running[self._what])
        try:
            return self._function(*arguments)
        finally:
            with self.lock:
                self._running[self._what] -= 1


def starts_and_stops_together(name_server: str, topic: str) -> None:
    """Start five clients at once, let eight threads send first, stop all clients at once."""
    dll, running, most = binding.ffi().dll, Counter[str](), Counter[str]()
    for kind, step in itertools.product(("Producer", "PushConsumer"), ("Start", "Shutdown", "Destroy")):
        name = f"{step}{kind}"
        setattr(dll, name, Watched(getattr(dll, name), running, most, "life"))
    first_is_over = threading.Event()
    beside: list[int] = []
    native_send = dll.SendMessageTransaction
    sends = itertools.count()

    def send(*arguments: Any) -> Any:
        number = next(sends)
        if number and not first_is_over.is_set():
            beside.append(number)
        status = native_send(*arguments)
        first_is_over.set()
        return status

    dll.SendMessageTransaction = send
    transport = RocketMQ(name_server)
    producers = [transport.producer(f"g{n}-{topic}", lambda _check: Verdict.UNKNOWN) for n in range(3)]
    consumers = [
        transport.consumer(f"c{n}-{topic}", {topic: ["*"]}, 1, lambda _delivery: Answer.ACK) for n in range(2)
    ]
    together([client.start for client in [*producers, *consumers]])
    together(
        [
            partial(producers[0].send_half, outbound(topic, n=n), lambda _id: Verdict.ROLLBACK)
            for n in range(8)
        ]
    )
    together(
        [partial(producer.close, CLOSE_SECONDS) for producer in producers]
        + [partial(consumer.close, 0.0, CLOSE_SECONDS) for consumer in consumers]
    )
    print(json.dumps({"starts_and_stops_at_once": most["life"], "sends_beside_the_first": len(beside)}))


def sends_one(name_server: str, topic: str, user: int | None) -> None:
    """Become another user, start a producer, send, close."""
    if user is not None:
        "".encode("idna")  # the encoding's module may be out of the other user's reach
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    producer = RocketMQ(name_server).producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    producer.start()
    producer.send_half(outbound(topic), lambda _id: Verdict.ROLLBACK)
    producer.close(CLOSE_SECONDS)
    print("sent", flush=True)


def sends_and_receives(name_server: str, topic: str, count: int) -> None:
    """Send and receive `count` messages; tell what was made, destroyed and left open."""
    dll, running, most = binding.ffi().dll, Counter[str](), Counter[str]()
    made = dll.CreateMessage = Watched(dll.CreateMessage, running, most, "create")
    destroyed = dll.DestroyMessage = Watched(dll.DestroyMessage, running, most, "destroy")
    transport, received, sent = RocketMQ(name_server), set[str](), list[str]()

    def deliver(delivery: Delivery) -> Answer:
        received.add(delivery.message_id)
        return Answer.ACK

    def execute(message_id: str) -> Verdict:
        sent.append(message_id)
        return Verdict.COMMIT

    consumer = transport.consumer(f"c-{topic}", {topic: ["*"]}, 4, deliver)
    consumer.start()
    producer = transport.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    producer.start()

    def send(times: int) -> None:
        for _ in range(times):
            producer.send_half(outbound(topic), execute)

    def round_of(messages: int) -> tuple[int, int, float]:
        together([partial(send, messages // 4)] * 4)
        until(lambda: set(sent) <= received, "all received", 60)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), resident / 2**20  # noqa: PTH208

    warm, end = round_of(count // 10), round_of(count - count // 10)
    counts = {
        "created": made.calls,
        "destroyed": destroyed.calls,
        "sent": len(set(sent)),
        "received": len(received & set(sent)),
        "threads": (warm[0], end[0]),
        "files": (warm[1], end[1]),
        "resident_mib": (warm[2], end[2]),
    }
    producer.close(CLOSE_SECONDS)
    consumer.close(0.0, CLOSE_SECONDS)
    print(json.dumps(counts))


def idles(name_server: str, broker: str, topic: str, seconds: float) -> None:
    """Tell how much processor time a consumer with nothing to do used in `seconds`."""
    group = f"c-{topic}"
    consumer = RocketMQ(name_server).consumer(group, {topic: ["*"]}, 4, lambda _delivery: Answer.ACK)
    consumer.start()
    until(lambda: RemotingClient(broker).consumer_connections(group), "the registration")
    before = os.times()
    time.sleep(seconds)  # this is the measurement
    after = os.times()
    consumer.close(0.0, CLOSE_SECONDS)
    print(after.user + after.system - before.user - before.system)
