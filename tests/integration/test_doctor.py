"""`rmq-txn doctor` on real servers: green when all is well, and red for each fault that is made here."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from devstack import LocalStack
from rmq_txn import Database, RocketMQ, TransactionProducer
from rmq_txn.cli import exit_codes, main
from rmq_txn.library import installer
from rmq_txn.verdict import Answer
from tests.conftest import prepared_url
from tests.kit.administrator import administer, read_only
from tests.kit.broker_administrator import BrokerAdministrator
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

Findings = dict[str, tuple[str, str]]


class Doctor:
    """Runs the command, and remembers its exit code."""

    def __init__(self, stack: LocalStack, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.stack, self.url, self._capsys = stack, url, capsys
        self.code: int | None = None

    def __call__(self, *arguments: str, url: str = "", name_server: str = "") -> Findings:
        """Return state and text of each finding, by its check."""
        where = ["--database-url", url or self.url, "--name-server", name_server or self.stack.name_server]
        self.code = main(["doctor", *where, "--json", *arguments])
        told = [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]
        assert all(item["advice"] for item in told if item["state"] in ("failed", "warning"))
        return {item["check"]: (item["state"], item["text"]) for item in told}


@pytest.fixture
def doctor(stack: LocalStack, database_url: str, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(stack, database_url, capsys)


def failures(found: Findings) -> dict[str, str]:
    """Return what failed, and why."""
    return {check: text for check, (state, text) in found.items() if state == "failed"}


def test_a_sound_installation_is_green_and_says_what_it_saw(
    doctor: Doctor, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a producer and a consumer that run, a half message, both forms of the output; nothing is left."""
    consumer = desk.consumer()
    until(lambda: desk.producer.health().registered and consumer.health().registered, "both are known")
    groups = ["--producer-group", f"g-{desk.topic}", "--consumer-group", f"c-{desk.topic}"]
    found = doctor("--topic", desk.topic, *groups, "--send", "--connections", "20")
    assert failures(found) == {}
    assert doctor.code == exit_codes.OK
    assert found[f"producer group g-{desk.topic}"][1].startswith("1 producer(s), each with a fresh row")
    assert found[f"consumer group c-{desk.topic}"][1] == "1 member(s), 0 messages wait"
    sound = "library", "tables", "privileges", "isolation", "engines", "clock of the database", "name server"
    brokers = "half message on devstack-broker", "clock of broker devstack-broker"
    assert {check: found[check][0] for check in (*sound, *brokers)} == dict.fromkeys((*sound, *brokers), "ok")
    assert "asked for 3 to 8 s after it was sent" in found["check-back of devstack-broker"][1]
    assert rows(desk.url, "SELECT COUNT(*) FROM rmq_txn_log") == [(0,)]
    where = ["--database-url", doctor.url, "--name-server", doctor.stack.name_server]
    assert main(["doctor", *where, "--topic", desk.topic]) == exit_codes.OK
    lines = capsys.readouterr().out.splitlines()
    assert f"ok       topic {desk.topic}: 4 queue(s) for writing on devstack-broker" in lines
    # A broker of tests flushes later, which is a warning.
    assert main(["doctor", *where, "--topic", desk.topic, "--strict"]) == exit_codes.FAILED


def test_without_tables_the_way_out_is_named(doctor: Doctor, unique: str) -> None:
    found = doctor(url=doctor.stack.database_url(f"{unique[:-1]}x"))
    assert failures(found) == {
        "tables": "the tables of rmq_txn are missing from this database; run: rmq-txn schema apply"
    }
    assert doctor.code == exit_codes.FAILED
    assert found["database"][0] == "ok"


def test_what_is_missing_from_a_table_is_named(doctor: Doctor) -> None:
    rows(doctor.url, "ALTER TABLE rmq_txn_inbox DROP INDEX by_age")
    assert failures(doctor()) == {"tables": "they lack rmq_txn_inbox.by_age"}


