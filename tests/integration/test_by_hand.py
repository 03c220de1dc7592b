"""`rmq-txn resolve` and `rmq-txn audit` on real servers: what only a person can decide, and who did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rmq_txn import Delivery, Message, Transaction, TransactionLostError, cli
from rmq_txn.cli import exit_codes
from rmq_txn.identity import new_txn_id
from rmq_txn.producer import checkback, txlog
from rmq_txn.producer.txlog import LogState
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

Said = tuple[int, dict[str, Any]]


class Hand:
    """Runs commands on the desk's servers, and reads them as a program does."""

    def __init__(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        self._desk, self._capsys = desk, capsys

    def __call__(self, *words: str) -> tuple[int, list[dict[str, Any]], str]:
        """Return exit code, printed objects, and the error."""
        self._capsys.readouterr()
        code = cli.main([*words, "--json", "--database-url", self._desk.url])
        printed = self._capsys.readouterr()
        return code, [json.loads(line) for line in printed.out.splitlines()], printed.err

    def resolve(self, txn_id: str, *more: str) -> tuple[int, str, bool]:
        """Return exit code, state, and whether it was changed."""
        code, (told,), _error = self("resolve", txn_id, *more)
        return code, told["state"], told["changed"]

    def refused(self, txn_id: str, *more: str) -> str:
        """Return the error of a choice that is not taken."""
        before = rows(self._desk.url, "SELECT * FROM rmq_txn_log")
        code, told, error = self("resolve", txn_id, *more)
        assert (code != exit_codes.OK, told) == (True, [])
        assert rows(self._desk.url, "SELECT * FROM rmq_txn_log") == before
        return error


@pytest.fixture
def hand(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Hand:
    """Return the commands."""
    return Hand(desk, capsys)


WHY = ("--reason", "ticket 4711", "--by", "me")


def test_a_transaction_without_a_row_can_be_fenced_and_is_never_called_committed(
    desk: Desk, hand: Hand
) -> None:
    """Looked at first; the fence stands, is written down once, and no later commit gets past it."""
    txn_id = new_txn_id()
    assert hand.resolve(txn_id) == (exit_codes.FAILED, "no row", False)
    assert "nothing proves that it committed" in hand.refused(txn_id, "--as", "committed", *WHY)
    assert "--reason is missing" in hand.refused(txn_id, "--as", "rolled-back")
    assert hand.resolve(txn_id, "--as", "rolled-back", *WHY) == (exit_codes.OK, "rolled back", True)
    assert hand.resolve(txn_id, "--as", "rolled-back", *WHY) == (exit_codes.OK, "rolled back", False)
    assert "rolled-back by its row, which is proof" in hand.refused(txn_id, "--as", "committed", *WHY)
    with desk.database.check_session(txn_id) as late, pytest.raises(Exception, match="check-back answered"):
        txlog.insert(late, LogState.COMMITTED, ["ID-0"])
    code, (entry,), _error = hand("audit", txn_id)
    assert code == exit_codes.OK
    assert (entry["action"], entry["subject"], entry["by"]) == ("resolved", txn_id, "me")
    assert entry["note"] == "rolled-back, there was no row: ticket 4711"


def test_what_runs_is_left_alone_and_what_is_too_old_proves_nothing(desk: Desk, hand: Hand) -> None:
    """A row that is being written; an id from before the retention; and no audit of either."""
    running = new_txn_id()
    session = desk.database.begin(running)
    try:
        txlog.insert(session, LogState.OPEN, ["ID-1"])
        for choice in ((), ("--as", "rolled-back", *WHY), ("--as", "committed", *WHY)):
            assert "still runs" in hand.refused(running, *choice)
    finally:
        session.rollback()
    old = new_txn_id(1_600_000_000.0)
    for choice in ((), ("--as", "rolled-back", *WHY)):
        assert "days old and has no row" in hand.refused(old, *choice)
    assert "allowed are 32 hex digits" in hand.refused("0199", "--as", "rolled-back", *WHY)
    assert hand("audit")[1] == [{"kind": "note", "text": "nothing was done by hand"}]


def test_a_transaction_that_was_torn_is_decided_by_a_person_and_its_message_recovered(
    desk: Desk, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDL in form B: the row stands as open, its half message was rolled back; nothing of it is lost."""
    torn: list[str] = []

    def tear(txn: Transaction) -> None:
        torn.append(txn.txn_id)
        txn.execute("INSERT INTO effect (id) VALUES ('torn')")
        txn.execute("CREATE TABLE surprise (id INT)")

    message = Message(desk.topic, {"id": "torn", "n": 1}, key="k-1", tag="paid", properties={"tenant": "七"})
    with pytest.raises(TransactionLostError):
        desk.producer.send_in_transaction(message, tear)
    (txn_id,) = torn
    server = ("--name-server", desk.stack.name_server)
    assert hand("recover", txn_id, *server)[1][0]["found"] == "open"
    assert hand.resolve(txn_id) == (exit_codes.FAILED, "open", False)
    assert "may still run in its process" in hand.refused(txn_id, "--as", "committed", *WHY)
    monkeypatch.setattr(checkback, "_STILL_RUNNING_MARGIN_SECONDS", -3600.0)  # the time has passed
    assert hand.resolve(txn_id, "--as", "committed", *WHY) == (exit_codes.OK, "committed", True)
    assert "committed by its row, which is proof" in hand.refused(txn_id, "--as", "rolled-back", *WHY)

    received: list[Delivery] = []

    def handle(txn: Transaction, delivery: Delivery) -> None:
        txn.execute("INSERT INTO effect (id) VALUES ('handled')")
        received.append(delivery)

    desk.consumer(handle)
    # Brokers note a verdict some seconds after they got it.
    until(lambda: hand("recover", txn_id, *server)[1][0]["found"] == "lost", "the rollback is noted", 60)
    code, (lost, _summary), _error = hand("recover", txn_id, *server)
    assert (code, lost["found"], lost["position"]) == (exit_codes.FAILED, "lost", 0)
    code, (saved, _summary), _error = hand("recover", txn_id, "--yes", *server)
    assert (code, saved["found"]) == (exit_codes.OK, "recovered")
    desk.wait_effects("handled")
    (delivery,) = received
    assert (delivery.txn_id, delivery.tag, delivery.key) == (txn_id, "paid", "k-1")
    assert delivery.properties["tenant"] == "七"
    assert delivery.json() == {"id": "torn", "n": 1}
    done = [entry["action"] for entry in hand("audit", txn_id)[1]]
    assert done == ["resolved", "recovered"]
    told = "\n".join(item["text"] for item in hand("explain", txn_id, *server)[1])
    assert "resolved by me" in told
    assert "published again as a plain message" in told


def test_an_open_row_can_be_said_to_be_rolled_back(
    desk: Desk, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a person undid its business rows; check-backs answer rollback as before."""
    txn_id = new_txn_id()
    with desk.database.check_session(txn_id) as session:
        txlog.insert(session, LogState.OPEN, ["ID-2"])
        session.commit()
    monkeypatch.setattr(checkback, "_STILL_RUNNING_MARGIN_SECONDS", -3600.0)
    assert hand.resolve(txn_id, "--as", "rolled-back", *WHY) == (exit_codes.OK, "rolled back", True)
    assert rows(desk.url, "SELECT state FROM rmq_txn_log WHERE txn_id = %s", (txn_id,)) == [(2,)]
