"""`rmq-txn parked` and `rmq-txn dlq` on real servers, with a consumer that the command line names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pymysql
import pytest

from rmq_txn import Delivery, Message, Reject, RocketMQ, Transaction, cli
from rmq_txn.cli import exit_codes
from rmq_txn.remoting import dead_letters, wire
from tests.kit.broker_administrator import BrokerAdministrator
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

SERVICE = """
from rmq_txn import Database, IdempotentConsumer, RocketMQ

database = Database.mysql({url!r})
consumer = IdempotentConsumer(group={group!r}, broker=RocketMQ({name_server!r}), database=database)

@consumer.handles({topic!r})
def award(txn, delivery):
    body = delivery.json()
    if body.get("amount", 0) < 0:
        raise ValueError("still negative")
    txn.execute("INSERT INTO effect (id, note) VALUES (%s, %s)", (body["id"], delivery.key))
"""

Command = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def command(
    desk: Desk,
    unique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Return a function that runs one command where the service's module is; SERVICE is its target."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RMQ_TXN_DATABASE_URL", desk.url)
    runs = iter(range(100))

    def run(*arguments: str) -> tuple[int, list[str]]:
        module = f"{unique}_{next(runs)}"  # a new process would import it anew
        text = SERVICE.format(
            group=f"c-{desk.topic}", name_server=desk.stack.name_server, url=desk.url, topic=desk.topic
        )
        Path(f"{module}.py").write_text(text)
        code = cli.main([f"{module}:consumer" if word == "SERVICE" else word for word in arguments])
        return code, capsys.readouterr().out.splitlines()

    return run


def test_parked_messages_are_listed_shown_replayed_and_dropped(desk: Desk, command: Command) -> None:
    """What an engineer on call does, in order; bodies are in `show` only."""

    def reject(_txn: Transaction, delivery: Delivery) -> None:
        raise Reject(f"no account {delivery.json()['id']}")

    consumer = desk.consumer(reject)
    for amount in (1, 2, -3):
        body = {"id": f"m{amount}", "amount": amount, "secret": "s3cret"}
        desk.producer.send_in_transaction(Message(desk.topic, body, key=f"k{amount}"), lambda _txn: None)
    until(lambda: len(rows(desk.url, "SELECT 1 FROM rmq_txn_parked WHERE state > 0")) == 3, "all are parked")
    consumer.close()
    found = rows(desk.url, "SELECT dedup_key, message_key FROM rmq_txn_parked")
    keys = {message_key.decode(): key.decode() for key, message_key in found}

    code, lines = command("parked", "list", "--group", f"c-{desk.topic}")
    assert code == exit_codes.OK
    assert len(lines) == 3
    assert all(line.startswith("rejected    1 failures since 20") for line in lines)
    assert all(desk.topic in line and "Reject: no account m" in line for line in lines)
    assert "s3cret" not in "".join(lines)
    assert command("parked", "list", "--limit", "1")[1][1:] == ["the first 1 are shown, --limit shows more"]

    code, lines = command("parked", "show", "--group", f"c-{desk.topic}", "--key", keys["k1"])
    assert code == exit_codes.OK
    assert 'body:       {"id":"m1","amount":1,"secret":"s3cret"}' in lines
    assert "key:        k1" in lines

    code, lines = command("parked", "drop", "--group", f"c-{desk.topic}", "--key", keys["k2"])
    assert (code, lines) == (exit_codes.OK, [f"dropped: {keys['k2']}"])
    assert (
        command("parked", "drop", "--group", f"c-{desk.topic}", "--key", keys["k2"])[0] == exit_codes.FAILED
    )

    code, lines = command("parked", "replay", "SERVICE", "--all", "--rate", "100")
    assert code == exit_codes.FAILED
    assert f"replayed: {keys['k1']}" in lines
    assert f"failed: {keys['k-3']}: ValueError: still negative" in lines
    assert lines[-1] == "1 replayed, 1 left parked"
    assert rows(desk.url, "SELECT id, note FROM effect") == [("m1", "k1")]
    code, lines = command("parked", "replay", "SERVICE", "--key", keys["k1"])
    assert (code, lines[0]) == (exit_codes.OK, f"nothing to do: {keys['k1']}")
    left = rows(desk.url, "SELECT dedup_key, attempts FROM rmq_txn_parked")
    assert left == [(keys["k-3"].encode(), 2)]


def test_a_key_that_no_terminal_may_get_is_taken_as_the_list_shows_it(desk: Desk, command: Command) -> None:
    """Keys are up to the user's function, and what it reads up to whoever sends: escapes, line breaks."""

    def reject(_txn: Transaction, delivery: Delivery) -> None:
        raise Reject("no")

    consumer = desk.consumer(reject, dedup_key=lambda delivery: f"order\x1b[2J\n{delivery.json()['id']}")
    for id_ in ("m1", "m2", "m3"):
        body = {"id": id_, "amount": 1}
        desk.producer.send_in_transaction(Message(desk.topic, body, key=id_), lambda _txn: None)
    until(lambda: len(rows(desk.url, "SELECT 1 FROM rmq_txn_parked WHERE state > 0")) == 3, "all are parked")
    consumer.close()
    listed = command("parked", "list")[1]
    shown = {id_: f"order\\x1b[2J {id_}" for id_ in ("m1", "m2", "m3")}
    assert all(any(key in line for line in listed) for key in shown.values()), listed
    group = ("--group", consumer.group)
    code, lines = command("parked", "show", *group, "--key", shown["m1"])
    assert (code, lines[0]) == (exit_codes.OK, "state:      rejected")
    assert command("parked", "drop", *group, "--key", shown["m2"])[0] == exit_codes.OK
    code, lines = command("parked", "replay", "SERVICE", "--key", shown["m3"])
    assert (code, lines[-1]) == (exit_codes.OK, "1 replayed, 0 left parked")
    assert rows(desk.url, "SELECT id FROM effect") == [("m3",)]
    assert rows(desk.url, "SELECT dedup_key FROM rmq_txn_parked") == [(b"order\x1b[2J\nm1",)]


