"""
The same faults for a plain transaction and for what can be joined to one: one truth, and it is told.

Each check is made a second time without the protection that it is about, and must fail then.
`tests/integration/test_crashes.py` has `kill -9` for the same ways.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from typing import Any, Protocol
from unittest import mock

import pymysql
import pytest
import sqlalchemy
from django.db import DatabaseError, connection
from sqlalchemy.orm import Session

from rmq_txn import Database, Transaction
from rmq_txn.database import session
from rmq_txn.database.connection import WatchedConnection
from rmq_txn.database.pool import LOST_CONNECTION, parse_url
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import DatabaseUnavailableError, FencedError, InDoubtError, TransactionLostError
from rmq_txn.join import django
from rmq_txn.join import sqlalchemy as join_sqlalchemy
from rmq_txn.producer import txlog
from rmq_txn.producer.checkback import Oracle
from rmq_txn.verdict import Verdict
from tests.kit import sqlalchemy_site
from tests.kit.desk import Desk
from tests.kit.django_site import Effect, aliases, errors_of_a_service
from tests.kit.kills import before_each, killed_before
from tests.kit.rows import rows
from tests.kit.statements import COMMIT, hooked
from tests.kit.wait import until

pytestmark = pytest.mark.servers


class Way(Protocol):
    """How a service works with its database inside of a transaction of ours."""

    def join(self) -> Any:
        """Return what is given as `join=`."""

    def write(self, txn: Transaction, id_: str) -> None:
        """Write an effect as one does."""

    def send(self, txn: Transaction, sql: str) -> None:
        """Send SQL of one's own."""


class Plain:
    """Statements of `txn`."""

    def join(self) -> None:
        return None

    def write(self, txn: Transaction, id_: str) -> None:
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))

    def send(self, txn: Transaction, sql: str) -> None:
        txn.execute(sql)


class OfSqlAlchemy:
    """A session of an engine of the service's own: the same one after each fault."""

    def __init__(self, url: str) -> None:
        self._session = Session(sqlalchemy_site.engine_for(url))

    def join(self) -> Any:
        return join_sqlalchemy.joined(self._session)

    def write(self, txn: Transaction, id_: str) -> None:
        orm: Session = txn.session
        orm.add(sqlalchemy_site.Effect(id=id_))
        orm.flush()

    def send(self, txn: Transaction, sql: str) -> None:
        txn.session.execute(sqlalchemy.text(sql))


class OfDjango:
    """The ORM, on the connection `default`."""

    def join(self) -> Any:
        return django.joined()

    def write(self, txn: Transaction, id_: str) -> None:
        Effect.objects.create(id=id_)

    def send(self, txn: Transaction, sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)


@pytest.fixture(params=["plain", "sqlalchemy", "django"])
def way(request: pytest.FixtureRequest, database_url: str) -> Iterator[Way]:
    """Return each of the ways that `database_url` is worked with."""
    if request.param != "django":
        yield Plain() if request.param == "plain" else OfSqlAlchemy(database_url)
        return
    with mock.patch.object(pymysql, "err", errors_of_a_service), aliases() as alias:
        alias("default", database_url)
        yield OfDjango()


@pytest.fixture
def database(way: Way, database_url: str, open_database: Callable[..., Database]) -> Database:
    """Return the service's database, with Django's isolation level: a join with another is refused."""
    return open_database(database_url, isolation_level="read committed")


Work = Callable[[Transaction], object]
_numbers = count()


def outcome_of(desk: Desk, way: Way, work: Work) -> Exception | None:
    """Run `work` in a transaction with a message; return what was raised."""
    try:
        with desk.producer.transaction(join=way.join()) as txn:
            work(txn)
            txn.publish(desk.topic, {"id": "message"})
    except Exception as error:  # noqa: BLE001 - which one is the question
        return error
    return None


