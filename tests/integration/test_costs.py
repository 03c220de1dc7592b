"""What a transaction and a delivery cost, counted exactly, against the table of `docs/costs.md`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

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
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import Owner, new_txn_id
from rmq_txn.message import Outbound
from rmq_txn.producer.checkback import Oracle
from rmq_txn.producer.txlog import MAX_MESSAGES
from rmq_txn.transport import Deliver, binding
from rmq_txn.verdict import Answer, Verdict
from tests.kit.calls import Calls
from tests.kit.commands import commands_of, names_of
from tests.kit.proxy import Line, TcpProxy, proxied, through
from tests.kit.transports import Wrapped
from tests.kit.wait import until

pytestmark = pytest.mark.servers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "costs.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([^|]+?) \| (\d+) \| (\d+) \| (`.+`) \|$", re.MULTILINE)
Writes = list[list[str]]
COSTS: dict[str, Writes] = {
    what: [re.findall(r"`(\w+)`", write) for write in statements.split(", ")]
    for what, _, _, statements in ROW.findall(PAGE)
}
"""The table of the page: which statements are sent, by name and in order, and which of them in one write."""
CALLS = {
    what: (int(ours), int(drivers))
    for what, ours, drivers in re.findall(r"^\| ([^|]+?) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
}
"""The other one: how many functions written in Python are called, ours and PyMySQL's."""

YOURS = "INSERT INTO effect (id) VALUES (%s)"


class Meter:
    """Reads the commands that clients send through a proxy, and which of them came in one write."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._seen: list[tuple[Line, list[str]]] = []
        proxy.on_request = self._see

    def _see(self, line: Line, data: bytes) -> None:
        # The driver waits for the answers before it writes again: a write is a round trip.
        commands = commands_of(data)
        assert all(len(each) == int.from_bytes(each[:3], "little") + 4 for each in commands), "whole commands"
        self._seen.append((line, names_of(commands)))

    def transaction_with(self, text: str) -> Writes:
        """Return the names of all that was sent in the last transaction that sent `text`, by writes."""
        seen = self._seen.copy()

        def mentions(commands: list[str]) -> bool:
            return any(text in command for command in commands)

        line = next(line for line, commands in reversed(seen) if mentions(commands))
        writes = [commands for where, commands in seen if where is line]
        names = [list(map(name_of, commands)) for commands in writes]
        at = max(n for n, commands in enumerate(writes) if mentions(commands))
        ends = [n for n, write in enumerate(names) if write in (["COMMIT"], ["ROLLBACK"])]
        before = max(n for n in ends if n < at)
        return names[before + 1 : min(n for n in ends if n >= at) + 1]


def statements_of(what: str) -> list[str]:
    """Return the statements of a row of the page."""
    return [name for write in COSTS[what] for name in write]


def name_of(command: str) -> str:
    """Return what the page calls a command."""
    known = {**STATEMENTS, "yours": YOURS}
    return next((name for name, sql in known.items() if command.startswith(sql.split("%s")[0])), command)


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    """Return a stack of what the test opens; it is closed at the end, last first."""
    with ExitStack() as opened:
        yield opened


class Scales:
    """A producer and a database of one connection, both seen from outside."""

    def __init__(self, stack: LocalStack, url: str, topic: str, resources: ExitStack) -> None:
        proxy = resources.enter_context(proxied(url))
        self.meter = Meter(proxy)
        self.database = Database.mysql(through(url, proxy), pool_size=1)
        resources.callback(self.database.close)
        # Make both connections now: what comes before the first statement is no part of its cost.
        with self.database.transaction(read_only=True):
            assert self.database.is_reachable()
        self.topic = topic
        self.name_server = stack.name_server
        self.resources = resources
        self.sent: list[Outbound] = []

    def producer(self) -> TransactionProducer:
        broker = Wrapped(RocketMQ(self.name_server), on_send=self.sent.append)
        producer = TransactionProducer(
            group=f"g-{self.topic}", broker=broker, database=self.database, topics=[self.topic]
        )
        self.resources.enter_context(producer)
        self.sent.clear()  # the half message of the start
        return producer

    def messages(self, count: int) -> list[Message]:
        return [Message(self.topic, {"n": n}) for n in range(count)]


@pytest.fixture
def scales(stack: LocalStack, database_url: str, topic: str, resources: ExitStack) -> Scales:
    """Return scales; what they opened is closed at the end."""
    return Scales(stack, database_url, topic, resources)


def test_the_page_counts_right() -> None:
    """Statements without the reader's own one, and round trips with it."""
    assert COSTS
    assert {what: (int(ours), int(trips)) for what, ours, trips, _ in ROW.findall(PAGE)} == {
        what: (len(statements_of(what)) - (["yours"] in writes), len(writes))
        for what, writes in COSTS.items()
    }


