"""The outbox on real servers: what a broker gave up on still arrives, once."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from devstack import LocalStack, StackSettings
from rmq_txn import Database, Delivery, IdempotentConsumer, RocketMQ, Transaction, TransactionProducer, cli
from rmq_txn.cli import exit_codes
from rmq_txn.identity import PROPERTY_POSITION, PROPERTY_TXN_ID, new_txn_id
from rmq_txn.message import Outbound
from rmq_txn.producer import upkeep
from rmq_txn.producer.upkeep import OutboxTimes
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.transport import Deliver
from rmq_txn.verdict import Answer
from tests.conftest import CHECKOUT, prepared_url
from tests.kit.proxy import proxied, through
from tests.kit.rows import rows
from tests.kit.transports import Wrapped
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

GIVEN_UP = "TRANS_CHECK_MAX_TIME_TOPIC"
BUDGET_SECONDS = 8.0  # the impatient broker below needs about four
QUICK: dict[str, float] = {
    "relay_margin_seconds": 3.0,  # owners delete a second after the budget, and ages are whole seconds
    "settle_seconds": 1.0,
    "pause_seconds": 60.0,  # a busy machine lets a process stand still for a while
    "round_seconds": 0.5,
}
PATIENT = QUICK | {"relay_margin_seconds": 600.0}
PAUSE_SECONDS = 3.0


@pytest.fixture(scope="module")
def impatient(stack: LocalStack) -> Iterator[LocalStack]:
    """Start a second cluster whose broker asks twice, within seconds, and gives up."""
    folder = CHECKOUT / ".devstack" / f"{stack.settings.folder.name}-impatient"
    settings = StackSettings.for_tests(
        folder,
        transaction_timeout_seconds=1.0,
        transaction_check_interval_seconds=1.0,
        transaction_check_max=2,
    )
    cluster = LocalStack(settings)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


class Scene:
    """One topic with its database, a consumer, and producers in this process and in others."""

    def __init__(self, stack: LocalStack, name: str, resources: ExitStack) -> None:
        self.stack, self.name, self.resources = stack, name, resources
        stack.create_topic(name)
        self.url = prepared_url(stack, name)
        self.database = Database.mysql(self.url)
        resources.callback(self.database.close)
        self.received: list[str] = []

    def member(self, ids: list[str], **more: Any) -> subprocess.Popen[str]:
        """Start a process that publishes `ids`, tells nobody, and stays."""
        arguments = {
            "name_server": self.stack.name_server,
            "url": self.url,
            "topic": self.name,
            "group": f"g-{self.name}",
            "ids": ids,
            "check_budget_seconds": BUDGET_SECONDS,
            "outbox_times": QUICK,
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.member", json.dumps(arguments)],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.resources.callback(_end, process)
        return process

    def producer(
        self, broker: Any = None, *, check_budget_seconds: float = BUDGET_SECONDS, **times: float
    ) -> TransactionProducer:
        """Start a producer in this process."""
        producer = TransactionProducer(
            group=f"g-{self.name}",
            broker=broker or RocketMQ(self.stack.name_server),
            database=self.database,
            topics=[self.name],
            check_budget_seconds=check_budget_seconds,
            outbox_times=OutboxTimes(**(QUICK | times)),
        )
        return self.resources.enter_context(producer)

    def consume(self, broker: Any = None) -> None:
        """Start a consumer that has one effect for each message."""
        consumer = IdempotentConsumer(
            group=f"c-{self.name}",
            broker=broker or RocketMQ(self.stack.name_server),
            database=self.database,
        )

        @consumer.handles(self.name)
        def collect(txn: Transaction, delivery: Delivery) -> None:
            id_ = delivery.json()["id"]
            txn.execute("INSERT INTO effect (id, note) VALUES (%s, 'consumed')", (id_,))
            self.received.append(id_)

        self.resources.enter_context(consumer)

    def plant(self, *ids: str, age_seconds: int = 3600, **columns: Any) -> None:
        """Write copies of an hour ago, as if their transactions had committed then."""
        with self.database.transaction() as txn:
            for id_ in ids:
                txn_id = new_txn_id()
                row = {
                    "txn_id": txn_id,
                    "position": 0,
                    "message_id": f"ID-{id_}",
                    "topic": self.name,
                    "properties": json.dumps({PROPERTY_TXN_ID: txn_id, PROPERTY_POSITION: "0"}),
                    "body": json.dumps({"id": id_}).encode(),
                } | columns
                txn.execute(
                    f"INSERT INTO rmq_txn_outbox ({', '.join(row)}, created_at)"
                    f" VALUES ({', '.join(['%s'] * len(row))}, NOW() - INTERVAL %s SECOND)",
                    (*row.values(), age_seconds),
                )

    def copies(self) -> list[tuple[bytes, int]]:
        """Return body and failures of each outbox row."""
        return rows(self.url, "SELECT body, failures FROM rmq_txn_outbox ORDER BY created_at, txn_id")

    def wait_empty(self, seconds: float = 60) -> None:
        """Wait until the outbox has no row."""
        until(lambda: not self.copies(), f"an empty outbox of {self.name}", seconds)

    def wait_received(self, *ids: str) -> None:
        """Wait until all these arrived."""
        until(lambda: set(ids) <= set(self.received), f"deliveries of {ids}", 60)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _published(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "published\n"


@dataclass
class Aftermath:
    """What became of messages that the broker gave up on."""

    lost_then_killed: Scene
    paused: Scene
    paused_naively: Scene
    calm: Scene
    sent_in_calm: list[Outbound]
    uncopied: Scene


@pytest.fixture(scope="module")
def aftermath(impatient: LocalStack) -> Iterator[Aftermath]:
    """Let every verdict get lost, kill or pause the producers until the broker gave up, go on."""
    broker = RemotingClient(impatient.broker_address)
    with ExitStack() as resources:
        killed = Scene(impatient, "killed", resources)
        paused = Scene(impatient, "paused", resources)
        naive = Scene(impatient, "naive", resources)
        calm = Scene(impatient, "calm", resources)
        uncopied = Scene(impatient, "uncopied", resources)
        for scene in (killed, paused, naive, calm, uncopied):
            scene.consume()
        sent: list[Outbound] = []
        quiet = calm.producer(
            Wrapped(RocketMQ(impatient.name_server), on_send_plain=sent.append),
            check_budget_seconds=10.0,
            # Copies are kept for a third of the margin more: so long may a sibling be silent.
            **(PATIENT | {"relay_margin_seconds": 45.0}),
        )
        with quiet.transaction() as txn:
            txn.publish("calm", {"id": "calm-0"})
            txn.publish("calm", {"id": "calm-1"})
        leaves_its_rows = {"check_budget_seconds": 600.0, "outbox_times": PATIENT}
        members = [
            killed.member(["kept", "uncopied"], **leaves_its_rows),
            killed.member(["removed"], fixed_seconds=0.3, outbox_times=PATIENT),
            uncopied.member(["dropped"], **leaves_its_rows),
            paused.member(["paused"], stops=True, outbox_times=QUICK | {"pause_seconds": PAUSE_SECONDS}),
            naive.member(["paused-naively"], stops=True, fixed_seconds=PAUSE_SECONDS, outbox_times=PATIENT),
        ]
        _published(*members)
        since = time.monotonic()
        until(lambda: len(killed.copies()) == 2, "the naive process removes its row")
        with killed.database.transaction() as txn:
            assert txn.execute("DELETE FROM rmq_txn_outbox WHERE body LIKE '%%uncopied%%'") == 1
        with uncopied.database.transaction() as txn:
            assert txn.execute("DELETE FROM rmq_txn_outbox") == 1
        for process in members[:3]:
            process.kill()
        until(lambda: broker.max_offset(GIVEN_UP, 0) >= 6, "the broker gives up six messages", 60)
        until(lambda: time.monotonic() - since > 2 * PAUSE_SECONDS, "a pause that is one")
        killed.producer()
        for process in members[3:]:
            os.kill(process.pid, signal.SIGCONT)
        for scene in (killed, paused, naive, calm):
            scene.wait_empty()
        killed.wait_received("kept")
        paused.wait_received("paused")
        calm.wait_received("calm-0", "calm-1")
        yield Aftermath(killed, paused, naive, calm, sent, uncopied)


def effects(scene: Scene) -> list[str]:
    """Return the ids whose local transaction committed."""
    return sorted(row[0] for row in rows(scene.url, "SELECT id FROM effect WHERE note IS NULL"))


def test_what_the_broker_gave_up_on_arrives_after_a_restart(aftermath: Aftermath) -> None:
    """Verdict lost, all producers killed for longer than the broker asks."""
    assert aftermath.lost_then_killed.received == ["kept"]


def test_without_its_copy_such_a_message_is_lost(aftermath: Aftermath) -> None:
    """The danger is real: committed, and never delivered."""
    assert effects(aftermath.lost_then_killed) == ["kept", "removed", "uncopied"]
    assert "uncopied" not in aftermath.lost_then_killed.received


def test_a_copy_removed_after_a_fixed_time_does_not_save_it(aftermath: Aftermath) -> None:
    """A sent verdict proves nothing; the process that removed the row died soon after."""
    assert "removed" not in aftermath.lost_then_killed.received


def test_a_process_paused_for_too_long_publishes_again_what_it_can_not_trust(aftermath: Aftermath) -> None:
    """Its row is as old as the others, but its time was disturbed."""
    assert aftermath.paused.received == ["paused"]


def test_a_process_that_ignores_its_pause_loses_the_message(aftermath: Aftermath) -> None:
    """The same, with removal after a fixed time."""
    assert effects(aftermath.paused_naively) == ["paused-naively"]
    assert aftermath.paused_naively.received == []


def test_in_calm_the_outbox_is_emptied_and_nothing_is_published_again(aftermath: Aftermath) -> None:
    """The owner deletes its rows after the check budget."""
    assert sorted(aftermath.calm.received) == ["calm-0", "calm-1"]
    assert aftermath.sent_in_calm == []


def test_explain_tells_what_was_given_up_from_what_a_relay_published(
    aftermath: Aftermath, impatient: LocalStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """One was, by the relay; of two no copy was left, and only a person can help."""
    scene = aftermath.lost_then_killed
    told: dict[int, list[str]] = {exit_codes.OK: [], exit_codes.FAILED: []}
    for (txn_id,) in rows(scene.url, "SELECT txn_id FROM rmq_txn_log WHERE state = 1"):
        where = ["--database-url", scene.url, "--name-server", impatient.name_server]
        code = cli.main(["explain", txn_id.decode(), *where])
        told[code].append(capsys.readouterr().out)
    (relayed,) = told[exit_codes.OK]
    assert "was given up: 2 check-backs asked, and nobody gave a verdict" in relayed
    assert "message 0: published again as a plain message, as the relay does" in relayed
    assert "done: handled" in relayed
    assert len(told[exit_codes.FAILED]) == 2
    for text in told[exit_codes.FAILED]:
        assert "was given up" in text
        assert "it was committed, and no consumer was given it: rmq-txn recover publishes it" in text


def test_recover_publishes_what_was_given_up_and_had_no_copy(
    aftermath: Aftermath, impatient: LocalStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only said at first; published once, with its name in the audit; what others own is left to them."""
    scene = aftermath.uncopied
    where = ["--database-url", scene.url]

    def recover(*more: str) -> tuple[int, str, list[str]]:
        code = cli.main(["recover", *where, "--name-server", impatient.name_server, *more])
        *lines, summary = capsys.readouterr().out.splitlines()
        # How many others gave up depends on which tests ran before.
        return code, re.sub(r"^\d+ foreign, ", "foreign, ", summary), lines

    code, summary, (line,) = recover()
    assert (code, summary) == (exit_codes.FAILED, "foreign, 1 lost")
    assert f"topic {scene.name}: it was committed, its broker dropped it, nothing else has it" in line
    assert scene.received == []
    code, summary, (line,) = recover("--yes", "--by", "on call")
    assert (code, summary) == (exit_codes.OK, "foreign, 1 recovered")
    assert "published now, as a relay does it" in line
    scene.wait_received("dropped")
    assert recover("--yes") == (exit_codes.OK, "foreign, 1 published", [])
    assert scene.received == ["dropped"]
    ((txn_id, message_ids),) = rows(scene.url, "SELECT txn_id, message_ids FROM rmq_txn_log WHERE state = 1")
    assert cli.main(["audit", *where, txn_id.decode()]) == exit_codes.OK
    line = capsys.readouterr().out
    assert "recovered by on call" in line
    assert f"{txn_id.decode()}.0: message {message_ids.decode()} for topic {scene.name}" in line
    assert recover(txn_id.decode())[1] == "1 published"


