"""
The consumer helper: the dedup row and the handler's writes commit together, then the ack is given.

Its life and its handlers are here; what happens to one delivery stands in `handling.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, cast

from rmq_txn.aio import begin_off_loop, end_off_loop
from rmq_txn.consumer.handler_loop import AsyncHandler, HandlerLoop
from rmq_txn.consumer.handling import Handling
from rmq_txn.consumer.health import ConsumerHealth
from rmq_txn.consumer.publisher import Publisher
from rmq_txn.consumer.routes import ANY_TAG, Handler, Routes
from rmq_txn.consumer.upkeep import Upkeep
from rmq_txn.database import Database
from rmq_txn.database.transaction import Join
from rmq_txn.deferred import is_async, refuse_deferring
from rmq_txn.errors import LifecycleError, SettingsError
from rmq_txn.lifecycle import Lifecycle, State, refuse_event_loop, run_until_signal
from rmq_txn.logs import get_logger
from rmq_txn.message import Delivery, check_group, check_tag, check_topic
from rmq_txn.pruning import PrunedInbox, Pruning
from rmq_txn.quantities import attempts, closing_seconds, retention_seconds, whole_number_between
from rmq_txn.transport import ConsumerTransport, Transport

log = get_logger("consumer")

H = TypeVar("H", bound=Handler | AsyncHandler)


class IdempotentConsumer:
    """
    Handles each message of its subscriptions once, as far as effects inside the database go.

    Delivery is at least once and order is not promised: the inbox row, written in the handler's
    own transaction, is what makes a duplicate harmless. Handlers run on several threads at once.

    Args:
        group: consumer group; not that of `producer`. Processes of a group may differ in their handlers
            for a while, as in a deployment: what one has no handler for, another gets.
        broker: the transport, such as `RocketMQ("127.0.0.1:9876")`.
        database: holds the business tables and, after `rmq-txn schema apply`, ours.
        threads: deliveries handled at once; at most the database's `pool_size`.
        dedup_key: what makes two deliveries the same message, if not the transaction id (ours) or
            the unique key (other clients'). A business key of one event, never of an entity:
            `order-1` is created and later paid.
        producer: a `TransactionProducer` on the same database: then the handler's `txn.publish` works,
            and inbox row, writes and messages are one transaction. Started and closed with the
            consumer, unless it runs already.
        join: makes a session that shares the transaction of one handler call, and is its `txn.session`
            (`rmq_txn.join`); inbox row and the session's writes are one COMMIT.
        max_attempts: own failures of a handler, 1 to 16, after which a message is parked. The default
            gives a quarter of an hour by the broker's pauses (10 s, 30 s, 1 min, ...), and leaves as
            many of its 17 deliveries for closings and rebalances, which it counts alike.
        inbox_retention_days: for how long inbox rows are kept; an older message is parked untried.
        prune: delete older inbox rows of the group, a little each minute, by one consumer of it at a time.
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
        producer: Publisher | None = None,
        join: Callable[[], Join] | None = None,
        max_attempts: int = 8,
        inbox_retention_days: float = 7.0,
        prune: bool = True,
        drain_seconds: float = 2.0,
        close_timeout_seconds: float = 10.0,
    ) -> None:
        pool_size = database.pool_size
        most = f"the database's pool_size ({pool_size})"
        whole_number_between("threads", threads, pool_size, most, "each handler holds a connection")
        if producer is not None and producer.group == group:
            raise SettingsError(
                f"group {group!r} is its producer's too; give one of them another name: brokers and tools "
                "would take the clients of the one for those of the other"
            )
        if producer is not None and producer.database is not database:
            raise SettingsError(
                "producer has another Database than this consumer; give both the same, one transaction "
                "holds the inbox row and the messages"
            )
        if dedup_key is not None:
            refuse_deferring(dedup_key, "dedup_key")
        self._group = check_group(group)
        self._broker = broker
        self._database = database
        self._producer = producer
        self._owns_producer = False
        self._threads = threads
        self._drain_seconds = closing_seconds("drain_seconds", drain_seconds)
        self._close_timeout_seconds = closing_seconds("close_timeout_seconds", close_timeout_seconds)
        self._routes = Routes()
        self._handler_loop = HandlerLoop(self._group)
        self._lifecycle = Lifecycle(f"IdempotentConsumer of group {self._group!r}")
        self._closing = threading.Event()
        self._retention_seconds = retention_seconds("inbox_retention_days", inbox_retention_days)
        self._handling = Handling(
            group=self._group,
            routes=self._routes,
            dedup_key=dedup_key,
            database=database,
            publisher=producer,
            join=join,
            max_attempts=attempts("max_attempts", max_attempts),
            retention_seconds=self._retention_seconds,
            closing=self._closing,
        )
        self._prune = prune
        self._client: ConsumerTransport | None = None  # from start on
        self._beside: list[Upkeep | Pruning] = []  # threads, from start on

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
        return self._routes.topics

    @property
    def broker(self) -> Transport:
        """The transport it was made with."""
        return self._broker

    @property
    def database(self) -> Database:
        """The database that holds its inbox and what it parked."""
        return self._database

    def handles(self, topic: str, tag: str = ANY_TAG) -> Callable[[H], H]:
        """
        Register a handler for a topic and one tag, or `*` for every tag that has no own handler.

        The broker sends every tag of the topic. What has no handler is given back and said as an error;
        `ignores` is for the tags that the group does not want.

        The handler gets the running `Transaction` and the `Delivery`. Returning acknowledges, after
        COMMIT; any exception rolls back and the broker delivers again, up to `max_attempts` times;
        `Reject` rolls back and parks the message at once. Returning work that has not run, such as a
        future, is a failure.

        An async function gets an `AsyncTransaction` (`rmq_txn.aio`) and runs on a loop of this consumer, one
        for all of its handlers: at most `threads` at once, and what blocks there holds up the others.
        Cancelled, it has failed.

        Raises:
            InvalidMessageError: topic or tag can't be subscribed to.
            SettingsError: there is a handler for it already, or it is a generator function.
            LifecycleError: the consumer was started: subscriptions are frozen then.
        """
        check_topic(topic)
        if tag != ANY_TAG:
            check_tag(tag)
        self._refuse_after_start()

        def register(handler: H) -> H:
            if is_async(handler):
                self._routes.add(topic, tag, self._handler_loop.runs(cast(AsyncHandler, handler)))
            else:
                refuse_deferring(handler, "handler")
                self._routes.add(topic, tag, cast(Handler, handler))
            return handler

        return register

    def ignores(self, topic: str, tag: str | None) -> None:
        """
        Acknowledge messages of a topic and tag without a handler: no process of the group wants them.

        The broker filters nothing for a group, so what it has no handler for is given back to the
        broker and said as an error, to its last delivery, and then parked (docs/decisions/0037). This is
        how a group says that it means it. Ignored messages are gone for the group: say it only after no
        process of it, now or in the next deployment, has a handler for them.

        Args:
            tag: None for messages without a tag; `*` for every tag without a handler, and then also
                for the tags that somebody invents tomorrow.

        Raises: as `handles`.
        """
        self._refuse_after_start()
        self._routes.ignore(topic, tag)

    def _refuse_after_start(self) -> None:
        if self._lifecycle.state is not State.NEW:
            raise LifecycleError("handlers can't be added after start(): subscriptions are frozen")

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
        if not self._routes.topics:
            raise SettingsError("no handler is registered; decorate a function with @consumer.handles(...)")
        self._lifecycle.start(self._start, undo=self._undo_start)

    def _start(self) -> None:
        identity = self._handling.prepare()
        self._start_producer()
        # Whatever this process has handlers for: a filter would swallow what only its siblings handle.
        subscriptions = dict.fromkeys(self._routes.topics, (ANY_TAG,))
        self._client = self._broker.consumer(
            self._group, subscriptions, self._threads, self._handling.deliver
        )
        self._client.start()
        # At once, though the first delivery may have come already: the line is to stand before its own.
        log.info("consumer started", group=self._group, topics=",".join(self._routes.topics))
        upkeep = Upkeep(self._database, self._group, self._routes.topics, self._client, self._handling.health)
        self._beside.append(upkeep)
        if self._prune:
            inbox_rows = PrunedInbox(self._group, self._retention_seconds)
            self._beside.append(Pruning(self._database, identity.database_id, inbox_rows))
        for thread in self._beside:
            thread.start()

    def _start_producer(self) -> None:
        if self._producer is not None and self._producer.state is State.NEW:
            self._producer.start()
            self._owns_producer = True

    def is_registered(self) -> bool:
        """
        Ask the brokers of all topics whether they know this consumer, for a health check.

        False: they would not deliver to it. As `TransactionProducer.is_registered`, errors too.
        """
        client = self._lifecycle.require_running("is_registered()", self._client)
        return all(client.is_registered(topic) for topic in self._routes.topics)

    def health(self) -> ConsumerHealth:
        """
        Return how this consumer is: what its deliveries know now, and what was seen up to 15 s ago.

        Asks nobody, never blocks. Until the first look at the brokers, some moments after `start`, it is
        not registered, without a problem.

        Raises:
            LifecycleError: not running.
        """
        self._lifecycle.require_running("health()", self._client)
        return self._handling.health.read()

    def replay(self, key: str, *, force: bool = False) -> bool:
        """
        Handle a parked message now, on this thread, through the same inbox and handler.

        Needs no start. If it fails it stays parked, with its failures counted on. Two replays of one
        message at once have one effect. `rmq-txn parked replay` calls this.

        Args:
            key: its dedup key, as `rmq-txn parked list` shows it.
            force: also one whose effect may be in the database already: parked because it is older
                than the inbox remembers, or because DDL ended its transaction.

        Returns:
            False if there was nothing to do: not parked (any more), or handled under another key.

        Raises:
            InvalidMessageError: it needs `force`, or there is no handler for it.
            Exception: whatever the handler or the transaction raises; what is no Exception, such as
                CancelledError or SystemExit, as RuntimeError.
        """
        refuse_event_loop("replay()")
        self._handling.prepare()
        self._start_producer()
        try:
            return self._handling.replay(key, force=force)
        finally:
            self._handling.health.stale.set()

    def park(self, delivery: Delivery) -> str | None:
        """
        Park a message that the broker buried, without handling it. `rmq-txn dlq replay` calls this.

        Returns:
            Its key, or None if it was handled or parked before.
        """
        refuse_event_loop("park()")
        self._handling.prepare()
        return self._handling.park_buried(delivery)

    def close(self) -> None:
        """
        Let running handlers finish, give the rest back to the broker, stop. Idempotent.

        Not from inside a handler: it would wait for it.
        """
        if self._handling.inside.get():
            raise LifecycleError("close() inside a handler would wait for it; let another thread close")
        self._lifecycle.close(self._close)
        if self._lifecycle.state is State.CLOSED:
            self._close_producer()

    def _close(self) -> None:
        self._closing.set()
        self._close_client()
        log.info("consumer closed", group=self._group)

    def _close_client(self) -> None:
        for thread in self._beside:
            thread.close(0.0)  # it ends while the client drains
        if self._client is not None:
            self._client.close(self._drain_seconds, self._close_timeout_seconds)
        for thread in self._beside:
            thread.close(self._close_timeout_seconds)
        self._handler_loop.close(self._close_timeout_seconds)

    def _undo_start(self) -> None:
        self._close_client()
        self._close_producer()

    def _close_producer(self) -> None:
        if self._producer is not None and self._owns_producer:
            self._producer.close()

    def __enter__(self) -> IdempotentConsumer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> IdempotentConsumer:
        await begin_off_loop(self.start, self.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_off_loop(self.close)

    def run(self) -> None:
        """
        Start, wait for SIGTERM or SIGINT, close. On the main thread of a process.

        A second signal while it closes has its usual effect.

        Raises:
            LifecycleError: not on the main thread.
            RmqTxnError: as `start`.
        """
        if threading.current_thread() is not threading.main_thread():
            raise LifecycleError("run() handles signals and needs the main thread; use start() and close()")
        run_until_signal(self.start, self.close)
