"""Which verdict a transaction that failed gives to its half messages, and whom it asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest

from rmq_txn import DatabaseUnavailableError, InDoubtError, Message, TransactionLostError
from rmq_txn.database.session_state import SessionState
from rmq_txn.errors import BrokerUnavailableError, HalfMessageError
from rmq_txn.identity import new_txn_id
from rmq_txn.message import Outbound
from rmq_txn.producer.commitment import Commitment
from rmq_txn.verdict import Verdict

COMMIT, ROLLBACK, UNKNOWN = Verdict.COMMIT, Verdict.ROLLBACK, Verdict.UNKNOWN
CUT = pymysql.err.OperationalError(2013, "lost connection")


class FakeOwner(str):
    """FAKE. Signs nothing."""

    name = "owner"

    def stamp(self, _txn_id: str, _position: int) -> str:
        """Sign nothing."""
        return ""


class Rig:
    """A transaction on fakes: what is sent, what the oracle is asked, what the broker is told."""

    def __init__(self, state: SessionState = SessionState.OPEN, *, confirmed: bool = True) -> None:
        self.txn_id = new_txn_id()
        self.told: dict[int, Verdict] = {}
        self.asked: list[tuple[str, str, int, str]] = []
        self.row_says = UNKNOWN
        self.refused_at: int | None = None
        self.after_execute: BaseException | None = None
        self._confirmed = confirmed
        self.session: Any = SimpleNamespace(
            state=state,
            committing_since=time.monotonic(),
            server_thread=None,
            stands=True,
            rollback=self._rollback,
            fail=self._fail,
        )

    def _rollback(self) -> bool:
        if self.session.state is not SessionState.OPEN:
            return bool(self.session.state is SessionState.ROLLED_BACK)
        self.session.state = SessionState.ROLLED_BACK if self._confirmed else SessionState.LOST
        return self._confirmed

    def _fail(self, error: BaseException) -> BaseException:
        self._rollback()
        return error

    def send_half(self, message: Outbound, execute: Callable[[str], Verdict]) -> None:
        """Store it under an id that tells its position; remember the verdict."""
        position = int(message.properties["rmq_txn_n"])
        if position == self.refused_at:
            raise BrokerUnavailableError("no route")
        self.told[position] = execute(f"ID-{position}")
        if self.after_execute is not None:
            raise self.after_execute

    def decide(self, txn_id: str, position: int, message_id: str) -> Verdict:
        """Say what the test's log row says."""
        self.asked.append(("decide", txn_id, position, message_id))
        return self.row_says

    def resolve(self, txn_id: str, message_id: str, _thread: object, _seconds: float) -> Verdict:
        """Say what the test's log row says."""
        self.asked.append(("resolve", txn_id, 0, message_id))
        return self.row_says

    def run(self, local: Callable[[], None], *, messages: int = 2) -> BaseException | None:
        """Run `local` as the transaction; return what the caller gets to see."""
        client: Any = self
        oracle: Any = self
        batch = [Message("topic", b"x") for _ in range(messages)]
        owner: Any = FakeOwner("owner")
        verdicts: Any = SimpleNamespace(now=time.monotonic, add=lambda *_: None)
        commitment = Commitment(client, oracle, owner, verdicts, verdicts, self.txn_id, batch)
        try:
            commitment.run(local, self.session)
        except BaseException as error:  # noqa: BLE001 - the result
            return error
        return None


def failing(error: BaseException, session: Any = None, state: SessionState | None = None) -> Any:
    """Make a local transaction that gets to `state` and fails."""

    def local() -> None:
        if state is not None:
            session.state = state
        raise error

    return local


@pytest.mark.parametrize("row_says", [COMMIT, ROLLBACK, UNKNOWN])
def test_a_transaction_that_the_server_ended_is_decided_by_its_row(row_says: Verdict) -> None:
    """A part of it may be durable, so the ROLLBACK that the server confirms proves nothing."""
    rig = Rig()
    rig.row_says = row_says
    lost = TransactionLostError("ended", txn_id=rig.txn_id)
    assert rig.run(failing(lost)) is lost
    assert rig.asked == [("decide", rig.txn_id, 0, "ID-0")]
    assert rig.told == {0: row_says, 1: row_says}


