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
from contextlib import AbstractContextManager, suppress
from functools import partial

import structlog

from rmq_txn import audit, schema
from rmq_txn.audit import Action
from rmq_txn.consumer import inbox, parking
from rmq_txn.consumer.aging import Aging
from rmq_txn.consumer.claims import Claims
from rmq_txn.consumer.health import HealthNotes
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.consumer.publisher import Publisher
from rmq_txn.consumer.routes import Handler, Routes
from rmq_txn.database import Database
from rmq_txn.database.pool import LOCK_ERRORS, error_code, is_lost_connection
from rmq_txn.database.transaction import Join, Transaction
from rmq_txn.deferred import call
from rmq_txn.errors import (
    FencedError,
    HalfMessageError,
    InDoubtError,
    InvalidMessageError,
    Reject,
    TransactionLostError,
)
from rmq_txn.lifecycle import State
from rmq_txn.logs import bind, describe, get_logger, unbind
from rmq_txn.message import Delivery
from rmq_txn.schema import Identity
from rmq_txn.verdict import Answer

log = get_logger("consumer")

_TRIES_IN_PROCESS = 4
_LONGEST_PAUSE_SECONDS = 5.0
_LAST_REDELIVERY = 16  # the broker buries what is given back once more
_TOO_LARGE = 1153


class _DoneBefore(Exception):
    """Ends the transaction of a duplicate."""