@pytest.mark.parametrize("verb", ["DELETE", "UPDATE", "INSERT", "SELECT"])
def test_a_privilege_that_is_missing_is_named(doctor: Doctor, verb: str) -> None:
    """Each verb on the parked messages; the other tables have all."""
    name = doctor.url.rpartition("/")[2]
    account, password = f"'{name}_app'@'127.0.0.1'", secrets.token_hex(8)
    administer(doctor.stack, f"CREATE USER {account} IDENTIFIED BY '{password}'")
    for table in ("identity", "log", "outbox", "producers", "inbox", "audit"):
        administer(
            doctor.stack, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.rmq_txn_{table} TO {account}"
        )
    others = ", ".join({"SELECT", "INSERT", "UPDATE", "DELETE"} - {verb})
    administer(doctor.stack, f"GRANT {others} ON {name}.rmq_txn_parked TO {account}")
    found = doctor(url=f"mysql://{name}_app:{password}@{doctor.url.rpartition('@')[2]}")
    told = failures(found)["privileges"]
    assert f"{verb} command denied to user '{name}_app'" in told
    assert "rmq_txn_parked" in told


def test_a_server_that_takes_no_writes_is_told(doctor: Doctor) -> None:
    with read_only(doctor.stack):
        found = doctor()
    assert failures(found) == {"writes": "the server is read-only: a replica, or a primary that was demoted"}


def test_a_table_without_transactions_is_a_warning(doctor: Doctor) -> None:
    rows(doctor.url, "CREATE TABLE loose (id INT) ENGINE = MyISAM")
    found = doctor()
    assert found["engines"][0] == "warning"
    assert "loose (MyISAM)" in found["engines"][1]
    assert doctor.code == exit_codes.OK
    doctor("--strict")
    assert doctor.code == exit_codes.FAILED


def test_servers_that_are_not_there_are_told_each(doctor: Doctor) -> None:
    """The rest is looked at all the same."""
    nowhere = "mysql://nobody:nothing@127.0.0.1:1/nothing"
    found = doctor(url=nowhere, name_server="127.0.0.1:1")
    assert failures(found).keys() == {"database", "name server"}
    found = doctor("--topic", "t", "--send", name_server=doctor.stack.broker_address)
    assert "is no name server" in failures(found)["name server"]


def test_a_topic_that_is_missing_or_closed_is_told_with_the_order_that_opens_it(
    doctor: Doctor, topic: str
) -> None:
    administrator = BrokerAdministrator(doctor.stack.broker_address)
    missing = f"{topic}-missing"
    administrator.permit(topic, 4)
    try:
        found = doctor("--topic", topic, "--topic", missing, "--send")
        assert f"no live broker has topic '{missing}'" in failures(found)[f"topic {missing}"]
        assert "may not be written" in failures(found)[f"topic {topic}"]
        assert found["half message on devstack-broker"][0] == "ok"  # a topic's permission binds clients only
    finally:
        administrator.permit(topic, 6)
    assert failures(doctor("--topic", topic, "--send")) == {}


def test_a_producer_of_another_database_in_the_group_is_told(
    doctor: Doctor, desk: Desk, open_database: Callable[..., Database], unique: str
) -> None:
    """It would answer for transactions that it can't look up."""
    group = f"g-{desk.topic}"
    other = open_database(prepared_url(desk.stack, f"o{unique[:-1]}"))
    broker = RocketMQ(desk.stack.name_server)
    with TransactionProducer(group=group, broker=broker, database=other, topics=[desk.topic]):
        found = doctor("--topic", desk.topic, "--producer-group", group)
    assert "registered, and unknown to this database" in failures(found)[f"producer group {group}"]


def test_a_group_without_a_client_is_a_warning(doctor: Doctor, topic: str) -> None:
    found = doctor("--topic", topic, "--producer-group", "g-nobody", "--consumer-group", "c-nobody")
    assert found["producer group g-nobody"] == (
        "warning",
        "no client is registered: nobody answers check-backs",
    )
    assert found["consumer group c-nobody"] == ("warning", "no member is online; 0 messages wait")
    assert failures(found) == {}


def test_a_member_that_filters_is_told(doctor: Doctor, topic: str) -> None:
    with picky(doctor.stack, topic):
        found = doctor("--topic", topic, "--consumer-group", "c-picky")
    assert f"wants only 'created' of topic '{topic}'" in failures(found)["consumer group c-picky"]


@contextmanager
def picky(stack: LocalStack, topic: str) -> Iterator[None]:
    """Let a client that filters be a member of a group."""
    client = RocketMQ(stack.name_server).consumer("c-picky", {topic: ["created"]}, 1, lambda _: Answer.ACK)
    client.start()
    try:
        until(lambda: client.is_registered(topic), "it is known")
        yield
    finally:
        client.close(0.0, 5.0)


def test_a_library_that_can_not_be_loaded_is_told(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "load_problem", lambda _library: "invalid ELF header")
    assert failures(doctor()) == {"library": "invalid ELF header"}
