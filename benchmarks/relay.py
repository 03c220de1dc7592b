"""How fast a relay publishes what a broker gave up, or what all producers left when they were replaced."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from benchmarks import by_hand
from devstack import LocalStack
from rmq_txn import Database, Message, RocketMQ
from rmq_txn.identity import Owner, new_txn_id
from rmq_txn.message import Outbound
from rmq_txn.producer.outbox import Outbox
from rmq_txn.producer.relay import Relay
from rmq_txn.remoting.plain_messages import PlainSender

_COPIES = 3_000
_WRITTEN_A_SECOND = 10
_BODY = 500
_OWNER = Owner("bench", b"secret")


def measure(stack: LocalStack, url: str) -> None:
    """
    Let a relay work through many copies that are overdue; print where the time goes.

    Twice: first the broker has none of these messages, then all of them, as after a deployment.
    """
    topic = f"relay{time.time_ns()}"
    stack.create_topic(topic)
    copies = list(_copies(topic))
    for having in ("none", "all"):
        with closing(by_hand.connect(url)) as connection:
            _write(connection.cursor(), copies)
            connection.commit()
        _relay(stack, url, having)


def _relay(stack: LocalStack, url: str, having: str) -> None:
    spent: Counter[str] = Counter()
    database = Database.mysql(url)
    outbox = Outbox(database)
    outbox.overdue = _timed(spent, "read", outbox.overdue)  # type: ignore[method-assign]
    outbox.note = _timed(spent, "note", outbox.note)  # type: ignore[method-assign]
    sender = PlainSender(RocketMQ(stack.name_server), "relay")
    relay = Relay(
        outbox,
        _Client(sender, spent),  # type: ignore[arg-type]
        _Calm(),  # type: ignore[arg-type]
        database_id="bench",
        overdue_seconds=600.0,
        settle_seconds=3600.0,
        work_seconds=600.0,
        closing=threading.Event(),
        is_settled=lambda _row: False,
    )
    began, cpu = time.perf_counter(), time.process_time()
    relay.work()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    parts = ", ".join(f"{what} {seconds * 1000 / _COPIES:.2f} ms" for what, seconds in spent.items())
    print(
        f"\nrelay, consumers see {having}: {_COPIES / took:.0f} copies a second ({_COPIES} of them, {_BODY} "
        f"bytes each); each {parts}, {cpu * 1000 / _COPIES:.2f} ms of processor time"
    )
    sender.close()
    outbox.close()
    database.close()


def _copies(topic: str) -> Iterator[tuple[Any, ...]]:
    for number in range(_COPIES):
        txn_id = new_txn_id()
        message = Message(topic, b"b" * _BODY).outbound(txn_id=txn_id, position=0, owner=str(_OWNER))
        properties = json.dumps(dict(message.properties))
        message_id = os.urandom(16).hex().upper()
        yield txn_id, message_id, topic, properties, message.body, 3600 - number // _WRITTEN_A_SECOND


def _write(cursor: Any, copies: Sequence[tuple[Any, ...]]) -> None:
    cursor.execute("DELETE FROM rmq_txn_outbox")
    cursor.executemany(
        "INSERT INTO rmq_txn_outbox (txn_id, position, message_id, topic, properties, `body`, created_at) "
        "VALUES (%s, 0, %s, %s, %s, %s, NOW() - INTERVAL %s SECOND)",
        copies,
    )


def _timed(spent: Counter[str], what: str, step: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return step(*arguments)
        finally:
            spent[what] += time.perf_counter() - began  # type: ignore[assignment]

    return timed


class _Client:
    """The part of a transport that a relay uses."""

    def __init__(self, sender: PlainSender, spent: Counter[str]) -> None:
        self._send = _timed(spent, "send", sender.send)
        self._ask = _timed(spent, "ask", sender.is_published)

    def is_published(self, message: Outbound, message_id: str) -> bool:
        return bool(self._ask(message, message_id))

    def send_plain(self, message: Outbound, message_id: str) -> None:
        self._send(message, message_id)


class _Calm:
    """Nothing was ever wrong."""

    now = staticmethod(time.monotonic)

    def tick(self) -> None:
        """Note that the process runs."""

    def tick_own(self) -> float:
        """Return since when all is well."""
        return 0.0
