"""The pure part of the oracle: what it never decides. Decisions on a real database are integration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, cast
from unittest import mock

import pymysql
import pytest

from rmq_txn import Database
from rmq_txn.clock import DatabaseClock
from rmq_txn.database.session import Session
from rmq_txn.errors import DatabaseUnavailableError, LifecycleError
from rmq_txn.identity import (
    PROPERTY_OWNER,
    PROPERTY_POSITION,
    PROPERTY_STAMP,
    PROPERTY_TXN_ID,
    Owner,
    new_txn_id,
)
from rmq_txn.producer.checkback import Oracle
from rmq_txn.transport import Check
from rmq_txn.verdict import Verdict

OWNER = "account-service@6f1c"
SIGNER = Owner(OWNER, b"secret")
RETENTION_SECONDS = 7 * 86_400.0


class Asked(Exception):
    """The database was asked."""


class Untouchable:
    """Stands where a database would; any use of it raises. Not a fake: it has no behaviour."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise Asked(name)


@pytest.fixture
def oracle() -> Oracle:
    """Return an oracle whose database must not be asked."""
    return Oracle(cast(Database, Untouchable()), SIGNER, RETENTION_SECONDS)


def question(**changes: str | None) -> Check:
    """Return a question about our own fresh message, with changes; None removes a property."""
    txn_id = changes.get(PROPERTY_TXN_ID) or new_txn_id()
    properties: dict[str, Any] = {
        PROPERTY_TXN_ID: txn_id,
        PROPERTY_POSITION: "0",
        PROPERTY_OWNER: OWNER,
        PROPERTY_STAMP: SIGNER.stamp(txn_id, 0),
    } | changes
    return Check("AC10", {name: value for name, value in properties.items() if value is not None})


def aged(seconds: float) -> str:
    """Return a transaction id that is that old."""
    with mock.patch.object(time, "time_ns", return_value=time.time_ns() - int(seconds * 1e9)):
        return new_txn_id()


def test_a_sound_question_does_ask_the_database(oracle: Oracle) -> None:
    """So that the other tests here can fail."""
    with pytest.raises(Asked, match="check_session"):
        oracle.check(question())


@pytest.mark.parametrize("name", [PROPERTY_TXN_ID, PROPERTY_POSITION, PROPERTY_OWNER, PROPERTY_STAMP])
def test_a_missing_property_is_answered_unknown(oracle: Oracle, name: str) -> None:
    """Another client of the group sent it, and only that client can know."""
    assert oracle.check(question(**{name: None})) is Verdict.UNKNOWN


def test_a_message_without_any_property_is_answered_unknown(oracle: Oracle) -> None:
    """As a Java producer of the same group sends it."""
    assert oracle.check(Check("AC10", {})) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "owner",
    [
        "",
        "account-service",
        "@6f1c",
        "other-service@6f1c",
        "account-service@9999",
        OWNER.upper(),
        OWNER + " ",
    ],
)
def test_a_foreign_owner_is_answered_unknown(oracle: Oracle, owner: str) -> None:
    """Our database holds no evidence about it; a fence there would roll back what committed elsewhere."""
    assert oracle.check(question(**{PROPERTY_OWNER: owner})) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "txn_id",
    [
        "",
        "x",
        "A" * 32,
        "g" * 32,
        "0" * 31,
        "0" * 33,
        "0" * 32 + "\n",
        "'; DROP TABLE rmq_txn_log; --",
        "٣" * 32,
    ],
)
def test_a_hostile_transaction_id_is_answered_unknown(oracle: Oracle, txn_id: str) -> None:
    """Whoever may send to the broker chooses it."""
    assert oracle.check(question(**{PROPERTY_TXN_ID: txn_id})) is Verdict.UNKNOWN


@pytest.mark.parametrize("position", ["", "-1", "x", "1.0", "0x1", "²", "٣", " 0", "0\n", "9" * 5_000])
def test_a_hostile_position_is_answered_unknown(oracle: Oracle, position: str) -> None:
    """And does not raise: 5,000 digits are more than Python turns into a number."""
    assert oracle.check(question(**{PROPERTY_POSITION: position})) is Verdict.UNKNOWN


