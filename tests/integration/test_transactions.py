"""Forms A and B against a real broker and a real database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pymysql
import pytest

from devstack import LocalStack
from rmq_txn import (
    Database,
    DatabaseUnavailableError,
    Delivery,
    FencedError,
    IdempotentConsumer,
    Message,
    Receipt,
    RocketMQ,
    Transaction,
    TransactionLostError,
    TransactionProducer,
)
from rmq_txn.database.pool import parse_url
from rmq_txn.errors import LocalTimeoutError
from rmq_txn.verdict import Verdict
from tests.kit.proxy import Line, proxied, through
from tests.kit.rows import rows
from tests.kit.statements import COMMIT, Killer, hooked
from tests.kit.transports import RecordChecks, Wrapped, never_answers
from tests.kit.wait import until

pytestmark = pytest.mark.servers


class Rig:
    """A producer of its own group, a consumer that collects ids, and questions to the database."""

    def __init__(self, stack: LocalStack, url: str, topic: str) -> None:
        self.stack, self.url, self.topic = stack, url, topic
        self.checks = RecordChecks()
        self.resources = ExitStack()
        self.database = self.open(url)
        self.received: list[Delivery] = []

    def open(self, url: str, **settings: Any) -> Database:
        database = Database.mysql(url, **settings)
        self.resources.callback(database.close)
        return database

    def producer(
        self, database: Database | None = None, *, group: str | None = None, **wrap: Any
    ) -> TransactionProducer:
        broker = Wrapped(RocketMQ(self.stack.name_server), around_check=self.checks, **wrap)
        producer = TransactionProducer(
            group=group or f"g-{self.topic}",
            broker=broker,
            database=database or self.database,
            topics=[self.topic],
        )
        return self.resources.enter_context(producer)

    def consume(self) -> None:
        consumer = IdempotentConsumer(
            group=f"c-{self.topic}",
            broker=RocketMQ(self.stack.name_server),
            database=self.database,
        )

        @consumer.handles(self.topic)
        def collect(_txn: Transaction, delivery: Delivery) -> None:
            self.received.append(delivery)

        self.resources.enter_context(consumer)

    def effects(self) -> set[str]:
        return {row[0] for row in rows(self.url, "SELECT id FROM effect")}

    def log_states(self) -> dict[str, int]:
        return {row[0].decode(): row[1] for row in rows(self.url, "SELECT txn_id, state FROM rmq_txn_log")}

    def wait_received(self, *ids: str) -> None:
        # On a busy machine a new native consumer may miss its first rebalancing, and the second one:
        # it tries again each 20 s.
        until(lambda: set(ids) <= {d.json()["id"] for d in self.received}, f"deliveries of {ids}", 120)


@pytest.fixture
def rig(stack: LocalStack, database_url: str, topic: str) -> Iterator[Rig]:
    """Return a rig; everything it opened is closed, last first."""
    rig = Rig(stack, database_url, topic)
    with rig.resources:
        yield rig


Work = Callable[[Transaction], object]


def insert(id_: str) -> Work:
    """Make the business code of most tests: one row."""
    return lambda txn: txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))


def form_a(
    producer: TransactionProducer, topic: str, id_: str, *, messages: int = 1, work: Work | None = None
) -> Receipt[Any]:
    """Write one effect (or do `work`) and publish `messages` messages in form A."""
    with producer.transaction() as txn:
        (work or insert(id_))(txn)
        for n in range(messages):
            txn.publish(topic, {"id": id_, "n": n})
    return txn.receipt


def form_b(
    producer: TransactionProducer, topic: str, id_: str, *, messages: int = 1, work: Work | None = None
) -> Receipt[Any]:
    """Do the same in form B."""
    batch = [Message(topic, {"id": id_, "n": n}) for n in range(messages)]
    return producer.send_in_transaction(batch, work or insert(id_))


FORMS = pytest.mark.parametrize("form", [form_a, form_b], ids=["form-a", "form-b"])
Form = Callable[..., Receipt[Any]]


@FORMS
def test_a_committed_transaction_delivers_all_of_its_messages(rig: Rig, form: Form) -> None:
    """Effect, receipt and every message are there after the commit."""
    producer = rig.producer()
    rig.consume()
    receipt = form(producer, rig.topic, "one", messages=3)
    until(lambda: len(rig.received) >= 3, "three deliveries")
    assert rig.effects() == {"one"}
    assert {d.json()["n"] for d in rig.received} == {0, 1, 2}
    assert {d.dedup_key.split("/")[0] for d in rig.received} == {f"{receipt.txn_id}.{n}" for n in range(3)}
    assert {d.message_id for d in rig.received} == set(receipt.message_ids)


@FORMS
def test_an_exception_of_business_code_rolls_both_sides_back_and_arrives_unchanged(
    rig: Rig, form: Form
) -> None:
    """Neither effect nor message; a later transaction's message is the first that arrives."""
    producer = rig.producer()
    rig.consume()
    problem = RuntimeError("insufficient funds")

    def work(txn: Transaction) -> None:
        txn.execute("INSERT INTO effect (id) VALUES ('never')")
        raise problem

    with pytest.raises(RuntimeError) as caught:
        form(producer, rig.topic, "never", work=work)
    assert caught.value is problem
    form(producer, rig.topic, "later")
    rig.wait_received("later")
    assert [d.json()["id"] for d in rig.received] == ["later"]
    assert rig.effects() == {"later"}


