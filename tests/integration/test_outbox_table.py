"""The relay's and the upkeep's statements on an outbox that is large: what they read of it, counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pymysql
import pytest

from rmq_txn import Database
from rmq_txn.database.pool import parse_url
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.identity import new_txn_id
from rmq_txn.producer.outbox import Attempt, Outbox, OutboxRow
from tests.kit.rows import rows

pytestmark = pytest.mark.servers

ROWS = 3000
PAGE = 16
AGE_SECONDS = 3600


@pytest.fixture
def outbox(database: Database, database_url: str) -> Iterator[Outbox]:
    """Return an outbox of many copies, all an hour old, three to a transaction."""
    ids = sorted(new_txn_id() for _ in range(ROWS // 3))
    copies = [(id_, position, "M", "t", None, None, b"{}", b"body") for id_ in ids for position in range(3)]
    with closing(pymysql.connect(**parse_url(database_url), autocommit=True)) as connection:
        cursor = connection.cursor()
        cursor.executemany(STATEMENTS["insert_outbox_rows"], copies)
        cursor.execute("UPDATE rmq_txn_outbox SET created_at = NOW() - INTERVAL %s SECOND", (AGE_SECONDS,))
        cursor.execute("ANALYZE TABLE rmq_txn_outbox")
    with closing(Outbox(database)) as outbox:
        yield outbox


def read_so_far(outbox: Outbox) -> int:
    """Return how many rows the server read for this connection."""
    with outbox.session() as session:
        session.execute("SHOW SESSION STATUS LIKE 'Handler_read%%'", ())
        return sum(int(number) for _name, number in session.cursor.fetchall())


def page(outbox: Outbox) -> list[OutboxRow]:
    return outbox.overdue(60.0, PAGE, 86_400)


def test_a_count_reads_up_to_its_limit_and_knows_both_ends(outbox: Outbox, database_url: str) -> None:
    """Each producer of a database counts every 10 s: hundreds of them must not walk over millions of rows."""
    ((newest,),) = rows(database_url, "SELECT MAX(txn_id) FROM rmq_txn_outbox")
    before = read_so_far(outbox)
    count = outbox.count(100)
    walked = read_so_far(outbox) - before
    assert (count.rows, count.newest) == (100, newest.decode())
    assert count.oldest_seconds == pytest.approx(AGE_SECONDS, abs=60)
    assert walked <= 250
    assert outbox.count().rows == ROWS


def test_an_empty_outbox_has_no_oldest_and_no_newest(database: Database) -> None:
    """Both ends of nothing."""
    with closing(Outbox(database)) as outbox:
        count = outbox.count(100)
    assert (count.rows, count.oldest_seconds, count.newest) == (0, 0.0, "")


def test_a_page_is_noted_and_deleted_by_its_keys_alone(outbox: Outbox, database_url: str) -> None:
    """Of a transaction that a page cuts in two, too: what is not in the page stays as it is."""
    first = page(outbox)
    assert len(first) == PAGE
    *fine, refused = first
    before = read_so_far(outbox)
    attempts = [Attempt(row, failed=False, retry_seconds=150.0) for row in fine]
    outbox.note([*attempts, Attempt(refused, failed=True, retry_seconds=30.0)])
    noted = read_so_far(outbox) - before
    failures = "SELECT txn_id, position, failures FROM rmq_txn_outbox WHERE retry_at IS NOT NULL"
    assert {(key.decode(), position): number for key, position, number in rows(database_url, failures)} == {
        (row.txn_id, row.position): int(row is refused) for row in first
    }
    before = read_so_far(outbox)
    outbox.delete_rows(fine)
    deleted = read_so_far(outbox) - before
    assert outbox.count().rows == ROWS - len(fine)
    assert (refused.txn_id, refused.position) in {
        (key.decode(), position) for key, position, _ in rows(database_url, failures)
    }
    assert max(noted, deleted) <= 8 * PAGE
    assert not {(row.txn_id, row.position) for row in page(outbox)} & {(r.txn_id, r.position) for r in first}


def asked_so_far(outbox: Outbox) -> int:
    """Return how many statements this connection has sent."""
    with outbox.session() as session:
        session.execute("SHOW SESSION STATUS LIKE 'Questions'")
        ((_name, number),) = session.cursor.fetchall()
        return int(number)


def test_nothing_is_written_where_nothing_was_tried(outbox: Outbox) -> None:
    """A round that ends before its first message, as the producer closes."""
    first, second = asked_so_far(outbox), asked_so_far(outbox)
    outbox.note([])
    assert asked_so_far(outbox) - second == second - first  # no statement, no COMMIT
