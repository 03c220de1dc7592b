"""A server that answers and refuses to work: the outcome is told right, and no pool sticks to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from devstack import LocalStack
from rmq_txn import Database, DatabaseUnavailableError, Message
from rmq_txn.database.session import Session
from rmq_txn.errors import TransactionLostError
from tests.kit.administrator import administer, read_only
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.statements import COMMIT, hooked

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

WRITE = "INSERT INTO effect (id) VALUES ('written')"
REFUSED = r"refuses to work now: .*read-only.* \(error 1290\)"


def effects(url: str) -> list[str]:
    """Return what is durable, read past the SDK."""
    return [row[0] for row in rows(url, "SELECT id FROM effect")]


@pytest.mark.parametrize("how", ["execute", "cursor"])
def test_a_server_that_refuses_writes_is_unavailable_and_nothing_was_committed(
    stack: LocalStack, database: Database, database_url: str, how: str
) -> None:
    """Not a raw driver error, by a lent cursor neither; reads go on."""

    def block() -> None:
        with database.transaction() as txn:
            (txn.execute if how == "execute" else txn.cursor().execute)(WRITE)

    with read_only(stack):
        with pytest.raises(DatabaseUnavailableError, match=REFUSED):
            block()
        with database.transaction(read_only=True) as txn:
            assert txn.execute("SELECT id FROM effect") == 0
    block()
    assert effects(database_url) == ["written"]


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("when", ["before the statement", "before COMMIT"])
def test_a_producer_on_a_refusing_server_is_told_that_nothing_was_committed(
    stack: LocalStack, desk: Desk, form: str, when: str
) -> None:
    """At COMMIT too: the server's refusal is an answer, nothing is in doubt and nothing is looked up."""
    producer = desk.producer
    resources = ExitStack()

    def refuse(_session: Session, sql: str) -> None:
        if (sql == COMMIT) if when == "before COMMIT" else (sql == WRITE):
            resources.enter_context(read_only(stack))

    def publish() -> None:
        if form == "B":
            producer.send_in_transaction(Message(desk.topic, {"id": form}), lambda txn: txn.execute(WRITE))
        else:
            with producer.transaction() as txn:
                txn.execute(WRITE)
                txn.publish(desk.topic, {"id": form})

    with hooked(before=refuse), resources, pytest.raises(DatabaseUnavailableError, match=REFUSED):
        publish()
    assert desk.effects() == []
    publish()
    assert desk.effects() == ["written"]


def test_reachable_means_that_a_row_can_be_written(
    stack: LocalStack, database: Database, database_url: str
) -> None:
    """Else who waits for a refusing server would be told at once that the wait is over."""
    with read_only(stack):
        assert not database.is_reachable()
        give_up = threading.Event()
        waiting = threading.Thread(target=database.wait_until_reachable, args=(give_up, 0.1))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert database.is_reachable()
    assert rows(database_url, "SELECT * FROM rmq_txn_log") == []


def test_no_idle_connection_to_a_demoted_server_is_lent_again(
    stack: LocalStack, database_url: str, open_database: Callable[..., Database]
) -> None:
    """The first refusal condemns all that were made before, those of check-backs included."""
    database = open_database(database_url, pool_size=3)

    def connections() -> set[int]:
        with ExitStack() as opened:
            sessions = [database.begin(str(n)) for n in range(3)]
            for session in sessions:
                opened.callback(session.rollback)
            sessions.append(opened.enter_context(database.check_session("c")))
            return {session.connection_id for session in sessions}

    before = connections()
    assert connections() == before
    with read_only(stack), pytest.raises(DatabaseUnavailableError), database.transaction() as txn:
        txn.execute(WRITE)
    assert not connections() & before


def test_a_server_that_is_read_only_by_default_is_told_from_a_transaction_that_business_code_made_so(
    stack: LocalStack, database_url: str, open_database: Callable[..., Database]
) -> None:
    """Error 1792 has both causes; only the first is the server's."""
    known = {name for name, _ in administer(stack, "SHOW VARIABLES LIKE '%_read_only'")}
    name = "transaction_read_only" if "transaction_read_only" in known else "tx_read_only"
    administer(stack, f"SET GLOBAL {name} = 1")
    try:
        database = open_database(database_url)
        with pytest.raises(DatabaseUnavailableError, match="1792"), database.transaction() as txn:
            txn.execute(WRITE)
    finally:
        administer(stack, f"SET GLOBAL {name} = 0")
    database = open_database(database_url)

    def read_only_by_itself() -> None:
        with database.transaction() as txn:
            txn.execute("START TRANSACTION READ ONLY")
            txn.execute(WRITE)

    with pytest.raises(TransactionLostError):
        read_only_by_itself()