def test_a_block_that_publishes_nothing_is_a_plain_commit(rig: Rig) -> None:
    """Its effect is durable and no log row is written."""
    with rig.producer().transaction() as txn:
        txn.execute("INSERT INTO effect (id) VALUES ('quiet')")
    assert rig.effects() == {"quiet"}
    assert txn.txn_id not in rig.log_states()


@FORMS
def test_a_local_transaction_that_takes_too_long_is_refused(rig: Rig, form: Form) -> None:
    """Before COMMIT: nothing written, nothing delivered; the next one passes."""
    producer = rig.producer(rig.open(rig.url, local_timeout_seconds=1))
    rig.consume()

    def slow(txn: Transaction) -> None:
        insert("slow")(txn)
        txn.execute("SELECT SLEEP(1.2)")

    with pytest.raises(LocalTimeoutError, match=r"took \d+\.\d s, local_timeout_seconds is 1; nothing was"):
        form(producer, rig.topic, "slow", work=slow)
    form(producer, rig.topic, "quick")
    rig.wait_received("quick")
    assert [d.json()["id"] for d in rig.received] == ["quick"]
    assert rig.effects() == {"quick"}
    assert rows(rig.url, "SELECT CAST(body AS CHAR) FROM rmq_txn_outbox") == [('{"id":"quick","n":0}',)]


@FORMS
def test_a_lost_verdict_is_recovered_by_check_back(rig: Rig, form: Form) -> None:
    """The broker asks, the log row answers COMMIT, the message arrives."""
    producer = rig.producer(around_execute=never_answers)
    rig.consume()
    receipt = form(producer, rig.topic, "asked")
    rig.wait_received("asked")
    assert Verdict.COMMIT in rig.checks.verdicts(receipt.txn_id)


def test_form_b_is_told_unknown_while_it_runs_and_commit_later(rig: Rig) -> None:
    """A check-back during the local transaction meets its open row, and waits."""
    producer = rig.producer(around_execute=never_answers)
    rig.consume()

    def slow(txn: Transaction) -> str:
        txn.execute("INSERT INTO effect (id) VALUES ('slow')")
        until(lambda: rig.checks.verdicts(txn.txn_id), "a check-back while the transaction runs", 30)
        return txn.txn_id

    txn_id = producer.send_in_transaction(Message(rig.topic, {"id": "slow"}), slow).txn_id
    rig.wait_received("slow")
    verdicts = rig.checks.verdicts(txn_id)
    assert verdicts[0] is Verdict.UNKNOWN
    assert verdicts[-1] is Verdict.COMMIT
    assert Verdict.ROLLBACK not in verdicts