def test_a_transaction_sends_the_statements_of_the_page_and_one_half_message_a_message(
    scales: Scales,
) -> None:
    """Both forms, one message, three and none, a rollback; seen on the line."""
    producer = scales.producer()

    def form_a(id_: str, count: int) -> None:
        with producer.transaction() as txn:
            txn.execute(YOURS, (id_,))
            for n in range(count):
                txn.publish(scales.topic, {"n": n})

    def form_b(id_: str, count: int) -> None:
        producer.send_in_transaction(scales.messages(count), lambda txn: txn.execute(YOURS, (id_,)))

    for what, form, count in (
        ("form A, 1 message", form_a, 1),
        ("form A, 3 messages", form_a, 3),
        ("form A, no message", form_a, 0),
        ("form B, 1 message", form_b, 1),
        ("form B, 3 messages", form_b, 3),
    ):
        form(what, count)
        assert scales.meter.transaction_with(what) == COSTS[what]
        assert len(scales.sent) == count
        scales.sent.clear()

    with pytest.raises(InvalidMessageError):
        form_a("raises", MAX_MESSAGES + 1)
    assert scales.meter.transaction_with("raises") == COSTS["form A, the block raises"]
    assert scales.sent == []


def test_the_servers_own_counter_agrees(scales: Scales) -> None:
    """`Questions` of the session between one transaction's work and the next one's."""
    producer, counted = scales.producer(), list[int]()

    def ask(txn: Transaction) -> None:
        txn.execute("SHOW SESSION STATUS LIKE 'Questions'")
        row = txn.fetchone()
        assert row is not None
        counted.append(int(row[1]))

    for _ in range(3):
        producer.send_in_transaction(scales.messages(1), ask)
    for _ in range(3):
        with producer.transaction() as txn:
            ask(txn)
            txn.publish(scales.topic, {"n": 1})
    steps = [after - before for before, after in itertools.pairwise(counted)]
    form_a, form_b = (len(statements_of(f"form {form}, 1 message")) for form in "AB")
    assert [*steps[:2], *steps[3:]] == [form_b, form_b, form_a, form_a]


def test_a_delivery_and_its_duplicate_send_the_statements_of_the_page(scales: Scales) -> None:
    """The same delivery is handed over twice."""
    answers: list[Answer] = []

    def twice(deliver: Deliver) -> Deliver:
        def both(delivery: Delivery) -> Answer:
            answers.extend([deliver(delivery), deliver(delivery)])
            return Answer.ACK

        return both

    consumer = IdempotentConsumer(
        group=f"c-{scales.topic}",
        broker=Wrapped(RocketMQ(scales.name_server), around_deliver=twice),
        database=scales.database,
        threads=1,
    )
    consumer.handles(scales.topic)(lambda txn, _delivery: txn.execute(YOURS, ("delivered",)))
    producer = scales.producer()
    scales.resources.enter_context(consumer)
    producer.send_in_transaction(scales.messages(1), lambda _txn: None)
    until(lambda: answers, "the delivery, twice", 60)
    assert answers == [Answer.ACK, Answer.ACK]
    assert scales.meter.transaction_with("delivered") == COSTS["delivery"]
    # Not by the group: the upkeep of the consumer names it, too.
    assert scales.meter.transaction_with("INSERT INTO rmq_txn_inbox") == COSTS["delivery of a duplicate"]


