"""
Start, close, Ctrl-C and end in every order and from every thread, on real servers.

Each life runs in a process of its own, with a deadline: the functions at the end.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import linecache
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pymysql
import pytest

from devstack import LocalStack
from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.errors import LifecycleError, RmqTxnError
from tests.kit.processes import child, outcome, together
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

CYCLES = int(os.environ.get("RMQ_TXN_TEST_CYCLES", "12"))
"""200 take 4 minutes; the memory of the first ones is not counted."""
WARM_CYCLES = 8
SETTLED_SECONDS = 60.0
INSERT = "INSERT INTO effect (id) VALUES (%s)"


def test_starting_and_closing_again_and_again_leaves_nothing_behind(
    stack: LocalStack, topic: str, database_url: str
) -> None:
    """Both helpers with traffic: no thread, no file, no memory is left, and each message is handled once."""
    process = child(
        lives_again_and_again, name_server=stack.name_server, url=database_url, topic=topic, cycles=CYCLES
    )
    status, said = outcome(process, 60 + 5 * CYCLES)
    assert status == 0
    used = json.loads(said)
    assert used["threads"][1] <= used["threads"][0]
    assert used["files"][1] <= used["files"][0]
    assert used["memory_mb"][1] - used["memory_mb"][0] <= 8 + 0.05 * CYCLES
    assert sorted(int(row[0]) for row in rows(database_url, "SELECT id FROM effect")) == list(range(CYCLES))


def test_helpers_started_and_closed_by_any_thread_at_any_time_end(
    stack: LocalStack, topic: str, database_url: str
) -> None:
    """Two clients of each kind; closed while they start, twice, at once; who closed finds them closed."""
    process = child(closes_from_everywhere, name_server=stack.name_server, url=database_url, topic=topic)
    status, said = outcome(process, 120)
    assert status == 0
    result = json.loads(said)
    assert result["not closed when close() returned"] == 0
    assert result["threads"][1] <= result["threads"][0]


def test_close_inside_its_own_handler_or_transaction_is_refused_at_once(
    stack: LocalStack, topic: str, database: Database, database_url: str
) -> None:
    """It would wait for the caller; the handler and the transaction go on."""
    broker, said = RocketMQ(stack.name_server), list[str]()
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)

    @consumer.handles(topic)
    def award(txn: Transaction, delivery: Delivery) -> None:
        txn.execute(INSERT, (delivery.json()["id"],))
        with pytest.raises(LifecycleError) as caught:
            consumer.close()
        said.append(str(caught.value))

    with consumer, producer:
        with producer.transaction() as txn:
            with pytest.raises(LifecycleError, match=f"close\\(\\) inside transaction {txn.txn_id}"):
                producer.close()
            txn.publish(topic, {"id": "one"})
        until(lambda: rows(database_url, "SELECT id FROM effect") == [("one",)], "the effect")
    assert said == ["close() inside a handler would wait for it; let another thread close"]


def test_a_handler_may_send_with_a_producer(
    stack: LocalStack, topic: str, database: Database, database_url: str
) -> None:
    """On a native thread of the consumer; the two transactions are not one."""
    broker = RocketMQ(stack.name_server)
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)

    @consumer.handles(topic)
    def pass_on(txn: Transaction, delivery: Delivery) -> None:
        n = delivery.json()["n"]
        txn.execute(INSERT, (n,))
        if n < 8:
            producer.send_in_transaction(Message(topic, {"n": n + 1}), lambda _own: None)

    with producer, consumer:
        producer.send_in_transaction(Message(topic, {"n": 1}), lambda _txn: None)
        until(lambda: len(rows(database_url, "SELECT id FROM effect")) == 8, "the chain of eight")
    assert sorted(rows(database_url, "SELECT id FROM effect")) == [(str(n),) for n in range(1, 9)]


def test_a_statement_interrupted_before_its_answer_was_read_takes_its_connection_along(
    stack: LocalStack, database_url: str, open_database: Callable[..., Database], monkeypatch: Any
) -> None:
    """H1: else the next transaction on it reads each answer one statement late."""
    database = open_database(database_url, pool_size=1)

    def interrupted(*_arguments: object, **_more: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def insert() -> None:
        with database.transaction() as txn:
            monkeypatch.setattr(pymysql.connections.Connection, "_read_query_result", interrupted)
            txn.execute("INSERT INTO effect (id) VALUES ('half')")

    with pytest.raises(KeyboardInterrupt):
        insert()
    for number in (7, 8):
        with database.transaction() as txn:
            txn.execute("SELECT %s", (number,))
            assert txn.fetchone() == (number,)
    assert rows(database_url, "SELECT id FROM effect") == []


@pytest.mark.parametrize("form", ["A", pytest.param("B", marks=pytest.mark.long)])
def test_ctrl_c_at_any_line_of_a_transaction_arrives_and_leaves_nothing_half(
    stack: LocalStack, topic: str, database_url: str, form: str
) -> None:
    """C9, A4: never swallowed by a callback, never the wrong verdict; the next transaction is sound."""
    process = child(
        interrupted_at_any_line, name_server=stack.name_server, url=database_url, topic=topic, form=form
    )
    status, said = outcome(process, 180)
    assert status == 0
    result = json.loads(said)
    assert result["lines"] > 100
    assert result["swallowed"] == []
    assert result["other errors"] == []
    assert result["delivered"] == sorted(row[0] for row in rows(database_url, "SELECT id FROM effect"))
    assert result["close_seconds"] < 8, "an interrupted transaction was still counted as running"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_sending_loop_ends_at_a_signal_and_its_books_are_right(
    stack: LocalStack, topic: str, database_url: str, database: Database, number: int, status: int
) -> None:
    """Three processes, each at another moment; another producer of the group settles what is open."""
    broker, group, delivered = RocketMQ(stack.name_server), f"g-{topic}", list[str]()
    processes = [
        child(sends_for_ever, name_server=stack.name_server, url=database_url, topic=topic, name=f"p{n}")
        for n in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "sending\n"
        time.sleep(random.uniform(0.05, 0.5))  # the moment is the test
        process.send_signal(number)
    assert [outcome(process, 60)[0] for process in processes] == [status] * 3
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
    consumer.handles(topic)(lambda _txn, delivery: delivered.append(delivery.json()["id"]))
    survivor = TransactionProducer(group=group, broker=broker, database=database, topics=[topic])
    committed = {row[0] for row in rows(database_url, "SELECT id FROM effect")}
    with consumer, survivor:
        until(lambda: committed <= set(delivered), "all that was committed", SETTLED_SECONDS)
    assert set(delivered) == committed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_with_0_at_a_signal_at_any_moment(
    stack: LocalStack, topic: str, database_url: str, database: Database, number: int
) -> None:
    """While it starts, while it waits, while it handles."""
    processes = [
        child(consumes, name_server=stack.name_server, url=database_url, topic=topic) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "handlers are set\n"
        time.sleep(random.uniform(0.0, 0.6))  # the moment is the test
        process.send_signal(number)
    assert [outcome(process, 60) for process in processes] == [(0, "ended\n")] * 4


@pytest.mark.parametrize("state", ["new", "starting", "in a transaction", "closing", "closed"])
def test_a_process_ends_with_its_own_status_in_every_state(
    stack: LocalStack, topic: str, database_url: str, state: str
) -> None:
    """Without close(); B5. Running helpers: test_hazards.py."""
    process = child(ends_in, name_server=stack.name_server, url=database_url, topic=topic, state=state)
    assert outcome(process, 60)[0] == 3
    assert rows(database_url, "SELECT id FROM effect") == []


# -- programs, each run in a process of its own


def _used() -> tuple[int, int, int]:
    """Return the threads, open files and resident megabytes of this process."""
    resident = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmRSS")
    )
    return len(list(Path("/proc/self/task").iterdir())), len(os.listdir("/proc/self/fd")), resident // 1024  # noqa: PTH208


def lives_again_and_again(name_server: str, url: str, topic: str, cycles: int) -> None:
    """Start both helpers, send, handle, close, again and again; tell what was used early and late."""
    broker, used, began = RocketMQ(name_server), list[tuple[int, int, int]](), time.monotonic()
    for n in range(cycles):
        database, handled = Database.mysql(url), set[int]()
        producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
        consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)

        @consumer.handles(topic)
        def award(txn: Transaction, delivery: Delivery, handled: set[int] = handled) -> None:
            txn.execute(INSERT, (delivery.json()["n"],))
            handled.add(delivery.json()["n"])

        with producer, consumer:
            producer.send_in_transaction(Message(topic, {"n": n}), lambda _txn: None)
            until(lambda n=n, handled=handled: n in handled, f"message {n}", SETTLED_SECONDS)
        database.close()
        used.append(_used())
    early = used[min(WARM_CYCLES, cycles - 1)]
    with suppress(AssertionError):  # a native shutdown may go on in the background after `close`
        until(lambda: _used()[0] <= early[0], "the last native threads end", SETTLED_SECONDS)
    late = _used()
    names = ("threads", "files", "memory_mb")
    report: dict[str, Any] = {name: pair for name, *pair in zip(names, early, late, strict=True)}
    print(json.dumps({**report, "seconds": round(time.monotonic() - began)}))


def closes_from_everywhere(name_server: str, url: str, topic: str) -> None:
    """Let one thread start each helper and three close it, at random moments; then look what is left."""
    broker, not_closed = RocketMQ(name_server), list[str]()
    database = Database.mysql(url)
    helpers: list[TransactionProducer | IdempotentConsumer] = []
    threads = [_used()[0]]

    def start(helper: TransactionProducer | IdempotentConsumer) -> None:
        with suppress(LifecycleError):  # closed before it was started
            helper.start()

    def close(helper: TransactionProducer | IdempotentConsumer, after: float) -> None:
        time.sleep(after)  # the moment is the test
        helper.close()
        if helper.state.value != "closed":
            not_closed.append(helper.state.value)

    for attempt in range(4):
        for n in range(2):
            helpers.append(
                TransactionProducer(group=f"g{n}-{topic}", broker=broker, database=database, topics=[topic])
            )
            consumer = IdempotentConsumer(group=f"c{n}-{topic}", broker=broker, database=database)
            consumer.handles(topic)(lambda _txn, _delivery: None)
            helpers.append(consumer)
        calls = [partial(start, helper) for helper in helpers[-4:]]
        for helper in helpers[-4:]:
            calls += [partial(close, helper, random.uniform(0, 0.3 * attempt)) for _ in range(3)]
        together(calls)
    until(lambda: _used()[0] <= threads[0] + 1, "no thread is left", 40)
    threads.append(_used()[0] - 1)  # one of the library's own stays once it was used
    print(json.dumps({"not closed when close() returned": len(not_closed), "threads": threads}))


class _InterruptAt:
    """Sends this process a SIGINT before the n-th line that a call runs in this package."""

    def __init__(self, line: int) -> None:
        self._left = line
        self.fired = False

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        """See sys.settrace."""
        if "/rmq_txn/" not in frame.f_code.co_filename:
            return None
        if event == "line" and not self.fired:
            # At its end a `with` is told again, where Python itself runs no handlers: no such moment.
            if linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                return self
            self._left -= 1
            if self._left == 0:
                self.fired = True
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self


def interrupted_at_any_line(name_server: str, url: str, topic: str, form: str) -> None:
    """Run one transaction for each line of it, interrupted there; then close and tell what arrived."""
    broker, delivered = RocketMQ(name_server), set[str]()
    # Between the lending of a connection and its `try` Ctrl-C costs the pool a place: a known limit.
    database = Database.mysql(url, pool_size=32)
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumed = Database.mysql(url)
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=consumed)
    consumer.handles(topic)(lambda _txn, delivery: delivered.add(delivery.json()["id"]))
    swallowed, other, done = list[int](), list[str](), list[str]()

    def transfer(name: str) -> None:
        def work(txn: Transaction) -> None:
            txn.execute(INSERT, (name,))

        if form == "B":
            producer.send_in_transaction(Message(topic, {"id": name}), work)
            return
        with producer.transaction() as txn:
            work(txn)
            txn.publish(topic, {"id": name})

    consumer.start()
    producer.start()
    transfer("warm")
    for line in itertools.count(1):
        interrupt = _InterruptAt(line)
        sys.settrace(interrupt)
        try:
            # In a context of its own: the one line that marks the end of the transaction may be kept
            # from it, then this context refuses the next.
            contextvars.copy_context().run(transfer, f"at-{line}")
            if interrupt.fired:
                swallowed.append(line)
        except KeyboardInterrupt:
            pass
        except RmqTxnError as error:
            other.append(f"{line}: {error}")
        finally:
            sys.settrace(None)
        if not interrupt.fired:
            break
        transfer(f"after-{line}")
        done.append(f"after-{line}")

    def effects() -> set[str]:
        return {row[0] for row in rows(url, "SELECT id FROM effect")}

    until(lambda: effects() <= delivered and set(done) <= delivered, "all deliveries", SETTLED_SECONDS)
    began = time.monotonic()
    producer.close()
    seconds = time.monotonic() - began
    consumer.close()
    report = {"lines": line, "swallowed": swallowed, "other errors": other, "close_seconds": seconds}
    print(json.dumps({**report, "delivered": sorted(delivered)}))


def sends_for_ever(name_server: str, url: str, topic: str, name: str) -> None:
    """Send on the main thread until a signal."""
    producer = TransactionProducer(
        group=f"g-{topic}", broker=RocketMQ(name_server), database=Database.mysql(url), topics=[topic]
    )
    with producer:
        print("sending", flush=True)
        for n in itertools.count():
            work: Callable[[Transaction], object] = lambda txn, n=n: txn.execute(INSERT, (f"{name}-{n}",))  # noqa: E731
            producer.send_in_transaction(Message(topic, {"id": f"{name}-{n}"}), work)


def consumes(name_server: str, url: str, topic: str) -> None:
    """Run a consumer as the main program does."""
    consumer = IdempotentConsumer(
        group=f"c-{topic}", broker=RocketMQ(name_server), database=Database.mysql(url)
    )
    consumer.handles(topic)(lambda _txn, _delivery: None)
    start = consumer.start

    def started() -> None:
        print("handlers are set", flush=True)
        start()

    consumer.start = started  # type: ignore[method-assign]
    consumer.run()
    print("ended", flush=True)


def ends_in(name_server: str, url: str, topic: str, state: str) -> None:
    """Leave this process with status 3 while its helpers are in `state`."""
    broker, database, resources = RocketMQ(name_server), Database.mysql(url), ExitStack()
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
    consumer.handles(topic)(lambda _txn, _delivery: None)
    helpers = producer, consumer
    calls: list[Callable[[], None]] = []
    if state == "starting":
        calls = [helper.start for helper in helpers]
    elif state != "new":
        for helper in helpers:
            helper.start()
    if state in ("closing", "closed"):
        calls = [helper.close for helper in helpers]
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    if state == "closed":
        for thread in threads:
            thread.join()
    if state == "in a transaction":
        resources.enter_context(producer.transaction()).execute(INSERT, ("half",))
        raise SystemExit(3)  # the stack is left to the interpreter
    raise SystemExit(3)