@FORMS
def test_a_check_back_before_the_local_transaction_fences_it(rig: Rig, form: Form) -> None:
    """ROLLBACK is answered first, then the late local transaction is refused and writes nothing."""

    def late(execute: Any) -> Any:
        def wait_for_check(message_id: str) -> Verdict:
            until(lambda: [v for c, v in rig.checks.seen if c.message_id == message_id], "an early check", 30)
            return execute(message_id)

        return wait_for_check

    # The warm-up of start() goes through the wrapper too; it must not wait for a check.
    waiting: list[bool] = []
    producer = rig.producer(around_execute=lambda execute: late(execute) if waiting else execute)
    waiting.append(True)
    with pytest.raises(FencedError) as caught:
        form(producer, rig.topic, "late")
    assert rig.effects() == set()
    assert rig.checks.verdicts(caught.value.txn_id)[0] is Verdict.ROLLBACK
    assert rig.log_states()[caught.value.txn_id] == 2


STATEMENTS = {
    form_a: [
        "INSERT INTO effect",
        "INSERT INTO rmq_txn_log",
        "INSERT INTO rmq_txn_outbox",
        "RELEASE",
        COMMIT,
    ],
    form_b: [
        "INSERT INTO rmq_txn_log",
        "INSERT INTO effect",
        "UPDATE rmq_txn_log",
        "INSERT INTO rmq_txn_outbox",
        "RELEASE",
        COMMIT,
    ],
}


@pytest.mark.parametrize(
    ("form", "at"),
    [
        pytest.param(form, at, id=f"{form.__name__}-before-{statement.replace(' ', '-')}")
        for form, statements in STATEMENTS.items()
        for at, statement in enumerate(statements)
        if (form, at) != (form_b, 0)  # it goes out with the tripwire: on a new connection, if need be
    ],
)
def test_a_connection_killed_between_two_statements_leaves_no_half_effect(
    rig: Rig, form: Form, at: int
) -> None:
    """Wherever the line breaks before COMMIT took effect: nothing written or delivered, and said so."""
    producer = rig.producer()
    rig.consume()
    killer = Killer(parse_url(rig.url), at)
    with hooked(before=killer), pytest.raises(DatabaseUnavailableError):
        form(producer, rig.topic, "cut")
    with hooked(before=(whole := Killer(parse_url(rig.url), -2))):
        form(producer, rig.topic, "whole")
    expected = STATEMENTS[form]
    assert [sql[: len(start)] for sql, start in zip(whole.statements, expected, strict=True)] == expected
    rig.wait_received("whole")
    assert rig.effects() == {"whole"}
    assert [d.json()["id"] for d in rig.received] == ["whole"]


@FORMS
def test_a_commit_whose_answer_is_lost_is_looked_up_and_told_as_committed(rig: Rig, form: Form) -> None:
    """The line is cut after the server got COMMIT: the receipt comes all the same."""
    with proxied(rig.url) as proxy:
        producer = rig.producer(rig.open(through(rig.url, proxy)))
        rig.consume()

        def cut_after_commit(line: Line, data: bytes) -> None:
            if data[4:] == b"\x03COMMIT":
                line.silence()
                line.server.sendall(data)
                line.silent_to_server.set()
                until(lambda: rig.effects() == {"lost"}, "the commit took effect")
                line.cut()

        proxy.on_request = cut_after_commit
        receipt = form(producer, rig.topic, "lost")
        proxy.on_request = lambda _line, _data: None
        rig.wait_received("lost")
    assert rig.effects() == {"lost"}
    assert rig.log_states()[receipt.txn_id] == 1


@FORMS
def test_a_commit_that_never_reached_the_server_is_told_as_not_committed(
    rig: Rig, form: Form, caplog: pytest.LogCaptureFixture
) -> None:
    """The line goes silent before COMMIT arrives; the server's open transaction is killed first."""
    with proxied(rig.url) as proxy:
        database = rig.open(through(rig.url, proxy), statement_timeout_seconds=2.0, lock_wait_seconds=1)
        producer = rig.producer(database)
        rig.consume()

        def swallow_commit(line: Line, data: bytes) -> None:
            if data[4:] == b"\x03COMMIT":
                proxy.on_request = lambda _line, _data: None  # the fence has a COMMIT, too
                line.silence(to_client=True, to_server=True)

        proxy.on_request = swallow_commit
        with pytest.raises(DatabaseUnavailableError, match="nothing was committed"):
            form(producer, rig.topic, "swallowed")
        proxy.on_request = lambda _line, _data: None
        form(producer, rig.topic, "after")
        rig.wait_received("after")
    assert rig.effects() == {"after"}
    assert [d.json()["id"] for d in rig.received] == ["after"]
    assert "business code" not in caplog.text  # it is not blamed for a connection that broke