def check_a_killed_connection(desk: Desk, way: Way) -> None:
    """Either all of it, and a receipt; or nothing, and an error that says so. Before any query."""

    def killed(at: int, id_: str) -> Exception | None:
        with killed_before(desk.url, at):
            return outcome_of(desk, way, lambda txn: way.write(txn, id_))

    assert outcome_of(desk, way, lambda txn: way.write(txn, "first")) is None  # the ORM meets the server
    queries: list[str] = []
    with before_each(lambda _connection, sql: queries.append(sql)):
        assert outcome_of(desk, way, lambda txn: way.write(txn, "second")) is None
    assert len(queries) >= 6, queries  # tripwire, INSERT, log row, copy, release, COMMIT
    for at in range(1, len(queries) + 1):
        id_ = f"killed{next(_numbers)}"
        outcome = killed(at, id_)
        assert outcome is None or isinstance(outcome, DatabaseUnavailableError), (at, repr(outcome))
        assert (id_ in desk.effects()) == (outcome is None), at
        # Afterwards all goes on, and the pool has a connection again.
        assert outcome_of(desk, way, lambda txn: way.write(txn, "afterwards")) is None


@contextmanager
def connections_that_come_back_in_silence() -> Iterator[None]:
    """Send a query again on a new connection, as drivers and pools offer to."""
    query, query_each = WatchedConnection.query, WatchedConnection.query_each

    def each_insistent(self: WatchedConnection, statements: Sequence[str]) -> Any:
        answers = query_each(self, statements)
        if any(isinstance(answer, Exception) and answer.args[0] in LOST_CONNECTION for answer in answers):
            self.connect()
            return query_each(self, statements)
        return answers

    def insistent(self: WatchedConnection, sql: Any, unbuffered: bool = False) -> int:
        try:
            return query(self, sql, unbuffered)
        except pymysql.OperationalError as error:
            if error.args[0] not in LOST_CONNECTION:
                raise
            self.connect()
            return query(self, sql, unbuffered)

    with (
        mock.patch.object(WatchedConnection, "query", insistent),
        mock.patch.object(WatchedConnection, "query_each", each_insistent),
    ):
        yield


def check_a_lost_answer_to_commit(desk: Desk, way: Way) -> None:
    """The oracle finds it for a producer; of a plain transaction nobody can say."""

    def lost(_session: object, sql: str) -> None:
        if sql == COMMIT:
            raise pymysql.OperationalError(2013, "Lost connection to MySQL server during query")

    producers, nobodys = (f"{whose}{next(_numbers)}" for whose in ("producers", "nobodys"))
    with hooked(after=lost):
        outcome = outcome_of(desk, way, lambda txn: way.write(txn, producers))
        assert outcome is None, repr(outcome)
        with (
            pytest.raises(InDoubtError, match="the answer to COMMIT was lost"),
            desk.database.transaction(join=way.join()) as txn,
        ):
            way.write(txn, nobodys)
    assert {producers, nobodys} <= set(desk.effects())


def an_oracle_that_guesses() -> AbstractContextManager[object]:
    """Take a COMMIT without an answer for one that did not happen."""
    return mock.patch.object(Oracle, "resolve", return_value=Verdict.ROLLBACK)


def check_an_end_by_sql(desk: Desk, way: Way) -> None:
    """DDL and COMMIT as text make durable what came before: told, and no message."""
    for statement in (f"CREATE TABLE made{next(_numbers)} (id INT)", "COMMIT"):

        def work(txn: Transaction, statement: str = statement) -> None:
            way.write(txn, "ended")
            way.send(txn, statement)

        outcome = outcome_of(desk, way, work)
        assert isinstance(outcome, TransactionLostError), (statement, repr(outcome))