@pytest.fixture
def buried(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Delivery:
    """Have the real broker bury a message at its first failure; return it as its handler got it."""
    monkeypatch.setattr(wire, "_VERSION", 0)  # like a client whose wish for redeliveries is not heeded
    cluster = RocketMQ(desk.stack.name_server)
    (address,) = (broker.master_address for broker in cluster.route(desk.topic).brokers)
    assert address is not None
    BrokerAdministrator(address).set_group(f"c-{desk.topic}", retryMaxTimes=0)

    def unlucky(_txn: Transaction, delivery: Delivery) -> None:
        desk.deliveries.append(delivery)
        raise pymysql.err.OperationalError(1213, "Deadlock found")  # counts as no attempt

    consumer = desk.consumer(unlucky)
    body = {"id": "m", "padding": "积分" * 4000}  # compressed on its way
    message = Message(desk.topic, body, key="k", tag="gold", properties={"名字": "值"})
    desk.producer.send_in_transaction(message, lambda _txn: None)
    until(lambda: list(dead_letters.unread(cluster, f"c-{desk.topic}")), "the broker buries it", 60)
    consumer.close()
    return desk.deliveries[0]


def test_what_the_broker_buried_is_listed_and_replayed_once(
    desk: Desk, command: Command, buried: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read exactly as a handler gets it; a crash at any step loses nothing and doubles nothing."""
    (letter,) = dead_letters.unread(RocketMQ(desk.stack.name_server), f"c-{desk.topic}")
    redeliveries = letter.delivery.redeliveries
    stored = letter.delivery.stored_milliseconds
    assert letter.delivery == dataclasses.replace(
        buried, redeliveries=redeliveries, stored_milliseconds=stored
    )
    assert stored >= buried.stored_milliseconds > 0
    assert rows(desk.url, "SELECT 1 FROM rmq_txn_parked") == []

    code, lines = command("dlq", "list", "SERVICE")
    assert (code, lines) == (
        exit_codes.OK,
        [f"{desk.topic}  {buried.message_id}  {redeliveries} redeliveries"],
    )

    with monkeypatch.context() as crash:
        crash.setattr(dead_letters, "mark_read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command("dlq", "replay", "SERVICE")
    assert rows(desk.url, "SELECT state, error FROM rmq_txn_parked") == [(5, b"buried by the broker")]

    code, lines = command("dlq", "replay", "SERVICE")
    assert code == exit_codes.OK
    assert lines == [f"handled or parked before: {buried.message_id}", "0 replayed, 0 left parked"]
    code, lines = command("parked", "replay", "SERVICE", "--all")
    assert (code, lines[-1]) == (exit_codes.OK, "1 replayed, 0 left parked")
    assert rows(desk.url, "SELECT id, note FROM effect") == [("m", "k")]
    assert command("dlq", "list", "SERVICE")[1] == [f"no dead letters wait in %DLQ%c-{desk.topic}"]


def test_a_dead_letter_is_replayed_by_one_command(desk: Desk, command: Command, buried: Delivery) -> None:
    """Taken, handled, marked as read; the command done again finds nothing."""
    code, lines = command("dlq", "replay", "SERVICE")
    assert (code, lines) == (
        exit_codes.OK,
        [f"replayed: {buried.dedup_key}", "1 replayed, 0 left parked"],
    )
    assert command("dlq", "replay", "SERVICE")[1] == ["0 replayed, 0 left parked"]
    assert rows(desk.url, "SELECT id, note FROM effect") == [("m", "k")]
    assert rows(desk.url, "SELECT 1 FROM rmq_txn_parked") == []
