"""
One delivery, from its arrival to the answer for the broker: the consumer's protocol, in order.

    begin; claim the inbox row; handler; COMMIT; ack                               `_handle`
    it failed, all of that is rolled back:
    begin; claim the inbox row; count; park or release the claim; COMMIT; answer   `_count`

An answer is given after a COMMIT only; any doubt is RETRY.
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import structlog

from rmq_txn import inbox, parking
from rmq_txn.database import Database
from rmq_txn.deferred import refuse_deferred
from rmq_txn.errors import (
    FencedError,
    HalfMessageError,
    InDoubtError,
    InvalidMessageError,
    Reject,
    TransactionLostError,
)
from rmq_txn.lifecycle import State
from rmq_txn.logs import get_logger
from rmq_txn.message import Delivery
from rmq_txn.parking import ParkedState
from rmq_txn.pool import LOCK_ERRORS, error_code, is_lost_connection
from rmq_txn.publisher import Publisher
from rmq_txn.transaction import Transaction
from rmq_txn.verdict import Answer

log = get_logger("consumer")

Handler: TypeAlias = Callable[[Transaction, Delivery], object]

_TRIES_IN_PROCESS = 4
_LONGEST_PAUSE_SECONDS = 5.0


class _DoneBefore(Exception):
    """Ends the transaction of a duplicate."""


class Handling:
    """
    The protocol of the deliveries of one consumer. Thread-safe.

    Args:
        route: finds the handler of a delivery.
        dedup_key: the user's choice of what makes two deliveries the same message.
        publisher: its transactions are used instead of the database's own.
        max_attempts: own failures after which a message is parked.
        retention_seconds: for how long the inbox remembers; an older message is parked untried.
        closing: set when nothing is worth waiting for any more.
    """

    def __init__(
        self,
        *,
        group: str,
        route: Callable[[Delivery], Handler | None],
        dedup_key: Callable[[Delivery], str],
        database: Database,
        publisher: Publisher | None,
        max_attempts: int,
        retention_seconds: float,
        closing: threading.Event,
    ) -> None:
        self._group = group
        self._route = route
        self._dedup_key = dedup_key
        self._database = database
        self._publisher = publisher
        self._transactions: Database | Publisher = publisher or database
        self._max_attempts = max_attempts
        self._retention_seconds = retention_seconds
        self._closing = closing
        self.inside = contextvars.ContextVar("inside", default=False)

    def deliver(self, delivery: Delivery) -> Answer:
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
            token = self.inside.set(True)
            try:
                return self._to_the_end(delivery, handler)
            finally:
                self.inside.reset(token)

    def _to_the_end(self, delivery: Delivery, handler: Handler) -> Answer:
        """Handle it; if it fails for a reason of its own, count that; what may pass is tried again."""
        counting = False
        step: Callable[[], Answer] = partial(self._handle, delivery, handler)
        tries = 0
        while tries < _TRIES_IN_PROCESS:
            try:
                return step()
            except Exception as error:
                if self._may_pass(error):
                    tries = self._pause(error, tries)
                    if self._closing.is_set():
                        break
                elif self._is_of_the_broker(error):
                    log.warning("the messages could not be published, delivered again", error=str(error))
                    break
                elif counting:
                    log.error("a failure can't be counted, delivered again", exc_info=error)
                    break
                else:
                    counting, tries = True, 0
                    step = partial(self._count, delivery, error)
        return Answer.RETRY

    def _handle(self, delivery: Delivery, handler: Handler) -> Answer:
        began = time.monotonic()
        key = self._key(delivery)
        try:
            with self._transactions.transaction() as txn:
                if not inbox.claim(txn, self._group, key):
                    raise _DoneBefore  # noqa: TRY301 - out by ROLLBACK, a round trip less than COMMIT
                if inbox.may_have_forgotten(delivery, self._retention_seconds):
                    # The row that would tell a duplicate may have been pruned: a person has to look.
                    parking.park(txn, self._group, key, ParkedState.OVER_AGE, delivery, "never tried")
                    event = "parked untried, the message is older than the inbox remembers"
                else:
                    self._call(handler, txn, delivery)
                    if delivery.redeliveries:
                        # Only then can it have failed before: who never fails pays nothing.
                        parking.forget_failures(txn, self._group, key)
                    event = "handled"
        except _DoneBefore:
            event = "duplicate skipped"
        seconds = round(time.monotonic() - began, 4)
        log.info(event, key=key, redeliveries=delivery.redeliveries, seconds=seconds)
        return Answer.ACK

    def _count(self, delivery: Delivery, error: Exception) -> Answer:
        """Count a failure of our own after its rollback; park the message if it was the last one."""
        key = self._key_or_own(delivery)
        attempts = 0
        state = None
        with self._database.transaction() as txn:
            fresh = inbox.claim(txn, self._group, key)
            if fresh or isinstance(error, TransactionLostError):
                attempts = parking.count_failure(txn, self._group, key, delivery, error)
                state = self._parked_as(error, attempts, inbox_row_is_durable=not fresh)
                if state is None:
                    inbox.release(txn, self._group, key)
                else:
                    parking.park(txn, self._group, key, state, delivery)
        if attempts == 0:
            log.warning("failed, but was handled or parked meanwhile", key=key, exc_info=error)
            return Answer.ACK
        told = {"key": key, "attempts": attempts, "exc_info": error}
        if state is None:
            log.error("handler failed, the message will be delivered again", **told)
            return Answer.RETRY
        if state is ParkedState.LOST:
            log.critical(
                "the server ended the handler's transaction, by DDL: what was written before it is durable; "
                "mend the handler and look at the data before `rmq-txn parked replay --force`"
            )
        log.error("handler failed, the message is parked", because=state.name.lower(), **told)
        return Answer.ACK

    def _parked_as(
        self, error: Exception, attempts: int, *, inbox_row_is_durable: bool
    ) -> ParkedState | None:
        """Say as what a message that failed is parked; None: the broker shall deliver it again."""
        if inbox_row_is_durable:
            # The claim outlived the rollback: DDL committed it. A delivery would be skipped.
            return ParkedState.LOST
        if isinstance(error, Reject):
            return ParkedState.REJECTED
        return ParkedState.EXHAUSTED if attempts >= self._max_attempts else None

    def park_buried(self, delivery: Delivery) -> str | None:
        """Park a message that the broker buried, return its key; None: it was handled or parked before."""
        key = self._key_or_own(delivery)
        state = (
            ParkedState.OVER_AGE
            if inbox.may_have_forgotten(delivery, self._retention_seconds)
            else ParkedState.BURIED
        )
        with self._database.transaction() as txn:
            fresh = inbox.claim(txn, self._group, key)
            if fresh:
                parking.park(txn, self._group, key, state, delivery, "buried by the broker")
        return key if fresh else None

    def replay(self, key: str, *, force: bool) -> bool:
        """Handle a parked message on this thread; see `IdempotentConsumer.replay`."""
        with self._database.transaction(read_only=True) as txn:
            parked = parking.read(txn, self._group, key)
        if parked is None:
            return False
        if parked.failure.state.needs_force and not force:
            raise InvalidMessageError(
                f"message {key} is parked as {parked.failure.state.name.lower()}: its effect may be in the "
                "database already; look there, then replay it with --force or drop it"
            )
        handler = self._route(parked.delivery)
        if handler is None:
            raise InvalidMessageError(
                f"message {key} has topic {parked.delivery.topic!r} and tag {parked.delivery.tag!r}, "
                "for which this consumer has no handler"
            )
        try:
            with structlog.contextvars.bound_contextvars(group=self._group, key=key):
                return self._replay(key, parked.delivery, handler)
        except _DoneBefore:
            return False
        except Exception as error:
            if not self._may_pass(error) and not self._is_of_the_broker(error):
                with self._database.transaction() as txn:
                    parking.count_failure(txn, self._group, key, parked.delivery, error)
                    if isinstance(error, TransactionLostError):
                        # By DDL the parked row may be gone for good; one that stands is left alone.
                        parking.park(txn, self._group, key, ParkedState.LOST, parked.delivery)
            raise

    def _replay(self, key: str, delivery: Delivery, handler: Handler) -> bool:
        key_now = self._key(delivery)  # another one if the user's function was mended
        with self._transactions.transaction() as txn:
            fresh = inbox.claim(txn, self._group, key_now)
            if not parking.unpark(txn, self._group, key):
                raise _DoneBefore  # another replay was faster, or it was dropped: claim nothing
            handled_before = key_now != key and not fresh
            if not handled_before:
                self._call(handler, txn, delivery)
        log.info("a parked message was handled before" if handled_before else "replayed", key=key_now)
        return not handled_before

    def _call(self, handler: Handler, txn: Transaction, delivery: Delivery) -> None:
        try:
            refuse_deferred(handler(txn, delivery), "the handler")
        except Exception as error:
            if not self._may_pass(error):
                txn.require_whole()  # after DDL the inbox row stands, and the effect would be lost
            raise

    def _key(self, delivery: Delivery) -> str:
        key = self._dedup_key(delivery)
        refuse_deferred(key, "dedup_key")
        return inbox.check_key(key)

    def _key_or_own(self, delivery: Delivery) -> str:
        """Return a key for the failure of a message for which the user's function has none."""
        try:
            return self._key(delivery)
        except Exception:  # noqa: BLE001 - it is the failure that is being counted
            return delivery.dedup_key

    def _may_pass(self, error: Exception) -> bool:
        """Whether the same may work in a moment: the database was away, a lock was held."""
        return (
            is_lost_connection(error) or isinstance(error, InDoubtError) or error_code(error) in LOCK_ERRORS
        )

    def _is_of_the_broker(self, error: Exception) -> bool:
        """Whether the message is innocent, and only publishing failed, or was stopped."""
        stopped = self._publisher is not None and self._publisher.state is not State.RUNNING
        return stopped or isinstance(error, (HalfMessageError, FencedError))

    def _pause(self, error: Exception, tries: int) -> int:
        """
        Wait where waiting helps, and count the try; `_TRIES_IN_PROCESS` means no more.

        A redelivery by the broker costs ten seconds and one of its 17 deliveries. So lock errors
        are tried again here, and while the database is away the delivery is held and nothing is
        counted. After a lost COMMIT the next try meets its own inbox row, if it took effect, and
        skips.
        """
        if error_code(error) in LOCK_ERRORS:
            log.warning("lock error, trying again", error=str(error), attempt=tries + 1)
            self._closing.wait(random.uniform(0.01, 0.1) * (tries + 1))
            return tries + 1
        log.warning("connection lost, the delivery is held", error=str(error), attempt=tries + 1)
        if self._database.is_reachable():
            return tries + 1
        self._database.wait_until_reachable(self._closing, _LONGEST_PAUSE_SECONDS)
        return tries