def test_a_row_that_can_not_be_published_does_not_hold_up_the_others(
    impatient: LocalStack, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Too large, to a topic that is gone, damaged: counted, logged with their ids, tried again later."""
    with ExitStack() as resources:
        scene = Scene(impatient, unique, resources)
        scene.plant("large", body=b"x" * (5 << 20))
        scene.plant("gone", topic="gone", body=b"gone")
        scene.plant("damaged", properties="[1]", body=b"damaged")
        scene.plant("latin", message_key=b"\xff", body=b"latin")
        scene.plant("good-1", "good-2")
        scene.consume()
        with caplog.at_level(logging.WARNING, "rmq_txn.relay"):
            producer = scene.producer()
            scene.wait_received("good-1", "good-2")
            until(lambda: len(scene.copies()) == 4, "the good ones are deleted")
            until(lambda: producer.health().problems, "health says so")
        assert all(failures for _body, failures in scene.copies())
        bad = {row[0].decode() for row in rows(scene.url, "SELECT txn_id FROM rmq_txn_outbox")}
        lines = [record.getMessage() for record in caplog.records]
        assert all(any(f"txn_id={txn_id}" in line for line in lines) for txn_id in bad)
        assert "oldest outbox row" in str(producer.health().problems)


def test_one_producer_relays_and_another_takes_over(impatient: LocalStack, unique: str) -> None:
    """Elected by a lock of the database, which goes with the connection."""
    with ExitStack() as resources:
        scene = Scene(impatient, unique, resources)
        sent: list[list[str]] = [[], []]
        producers = [
            scene.producer(
                Wrapped(RocketMQ(impatient.name_server), on_send_plain=lambda m, to=to: to.append(m.body))
            )
            for to in sent
        ]
        scene.plant(*(f"first-{n}" for n in range(20)))
        scene.wait_empty()
        leader, other = (0, 1) if sent[0] else (1, 0)
        assert len(sent[leader]) == len(set(sent[leader])) == 20
        assert sent[other] == []
        producers[leader].close()
        scene.plant("second")
        scene.wait_empty()
        assert (len(sent[leader]), len(sent[other])) == (20, 1)


def test_many_copies_are_counted_by_the_relay_alone(
    impatient: LocalStack, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of hundreds of producers would walk over millions of them; how old the oldest is, all know."""
    monkeypatch.setattr(upkeep, "ROWS_COUNTED_BY_ALL", 3)
    with ExitStack() as resources:
        scene = Scene(impatient, unique, resources)
        producers = [scene.producer(check_budget_seconds=600.0) for _ in range(2)]
        scene.plant(*(f"copy-{n}" for n in range(10)), age_seconds=100)
        until(
            lambda: sorted(producer.health().outbox_rows for producer in producers) == [3, 10],
            "one counts all, the other three",
        )
        assert all(producer.health().oldest_row_seconds >= 100 for producer in producers)


def test_what_is_published_again_has_one_effect(impatient: LocalStack, unique: str) -> None:
    """It arrived before: same transaction, same position, so the inbox knows it."""
    with ExitStack() as resources:
        scene = Scene(impatient, unique, resources)
        deliveries = CountDeliveries()
        scene.consume(Wrapped(RocketMQ(impatient.name_server), around_deliver=deliveries))
        sent_at: list[int] = []
        blind = Wrapped(
            RocketMQ(impatient.name_server),
            on_send_plain=lambda _copy: sent_at.append(time.time_ns() // 1_000_000),
            shows_messages=False,
        )
        # Nothing ends that soon: left to the relay.
        producer = scene.producer(blind, check_budget_seconds=0.001)
        with producer.transaction() as txn:
            txn.publish(scene.name, {"id": "twice"}, key="k", tag="t", properties={"p": "q"})
        # The broker, too, may deliver it again: it forgets an END now and then, and asks.
        until(
            lambda: sent_at and deliveries.seen[-1].stored_milliseconds >= sent_at[0] - 1,
            "the delivery of the copy",
            60,
        )
        times = {"born_milliseconds": 0, "stored_milliseconds": 0}
        first, *others = (replace(found, **times) for found in deliveries.seen)
        assert others
        assert all(other == first for other in others)
        assert (first.message_id,) == txn.receipt.message_ids
        scene.wait_empty()
        assert scene.received == ["twice"]


def test_a_deployment_that_replaces_all_producers_at_once_publishes_nothing_again(
    impatient: LocalStack, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is left who knows what the broker has. The new ones ask it; what it gave up they publish."""
    with ExitStack() as resources:
        scene = Scene(impatient, unique, resources)
        scene.consume()
        before = [scene.producer(**PATIENT) for _ in range(2)]
        for n in range(20):
            with before[n % 2].transaction() as txn:
                txn.publish(scene.name, {"id": f"message-{n}"}, key=f"key-{n}", properties={"名字": "值"})
        scene.wait_received(*(f"message-{n}" for n in range(20)))
        for producer in before:
            producer.close()
        scene.plant("lost")
        sent: list[bytes] = []
        with caplog.at_level(logging.INFO, "rmq_txn.relay"):
            scene.producer(
                Wrapped(RocketMQ(impatient.name_server), on_send_plain=lambda copy: sent.append(copy.body))
            )
            scene.wait_received("lost")
            scene.wait_empty()
        assert sent == [b'{"id": "lost"}']
        found = re.findall(r"not published again: consumers see these messages rows=(\d+)", caplog.text)
        assert sum(map(int, found)) == 20


def test_a_producer_outlives_the_absence_of_its_database(
    impatient: LocalStack, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; when the database is back the work goes on."""
    with ExitStack() as resources:
        scene = Scene(impatient, unique, resources)
        proxy = resources.enter_context(proxied(scene.url))
        database = Database.mysql(through(scene.url, proxy))
        resources.callback(database.close)
        producer = resources.enter_context(
            TransactionProducer(
                group=f"g-{unique}",
                broker=RocketMQ(impatient.name_server),
                database=database,
                topics=[unique],
                check_budget_seconds=1.0,
                outbox_times=OutboxTimes(**(QUICK | {"silence_seconds": 5.0})),
            )
        )
        until(lambda: producer.health().registered, "the first round")
        with caplog.at_level(logging.INFO, "rmq_txn.outbox"):
            proxy.on_request = lambda line, _data: line.cut()
            until(lambda: "the outbox can't be worked on" in producer.health().problems, "trouble")
            until(lambda: "no answer of the database" in caplog.text, "undisturbed time begins anew")
            proxy.on_request = lambda _line, _data: None
            scene.plant("afterwards")
            scene.wait_empty()
        until(lambda: producer.health().problems == (), "health is good again")
        assert caplog.text.count("the outbox waits for_=database") == 1
        assert caplog.text.count("the outbox goes on after=database") == 1


class CountDeliveries:
    """Remembers what is delivered; see `Wrapped(around_deliver=...)`."""

    def __init__(self) -> None:
        self.seen: list[Delivery] = []

    def __call__(self, deliver: Deliver) -> Deliver:
        """Wrap the consumer's callable."""

        def counted(delivery: Delivery) -> Answer:
            answer = deliver(delivery)
            self.seen.append(delivery)
            return answer

        return counted


def test_outbox_status_tells_rows_and_ages(
    database: Database, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a monitor calls it: 0 while rows are young, 1 and the topic when one is too old."""

    def copy(topic: str, age_seconds: int) -> None:
        columns = "txn_id, position, message_id, topic, properties, body, created_at"
        values = f"'{new_txn_id()}', 0, 'id', '{topic}', '{{}}', 'b', NOW() - INTERVAL {age_seconds} SECOND"
        with database.transaction() as txn:
            txn.execute(f"INSERT INTO rmq_txn_outbox ({columns}) VALUES ({values})")

    status = ["outbox", "status", "--database-url", database_url]
    copy("young", 30)
    copy("young", 10)
    assert cli.main(status) == exit_codes.OK
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["young", "2"]
    copy("stuck", 900)
    assert cli.main(status) == exit_codes.FAILED
    assert "stuck" in capsys.readouterr().err
