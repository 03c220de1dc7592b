"""
The consumer helper: the dedup row and the handler's writes commit together, then the ack is given.

The protocol stands in `IdempotentConsumer._handle`, in the order in which it happens.
"""

from __future__ import annotations

import inspect
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import structlog

from rmq_txn import inbox, schema
from rmq_txn.database import Database
from rmq_txn.errors import LifecycleError, SettingsError, TransactionLostError
from rmq_txn.lifecycle import Lifecycle, State
from rmq_txn.logs import get_logger
from rmq_txn.message import Delivery, check_group, check_tag, check_topic
from rmq_txn.pool import LOCK_ERRORS, error_code, is_lost_connection
from rmq_txn.session import SessionState
from rmq_txn.transaction import Transaction
from rmq_txn.transport import ConsumerTransport, Transport
from rmq_txn.verdict import Answer

log = get_logger("consumer")

Handler: TypeAlias = Callable[[Transaction, Delivery], object]
H = TypeVar("H", bound=Handler)

_TRIES_IN_PROCESS = 4
_LONGEST_PAUSE_SECONDS = 5.0


class IdempotentConsumer:
    """
    Handles each message of its subscriptions once, as far as effects inside the database go.

    Delivery is at least once and order is not promised: the inbox row, written in the handler's
    own transaction, is what makes a duplicate harmless. Handlers run on several threads at once.

    Args:
        group: consumer group; all processes of a group have the same handlers.
        broker: the transport, such as `RocketMQ("127.0.0.1:9876")`.
        database: holds the business tables and, after `rmq-txn schema apply`, ours.
        threads: deliveries handled at once; at most the database's `pool_size`.
        dedup_key: what makes two deliveries the same message, if not the transaction id (ours) or
            the unique key (other clients'). A business key of one event, never of an entity:
            `order-1` is created and later paid.
        drain_seconds: how long `close` goes on handling deliveries that are already here.
        close_timeout_seconds: how long it then waits for handlers that run.

    Raises:
        InvalidMessageError, SettingsError: a name or a number is not usable.
    """

    def __init__(
        self,
        *,
        group: str,
        broker: Transport,
        database: Database,
        threads: int = 4,
        dedup_key: Callable[[Delivery], str] | None = None,
        drain_seconds: float = 2.0,
        close_timeout_seconds: float = 10.0,
    ) -> None:
        if isinstance(threads, bool) or not 1 <= threads <= database.pool_size:
            raise SettingsError(
                f"threads is {threads!r}, allowed is 1 to the database's pool_size ({database.pool_size}): "
                "each handler holds a connection"
            )
        self._group = check_group(group)
        self._broker = broker
        self._database = database
        self._threads = threads
        self._dedup_key = dedup_key or (lambda delivery: delivery.dedup_key)
        self._drain_seconds = drain_seconds
        self._close_timeout_seconds = close_timeout_seconds
        self._handlers: dict[str, dict[str, Handler]] = {}
        self._lifecycle = Lifecycle(f"IdempotentConsumer of group {self._group!r}")
        self._closing = threading.Event()
        self._client: ConsumerTransport

    @property
    def state(self) -> State:
        """Where in its life this consumer is."""
        return self._lifecycle.state

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._group

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that have a handler."""
        return tuple(self._handlers)

    @property
    def broker(self) -> Transport:
        """The transport it was made with."""
        return self._broker

    def handles(self, topic: str, tag: str = "*") -> Callable[[H], H]:
        """
        Register a handler for a topic and one tag, or `*` for every tag that has no own handler.

        The handler gets the running `Transaction` and the `Delivery`. Returning acknowledges, after
        COMMIT; any exception rolls back and the broker delivers again.

        Raises:
            InvalidMessageError: topic or tag can't be subscribed to.
            SettingsError: there is a handler for it already, or it is an async function.
            LifecycleError: the consumer was started: subscriptions are frozen then.
        """
        check_topic(topic)
        if tag != "*":
            check_tag(tag)
        if self._lifecycle.state is not State.NEW:
            raise LifecycleError("handlers can't be added after start(): subscriptions are frozen")

        def register(handler: H) -> H:
            if inspect.iscoroutinefunction(handler):
                raise SettingsError(
                    f"handler {handler.__name__!r} is an async function: it would be acknowledged without "
                    "having run; write a plain function"
                )
            if tag in self._handlers.setdefault(topic, {}):
                raise SettingsError(f"topic {topic!r} with tag {tag!r} has a handler already")
            self._handlers[topic][tag] = handler
            return handler

        return register

    def start(self) -> None:
        """
        Check the schema and start receiving.

        Raises:
            SettingsError: no handler is registered.
            SchemaError: our tables are missing or older: run `rmq-txn schema apply`.
            DatabaseUnavailableError, BrokerUnavailableError: cannot be reached; make a new consumer.
            NativeLibraryError: run `rmq-txn native install`.
            LifecycleError: started before.
        """
        if not self._handlers:
            raise SettingsError("no handler is registered; decorate a function with @consumer.handles(...)")
        self._lifecycle.start(self._start, undo=self._close_client)

    def _start(self) -> None:
        schema.check(self._database)
        subscriptions = {topic: tuple(by_tag) for topic, by_tag in self._handlers.items()}
        self._client = self._broker.consumer(self._group, subscriptions, self._threads, self._deliver)
        self._client.start()
        log.info("consumer started", group=self._group, topics=",".join(self._handlers))

    def close(self) -> None:
        """
        Let running handlers finish, give the rest back to the broker, stop. Idempotent.

        Not from inside a handler: it waits for handlers.
        """
        self._lifecycle.close(self._close)

    def _close(self) -> None:
        self._closing.set()
        self._close_client()
        log.info("consumer closed", group=self._group)

    def _close_client(self) -> None:
        client: ConsumerTransport | None = getattr(self, "_client", None)
        if client is not None:
            client.close(self._drain_seconds, self._close_timeout_seconds)

    def __enter__(self) -> IdempotentConsumer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> None:
        """
        Start, wait for SIGTERM or SIGINT, close. On the main thread of a process.

        A second signal while it closes has its usual effect.

        Raises:
            LifecycleError: not on the main thread.
            As `start`.
        """
        if threading.current_thread() is not threading.main_thread():
            raise LifecycleError("run() handles signals and needs the main thread; use start() and close()")
        stop = threading.Event()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for number in before:
                signal.signal(number, lambda *_: stop.set())
            self.start()
            while not stop.wait(1.0):  # with a timeout: an endless wait would hold signals up
                pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()

    def _deliver(self, delivery: Delivery) -> Answer:
        """Handle one delivery, on a thread of the transport; what it answers is final."""
        fields = {
            "txn_id": delivery.txn_id or "",
            "message_id": delivery.message_id,
            "topic": delivery.topic,
            "group": self._group,
        }
        # A native thread keeps nothing from one callback to the next, so the context is bound anew.
        with structlog.contextvars.bound_contextvars(**fields):
            handler = self._route(delivery)
            if handler is None:
                log.error("no handler for this message, it will be delivered again", tag=delivery.tag)
                return Answer.RETRY
            attempt = 0
            while True:
                try:
                    return self._handle(handler, delivery)
                except Exception as error:  # noqa: BLE001 - every failure means the same: again
                    attempt = self._next_attempt(error, attempt)
                if attempt >= _TRIES_IN_PROCESS or self._closing.is_set():
                    return Answer.RETRY

    def _handle(self, handler: Handler, delivery: Delivery) -> Answer:
        began = time.monotonic()
        key = self._dedup_key(delivery)
        session = self._database.begin(delivery.txn_id or key)
        try:
            if inbox.claim(session, self._group, key):
                handler(Transaction(session), delivery)
                session.commit()
                seconds = round(time.monotonic() - began, 4)
                log.info("handled", key=key, redeliveries=delivery.redeliveries, seconds=seconds)
            else:
                log.info("duplicate skipped", key=key, redeliveries=delivery.redeliveries)
        finally:
            if session.state is not SessionState.COMMITTED:
                session.rollback()
        return Answer.ACK

    def _next_attempt(self, error: Exception, attempt: int) -> int:
        """
        Log a failed try, wait if waiting helps, and count it; `_TRIES_IN_PROCESS` means no more.

        A redelivery by the broker costs ten seconds and one of its 17 deliveries. So lock errors
        are tried again here, and while the database is away the delivery is held and nothing is
        counted. After a lost COMMIT the next try meets its own inbox row, if it took effect, and
        skips.
        """
        if is_lost_connection(error):
            log.warning("connection lost, the delivery is held", error=str(error), attempt=attempt + 1)
            if self._database.is_reachable():
                return attempt + 1
            self._database.wait_until_reachable(self._closing, _LONGEST_PAUSE_SECONDS)
            return attempt
        if error_code(error) in LOCK_ERRORS:
            log.warning("lock error, trying again", error=str(error), attempt=attempt + 1)
            self._closing.wait(random.uniform(0.01, 0.1) * (attempt + 1))
            return attempt + 1
        if isinstance(error, TransactionLostError):
            log.critical(
                "the server ended the handler's transaction; if by DDL, what was written before it is "
                "durable and the message will be skipped as a duplicate: mend the handler, check the data"
            )
        log.error("handler failed, the message will be delivered again", exc_info=error)
        return _TRIES_IN_PROCESS

    def _route(self, delivery: Delivery) -> Handler | None:
        by_tag = self._handlers.get(delivery.topic, {})
        return by_tag.get(delivery.tag or "*") or by_tag.get("*")
