"""`rmq-txn status` on real servers: calm, then a parked message, an old copy, nobody who runs."""

from __future__ import annotations

import json

import pytest

from devstack import LocalStack
from rmq_txn import Delivery, Reject, Transaction
from rmq_txn.cli import exit_codes, main
from rmq_txn.database.pool import parse_url
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]


class Status:
    """Runs the command; returns its lines by what they are about."""

    def __init__(self, stack: LocalStack, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._where = ["--database-url", url, "--name-server", stack.name_server]
        self._capsys = capsys

    def __call__(self, expected: int) -> dict[str, list[dict[str, object]]]:
        assert main(["status", *self._where, "--json"]) == expected
        found: dict[str, list[dict[str, object]]] = {}
        for line in self._capsys.readouterr().out.splitlines():
            told = json.loads(line)
            assert told["kind"] == "status"
            found.setdefault(told["of"], []).append(told)
        return found

    def text(self) -> str:
        main(["status", *self._where])
        return self._capsys.readouterr().out


def test_status_tells_calm_from_what_needs_a_person(
    stack: LocalStack, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that runs is counted; then a message is parked, a copy is too old, the producer is gone."""
    status = Status(stack, desk.url, capsys)

    def award(txn: Transaction, delivery: Delivery) -> None:
        if delivery.json()["id"] == "bad":
            raise Reject("no such user")
        desk.award(txn, delivery)

    consumer = desk.consumer(award)
    desk.publish("a", "b")
    desk.wait_effects("a", "b")
    until(lambda: consumer.health().registered, "the consumer is known")
    calm = status(exit_codes.OK)
    (outbox,), (log,), (parked,), (producers,) = (calm[of] for of in ("outbox", "log", "parked", "producers"))
    assert outbox["rows"] == 2
    assert (log["committed"], log["open"]) == (2, 0)
    assert parked["parked"] == 0
    assert (producers["group"], producers["running"]) == (f"g-{desk.topic}", 1)
    assert {line["table"] for line in calm["growth"]} == {"rmq_txn_log", "rmq_txn_inbox"}
    assert (calm["lag"][0]["group"], calm["lag"][0]["members"]) == (f"c-{desk.topic}", 1)
    # The client tells its offset each five seconds.
    until(lambda: status(exit_codes.OK)["lag"][0]["waiting"] == 0, "nothing waits")

    desk.publish("bad")
    until(lambda: rows(desk.url, "SELECT 1 FROM rmq_txn_parked WHERE state = 1"), "the message is parked")
    (parked,) = status(exit_codes.FAILED)["parked"]
    assert (parked["parked"], parked["needs_a_person"]) == (1, True)

    consumer.close()
    desk.publish("c")
    desk.producer.close()
    with desk.database.transaction() as business:
        business.execute("UPDATE rmq_txn_outbox SET created_at = NOW() - INTERVAL 1 DAY")
    broken = status(exit_codes.FAILED)
    assert [line["needs_a_person"] for line in broken["outbox"]] == [True]
    assert [line["needs_a_person"] for line in broken["producers"]] == [False, True]
    assert broken["lag"][0]["waiting"] == 1
    assert broken["lag"][0]["needs_a_person"]
    text = status.text()
    assert "! outbox:    4 copies" in text
    assert f"! parked:    group c-{desk.topic}: 1 parked" in text
    assert parse_url(desk.url)["password"] not in text


def test_a_broker_that_is_away_is_a_line_and_the_rest_is_told(
    stack: LocalStack, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a name server that does not answer."""
    desk.consumer()
    desk.publish("a")
    desk.wait_effects("a")
    assert main(["status", "--database-url", desk.url, "--name-server", "127.0.0.1:1"]) == exit_codes.FAILED
    told = capsys.readouterr().out
    assert "  outbox:" in told
    assert f"! lag:       group c-{desk.topic}: not told: " in told
