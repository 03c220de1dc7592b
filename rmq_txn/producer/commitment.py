"""
One transaction with its messages, from its end or its first half message to the verdict, in order:

    form A: the block has run; half messages; log row, copies, COMMIT; verdict        `commit_block`
    form B: half messages; begin, open log row, work, close it, copies, COMMIT; verdict   `commit_work`

Nothing raises on the way: each step runs inside the local-execute callback of the one before, so what
goes wrong is kept, the verdict is given to every half message, and the failure is raised at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from rmq_txn.database import Database
from rmq_txn.database.session import Session
from rmq_txn.database.session_state import SessionState
from rmq_txn.database.transaction import Join, Transaction
from rmq_txn.deferred import refuse_deferred
from rmq_txn.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    HalfMessageError,
    InDoubtError,
    LocalTimeoutError,
    TransactionLostError,
)
from rmq_txn.identity import Owner
from rmq_txn.logs import get_logger
from rmq_txn.message import Message
from rmq_txn.producer import outbox, txlog
from rmq_txn.producer.checkback import Oracle
from rmq_txn.producer.receipt import Receipt
from rmq_txn.producer.txlog import LogState
from rmq_txn.producer.undisturbed_time import SentVerdicts
from rmq_txn.transport import ProducerTransport
from rmq_txn.verdict import Verdict

log = get_logger("producer")
T = TypeVar("T")

# How long a lost COMMIT is looked up. With a silent network the wait for COMMIT's own answer takes
# `statement_timeout_seconds`, 10 s, before that, and the caller shall have an outcome within 15 s: so
# it ends 12 s after COMMIT; what runs then, a look, a KILL and a look, takes up to 3 s more.
_RESOLVE_SECONDS = 8.0
_LEAST_RESOLVE_SECONDS = 2.0
_RESOLVED_AFTER_COMMIT_SECONDS = 12.0


class Commitment:
    """
    The commit of one transaction with its messages. For one thread, used once.

    The half messages are nested: each is sent inside the local-execute callback of the one before,
    and the innermost callback runs the local transaction. So all of them exist before the one
    COMMIT, and all get its verdict. The message published last is sent first: the native client
    ends them from the inside out, and so commits them in the order of publishing (docs/hazards.md, H7).
    """

    def __init__(
        self,
        client: ProducerTransport,
        oracle: Oracle,
        owner: Owner,
        database: Database,
        verdicts: SentVerdicts,
        txn_id: str,
        messages: Sequence[Message],
    ) -> None:
        self._client = client
        self._oracle = oracle
        self._database = database
        self._verdicts = verdicts
        self._txn_id = txn_id
        self._outbound = [
            message.outbound(
                txn_id=txn_id,
                position=position,
                owner=owner.name,
                stamp=owner.stamp(txn_id, position),
            )
            for position, message in enumerate(messages)
        ]
        self._message_ids = [""] * len(messages)  # by position; complete in the local transaction
        self._session: Session | None = None  # until form B begins it
        self._join: Join | None = None
        self._verdict: Verdict | None = None
        self._failure: BaseException | None = None

    def commit_block(self, session: Session, join: Join | None = None) -> Receipt[None]:
        """
        Form A: the business SQL ran in `session`; store the half messages and COMMIT.

        Args:
            join: what shares the transaction, flushed; it is told of the COMMIT.

        Raises: as `TransactionProducer.transaction`.
        """
        self._join = join
        self.run(lambda: self._log_and_commit(session), session)
        return Receipt(self._txn_id, tuple(self._message_ids), None)

    def _log_and_commit(self, session: Session) -> None:
        self._require_in_time(session)
        if self._outbound:
            copies = outbox.copies(session, self._outbound, self._message_ids)
            txlog.insert_committed(session, self._message_ids, copies, release=self._join is None)
        self._commit(session)

    def commit_work(self, work: Callable[[Transaction], T]) -> Receipt[T]:
        """
        Form B: store the half messages, then run `work` in a transaction of its own and COMMIT.

        Raises: as `TransactionProducer.send_in_transaction`.
        """
        value: list[T] = []
        self.run(lambda: self._work_and_commit(work, value.append))
        return Receipt(self._txn_id, tuple(self._message_ids), value[0])

    def _work_and_commit(self, work: Callable[[Transaction], T], keep: Callable[[T], None]) -> None:
        session = self._session = self._database.begin(self._txn_id, ours_first=True)
        # First, so that a check-back meanwhile waits on the row and is told UNKNOWN.
        txlog.insert(session, LogState.OPEN, self._message_ids)
        value = work(Transaction(session))
        refuse_deferred(value, "work")
        keep(value)  # before COMMIT: it may take effect although its answer is lost
        self._require_in_time(session)
        copies = outbox.copies(session, self._outbound, self._message_ids)
        txlog.mark_committed(session, copies, release=True)
        self._commit(session)

    def _commit(self, session: Session) -> None:
        if self._join is None:
            session.commit()
        else:
            # It may send statements still, so the tripwire is released inside of its commit.
            self._join.commit(session.commit)

    def _require_in_time(self, session: Session) -> None:
        """
        Look at the time before the last statements and COMMIT.

        Raises:
            LocalTimeoutError: the transaction began longer ago than it may. The broker has asked for a
                while then, and must not be left with too few questions should the verdict be lost.
        """
        seconds = time.monotonic() - session.began
        if seconds > self._database.local_timeout_seconds:
            raise LocalTimeoutError(
                f"the local transaction took {seconds:.1f} s, local_timeout_seconds is "
                f"{self._database.local_timeout_seconds:g}; nothing was committed",
                txn_id=self._txn_id,
            )

    def run(self, local: Callable[[], None], session: Session | None = None) -> None:
        """
        Store the half messages, run `local`, which must commit its session, and give the verdict.

        Returns only if the transaction committed; raises what `TransactionProducer.transaction` says.

        Args:
            session: the local transaction, if it began already.
        """
        self._session = session
        began, asked_from = time.monotonic(), self._verdicts.now()
        self._store_half_message(len(self._outbound) - 1, local)
        if self._failure is not None:
            raise self._failure
        self._verdicts.add(self._txn_id, asked_from)  # the copies are deleted once the broker asks no more
        seconds = round(time.monotonic() - began, 4)
        log.info("transaction committed", messages=len(self._outbound), seconds=seconds)

    def _store_half_message(self, position: int, local: Callable[[], None]) -> None:
        if position < 0:
            self._run_local_transaction(local)
            return

        def stored(message_id: str) -> Verdict:
            self._message_ids[position] = message_id
            log.debug("half message stored", message_id=message_id, position=position)
            self._store_half_message(position - 1, local)
            return self._verdict or Verdict.UNKNOWN

        try:
            self._client.send_half(self._outbound[position], stored)
        except BrokerUnavailableError as error:
            refused = HalfMessageError(
                f"the broker did not take the half message, nothing was committed: {error}",
                txn_id=self._txn_id,
            )
            refused.__cause__ = error
            self._fail(refused)
        except BaseException as error:  # noqa: BLE001 - kept; run() raises it
            self._fail(error)

    def _run_local_transaction(self, local: Callable[[], None]) -> None:
        try:
            local()
        except BaseException as error:  # noqa: BLE001 - kept; run() raises it
            self._fail(error)
        else:
            self._verdict = Verdict.COMMIT

    def _fail(self, error: BaseException) -> None:
        """End the local transaction after `error` and find the verdict that is true."""
        if self._failure is None:
            self._failure = error
        if self._verdict is not None:
            return  # settled further inside; this is Ctrl-C, or the transport, on the way out
        session = self._session
        if session is None:
            verdict = Verdict.ROLLBACK  # it never began, and only this call could begin it
        elif session.state is SessionState.COMMITTED:
            verdict = Verdict.COMMIT
        elif session.state is SessionState.COMMITTING:
            session.rollback()
            verdict = self._resolve_lost_commit(error, session)
        else:
            self._failure = error = session.fail(error)
            ended = session.state is SessionState.ROLLED_BACK or not session.stands
            if isinstance(error, TransactionLostError) and self._outbound:
                # Some of it may be durable; then the row decides, never we.
                verdict = self._oracle.decide(self._txn_id, 0, self._message_ids[0])
            else:
                # Not confirmed: never committed, but the server may not know yet. Check-back fences.
                verdict = Verdict.ROLLBACK if ended else Verdict.UNKNOWN
        self._verdict = verdict
        if verdict is not Verdict.COMMIT:
            log.info("transaction not committed", cause=type(error).__name__, verdict=verdict.value)

    def _resolve_lost_commit(self, error: BaseException, session: Session) -> Verdict:
        """COMMIT was sent and not answered: ask the oracle that check-back asks."""
        log.warning("the answer to COMMIT was lost, looking it up", cause=str(error))
        if self._outbound:
            left = session.committing_since + _RESOLVED_AFTER_COMMIT_SECONDS - time.monotonic()
            seconds = max(_LEAST_RESOLVE_SECONDS, min(_RESOLVE_SECONDS, left))
            verdict = self._oracle.resolve(self._txn_id, self._message_ids[0], session.server_thread, seconds)
        else:
            verdict = Verdict.UNKNOWN  # published nothing, wrote no row: there is no evidence
        if not isinstance(error, Exception):
            return verdict  # Ctrl-C and the like go up as they are
        outcome: Exception | None = None
        if verdict is Verdict.ROLLBACK:
            outcome = DatabaseUnavailableError(
                f"the connection was lost in COMMIT and nothing was committed, safe to retry "
                f"(txn_id {self._txn_id})"
            )
        elif verdict is Verdict.UNKNOWN:
            outcome = InDoubtError(
                "the answer to COMMIT was lost and the database can't be asked now; look the "
                "transaction up before retrying",
                txn_id=self._txn_id,
            )
        if outcome is not None:
            outcome.__cause__ = error
        self._failure = outcome
        return verdict