def test_a_transaction_that_the_server_ended_and_that_sent_nothing_asks_nobody() -> None:
    """There is no half message, and no row was written."""
    rig = Rig()
    lost = TransactionLostError("ended", txn_id=rig.txn_id)
    assert rig.run(failing(lost), messages=0) is lost
    assert rig.asked == []


def test_a_rollback_that_the_server_confirmed_is_told_to_the_broker() -> None:
    """What the business code raised arrives unchanged."""
    rig, error = Rig(), ZeroDivisionError()
    assert rig.run(failing(error)) is error
    assert rig.told == {0: ROLLBACK, 1: ROLLBACK}
    assert rig.asked == []


def test_a_rollback_that_nobody_confirmed_leaves_it_to_check_back() -> None:
    """It never committed, but the server may hold its locks for a while: the fence waits for them."""
    rig, error = Rig(confirmed=False), ZeroDivisionError()
    assert rig.run(failing(error)) is error
    assert rig.told == {0: UNKNOWN, 1: UNKNOWN}


def test_a_transaction_that_never_began_is_rolled_back_whoever_confirms_it() -> None:
    """While the database is away each call would leave a half message to be asked about."""
    rig, error = Rig(confirmed=False), DatabaseUnavailableError("nobody is there")
    rig.session.stands = False
    assert rig.run(failing(error)) is error
    assert rig.told == {0: ROLLBACK, 1: ROLLBACK}
    assert rig.asked == []


@pytest.mark.parametrize(
    ("row_says", "outcome"),
    [(COMMIT, type(None)), (ROLLBACK, DatabaseUnavailableError), (UNKNOWN, InDoubtError)],
)
def test_a_lost_answer_to_commit_is_told_as_the_row_says(row_says: Verdict, outcome: type[Any]) -> None:
    """And so is the broker."""
    rig = Rig(SessionState.COMMITTING)
    rig.row_says = row_says
    raised = rig.run(failing(CUT))
    assert type(raised) is outcome
    assert raised is None or raised.__cause__ is CUT
    assert rig.asked == [("resolve", rig.txn_id, 0, "ID-0")]
    assert rig.told == {0: row_says, 1: row_says}


def test_a_lost_answer_to_a_commit_without_messages_is_in_doubt() -> None:
    """It wrote no row, so there is no evidence to ask for."""
    rig = Rig(SessionState.COMMITTING)
    rig.row_says = ROLLBACK
    assert type(rig.run(failing(CUT), messages=0)) is InDoubtError
    assert rig.asked == []


@pytest.mark.parametrize("row_says", [COMMIT, ROLLBACK, UNKNOWN])
@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_commit_goes_up_as_it_is_and_the_broker_is_told_what_the_row_says(
    row_says: Verdict, signal: type[BaseException]
) -> None:
    """The program ends by it; a receipt would swallow it."""
    rig, pressed = Rig(SessionState.COMMITTING), signal()
    rig.row_says = row_says
    assert rig.run(failing(pressed)) is pressed
    assert rig.told == {0: row_says, 1: row_says}


def test_what_comes_after_the_answer_to_commit_changes_no_verdict() -> None:
    """Ctrl-C between the answer and the next line: it is committed, and both are true."""
    rig, pressed = Rig(), KeyboardInterrupt()
    assert rig.run(failing(pressed, rig.session, SessionState.COMMITTED)) is pressed
    assert rig.told == {0: COMMIT, 1: COMMIT}


def test_what_comes_after_the_verdict_changes_no_verdict() -> None:
    """The transport raises on the way out: the half messages outside keep the verdict of those inside."""
    rig, pressed = Rig(), KeyboardInterrupt()
    rig.after_execute = pressed

    def local() -> None:
        rig.session.state = SessionState.COMMITTED

    assert rig.run(local) is pressed
    assert rig.told == {0: COMMIT, 1: COMMIT}


@pytest.mark.parametrize("refused_at", [0, 1])
def test_a_half_message_that_was_not_taken_rolls_all_back(refused_at: int) -> None:
    """Those stored before it get the verdict; nothing of the transaction ran."""
    rig, ran = Rig(), list[int]()
    rig.refused_at = refused_at
    raised = rig.run(lambda: ran.append(1))
    assert type(raised) is HalfMessageError
    assert "nothing was committed: no route" in str(raised)
    assert ran == []
    assert rig.session.state is SessionState.ROLLED_BACK
    assert rig.told == ({1: ROLLBACK} if refused_at == 0 else {})