def check_a_swallowed_deadlock(desk: Desk, way: Way) -> None:
    """Work that ignores error 1213 goes on in a transaction that is gone: nothing of it is written."""
    mine, theirs, half = (f"{name}{next(_numbers)}" for name in ("mine", "theirs", "half"))
    with desk.database.transaction() as txn:
        txn.execute("INSERT INTO effect (id) VALUES (%s), (%s)", (mine, theirs))

    def work(txn: Transaction) -> None:
        way.send(txn, f"UPDATE effect SET note = 'mine' WHERE id = '{mine}'")
        with desk_session(desk) as other:
            # The heavier transaction wins; sorted after the two rows, where we hold no gap.
            other.executemany("INSERT INTO effect (id) VALUES (%s)", [("zz",)] * 50)
            other.execute("UPDATE effect SET note = 'other' WHERE id = %s", (theirs,))
            blocked = threading.Thread(
                target=other.execute, args=("UPDATE effect SET note = 'other' WHERE id = %s", (mine,))
            )
            blocked.start()
            waits = "SELECT 1 FROM information_schema.processlist WHERE id = %s AND info LIKE 'UPDATE %%'"
            until(lambda: rows(desk.url, waits, (other.connection_id,)), "the other one waits for our lock")
            with suppress(pymysql.MySQLError, sqlalchemy.exc.DBAPIError, DatabaseError):
                way.send(txn, f"UPDATE effect SET note = 'mine' WHERE id = '{theirs}'")
            blocked.join(30)
        way.send(txn, f"INSERT INTO effect (id) VALUES ('{half}')")

    outcome = outcome_of(desk, way, work)
    assert isinstance(outcome, TransactionLostError), repr(outcome)
    assert half not in desk.effects()


@contextmanager
def desk_session(desk: Desk) -> Iterator[session.Session]:
    """Return a transaction of somebody else, which is rolled back."""
    other = desk.database.begin("other")
    try:
        yield other
    finally:
        other.rollback()


@contextmanager
def no_tripwire() -> Iterator[None]:
    """Commit without asking whether the transaction is still the one that was begun."""
    write_last = session.Session.write_last

    def without_release(self: session.Session, *statements: Any, release: bool) -> bool:
        return write_last(self, *statements, release=False)

    with (
        mock.patch.object(session.Session, "write_last", without_release),
        mock.patch.object(session.Session, "release_tripwire", lambda self: setattr(self, "_whole", True)),
    ):
        yield


def check_a_fence(desk: Desk, way: Way) -> None:
    """A check-back was faster, and the broker dropped the message: nothing is written."""
    id_ = f"fenced{next(_numbers)}"

    def work(txn: Transaction) -> None:
        way.write(txn, id_)
        with pymysql.connect(**parse_url(desk.url), autocommit=True) as beside, beside.cursor() as cursor:
            cursor.execute(STATEMENTS["insert_log_row"], (txn.txn_id, 2, ""))

    outcome = outcome_of(desk, way, work)
    assert isinstance(outcome, FencedError), repr(outcome)
    assert id_ not in desk.effects()


def a_fence_that_is_overlooked() -> AbstractContextManager[object]:
    """Go on although the log row is there."""

    def overlooks(it: session.Session, ids: Sequence[str], copies: Iterator[str], *, release: bool) -> None:
        row = (it.txn_id, 1, ",".join(ids))
        it.write_last(STATEMENTS["insert_log_row"], row, copies, release=release)

    return mock.patch.object(txlog, "insert_committed", overlooks)


CHECKS: dict[Callable[[Desk, Way], None], tuple[Callable[[], AbstractContextManager[object]], str]] = {
    check_a_killed_connection: (connections_that_come_back_in_silence, "TransactionLostError"),
    check_a_lost_answer_to_commit: (an_oracle_that_guesses, "nothing was committed"),
    check_an_end_by_sql: (no_tripwire, "None"),
    check_a_swallowed_deadlock: (no_tripwire, "None"),
    check_a_fence: (a_fence_that_is_overlooked, "None"),
}
"""Each check, what takes its protection away, and the outcome that the caller is told then."""


def test_a_fault_has_one_truth_whatever_is_joined(desk: Desk, way: Way) -> None:
    for check in CHECKS:
        check(desk, way)


def test_without_its_protection_each_check_fails(desk: Desk, way: Way) -> None:
    for check, (unprotected, told) in CHECKS.items():
        with unprotected(), pytest.raises(AssertionError, match=told):
            check(desk, way)
