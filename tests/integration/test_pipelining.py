"""
What comes right before COMMIT is sent in one write: log row, copies, release of the tripwire.

Whichever of them fails, and wherever the line breaks: nothing is committed, the first failure is told, and
the connection is in step or gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pymysql
import pymysql.connections
import pytest

from rmq_txn import Database, Message
from rmq_txn.database.connection import WatchedConnection
from rmq_txn.database.pool import parse_url
from rmq_txn.database.session import Session
from rmq_txn.errors import DatabaseUnavailableError, FencedError, TransactionLostError
from rmq_txn.identity import new_txn_id
from rmq_txn.producer import outbox, txlog
from tests.kit.commands import break_after, commands_of, names_of
from tests.kit.pooled import SoftTimeLimit, assert_in_step, interrupt
from tests.kit.proxy import Line, TcpProxy, proxied, through
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

WRITE = "INSERT INTO effect (id) VALUES (%s)"
LOG_ROW = "INSERT INTO rmq_txn_log (txn_id, state, message_ids) VALUES (%s, 2, '')"
COPY = (
    "INSERT INTO rmq_txn_outbox (txn_id, position, message_id, topic, properties, `body`) "
    "VALUES (%s, 0, 'M', 'topic', '{}', '')"
)
TABLES = ("effect", "rmq_txn_log", "rmq_txn_outbox")
TOGETHER = ["INSERT INTO rmq_txn_log", "INSERT INTO rmq_txn_outbox", "RELEASE SAVEPOINT"]


@pytest.fixture
def database(database_url: str, open_database: Callable[..., Database]) -> Database:
    """Return a database whose transactions all use the same connection, and wait a second for a lock."""
    return open_database(database_url, pool_size=1, lock_wait_seconds=1)


def end(session: Session, messages: int = 1, body: bytes = b"body") -> None:
    """Do what form A does at its end: log row, copies, COMMIT."""
    ids = [f"M{position}" for position in range(messages)]
    outbound = [
        Message("topic", body).outbound(txn_id=session.txn_id, position=n, owner="o@d", stamp="s")
        for n in range(messages)
    ]
    txlog.insert_committed(session, ids, outbox.copies(session, outbound, ids), release=True)
    session.commit()


def transact(database: Database, txn_id: str, work: Callable[[Session], object] | None = None) -> None:
    """Run one transaction with a message; raise what its caller would be told."""
    session = database.begin(txn_id)
    try:
        session.execute(WRITE, ("mine",))
        if work is not None:
            work(session)
        end(session)
    except Exception as error:  # noqa: BLE001 - any is told
        raise session.fail(error) from None


def durable(url: str) -> dict[str, int]:
    """Return how many rows there are, read past the SDK."""
    return {table: rows(url, f"SELECT COUNT(*) FROM {table}")[0][0] for table in TABLES}


@contextmanager
def others(url: str, sql: str, txn_id: str, *, commit: bool) -> Iterator[pymysql.cursors.Cursor]:
    """Insert a row with our key in somebody else's transaction."""
    with pymysql.connect(**parse_url(url), autocommit=commit) as other, other.cursor() as cursor:
        cursor.execute(sql, (txn_id,))
        yield cursor


@pytest.mark.parametrize(
    ("sql", "commit", "told", "number"),
    [
        pytest.param(LOG_ROW, True, FencedError, None, id="log row: fenced"),
        pytest.param(LOG_ROW, False, pymysql.err.OperationalError, 1205, id="log row: lock wait"),
        pytest.param(COPY, True, pymysql.err.IntegrityError, 1062, id="copy: key taken"),
        pytest.param(COPY, False, pymysql.err.OperationalError, 1205, id="copy: lock wait"),
    ],
)
def test_of_statements_that_come_together_any_may_fail_and_nothing_is_committed(
    database: Database, database_url: str, sql: str, commit: bool, told: type[Exception], number: int | None
) -> None:
    """Those behind it ran, in the same transaction, and are rolled back with it."""
    txn_id = new_txn_id()
    with others(database_url, sql, txn_id, commit=commit):
        before = durable(database_url)
        with pytest.raises(told) as caught:
            transact(database, txn_id)
        assert number is None or caught.value.args[0] == number
        assert durable(database_url) == before
    assert_in_step(database)
    transact(database, new_txn_id())  # on the same connection


