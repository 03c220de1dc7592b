"""
The one oracle: from a transaction id to a verdict, for the broker and for our own lost COMMITs.

Fence before you say no: ROLLBACK is answered only after a row was committed that makes a later
commit of the same transaction impossible. See `docs/decisions/0001-fence-before-you-say-no.md`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pymysql
import structlog

from rmq_txn.clock import DatabaseClock
from rmq_txn.database import Database
from rmq_txn.database.connection import ServerThread
from rmq_txn.database.pool import LOCK_ERRORS, error_code
from rmq_txn.errors import DatabaseUnavailableError
from rmq_txn.identity import (
    PROPERTY_OWNER,
    PROPERTY_POSITION,
    PROPERTY_STAMP,
    PROPERTY_TXN_ID,
    Owner,
    age_seconds,
    is_position,
    is_txn_id,
    new_txn_id,
)
from rmq_txn.logs import get_logger
from rmq_txn.producer import txlog
from rmq_txn.producer.txlog import LogRow
from rmq_txn.transport import Check
from rmq_txn.verdict import Verdict

log = get_logger("checkback")

_RESOLVE_PAUSE_SECONDS = 0.2
_STILL_RUNNING_MARGIN_SECONDS = 15.0
"""After `local_timeout_seconds`: until the server has ended a transaction whose client went silent."""
_SAY_AGAIN_SECONDS = 60.0


def longest_seconds(database: Database) -> float:
    """Return for how long a transaction may run, until the server has ended one whose client went silent."""
    return database.local_timeout_seconds + _STILL_RUNNING_MARGIN_SECONDS


class Oracle:
    """
    Answers for the transactions of one owner on one database. Thread-safe.

    Args:
        owner: signs our half messages; nobody else's are decided here.
        retention_seconds: log rows older than this may have been pruned, so the absence of one
            proves nothing: such a question is answered UNKNOWN and never fenced.
        clock: by which ages are judged; ids of `new_txn_id` carry its time.
        disturb: told, with the cause, of each answer UNKNOWN that a question of ours got although its
            transaction can't be running any more: it cost one of the broker's questions.
        unstamped_until: half messages without a stamp are taken for ours until then, by `clock`.

    Attributes:
        foreign_checks: how many questions were about half messages of another owner.
        forged_checks: how many about half messages that name our owner and that no owner signed.
    """

    def __init__(
        self,
        database: Database,
        owner: Owner,
        retention_seconds: float,
        *,
        clock: DatabaseClock | None = None,
        disturb: Callable[[str], object] = lambda _cause: None,
        unstamped_until: float = 0.0,
    ) -> None:
        self._database = database
        self.owner = owner
        self.foreign_checks = 0
        self.forged_checks = 0
        self._retention_seconds = retention_seconds
        self._clock = clock or DatabaseClock()
        self._disturb = disturb
        self._unstamped_until = unstamped_until
        self._said: dict[str, float] = {}

    @property
    def longest_seconds(self) -> float:
        """A transaction that holds its log row for longer is not believed to run still: that disturbs."""
        return longest_seconds(self._database)

    def new_txn_id(self) -> str:
        """Make a transaction id that carries the time by which its age will be judged."""
        return new_txn_id(self._clock.now())

    def check(self, check: Check) -> Verdict:
        """Answer a check-back of the broker. Bounded: about 10 s when the database is away."""
        txn_id = check.properties.get(PROPERTY_TXN_ID, "")
        with structlog.contextvars.bound_contextvars(txn_id=txn_id, message_id=check.message_id):
            if not self._is_ours(check):
                return Verdict.UNKNOWN
            try:
                return self._answer(txn_id, check)
            except Exception as error:
                # Whatever it is, the broker gets UNKNOWN for it from the transport.
                self._disturb(f"a check-back could not be answered ({type(error).__name__})")
                raise

    def _is_ours(self, check: Check) -> bool:
        """Whether only this owner can have sent the half message; no I/O, whoever may send chooses it."""
        txn_id = check.properties.get(PROPERTY_TXN_ID, "")
        position = check.properties.get(PROPERTY_POSITION, "")
        owner = check.properties.get(PROPERTY_OWNER, "")
        stamp = check.properties.get(PROPERTY_STAMP)
        if not is_txn_id(txn_id) or not is_position(position):
            self._say("check-back for a message not sent by rmq_txn, answered unknown")
            return False
        if owner != self.owner.name:
            self.foreign_checks += 1  # by the transport's one check thread
            self._say(
                "check-back for another owner, answered unknown: another service shares this "
                "producer group; give each service and database its own group",
                owner=owner,
                own=self.owner.name,
            )
            return False
        if stamp is None:
            genuine = self._clock.now() < self._unstamped_until
        else:
            genuine = self.owner.is_stamp(stamp, txn_id, int(position))
        if not genuine:
            self.forged_checks += 1
            self._say(
                "check-back for a half message that names this owner and that it did not sign, answered "
                "unknown: somebody else sends to the topic, or a process of an older version still runs",
                stamped=stamp is not None,
            )
        return genuine

    def _say(self, event: str, **fields: object) -> None:
        """Log at most once a minute what a stranger can cause as often as he likes."""
        now = time.monotonic()
        if now - self._said.get(event, -_SAY_AGAIN_SECONDS) >= _SAY_AGAIN_SECONDS:
            self._said[event] = now
            log.error(event, not_repeated_for_seconds=int(_SAY_AGAIN_SECONDS), **fields)

    def _answer(self, txn_id: str, check: Check) -> Verdict:
        position = int(check.properties[PROPERTY_POSITION])
        age = age_seconds(txn_id, self._clock.now())
        if age > self._retention_seconds:
            log.error("check-back is older than the log's retention, answered unknown", age_seconds=int(age))
            return Verdict.UNKNOWN
        try:
            verdict = self._verdict(txn_id, position, check.message_id)
        except (pymysql.MySQLError, DatabaseUnavailableError) as error:
            if error_code(error) in LOCK_ERRORS and age <= self.longest_seconds:
                log.info("check-back: the local transaction is still running")
            else:
                log.warning("check-back could not be decided", error=str(error), age_seconds=int(age))
                self._disturb("a check-back could not be decided: the database refused or did not answer")
            return Verdict.UNKNOWN
        log.info("check-back answered", verdict=verdict.value, position=position)
        return verdict

    def decide(self, txn_id: str, position: int, message_id: str) -> Verdict:
        """
        Say what became of one half message, and make it stay so. UNKNOWN for any doubt.

        The same answer for ever, except that UNKNOWN may become either of the others.
        """
        try:
            return self._verdict(txn_id, position, message_id)
        except (pymysql.MySQLError, DatabaseUnavailableError) as error:
            log.warning("a transaction could not be decided", error=str(error))
            return Verdict.UNKNOWN

    def _verdict(self, txn_id: str, position: int, message_id: str) -> Verdict:
        with self._database.check_session(txn_id, ours_first=True) as session:
            try:
                row: LogRow | None = txlog.fence(session)
                if row is None:
                    session.commit()  # the fence stands only now
                    return Verdict.ROLLBACK
            except pymysql.MySQLError as error:
                if error_code(error) not in LOCK_ERRORS:
                    # The next one asks on a new connection: this one may be to a demoted server, or know
                    # nothing of privileges that were given back.
                    with suppress(pymysql.MySQLError):  # closed already
                        session.connection.close()
                raise
        proven = row.proves_commit_of(position, message_id)
        return Verdict.COMMIT if proven else Verdict.ROLLBACK

    def resolve(
        self, txn_id: str, message_id: str, server_thread: ServerThread, timeout_seconds: float
    ) -> Verdict:
        """
        Find out what became of our own transaction whose COMMIT answer was lost.

        While nobody can say, ends the old connection on the server: a silently cut line would leave
        its transaction open there, and the fence waiting for it. Not if the server is another one, or was
        started since: that id may belong to somebody else then, and the transaction is gone anyway.

        Args:
            message_id: winning id of the message at position 0.
            server_thread: the connection COMMIT was sent on.
            timeout_seconds: after this long the answer is UNKNOWN.
        """
        deadline = time.monotonic() + timeout_seconds
        pause = threading.Event()
        while True:
            verdict = self.decide(txn_id, 0, message_id)
            if verdict is not Verdict.UNKNOWN or time.monotonic() >= deadline:
                return verdict
            try:
                self._database.kill(server_thread)
            except (pymysql.MySQLError, DatabaseUnavailableError) as error:
                log.warning("the lost commit can't be looked up yet", error=str(error))
            pause.wait(_RESOLVE_PAUSE_SECONDS)
