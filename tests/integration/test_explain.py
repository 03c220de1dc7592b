"""
`rmq-txn explain` on real servers: each state is made by what makes it in life.

What a broker gave up on, and what a relay published again: `test_outbox.py`, which makes such.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from rmq_txn import (
    Database,
    Delivery,
    Message,
    Reject,
    RocketMQ,
    Transaction,
    TransactionProducer,
    cli,
    schema,
)
from rmq_txn.cli import exit_codes
from rmq_txn.identity import new_txn_id
from rmq_txn.producer import txlog
from rmq_txn.producer.txlog import LogState
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.half_messages import HALF_TOPIC
from rmq_txn.verdict import Verdict
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.transports import Wrapped
from tests.kit.wait import until

pytestmark = pytest.mark.servers


class Asked:
    """The answers of the command, read as a program reads them."""

    def __init__(self, url: str, name_server: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self._name_server, self._capsys = url, name_server, capsys

    def __call__(self, txn_id: str, *more: str) -> tuple[int, str, str]:
        """Return exit code, outcome, and all sentences."""
        self._capsys.readouterr()
        code = cli.main(
            [
                "explain",
                txn_id,
                "--json",
                "--database-url",
                self.url,
                "--name-server",
                self._name_server,
                *more,
            ]
        )
        printed: list[dict[str, Any]] = [
            json.loads(line) for line in self._capsys.readouterr().out.splitlines()
        ]
        return code, printed[0]["outcome"], "\n".join(item["text"] for item in printed)


@pytest.fixture
def asked(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Asked:
    """Return the command on the desk's database and cluster."""
    return Asked(desk.url, desk.stack.name_server, capsys)


def test_a_transaction_is_followed_from_its_commit_to_its_handlers(desk: Desk, asked: Asked) -> None:
    """Before a consumer runs, handled, then parked by another message's handler; its copy in the outbox."""

    def handle(txn: Transaction, delivery: Delivery) -> None:
        if delivery.json()["id"] == "bad":
            raise Reject("no such account")
        desk.award(txn, delivery)

    def publish(id_: str) -> str:
        return desk.producer.send_in_transaction(Message(desk.topic, {"id": id_}), lambda _txn: None).txn_id

    good, bad = publish("good"), publish("bad")
    code, outcome, text = asked(good)
    assert (code, outcome) == (exit_codes.OK, "committed")
    assert f"message 0 for topic {desk.topic} has its copy in the outbox" in text
    assert "no consumer group of the databases asked has noted" in text
    assert "message 0: published by the verdict of its producer: topic" in text
    assert f"message 0: no consumer group reads topic {desk.topic}" in text
    desk.consumer(handle)
    desk.wait_effects("good")
    until(lambda: rows(desk.url, "SELECT 1 FROM rmq_txn_parked WHERE state > 0"), "one is parked", 60)
    code, outcome, text = asked(good, "--consumer-url", desk.url)
    assert (code, outcome) == (exit_codes.OK, "committed")
    assert f"group c-{desk.topic}, key {good}.0" in text
    assert "done: handled" in text
    code, outcome, text = asked(bad)
    assert (code, outcome) == (exit_codes.FAILED, "committed")
    assert "parked (rejected)" in text
    assert "no such account" in text
    with desk.database.transaction() as business:
        business.execute("UPDATE rmq_txn_outbox SET created_at = NOW() - INTERVAL 1 DAY")
    assert asked(good)[0] == exit_codes.FAILED  # its copy is late


