"""
The one oracle: from a transaction id to a verdict, for the broker and for our own lost COMMITs.

Fence before you say no: ROLLBACK is answered only after a row was committed that makes a later
commit of the same transaction impossible. See `docs/decisions/0001-fence-before-you-say-no.md`.
"""

from __future__ import annotations

import threading
import time

import pymysql
import structlog

from rmq_txn import txlog
from rmq_txn.connection import ServerThread
from rmq_txn.database import Database
from rmq_txn.errors import DatabaseUnavailableError
from rmq_txn.identity import (
    PROPERTY_OWNER,
    PROPERTY_POSITION,
    PROPERTY_TXN_ID,
    age_seconds,
    is_position,
    is_txn_id,
)
from rmq_txn.logs import get_logger
from rmq_txn.pool import LOCK_ERRORS, error_code
from rmq_txn.transport import Check
from rmq_txn.verdict import Verdict

log = get_logger("checkback")

_RESOLVE_PAUSE_SECONDS = 0.2


class Oracle:
    """
    Answers for the transactions of one owner on one database. Thread-safe.

    Args:
        owner: the stamp of our half messages; nobody else's are decided here.
        retention_seconds: log rows older than this may have been pruned, so the absence of one
            proves nothing: such a question is answered UNKNOWN and never fenced.

    Attributes:
        foreign_checks: how many questions were about half messages of another owner.
    """

    def __init__(self, database: Database, owner: str, retention_seconds: float) -> None:
        self._database = database
        self.owner = owner
        self.foreign_checks = 0
        self._retention_seconds = retention_seconds

    def check(self, check: Check) -> Verdict:
        """Answer a check-back of the broker. Bounded: about 10 s when the database is away."""
        txn_id = check.properties.get(PROPERTY_TXN_ID, "")
        position = check.properties.get(PROPERTY_POSITION, "")
        owner = check.properties.get(PROPERTY_OWNER)
        with structlog.contextvars.bound_contextvars(txn_id=txn_id, message_id=check.message_id):
            if not is_txn_id(txn_id) or not is_position(position):
                log.warning("check-back for a message not sent by rmq_txn, answered unknown")
                return Verdict.UNKNOWN
            if owner != self.owner:
                self.foreign_checks += 1  # by the transport's one check thread
                log.error(
                    "check-back for another owner, answered unknown: another service shares this "
                    "producer group; give each service and database its own group",
                    owner=owner,
                    own=self.owner,
                )
                return Verdict.UNKNOWN
            if age_seconds(txn_id) > self._retention_seconds:
                log.error("check-back is older than the log's retention, answered unknown")
                return Verdict.UNKNOWN
            verdict = self.decide(txn_id, int(position), check.message_id)
            log.info("check-back answered", verdict=verdict.value, position=position)
            return verdict

    def decide(self, txn_id: str, position: int, message_id: str) -> Verdict:
        """
        Say what became of one half message, and make it stay so. UNKNOWN for any doubt.

        The same answer for ever, except that UNKNOWN may become either of the others.
        """
        try:
            session = self._database.begin_check(txn_id)
        except DatabaseUnavailableError as error:
            log.warning("check-back can't ask the database", error=str(error))
            return Verdict.UNKNOWN
        try:
            row = txlog.fence(session)
            if row is None:
                session.commit()  # the fence stands only now
                return Verdict.ROLLBACK
        except (pymysql.err.MySQLError, DatabaseUnavailableError) as error:
            if error_code(error) in LOCK_ERRORS:
                log.info("check-back: the local transaction is still running")
            else:
                log.warning("check-back could not be decided", error=str(error))
            return Verdict.UNKNOWN
        finally:
            session.rollback()  # explicitly: a lock wait timeout leaves the transaction open
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
            except (pymysql.err.MySQLError, DatabaseUnavailableError) as error:
                log.warning("the lost commit can't be looked up yet", error=str(error))
            pause.wait(_RESOLVE_PAUSE_SECONDS)
