"""
The relay: what a broker may have given up on is published again, as a plain message.

Not if the brokers show that consumers see it: after a deployment most do, as nobody is left who knows. What
is published again carries the same transaction and position, so a consumer that had the first one skips it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rmq_txn.errors import BrokerUnavailableError, RmqTxnError
from rmq_txn.logs import get_logger
from rmq_txn.message import Outbound
from rmq_txn.producer.outbox import Attempt, Outbox, OutboxRow
from rmq_txn.producer.undisturbed_time import UndisturbedTime
from rmq_txn.transport import ProducerTransport

log = get_logger("relay")

_BEFORE_ALL = 86_400
"""In seconds since 1970: a time that each server has in each time zone."""
_PAGE = 16  # rows; a body may have 4 MiB
_FIRST_RETRY_SECONDS = 30.0
_LAST_RETRY_SECONDS = 300.0  # after which an absent broker, or a missing topic, is tried again
_LAST_REFUSED_SECONDS = 3600.0  # after which a message is tried again that the broker refuses


@dataclass(frozen=True, slots=True)
class _Published:
    at: float
    rows: list[OutboxRow]


class Relay:
    """
    Publishes overdue rows again, and deletes them some time later. For one thread.

    Args:
        database_id: one relay of a database is elected.
        overdue_seconds: rows of this age are published again.
        settle_seconds: between the broker's answer and the deletion; a broker that crashes
            meanwhile may lose what it took, and then it is published once more.
        work_seconds: about how long one `work` lasts.
        closing: ends the work early.
        is_settled: whether the broker surely has the message of a row, see `Witness`; then there is
            nothing to publish.
    """

    def __init__(
        self,
        outbox: Outbox,
        client: ProducerTransport,
        undisturbed: UndisturbedTime,
        *,
        database_id: str,
        overdue_seconds: float,
        settle_seconds: float,
        work_seconds: float,
        closing: threading.Event,
        is_settled: Callable[[OutboxRow], bool],
    ) -> None:
        self._outbox = outbox
        self._client = client
        self._undisturbed = undisturbed
        self._database_id = database_id
        self._overdue_seconds = overdue_seconds
        self._settle_seconds = settle_seconds
        self._work_seconds = work_seconds
        self._closing = closing
        self._is_settled = is_settled
        self._published: deque[_Published] = deque()
        self._elected = False
        self._mute: set[str] = set()

    def work(self) -> bool:
        """
        Do what is due, if this is the elected relay; say whether it is.

        Raises:
            DatabaseUnavailableError: the outbox can't be worked on now.
        """
        self._delete_settled()
        elected = self._outbox.elect(self._database_id)
        if elected != self._elected:
            log.info("elected as the relay of this database" if elected else "no longer the relay")
            self._elected = elected
        deadline = self._undisturbed.now() + self._work_seconds
        since = _BEFORE_ALL
        self._mute.clear()
        while elected and not self._done(deadline):
            rows = self._outbox.overdue(self._overdue_seconds, _PAGE, since)
            if not rows:
                break
            settled = [row for row in rows if self._is_settled(row)]
            if settled:
                self._outbox.delete_rows(settled)
                log.info("copies deleted: the broker surely has these messages", rows=len(settled))
            else:
                self._publish(rows, deadline)
                since = rows[-1].written_at  # all that lies before was dealt with in this round
        return elected

    def _done(self, deadline: float) -> bool:
        return self._closing.is_set() or self._undisturbed.now() >= deadline

    def _publish(self, rows: list[OutboxRow], deadline: float) -> None:
        unreachable: set[str] = set()
        attempts: list[Attempt] = []
        for row in rows:
            self._undisturbed.tick()
            if self._done(deadline):
                break
            attempts.append(self._attempt(row, unreachable))
        published = [attempt.row for attempt in attempts if not attempt.failed]
        if published:
            # Also what was there: since when, nobody knows.
            self._published.append(_Published(self._undisturbed.now(), published))
        if there := sum(attempt.was_there for attempt in attempts):
            log.info("not published again: consumers see these messages", rows=there)
        self._outbox.note(attempts)

    def _attempt(self, row: OutboxRow, unreachable: set[str]) -> Attempt:
        """Publish one row; whatever is wrong with it, the others come next."""
        retry_seconds = _FIRST_RETRY_SECONDS * 2.0 ** min(row.failures, 8)
        if row.topic in unreachable:
            return Attempt(row, failed=True, retry_seconds=min(retry_seconds, _LAST_RETRY_SECONDS))
        try:
            message = row.outbound()
            was_there = self._is_there(message, row.message_id)
            if not was_there:
                self._client.send_plain(message, row.message_id)
        except ValueError as error:  # a damaged row, or refused by the broker: InvalidMessageError
            retry_seconds = min(retry_seconds, _LAST_REFUSED_SECONDS)
            self._log_failure("a message can't be published again", row, error, retry_seconds)
            return Attempt(row, failed=True, retry_seconds=retry_seconds)
        except RmqTxnError as error:
            unreachable.add(row.topic)  # so that its other rows don't wait for the same timeout
            retry_seconds = min(retry_seconds, _LAST_RETRY_SECONDS)
            self._log_failure("no broker to publish a message again", row, error, retry_seconds)
            return Attempt(row, failed=True, retry_seconds=retry_seconds)
        if not was_there:
            log.warning(
                "published again: the broker may have given this message up",
                txn_id=row.txn_id,
                position=row.position,
                topic=row.topic,
            )
        # Another relay does it once more if this one does not live to delete it.
        retry_seconds = 2 * self._settle_seconds + _FIRST_RETRY_SECONDS
        return Attempt(row, failed=False, retry_seconds=retry_seconds, was_there=was_there)

    def _is_there(self, message: Outbound, message_id: str) -> bool:
        """Ask the brokers; where they don't answer it is published, which does no harm."""
        if message.topic in self._mute:
            return False
        try:
            return self._client.is_published(message, message_id)
        except BrokerUnavailableError as error:
            self._mute.add(message.topic)  # for this round: its other rows don't wait for the same timeout
            log.info("all of this topic is published again", topic=message.topic, because=str(error))
            return False

    @staticmethod
    def _log_failure(event: str, row: OutboxRow, error: Exception, retry_seconds: float) -> None:
        log.warning(
            event,
            txn_id=row.txn_id,
            position=row.position,
            topic=row.topic,
            failures=row.failures + 1,
            retry_seconds=retry_seconds,
            error=str(error),
        )

    def _delete_settled(self) -> None:
        now = self._undisturbed.now()
        since = self._undisturbed.tick_own()
        while self._published and now - self._published[0].at > self._settle_seconds:
            page = self._published.popleft()
            if page.at > since:
                self._outbox.delete_rows(page.rows)
            # else the broker may have crashed with them: they are published once more