def test_what_did_not_commit_is_told_apart(desk: Desk, asked: Asked) -> None:
    """Running on another connection, fenced by a check-back, committed as open, never seen, too old."""
    running, fenced, open_ = new_txn_id(), new_txn_id(), new_txn_id()
    session = desk.database.begin(running)
    try:
        txlog.insert(session, LogState.OPEN, ["ID-1"])
        assert asked(running)[:2] == (exit_codes.OK, "running")
    finally:
        session.rollback()
    assert asked(running)[:2] == (exit_codes.FAILED, "unknown")
    with desk.database.check_session(fenced) as check:
        assert txlog.fence(check) is None
        check.commit()
    assert asked(fenced)[:2] == (exit_codes.OK, "rolled back")
    with desk.database.check_session(open_) as torn:
        txlog.insert(torn, LogState.OPEN, ["ID-2"])
        torn.commit()  # as DDL does it behind the back of form B
    assert asked(open_)[:2] == (exit_codes.FAILED, "open")
    assert asked(new_txn_id(1_600_000_000.0))[:2] == (exit_codes.FAILED, "too old")
    before = rows(desk.url, "SELECT COUNT(*) FROM rmq_txn_log")
    assert asked(new_txn_id())[1] == "unknown"
    assert asked(new_txn_id(), "--name-server", "127.0.0.1:1")[1] == "no evidence"
    assert rows(desk.url, "SELECT COUNT(*) FROM rmq_txn_log") == before  # it writes no fence


def test_what_brokers_know_is_told_with_what_rows_say(desk: Desk, asked: Asked) -> None:
    """Asked from inside a local transaction; verdicts lost of one that committed and one that did not."""
    running: list[tuple[int, str, str]] = []
    gone: list[str] = []

    def fail(txn: Transaction) -> None:
        gone.append(txn.txn_id)
        raise LookupError

    message = Message(desk.topic, {"id": "x"})
    desk.producer.send_in_transaction(message, lambda txn: running.append(asked(txn.txn_id)))
    with pytest.raises(LookupError):
        desk.producer.send_in_transaction(message, fail)
    deaf = TransactionProducer(
        group=f"d-{desk.topic}",
        broker=Wrapped(
            RocketMQ(desk.stack.name_server),
            around_execute=lambda execute: lambda id_: (execute(id_), Verdict.UNKNOWN)[1],
        ),
        database=desk.database,
        topics=[desk.topic],
    )
    desk.resources.enter_context(deaf)
    lost = deaf.send_in_transaction(message, lambda _txn: None).txn_id
    with pytest.raises(LookupError):
        deaf.send_in_transaction(message, fail)
    ((code, outcome, text),) = running
    assert (code, outcome) == (exit_codes.OK, "running")
    assert "has no verdict that the broker has noted" in text
    assert f"the broker asks a producer of group g-{desk.topic}" in text
    rolled_back, fenced = gone
    assert asked(fenced)[1] in ("undecided", "rolled back")  # a slow machine was asked already

    def told() -> bool:
        """On a slow machine the broker asks about this one, too, and there is a fence."""
        outcome = asked(rolled_back)[1]
        by_check_back = rows(desk.url, "SELECT 1 FROM rmq_txn_log WHERE txn_id = %s", (rolled_back,))
        return outcome == ("rolled back" if by_check_back else "rolled back by itself")

    until(told, "the broker notes the rollback", 60)
    until(lambda: "the verdict of its producer was lost; published" in asked(lost)[2], "a check-back", 60)
    until(lambda: "was rolled back; " in asked(fenced)[2], "the broker notes what a check-back said", 60)
    assert asked(fenced)[:2] == (exit_codes.OK, "rolled back")
    elsewhere = Database.mysql(desk.stack.database_url(f"x{desk.topic}"))
    desk.resources.callback(elsewhere.close)
    schema.apply(elsewhere)
    asked.url = desk.stack.database_url(f"x{desk.topic}")
    code, outcome, text = asked(lost)
    assert (code, outcome) == (exit_codes.FAILED, "foreign")
    assert f"owned by d-{desk.topic}@" in text
    broker = RemotingClient(desk.stack.broker_address)
    assert broker.consumer_offset("TOOLS_CONSUMER", HALF_TOPIC, 0) is None  # its reading left nothing


def test_what_is_no_transaction_id_is_refused(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "4711", "--database-url", desk.url]) == exit_codes.USAGE
    assert "TXN_ID is '4711', allowed are 32 hex digits" in capsys.readouterr().err