def test_a_log_row_that_is_the_victim_of_a_deadlock_takes_the_copy_along(
    database: Database, database_url: str
) -> None:
    """The copy behind it begins a transaction of its own, which ends without COMMIT."""
    txn_id = new_txn_id()
    with others(database_url, LOG_ROW, txn_id, commit=False) as cursor:
        # The heavier transaction wins; sorted where nobody else is.
        cursor.executemany(WRITE, [("zz",)] * 50)

        def be_waited_for(session: Session) -> None:
            session.execute("INSERT INTO rmq_txn_log (txn_id, state, message_ids) VALUES ('held', 1, '')")
            waiting.start()
            waits = "SELECT 1 FROM information_schema.processlist WHERE id = %s AND info LIKE '%%held%%'"
            thread = (cursor.connection.thread_id(),)
            until(lambda: rows(database_url, waits, thread), "the other one waits for our row")

        def wait_for_us() -> None:
            cursor.execute("INSERT INTO rmq_txn_log (txn_id, state, message_ids) VALUES ('held', 1, '')")

        waiting = threading.Thread(target=wait_for_us)
        with pytest.raises(pymysql.err.OperationalError) as caught:
            transact(database, txn_id, be_waited_for)
        waiting.join(30)
    assert caught.value.args[0] == 1213
    assert durable(database_url) == dict.fromkeys(TABLES, 0)
    assert_in_step(database)


@pytest.mark.parametrize("sql", ["ROLLBACK", "COMMIT", "CREATE TABLE more (id INT)", "SET autocommit = 1"])
def test_a_transaction_that_the_server_ended_is_told_as_lost(
    database: Database, database_url: str, sql: str
) -> None:
    """The release finds no tripwire, or an earlier answer told it; COMMIT is not sent."""
    with pytest.raises(TransactionLostError):
        transact(database, new_txn_id(), lambda session: session.execute(sql))
    assert_in_step(database)


def test_after_autocommit_a_fence_keeps_the_copies_from_being_durable(
    database: Database, database_url: str
) -> None:
    """Each statement is durable at once then, so none is sent before the one in front of it succeeded."""
    txn_id = new_txn_id()
    with (
        others(database_url, LOG_ROW, txn_id, commit=True),
        pytest.raises(TransactionLostError),
    ):
        transact(database, txn_id, lambda session: session.execute("SET autocommit = 1"))
    assert durable(database_url) == {"effect": 1, "rmq_txn_log": 1, "rmq_txn_outbox": 0}


@pytest.mark.parametrize("arrive", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["cut", "silent"])
def test_wherever_the_line_breaks_among_them_nothing_is_committed(
    database_url: str, open_database: Callable[..., Database], arrive: int, how: str
) -> None:
    """So many of the three reach the server, no answer comes back. Nobody is in doubt: no COMMIT was sent."""
    seen: list[list[str]] = []
    with proxied(database_url) as proxy:
        database = open_database(
            through(database_url, proxy), pool_size=1, statement_timeout_seconds=2, lock_wait_seconds=1
        )
        assert_in_step(database)

        def break_it(line: Line, data: bytes) -> None:
            commands = commands_of(data)
            seen.append(names_of(commands))
            if len(commands) == 3:
                break_after(line, commands, arrive, how)

        proxy.on_request = break_it
        with pytest.raises(DatabaseUnavailableError):
            transact(database, new_txn_id())
        assert len(seen[-1]) == 3, "nothing was sent after it"
        assert [name[: len(start)] for name, start in zip(seen[-1], TOGETHER, strict=True)] == TOGETHER
        proxy.on_request = lambda _line, _data: None
        proxy.heal()
        assert durable(database_url) == dict.fromkeys(TABLES, 0)
        transact(database, new_txn_id())
    assert durable(database_url) == dict.fromkeys(TABLES, 1)