def test_a_check_back_sends_the_statements_of_the_page(scales: Scales) -> None:
    """One of a committed transaction, one that fences."""
    producer = scales.producer()
    receipt = producer.send_in_transaction(scales.messages(1), lambda txn: txn.txn_id)
    oracle = Oracle(scales.database, Owner("owner", b"s"), 7 * 86_400.0)
    assert oracle.decide(receipt.txn_id, 0, receipt.message_ids[0]) is Verdict.COMMIT
    assert scales.meter.transaction_with(receipt.txn_id) == COSTS["check-back, committed"]
    unknown = new_txn_id()
    assert oracle.decide(unknown, 0, "never sent") is Verdict.ROLLBACK
    assert scales.meter.transaction_with(unknown) == COSTS["check-back, fenced"]


def one_of(counts: list[Calls]) -> tuple[int, int]:
    """Return the smallest of some counts: a collector may run beside one of them, and what it calls."""
    least = min(counts, key=lambda calls: (calls.ours.total(), calls.drivers.total()))
    print(least)
    return least.ours.total(), least.drivers.total()


def assert_as_on_the_page(what: str, counts: list[Calls]) -> None:
    """At most so many; newer Pythons, which inline some, make up to a tenth less."""
    ours, drivers = one_of(counts)
    allowed_ours, allowed_drivers = CALLS[what]
    assert 0.85 * allowed_ours <= ours <= allowed_ours
    assert 0.85 * allowed_drivers <= drivers <= allowed_drivers


def test_a_transaction_makes_the_function_calls_of_the_page(scales: Scales) -> None:
    """On the main thread, where signals are held; warm, with logging off."""
    producer = TransactionProducer(
        group=f"g-{scales.topic}",
        broker=RocketMQ(scales.name_server),
        database=scales.database,
        topics=[scales.topic],
    )
    scales.resources.enter_context(producer)

    def form_a() -> None:
        with producer.transaction() as txn:
            txn.execute(YOURS, ("counted",))
            txn.publish(scales.topic, {"n": 1})

    def form_b() -> None:
        message = Message(scales.topic, {"n": 1})
        producer.send_in_transaction(message, lambda txn: txn.execute(YOURS, ("counted",)))

    for what, form in (("form A, 1 message, calls", form_a), ("form B, 1 message, calls", form_b)):
        form()
        assert_as_on_the_page(what, [Calls(__file__).of(form) for _ in range(4)])


def test_a_delivery_makes_the_function_calls_of_the_page(
    scales: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the native client's call to our answer, on its thread."""
    producer, counts = scales.producer(), list[Calls]()
    guarding = binding.nothing_escapes

    def counting(safe: int, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
            guarded = guarding(safe, what)(body)

            def counted(*args: Any) -> Any:
                calls = Calls(__file__)
                with calls.counted():
                    answer = guarded(*args)
                counts.append(calls)
                return answer

            return counted

        return decorate

    monkeypatch.setattr(binding, "nothing_escapes", counting)
    consumer = IdempotentConsumer(
        group=f"c-{scales.topic}", broker=RocketMQ(scales.name_server), database=scales.database, threads=1
    )
    consumer.handles(scales.topic)(lambda txn, _delivery: txn.execute(YOURS, ("delivered",)))
    scales.resources.enter_context(consumer)
    for _ in range(5):
        producer.send_in_transaction(scales.messages(1), lambda _txn: None)
    until(lambda: len(counts) == 5, "five deliveries", 60)
    assert_as_on_the_page("delivery, calls", counts[1:])