def test_a_question_older_than_the_retention_is_answered_unknown(oracle: Oracle) -> None:
    """Its row may have been pruned, so that the absence of one proves nothing."""
    assert oracle.check(question(**{PROPERTY_TXN_ID: aged(RETENTION_SECONDS + 60)})) is Verdict.UNKNOWN
    assert oracle.check(question(**{PROPERTY_TXN_ID: "0" * 32})) is Verdict.UNKNOWN


def test_a_question_within_the_retention_is_asked(oracle: Oracle) -> None:
    """The other side of the edge."""
    with pytest.raises(Asked):
        oracle.check(question(**{PROPERTY_TXN_ID: aged(RETENTION_SECONDS - 60)}))


@pytest.mark.parametrize("wrong_by", [8 * 86_400.0, -8 * 86_400.0])
def test_age_goes_by_the_clock_of_the_database(wrong_by: float) -> None:
    """A machine that is days wrong, as the one that answers and as the one that sent, decides nothing."""
    clock = DatabaseClock(wall=lambda: time.time() + wrong_by)
    oracle = Oracle(cast(Database, Untouchable()), SIGNER, RETENTION_SECONDS, clock=clock)
    clock.set(time.time())
    with pytest.raises(Asked):
        oracle.check(question())
    assert oracle.check(question(**{PROPERTY_TXN_ID: aged(RETENTION_SECONDS + 60)})) is Verdict.UNKNOWN
    assert abs(int(oracle.new_txn_id()[:12], 16) / 1000 - time.time()) < 5


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "x",
        "0" * 32,
        SIGNER.stamp("0" * 32, 0),
        Owner(OWNER, b"guess").stamp("1" * 32, 0),
        "é" * 32,
        "0" * 5_000,
    ],
)
def test_a_stamp_that_only_looks_like_one_asks_no_database_and_disturbs_nobody(stamp: str) -> None:
    """Whoever may send to the topic can write the owner's name, and would write rows into our log."""
    causes: list[str] = []
    oracle = Oracle(cast(Database, Untouchable()), SIGNER, RETENTION_SECONDS, disturb=causes.append)
    asked = question(**{PROPERTY_TXN_ID: oracle.new_txn_id(), PROPERTY_STAMP: stamp})
    assert oracle.check(asked) is Verdict.UNKNOWN
    assert (oracle.forged_checks, causes) == (1, [])


def test_a_stamp_is_of_one_transaction_one_position_and_one_owner() -> None:
    """Else a delivered message would show everybody a stamp that fits others."""
    stamp = SIGNER.stamp("a" * 32, 0)
    assert len(stamp) == 32
    assert SIGNER.is_stamp(stamp, "a" * 32, 0)
    assert not SIGNER.is_stamp(stamp, "b" * 32, 0)
    assert not SIGNER.is_stamp(stamp, "a" * 32, 1)
    assert not Owner("other@6f1c", b"secret").is_stamp(stamp, "a" * 32, 0)
    assert not Owner(OWNER, b"another").is_stamp(stamp, "a" * 32, 0)
    assert "secret" not in repr(SIGNER)


@pytest.mark.parametrize(("upgraded_days_ago", "accepted"), [(6.9, True), (7.1, False)])
def test_without_a_stamp_it_is_ours_while_processes_of_the_older_version_may_run(
    upgraded_days_ago: float, accepted: bool
) -> None:
    """Their lost verdicts are asked of new processes, and must be answered."""
    until = time.time() - upgraded_days_ago * 86_400 + RETENTION_SECONDS
    oracle = Oracle(cast(Database, Untouchable()), SIGNER, RETENTION_SECONDS, unstamped_until=until)
    unstamped = question(**{PROPERTY_STAMP: None})
    if accepted:
        with pytest.raises(Asked):
            oracle.check(unstamped)
        assert oracle.check(question(**{PROPERTY_STAMP: "wrong"})) is Verdict.UNKNOWN
    else:
        assert oracle.check(unstamped) is Verdict.UNKNOWN


def test_foreign_and_forged_questions_are_logged_once_a_minute(
    oracle: Oracle, caplog: pytest.LogCaptureFixture
) -> None:
    """Who may send to the topic must not fill the disk with our log; each is counted."""
    with caplog.at_level(logging.INFO, "rmq_txn.checkback"):
        for _ in range(50):
            oracle.check(question(**{PROPERTY_STAMP: "forged"}))
            oracle.check(question(**{PROPERTY_OWNER: "stranger@1"}))
            oracle.check(Check("AC10", {}))
    assert (oracle.forged_checks, oracle.foreign_checks) == (50, 50)
    assert len(caplog.records) == 3