@FORMS
def test_ddl_in_business_code_is_caught_and_its_message_is_never_delivered(rig: Rig, form: Form) -> None:
    """DDL commits implicitly: the tripwire notices, the caller is told, the message is rolled back."""
    producer = rig.producer()
    rig.consume()

    def ddl(txn: Transaction) -> None:
        txn.execute("CREATE TABLE IF NOT EXISTS sneaky (id INT)")

    with pytest.raises(TransactionLostError):
        form(producer, rig.topic, "ddl", work=ddl)
    form(producer, rig.topic, "clean")
    rig.wait_received("clean")
    assert [d.json()["id"] for d in rig.received] == ["clean"]


@FORMS
def test_a_swallowed_deadlock_is_caught_and_nothing_is_written(rig: Rig, form: Form) -> None:
    """Business code that ignores error 1213 goes on in a transaction that is gone."""
    with rig.database.transaction() as txn:
        txn.execute("INSERT INTO effect (id, note) VALUES ('x', ''), ('y', '')")
    producer = rig.producer()

    def swallow(txn: Transaction) -> None:
        txn.execute("UPDATE effect SET note = 'mine' WHERE id = 'x'")
        other = rig.database.begin("other")
        # The heavier transaction wins a deadlock; this makes the other one heavier.
        # (Sorted after x and y, where we hold no gap lock.)
        other.executemany("INSERT INTO effect (id) VALUES (%s)", [("zz",)] * 50)
        other.execute("UPDATE effect SET note = 'other' WHERE id = 'y'")
        blocked = threading.Thread(
            target=other.execute, args=("UPDATE effect SET note = 'other' WHERE id = 'x'",)
        )
        blocked.start()
        until(lambda: _runs_a_statement(rig, other.connection_id), "the other one waits for our lock")
        with pytest.raises(pymysql.err.OperationalError, match="1213"):
            txn.execute("UPDATE effect SET note = 'mine' WHERE id = 'y'")
        blocked.join(10)
        other.rollback()
        txn.execute("INSERT INTO effect (id) VALUES ('half')")

    with pytest.raises(TransactionLostError):
        form(producer, rig.topic, "deadlock", work=swallow)
    assert rig.effects() == {"x", "y"}


def _runs_a_statement(rig: Rig, connection_id: int) -> bool:
    sql = "SELECT 1 FROM information_schema.processlist WHERE id = %s AND info LIKE 'UPDATE effect%%'"
    return bool(rows(rig.url, sql, (connection_id,)))


def test_two_services_that_share_a_group_never_decide_each_others_transactions(
    rig: Rig, stack: LocalStack, unique: str
) -> None:
    """The broker asks either of them; a foreign question is answered UNKNOWN and writes no fence."""
    from tests.conftest import prepared_url

    other_database = rig.open(prepared_url(stack, f"{unique}x"))
    mine = rig.producer(around_execute=never_answers)
    other = rig.producer(other_database)
    rig.consume()
    ids = [f"shared{n}" for n in range(6)]
    receipts = [form_a(mine, rig.topic, id_) for id_ in ids]
    rig.wait_received(*ids)
    own = {receipt.txn_id for receipt in receipts}
    foreign = [
        verdict for txn_id in own for verdict in rig.checks.verdicts(txn_id) if verdict is not Verdict.COMMIT
    ]
    assert set(foreign) <= {Verdict.UNKNOWN}
    with other_database.transaction() as txn:
        txn.execute("SELECT txn_id FROM rmq_txn_log")
        assert not own & {row[0].decode() for row in txn.fetchall()}
    assert other.state is mine.state
