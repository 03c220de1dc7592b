"""The two kinds of client of a memory broker, with the threads that a real client has."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from rmq_txn.errors import LifecycleError
from rmq_txn.identity import CHECK_PROPERTIES
from rmq_txn.inflight import InFlight
from rmq_txn.logs import get_logger
from rmq_txn.message import Outbound
from rmq_txn.testing.crashes import Crash
from rmq_txn.testing.memory.groups import ConsumerMember, ProducerMember, Stored, Waiting
from rmq_txn.testing.memory.store import MemoryStore
from rmq_txn.transport import Check, Checker, Deliver, Execute, Lag, TagFilter
from rmq_txn.verdict import Answer, Verdict

log = get_logger("testing.memory")

_INSIDE = threading.local()


def inside_callback() -> bool:
    """Whether this thread answers a check-back or handles a delivery: nothing settles before it ends."""
    return getattr(_INSIDE, "callback", False)


def _new_instance() -> str:
    return f"rmq_txn-memory-{os.getpid()}-{uuid.uuid4().hex}"


def _start(name: str, run: Callable[[], None]) -> None:
    threading.Thread(target=run, name=f"rmq_txn memory {name}", daemon=True).start()


class MemoryProducer:
    """See `ProducerTransport`. One thread answers check-backs in turn, as in the native client."""

    def __init__(self, store: MemoryStore, group: str, check: Checker, broker_name: str) -> None:
        self._store = store
        self._check = check
        self._broker_name = broker_name
        self._member = ProducerMember(group, _new_instance())
        self._started = False
        self._in_flight = InFlight()

    @property
    def instance(self) -> str:
        """See `ProducerTransport.instance`."""
        return self._member.instance

    def start(self, topics: Sequence[str] = ()) -> None:
        """See `ProducerTransport.start`."""
        with self._store.changed:
            if self._started or self._member.closing.is_set():
                raise LifecycleError("this producer client was started before; make a new one")
            self._store.require_reachable()
            for topic in topics:
                self._store.require(topic)
            self._started = True
            self._store.join_producer(self._member)
        _start(f"check-back {self._member.group}", self._answer)

    def _answer(self) -> None:
        _INSIDE.callback = True
        while (half := self._store.next_question(self._member)) is not None:
            try:
                self._store.end(half, self._asked(half), f"question {half.checks}, producer {self._whose()}")
            finally:
                self._store.answered(self._member)

    def _asked(self, half: Stored) -> Verdict:
        if self._member.closing.is_set():
            return Verdict.UNKNOWN
        given = half.message.properties
        properties = {name: given[name] for name in CHECK_PROPERTIES if name in given}
        try:
            return _verdict(self._check(Check(half.message_id, properties)))
        except BaseException:  # as in the native client: a callback that raises decides nothing
            log.exception("a check-back failed, answered unknown")
            return Verdict.UNKNOWN

    def _whose(self) -> str:
        return f"{self._member.group} ({self._member.instance[-6:]})"

    def send_half(self, message: Outbound, execute: Execute) -> None:
        """See `ProducerTransport.send_half`."""
        call = object()
        self._in_flight.add(call)
        try:
            self._refuse_unless_open()
            half = self._store.store_half(self._member.group, message)
            verdict = Verdict.UNKNOWN
            try:
                verdict = _verdict(execute(half.message_id))
            finally:
                self._store.end(half, verdict, "local transaction")
        finally:
            self._in_flight.remove(call)

    def send_plain(self, message: Outbound, message_id: str) -> None:
        """See `ProducerTransport.send_plain`."""
        self._refuse_unless_open()
        self._store.store_plain(self._member.group, message, message_id)

    def is_published(self, message: Outbound, message_id: str) -> bool:
        """See `ProducerTransport.is_published`."""
        self._refuse_unless_open()
        with self._store.changed:
            published = self._store.require(message.topic)
            return any((found.message_id, found.message) == (message_id, message) for found in published)

    def _refuse_unless_open(self) -> None:
        if not self._started or self._member.closing.is_set():
            raise LifecycleError("this producer client is not started, or closed")

    def is_registered(self, topic: str) -> bool:
        """See `ProducerTransport.is_registered`."""
        with self._store.changed:
            self._store.require(topic)
            return any(other is self._member for other in self._store.producers(self._member.group))

    def registered_clients(self, topic: str) -> Mapping[str, frozenset[str]]:
        """See `ProducerTransport.registered_clients`."""
        with self._store.changed:
            self._store.require(topic)
            members = self._store.producers(self._member.group)
            return {self._broker_name: frozenset(member.instance for member in members)}

    def close(self, timeout_seconds: float) -> None:
        """See `ProducerTransport.close`."""
        deadline = time.monotonic() + timeout_seconds
        with self._store.changed:
            self._member.closing.set()
            self._store.leave_producer(self._member)
            answered = self._store.changed.wait_for(lambda: not self._member.asking, timeout_seconds)
        ended = self._in_flight.wait_until_quiet(0.0, max(0.0, deadline - time.monotonic()))
        if not (answered and ended):
            log.error("a send or a check-back still runs, the client is left open", group=self._member.group)


class MemoryConsumer:
    """See `ConsumerTransport`. Each thread takes one message at a time: none waits in the client."""

    def __init__(
        self,
        store: MemoryStore,
        group: str,
        subscriptions: Mapping[str, frozenset[str] | None],
        threads: int,
        deliver: Deliver,
    ) -> None:
        self._store = store
        self._threads = threads
        self._started = False
        self._member = ConsumerMember(group, subscriptions, deliver, _new_instance())

    def start(self) -> None:
        """See `ConsumerTransport.start`."""
        with self._store.changed:
            if self._started or self._member.closing.is_set():
                raise LifecycleError("this consumer client was started before; make a new one")
            self._store.require_reachable()
            self._store.join_consumer(self._member)
            self._started = True
        for _ in range(self._threads):
            _start(f"consumer {self._member.group}", self._consume)

    def _consume(self) -> None:
        _INSIDE.callback = True
        while (waiting := self._store.take(self._member)) is not None:
            self._handle(waiting)

    def _handle(self, waiting: Waiting) -> None:
        delivery = waiting.delivery()
        try:
            answer = self._member.deliver(delivery)
        except Crash:
            self._store.lose(self._member, waiting)
        except BaseException as error:  # as in the native client: a delivery that raises is made again
            log.exception("a delivery failed, the message will be delivered again", topic=delivery.topic)
            self._store.give_back(self._member, waiting, f"failed with {type(error).__name__}")
        else:
            if answer is Answer.ACK:
                self._store.acknowledge(self._member, waiting)
            else:
                self._store.give_back(self._member, waiting, "given back")

    def is_registered(self, topic: str) -> bool:
        """See `ConsumerTransport.is_registered`."""
        with self._store.changed:
            self._store.require(topic)
            return self._store.is_consumer(self._member)

    def lag(self) -> Lag:
        """See `ConsumerTransport.lag`."""
        return self._store.lag(self._member.group)

    def filters(self) -> tuple[TagFilter, ...]:
        """See `ConsumerTransport.filters`."""
        return self._store.filters(self._member)

    def close(self, drain_seconds: float, timeout_seconds: float) -> None:
        """See `ConsumerTransport.close`."""
        with self._store.changed:
            if self._started:
                self._store.changed.wait_for(lambda: not self._store.has_work(self._member), drain_seconds)
            self._member.closing.set()
            self._store.leave_consumer(self._member)
            if not self._store.changed.wait_for(lambda: not self._member.running, timeout_seconds):
                log.error("a handler still runs, the client is left open", group=self._member.group)


def _verdict(answer: Verdict) -> Verdict:
    if not isinstance(answer, Verdict):
        raise TypeError(f"{answer!r} is no Verdict")
    return answer