class Failing:
    """FAKE. A database whose check-backs fail as they are told, or find a row."""

    local_timeout_seconds = 60

    def __init__(self, problem: Exception | None = None, row: tuple[int, bytes] | None = None) -> None:
        self.problem = problem
        self.row = row
        self.statements: list[str] = []
        self.cursor = self.connection = self
        self.unsettled = False
        self.closed = False

    def close(self) -> None:
        """Close the connection."""
        self.closed = True

    @contextmanager
    def check_session(self, txn_id: str, *, ours_first: bool) -> Iterator[Any]:
        """Hand out itself as the session."""
        self.txn_id = txn_id
        self._begun = ours_first  # so that `insert_new` is over our execute
        try:
            yield self
        finally:
            self.rollback()

    insert_new = Session.insert_new  # over this class's execute

    def execute(self, sql: str, _args: Any = None) -> int:
        """Fail, or say that a row is there."""
        self.statements.append(sql)
        if self.problem is not None:
            raise self.problem
        if sql.startswith("INSERT"):
            raise pymysql.err.IntegrityError(1062, "duplicate")
        return 1

    def fetchone(self) -> tuple[int, bytes] | None:
        """Return the row."""
        return self.row

    def commit(self) -> None:
        """Commit."""

    def rollback(self) -> bool:
        """Roll back."""
        return True


def answered(database: Failing, txn_id: str) -> tuple[Verdict | None, list[str]]:
    """Return what a question is answered, and what was told to disturb."""
    causes: list[str] = []
    oracle = Oracle(cast(Database, database), SIGNER, RETENTION_SECONDS, disturb=causes.append)
    with suppress(LifecycleError, ValueError):  # raised to the transport, which answers UNKNOWN
        return oracle.check(question(**{PROPERTY_TXN_ID: txn_id})), causes
    return None, causes


@pytest.mark.parametrize(
    "problem",
    [
        pymysql.err.OperationalError(1290, "running with the --read-only option"),
        pymysql.err.OperationalError(1142, "INSERT command denied"),
        pymysql.err.OperationalError(1114, "the table is full"),
        pymysql.err.InternalError(1047, "WSREP has not yet prepared node"),
        pymysql.err.OperationalError(2013, "lost connection"),
        DatabaseUnavailableError("no connection"),
        LifecycleError("the database is closed"),
        ValueError("a damaged row"),
    ],
    ids=lambda problem: f"{type(problem).__name__}-{problem.args[0]}"[:40],
)
def test_an_answer_unknown_that_comes_from_an_error_disturbs(problem: Exception) -> None:
    """It used one of the broker's questions up, whatever the error was."""
    database = Failing(problem)
    verdict, causes = answered(database, new_txn_id())
    assert verdict in (Verdict.UNKNOWN, None)
    assert len(causes) == 1
    assert database.closed == isinstance(problem, pymysql.err.MySQLError), (
        "the next one gets a new connection"
    )


@pytest.mark.parametrize("code", [1205, 1213, 1020])
def test_a_lock_wait_disturbs_only_when_the_transaction_can_not_be_running_any_more(code: int) -> None:
    """Somebody who locked our table looks like a transaction that runs, for ever."""
    problem = pymysql.err.OperationalError(code, "lock")
    database = Failing(problem)
    assert answered(database, aged(74)) == (Verdict.UNKNOWN, [])
    assert not database.closed
    verdict, causes = answered(Failing(problem), aged(76))
    assert (verdict, len(causes)) == (Verdict.UNKNOWN, 1)


def test_a_copied_stamp_proves_no_other_half_message() -> None:
    """Who reads a delivered message knows its stamp; the log row names the one that won."""
    database = Failing(row=(1, b"WON"))
    verdict, causes = answered(database, new_txn_id())
    assert (verdict, causes) == (Verdict.ROLLBACK, [])
    assert [sql.split()[0] for sql in database.statements] == ["INSERT", "SELECT"]
