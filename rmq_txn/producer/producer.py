"""
The producer helper: a local transaction and its messages live or die together.

Start with `transaction` (form A) or `send_in_transaction` (form B); the protocol they share stands in
`commitment.py`, in the order in which it happens.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, overload

from rmq_txn import schema
from rmq_txn.aio import AsyncTransaction, begin_off_loop, end_off_loop
from rmq_txn.database import Database
from rmq_txn.database.transaction import Join, Transaction
from rmq_txn.deferred import is_async, refuse_deferring
from rmq_txn.errors import InvalidMessageError, LifecycleError, SettingsError
from rmq_txn.inflight import InFlight
from rmq_txn.lifecycle import Lifecycle, State
from rmq_txn.logs import Bound, bind, get_logger, unbind
from rmq_txn.message import Message, check_group, check_topic
from rmq_txn.producer import on_a_loop, txlog
from rmq_txn.producer.health import ProducerHealth
from rmq_txn.producer.parts import ProducerParts
from rmq_txn.producer.receipt import PublishingTransaction, Receipt
from rmq_txn.producer.upkeep import OutboxTimes
from rmq_txn.quantities import closing_seconds, positive_number, retention_seconds
from rmq_txn.transport import Transport

log = get_logger("producer")
T = TypeVar("T")


class TransactionProducer:
    """
    Publishes messages if, and only if, a local database transaction commits. Thread-safe.

    Promises: effects inside the database happen once; delivery is at least once; order is not
    promised. Start it in the process that uses it, after any fork.

    Args:
        group: producer group; one for each pair of service and database, never shared.
        broker: the transport, such as `RocketMQ("127.0.0.1:9876")`.
        database: holds the business tables and, after `rmq-txn schema apply`, ours.
        topics: every topic it will publish to; they must exist. It registers with their brokers at
            start, without which a restarted and idle producer is not asked anything.
        log_retention_days: for how long log rows are kept; older questions are answered UNKNOWN. All
            producers of a database share one log: the shortest retention counts.
        prune: delete older log rows, a little each minute, by one producer of the database at a time.
        close_timeout_seconds: how long `close` waits for transactions and check-backs that run.
        check_budget_seconds: at least how long the broker goes on asking about a half message:
            456 s by the defaults of RocketMQ 5.x, about 900 s by those of 4.x. Copies of messages
            are kept that long.
        outbox_times: the other durations of the outbox (`rmq_txn.producer.upkeep`), for tests.

    Raises:
        InvalidMessageError, SettingsError: a name or a number is not usable.
    """

    def __init__(
        self,
        *,
        group: str,
        broker: Transport,
        database: Database,
        topics: Sequence[str],
        log_retention_days: float = 7.0,
        prune: bool = True,
        close_timeout_seconds: float = 10.0,
        check_budget_seconds: float = 600.0,
        outbox_times: OutboxTimes | None = None,
    ) -> None:
        if isinstance(topics, str) or not topics:
            raise SettingsError(f"topics is {topics!r}, allowed is a list of at least one topic")
        self._group = check_group(group)
        self._topics = tuple(dict.fromkeys(map(check_topic, topics)))
        self._broker = broker
        self._database = database
        self._retention_seconds = retention_seconds("log_retention_days", log_retention_days)
        self._close_timeout_seconds = closing_seconds("close_timeout_seconds", close_timeout_seconds)
        self._lifecycle = Lifecycle(f"TransactionProducer of group {self._group!r}")
        self._in_flight = InFlight()
        self._inside: contextvars.ContextVar[str | None] = contextvars.ContextVar("inside", default=None)
        self._check_budget_seconds = positive_number("check_budget_seconds", check_budget_seconds)
        self._outbox_times = outbox_times or OutboxTimes()
        self._prune = prune
        self._parts: ProducerParts | None = None  # from start on
        self._threads: ThreadPoolExecutor | None = None  # of transactions of event loops; from start on

    @property
    def state(self) -> State:
        """Where in its life this producer is; RUNNING means registered with its brokers."""
        return self._lifecycle.state

    @property
    def group(self) -> str:
        """The producer group."""
        return self._group

    @property
    def database(self) -> Database:
        """The database that its transactions run in."""
        return self._database

    def start(self) -> None:
        """
        Check the schema, start the client and register with the brokers of all topics.

        Raises:
            SchemaError: our tables are missing or older: run `rmq-txn schema apply`.
            DatabaseUnavailableError, BrokerUnavailableError: cannot be reached; make a new producer.
            NativeLibraryError: run `rmq-txn native install`.
            LifecycleError: started before.
        """
        self._lifecycle.start(self._start, undo=self._close_parts)

    def _start(self) -> None:
        self._parts = ProducerParts(
            self._group,
            self._topics,
            self._broker,
            self._database,
            schema.check(self._database),
            retention_seconds=self._retention_seconds,
            check_budget_seconds=self._check_budget_seconds,
            times=self._outbox_times,
            prune=self._prune,
        )
        self._parts.start()
        self._threads = ThreadPoolExecutor(self._database.pool_size, f"rmq-txn-{self._group}")
        log.info("producer started", group=self._group, topics=",".join(self._topics))

    def is_registered(self) -> bool:
        """
        Ask the brokers of all topics whether they know this producer, for a health check.

        False: they would ask another producer of the group, or nobody. A few round trips to brokers
        and name server, each bounded to 3 s; no message is sent.

        Raises:
            BrokerUnavailableError: they can't be asked.
            LifecycleError: not running.
        """
        parts = self._lifecycle.require_running("is_registered()", self._parts)
        return all(parts.client.is_registered(topic) for topic in self._topics)

    def health(self) -> ProducerHealth:
        """
        Return how this producer and its outbox are, as of some seconds ago; asks nobody, never blocks.

        Raises:
            LifecycleError: not running.
        """
        return self._lifecycle.require_running("health()", self._parts).upkeep.health()

    def close(self) -> None:
        """
        Refuse new transactions, wait for the running ones, answer UNKNOWN to check-backs, stop.

        Idempotent. Takes at most about two `close_timeout_seconds`. Not from inside a transaction.
        """
        if (inside := self._inside.get()) is not None:
            raise LifecycleError(f"close() inside transaction {inside} would wait for it; end it first")
        self._lifecycle.close(self._close)

    def _close(self) -> None:
        if not self._in_flight.wait_until_quiet(0.0, self._close_timeout_seconds):
            log.warning("closing although a transaction still runs; check-back will decide it")
        self._close_parts()
        log.info("producer closed", group=self._group)

    def _close_parts(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        if self._parts is not None:
            self._parts.close(self._close_timeout_seconds)

    def __enter__(self) -> TransactionProducer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> TransactionProducer:
        await begin_off_loop(self.start, self.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_off_loop(self.close)

    @contextmanager
    def transaction(self, *, join: Join | None = None) -> Iterator[PublishingTransaction]:
        """
        Form A: business SQL first, half messages and COMMIT when the block ends.

        The body of a message may carry generated ids. Row locks are held while the broker stores
        the half messages, so a broker stall becomes a database stall; form B suits hot rows.
        Publishing nothing is a plain COMMIT.

        Args:
            join: a session that shares the transaction, such as SQLAlchemy's (`rmq_txn.join.sqlalchemy`); it
                is flushed before the half messages, and committed with the COMMIT.

        Raises:
            HalfMessageError: the broker did not take a message; nothing committed, safe to retry.
            FencedError: a check-back was faster; nothing committed, safe to retry.
            DatabaseUnavailableError: nothing committed.
            LocalTimeoutError: the transaction took too long; nothing committed.
            TransactionLostError: the server ended the transaction behind our back; also instead of what the
                block raises, which is its cause then.
            InDoubtError: COMMIT was sent and nobody can say now what became of it.
            LifecycleError: not running, or inside another transaction of this producer.
            Whatever else the block raises: rolled back, unchanged.
        """
        with self._one_transaction("transaction()") as (parts, txn_id):
            messages: list[Message] = []
            receipts: list[Receipt[None]] = []

            def publish(message: Message) -> None:
                self._check_publish(message, len(messages))
                messages.append(message)

            session = self._database.begin(txn_id)
            try:
                txn = PublishingTransaction(session, publish, receipts, join)
                if join is not None:
                    join.begin(txn)
                yield txn
                if join is not None:
                    join.flush()
                commitment = parts.commitment(txn_id, messages)
            except BaseException as error:
                told = session.fail(error)
                log.info("rolled back by its block, nothing was sent", cause=type(error).__name__)
                if told is not error:
                    raise told from error
                raise
            else:
                receipts.append(commitment.commit_block(session, join))
            finally:
                if join is not None:
                    join.end()
        if join is not None:
            join.after_commit()

    def send_in_transaction(
        self, messages: Message | Sequence[Message], work: Callable[[Transaction], T]
    ) -> Receipt[T]:
        """
        Form B, the order of the article: half messages first, then `work` in a local transaction.

        No row is locked while the broker is asked. `work` runs on the calling thread, gets a
        `Transaction` that can't publish, and is not called when the broker takes no message.

        Args:
            messages: one or several; all or none are delivered.
            work: the business SQL; what it returns is `Receipt.value`. Work that has not run, such as a
                coroutine or a future, is refused with SettingsError and nothing is committed.

        Raises: as `transaction`.
        """
        refuse_deferring(work, "work")
        batch = self._checked_batch(messages)
        with self._one_transaction("send_in_transaction()") as (parts, txn_id):
            return parts.commitment(txn_id, batch).commit_work(work)

    def atransaction(self, *, join: Join | None = None) -> on_a_loop.AsyncBlock:
        """
        Form A for a task of an event loop: `async with producer.atransaction() as txn`.

        The block runs on the loop; statements, half messages and COMMIT on a thread of this producer, one of
        as many as the database's `pool_size`. A block that takes longer than `local_timeout_seconds` is
        rolled back, also if it never ends. When the block is left, all has ended: a task that is cancelled
        in it, or while it commits, waits for that, then `CancelledError` is raised; its cause says what
        became of the transaction, none means that nothing was committed.

        Args:
            join: a session that shares the transaction, as in `transaction`; for functions that the block
                gives to `txn.run`, since its statements block.

        Raises: as `transaction`, and
            LocalTimeoutError: the block took too long.
            LifecycleError: also if an await of a statement was cancelled, and that was swallowed.
        """
        self._lifecycle.require_running("atransaction()", self._parts, blocks=False)
        return on_a_loop.AsyncBlock(
            self, self._running_threads(), self._joined_block, join, self._database.local_timeout_seconds
        )

    def _joined_block(self, join: Join) -> AbstractContextManager[PublishingTransaction]:
        return self.transaction(join=join)

    def _running_threads(self) -> ThreadPoolExecutor:
        return self._lifecycle.require_running("this", self._threads, blocks=False)

    @overload
    async def asend_in_transaction(
        self,
        messages: Message | Sequence[Message],
        work: Callable[[AsyncTransaction], Coroutine[Any, Any, T]],
    ) -> Receipt[T]: ...

    @overload
    async def asend_in_transaction(
        self, messages: Message | Sequence[Message], work: Callable[[Transaction], T]
    ) -> Receipt[T]: ...

    async def asend_in_transaction(
        self,
        messages: Message | Sequence[Message],
        work: Callable[[Transaction], T] | Callable[[AsyncTransaction], Coroutine[Any, Any, T]],
    ) -> Receipt[T]:
        """
        Form B for a task of an event loop. Cancellation, threads and time limit as `atransaction`.

        Args:
            messages: as `send_in_transaction`.
            work: a plain function, called on the thread of the transaction with a `Transaction`; or an async
                one, which runs on this loop with an `AsyncTransaction`.

        Raises: as `send_in_transaction`.
        """
        batch = self._checked_batch(messages)
        if not is_async(work):
            refuse_deferring(work, "work")
        return await on_a_loop.send(
            self._running_threads(),
            lambda worked: self.send_in_transaction(batch, worked),
            work,
            self._database.local_timeout_seconds,
        )

    def _checked_batch(self, messages: Message | Sequence[Message]) -> list[Message]:
        batch = [messages] if isinstance(messages, Message) else list(messages)
        if not batch:
            raise InvalidMessageError("no message given; form B needs at least one")
        for position, message in enumerate(batch):
            self._check_publish(message, position)
        return batch

    def _check_publish(self, message: Message, position: int) -> None:
        if message.topic not in self._topics:
            raise SettingsError(
                f"topic {message.topic!r} is not among the topics of this producer "
                f"({', '.join(self._topics)}); add it to topics="
            )
        if position >= txlog.MAX_MESSAGES:
            raise InvalidMessageError(
                f"this transaction has more than {txlog.MAX_MESSAGES} messages, that is the limit"
            )

    @contextmanager
    def _one_transaction(self, call: str) -> Iterator[tuple[ProducerParts, str]]:
        parts = self._lifecycle.require_running(call, self._parts)
        if (outer := self._inside.get()) is not None:
            raise LifecycleError(
                f"{call} inside transaction {outer} of the same producer; publish in the outer one"
            )
        txn_id = parts.oracle.new_txn_id()
        bound: Bound = {}
        try:
            try:
                self._inside.set(txn_id)
                self._in_flight.add(txn_id)
                bound = bind(txn_id=txn_id)
                yield parts, txn_id
            finally:
                unbind(bound)
                self._in_flight.remove(txn_id)
        finally:
            self._inside.set(None)  # as it was; no token, that Ctrl-C could keep from us
            if txn_id in self._in_flight.running:  # Ctrl-C kept the line above from it
                self._in_flight.remove(txn_id)