@pytest.mark.parametrize("unread", [3, 2, 1])
def test_a_signal_between_two_answers_leaves_no_connection_that_is_used_again(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """The next statement would read one of the answers that are left, and a COMMIT believe it."""

    def arm(_session: Session) -> None:
        interrupt(monkeypatch, after=3 - unread)

    with pytest.raises(SoftTimeLimit):
        transact(database, new_txn_id(), arm)
    assert_in_step(database)
    assert durable(database_url) == dict.fromkeys(TABLES, 0)


def test_a_signal_after_an_answer_is_as_one_before_it(database: Database, database_url: str) -> None:
    """Between an answer and the next one the connection is as unusable as before the first."""
    session = database.begin(new_txn_id())
    heed, usable = WatchedConnection._heed, list[bool]()

    def look(self: WatchedConnection, status: int, message: bytes) -> None:
        heed(self, status, message)
        usable.append(self.usable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WatchedConnection, "_heed", look)
        end(session)
    assert usable == [False, False, True, True]  # log row, copy, release; COMMIT
    assert durable(database_url) == {"effect": 0, "rmq_txn_log": 1, "rmq_txn_outbox": 1}


@pytest.mark.parametrize("fails", [False, True])
def test_large_copies_go_one_after_the_other_and_only_behind_their_log_row(
    database_url: str, open_database: Callable[..., Database], fails: bool
) -> None:
    """Three messages of 900 kB are three statements; a fence keeps them from being sent."""
    seen: list[list[str]] = []
    with proxied(database_url) as proxy:
        database = open_database(through(database_url, proxy), pool_size=1)
        session = database.begin(new_txn_id())
        if fails:
            rows_of_others = others(database_url, LOG_ROW, session.txn_id, commit=True)
            with rows_of_others:
                pass
        proxy.on_request = lambda _line, data: seen.append([data[5:30].decode("utf-8", "replace")])
        with suppress(FencedError):
            end(session, messages=3, body=b"\xff" * 900_000)
        session.rollback()
    copies = rows(database_url, "SELECT COUNT(*), SUM(LENGTH(`body`)) FROM rmq_txn_outbox")
    assert copies == ([(0, None)] if fails else [(3, 2_700_000)])


def behaves_as_proxysql(line: Line, data: bytes) -> None:
    """Cut a client that sends a statement while another one runs."""
    if len(commands_of(data)) > 1:
        line.cut()


def behaves_as_aurora_2(line: Line, data: bytes) -> None:
    """Lose what comes in one write behind the first command."""
    first, *more = commands_of(data)
    if more:
        line.server.sendall(first)
        line.silence(to_client=False, to_server=True)


@pytest.mark.parametrize("behaves", [behaves_as_proxysql, behaves_as_aurora_2])
def test_behind_what_does_not_bear_it_statements_are_sent_one_at_a_time(
    database_url: str,
    open_database: Callable[..., Database],
    caplog: pytest.LogCaptureFixture,
    behaves: Callable[[Line, bytes], None],
) -> None:
    """The first connection finds out, by two statements that do nothing; told once, and no one else pays."""
    most: list[int] = []
    with proxied(database_url) as proxy:

        def look(line: Line, data: bytes) -> None:
            if data[3] == 0:  # a command; the greeting is divided otherwise
                most.append(len(commands_of(data)))
                behaves(line, data)

        proxy.on_request = look
        database = open_database(
            through(database_url, proxy), pool_size=4, statement_timeout_seconds=2, lock_wait_seconds=1
        )
        transact(database, new_txn_id())
        assert sorted(most)[-2:] == [1, 2], "tried once"
        together = [database.begin(new_txn_id()) for _ in range(4)]
        for session in together:
            end(session)
        assert sorted(most)[-2:] == [1, 2]
    assert durable(database_url) == {"effect": 1, "rmq_txn_log": 5, "rmq_txn_outbox": 5}
    assert caplog.text.count("statements are sent one at a time") == 1


def test_a_server_that_goes_away_while_it_is_tried_is_tried_again(
    database_url: str, open_database: Callable[..., Database]
) -> None:
    """It says nothing about what it bears."""
    most: list[int] = []

    def go_away(line: Line, data: bytes) -> None:
        if data[3] == 0 and len(commands_of(data)) > 1:
            away.cut()

    def look(_line: Line, data: bytes) -> None:
        most.append(len(commands_of(data)) if data[3] == 0 else 0)

    away: TcpProxy
    with proxied(database_url) as away:
        away.on_request = go_away
        database = open_database(through(database_url, away), pool_size=1)
        with pytest.raises(DatabaseUnavailableError):
            database.begin(new_txn_id())
        away.on_request = look
        away.heal()
        transact(database, new_txn_id())
    assert most.count(2) == 1
    assert most.count(3) == 1