class Handling:
    """
    The protocol of the deliveries of one consumer. Thread-safe.

    Args:
        routes: knows the handler of a delivery.
        dedup_key: the user's choice of what makes two deliveries the same message; None: ours.
        publisher: its transactions are used instead of the database's own.
        join: makes what shares the transaction of a handler.
        max_attempts: own failures after which a message is parked.
        retention_seconds: for how long the inbox remembers; an older message is parked untried.
        closing: set when nothing is worth waiting for any more.

    Attributes:
        health: what the deliveries note.
        aging: knows which messages the inbox may have forgotten.
        inside: whether this thread runs a handler.
    """

    def __init__(
        self,
        *,
        group: str,
        routes: Routes,
        dedup_key: Callable[[Delivery], str] | None,
        database: Database,
        publisher: Publisher | None,
        join: Callable[[], Join] | None,
        max_attempts: int,
        retention_seconds: float,
        closing: threading.Event,
    ) -> None:
        self._group = group
        self._routes = routes
        self._claims = Claims(dedup_key)
        self._database = database
        self._publisher = publisher
        self._join = join
        self._max_attempts = max_attempts
        self._closing = closing
        self.inside = contextvars.ContextVar("inside", default=False)
        self.health = HealthNotes()
        self.aging = Aging(database, self.health, retention_seconds)

    def prepare(self) -> Identity:
        """Check our tables and learn what handling needs of the database; errors as `schema.check`."""
        identity = schema.check(self._database)
        self._claims.upgraded_at = identity.upgraded_at
        return identity

    def deliver(self, delivery: Delivery) -> Answer:
        """Handle one delivery, on a thread of the transport; what it answers is final."""
        # A native thread keeps nothing from one callback to the next, so the context is bound anew.
        txn_id, message_id, topic = delivery.txn_id or "", delivery.message_id, delivery.topic
        bound = bind(txn_id=txn_id, message_id=message_id, topic=topic, group=self._group)
        try:
            handler = self._routes.find(delivery)
            if handler is None:
                return self._without_handler(delivery)
            token = self.inside.set(True)
            try:
                return self._to_the_end(delivery, partial(self._handle, delivery, handler))
            finally:
                self.inside.reset(token)
        finally:
            unbind(bound)

    def _without_handler(self, delivery: Delivery) -> Answer:
        """Give it back: another process of the group may have a handler, or this one after its deployment."""
        told = {"tag": delivery.tag, "redeliveries": delivery.redeliveries}
        if self._routes.ignores(delivery):
            log.debug("ignored", **told)
            return Answer.ACK
        self.health.unhandled(delivery.topic, delivery.tag)
        if delivery.redeliveries < _LAST_REDELIVERY:
            log.error("no handler for this message, it will be delivered again", **told)
            return Answer.RETRY
        log.error("no handler for this message, to its last delivery; it is parked", **told)
        return self._to_the_end(delivery, partial(self._park, delivery, ParkedState.UNHANDLED, "no handler"))

    def _park(self, delivery: Delivery, state: ParkedState, reason: str) -> Answer:
        with self._database.transaction() as txn:
            claim = self._claims.of_failing(delivery)
            if inbox.claim(txn, self._group, claim.key, claim.former_key):
                parking.park(txn, self._group, claim.key, state, delivery, reason)
        return Answer.ACK

    def _to_the_end(self, delivery: Delivery, step: Callable[[], Answer]) -> Answer:
        """Take a step; if it fails for a reason of its own, count that; what may pass is tried again."""
        counting, tries = False, 0
        while True:
            try:
                return step()
            except Exception as error:
                if self._may_pass(error):
                    tries = self._pause(error, tries)
                    if self._closing.is_set():
                        return Answer.RETRY
                    if tries < _TRIES_IN_PROCESS:
                        continue
                    if error_code(error) in LOCK_ERRORS:
                        return Answer.RETRY  # held by others, and no fault of the message
                elif self._is_of_the_broker(error):
                    log.warning("the messages could not be published, delivered again", error=describe(error))
                    return Answer.RETRY
                if counting:
                    log.error("a failure can't be counted, delivered again", exc_info=error)
                    return Answer.RETRY
                counting, tries = True, 0
                step = partial(self._count, delivery, error)

    def _handle(self, delivery: Delivery, handler: Handler) -> Answer:
        began = time.monotonic()
        claim = self._claims.of(delivery)
        over_age = self.aging.is_over_age(delivery)
        txn: Transaction | None = None
        try:
            with self._transaction() as txn:
                if not inbox.claim(txn, self._group, claim.key, claim.former_key):
                    raise _DoneBefore  # noqa: TRY301 - out by ROLLBACK, a round trip less than COMMIT
                if over_age:
                    # The row that would tell a duplicate may have been pruned: a person has to look.
                    parking.park(txn, self._group, claim.key, ParkedState.OVER_AGE, delivery, "never tried")
                else:
                    call(handler, "the handler", txn, delivery)
                    if delivery.redeliveries:
                        # Only then can it have failed before: who never fails pays nothing.
                        parking.forget_failures(txn, self._group, claim.key)
        except _DoneBefore:
            event = "duplicate skipped"
            self.health.duplicate()
        except Exception as error:
            if txn is not None and txn.stands and is_lost_connection(error):
                self._end_on_the_server(txn)
            raise
        else:
            event = "handled"
            if over_age:
                self.aging.tell(delivery, claim.key)
                return Answer.ACK
        seconds = round(time.monotonic() - began, 4)
        log.info(event, key=claim.key, redeliveries=delivery.redeliveries, seconds=seconds)
        return Answer.ACK

    def _transaction(self) -> AbstractContextManager[Transaction]:
        """Begin the transaction of a handler; its first statement is the claim."""
        join = self._join and self._join()
        if self._publisher is None:
            return self._database.transaction(join=join, ours_first=True)
        return self._publisher.transaction(join=join)

    def _end_on_the_server(self, txn: Transaction) -> None:
        """
        End a transaction whose connection is lost.

        A statement that takes too long goes on there, and its claim holds up our next try, and the
        counting of this one.
        """
        with suppress(Exception):  # it is gone, or so is the server; then the claim is too
            self._database.kill(txn.server_thread)

    def _count(self, delivery: Delivery, error: Exception) -> Answer:
        """Count a failure of our own after its rollback; park the message if it was the last one."""
        claim = self._claims.of_failing(delivery)
        key = claim.key
        attempts = 0
        state = None
        with self._database.transaction() as txn:
            fresh = inbox.claim(txn, self._group, key, claim.former_key)
            if fresh or isinstance(error, TransactionLostError):
                attempts = parking.count_failure(txn, self._group, key, delivery, error)
                state = self._parked_as(error, attempts, inbox_row_is_durable=not fresh)
                if state is not None and not self._parked(txn, key, state, delivery):
                    state = None
                if state is None:
                    inbox.release(txn, self._group, key, claim.former_key)
        if attempts == 0:
            log.warning("failed, but was handled or parked meanwhile", key=key, exc_info=error)
            return Answer.ACK
        self.health.stale.set()
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

    def _parked(self, txn: Transaction, key: str, state: ParkedState, delivery: Delivery) -> bool:
        """Park it; False if the server takes no statement that long, then the broker keeps it."""
        try:
            parking.park(txn, self._group, key, state, delivery)
        except Exception as error:
            if error_code(error) != _TOO_LARGE:
                raise
            log.error(
                "the message is larger than max_allowed_packet of the database, so it can't be parked; the "
                "broker keeps it: raise the limit, then `rmq-txn dlq replay`",
                key=key,
                body_bytes=len(delivery.body),
            )
            if state is not ParkedState.LOST:
                return False
            # A delivery of this one would be skipped: its claim is durable.
            parking.park(txn, self._group, key, state, delivery, with_body=False)
        return True

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
        claim = self._claims.of_failing(delivery)
        state = ParkedState.OVER_AGE if self.aging.is_over_age(delivery) else ParkedState.BURIED
        with self._database.transaction() as txn:
            fresh = inbox.claim(txn, self._group, claim.key, claim.former_key)
            if fresh:
                parking.park(txn, self._group, claim.key, state, delivery, "buried by the broker")
        return claim.key if fresh else None

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
        handler = self._routes.find(parked.delivery)
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
        # Another key than that of the parked row, if the user's function was mended, or version 2 parked it.
        now = self._claims.of(delivery)
        held = key in (now.key, now.former_key)  # by the parked row that we replay
        with self._transaction() as txn:
            fresh = inbox.claim(txn, self._group, now.key, None if held else now.former_key)
            if not parking.unpark(txn, self._group, key):
                raise _DoneBefore  # another replay was faster, or it was dropped: claim nothing
            handled_before = now.key != key and not fresh
            if not handled_before:
                call(handler, "the handler", txn, delivery)
            note = "was handled before under another key" if handled_before else ""
            audit.write(txn, Action.REPLAYED, key, group=self._group, by=audit.operator(), note=note)
        log.info("a parked message was handled before" if handled_before else "replayed", key=now.key)
        return not handled_before

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
        counted. It is there, and the connection was lost all the same: then it may be the handler, with
        a statement that takes too long, so that is a try. After a lost COMMIT the next one meets
        its own inbox row, if it took effect, and skips.
        """
        if error_code(error) in LOCK_ERRORS:
            log.warning("lock error, trying again", error=describe(error), attempt=tries + 1)
            self._closing.wait(random.uniform(0.01, 0.1) * (tries + 1))
            return tries + 1
        log.warning("connection lost, the delivery is held", error=describe(error), attempt=tries + 1)
        if self._database.is_reachable():
            return tries + 1
        with self.health.holding(describe(error)):
            self._database.wait_until_reachable(self._closing, _LONGEST_PAUSE_SECONDS)
        return tries
