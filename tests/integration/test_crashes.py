"""Processes killed with a real `kill -9` at each step of the protocol; others of the group go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from devstack import LocalStack
from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.transport import Deliver
from rmq_txn.verdict import Answer, Verdict
from tests.conftest import CHECKOUT, prepared_url
from tests.kit.rows import rows
from tests.kit.transports import RecordChecks, Wrapped
from tests.kit.victim import CONSUMER_POINTS, PRODUCER_POINTS
from tests.kit.wait import until

pytestmark = pytest.mark.servers


def _victim(**arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kit.victim", json.dumps(arguments)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_killed(victim: subprocess.Popen[str], **again: str) -> str:
    """
    Return what the victim printed before it killed itself.

    On a busy machine one takes so long that another of its group is asked and fences it. That is right,
    and nothing of it is left; it is started again with the arguments of `again`.
    """
    for _ in range(5):
        said, errors = victim.communicate(timeout=180)
        if victim.returncode == -signal.SIGKILL:
            return said.strip()
        assert again, errors
        assert "FencedError" in errors, errors
        victim = _victim(**again)
    raise AssertionError(f"fenced again and again: {again}")


BROKEN = ("broken", "before-commit")


@dataclass
class Aftermath:
    """What is there after all producers died and a new one of their group answered."""

    effects: set[str]
    delivered: list[str]
    verdicts: dict[str, list[Verdict]]
    log_states: dict[str, int]


PRODUCER_CASES = [(form, point) for form in "ab" for point in PRODUCER_POINTS] + [
    (form, point)
    for form in ("async-a", "async-b", "sqlalchemy", "django")
    for point in ("before-commit", "after-commit")
]


@pytest.fixture(scope="module")
def aftermath(stack: LocalStack) -> Iterator[Aftermath]:
    """Kill a producer in each form at each point, then start one that answers for all of them."""
    topic, group = "crashing", "crashing"
    stack.create_topic(topic)
    url = prepared_url(stack, topic)
    common = {"do": "produce", "name_server": stack.name_server, "url": url, "topic": topic, "group": group}
    cases = {
        f"{form}-{point}": {"form": form, "point": point, "id_": f"{form}-{point}", **common}
        for form, point in [*PRODUCER_CASES, BROKEN]
    }
    victims = {id_: _victim(**case) for id_, case in cases.items()}
    txn_ids = {_wait_killed(victim, **cases[id_]): id_ for id_, victim in victims.items()}
    assert len(txn_ids) == len(cases)
    checks = RecordChecks()
    delivered: list[str] = []
    with ExitStack() as resources:
        database = Database.mysql(url)
        resources.callback(database.close)
        broker = RocketMQ(stack.name_server)
        consumer = IdempotentConsumer(group=f"{group}-c", broker=broker, database=database)
        consumer.handles(topic)(lambda _txn, delivery: delivered.append(delivery.json()["id"]))
        resources.enter_context(consumer)
        resources.enter_context(
            TransactionProducer(
                group=group, broker=Wrapped(broker, around_check=checks), database=database, topics=[topic]
            )
        )

        def final() -> dict[str, list[Verdict]]:
            answers = {id_: checks.verdicts(txn_id) for txn_id, id_ in txn_ids.items()}
            return {id_: seen for id_, seen in answers.items() if seen and seen[-1] is not Verdict.UNKNOWN}

        until(lambda: final().keys() == cases.keys(), "an answer for every dead producer", 90)
        committed = sum(PRODUCER_POINTS[point] for _form, point in PRODUCER_CASES)
        until(lambda: len(set(delivered)) >= committed, "the committed messages arrive", 30)
        states = dict(rows(url, "SELECT CAST(txn_id AS CHAR), state FROM rmq_txn_log"))
        yield Aftermath(
            effects={row[0] for row in rows(url, "SELECT id FROM effect")},
            delivered=delivered,
            verdicts=final(),
            log_states={id_: states[txn_id] for txn_id, id_ in txn_ids.items()},
        )


@pytest.mark.parametrize(("form", "point"), PRODUCER_CASES)
def test_a_producer_killed_at_any_step_leaves_all_or_nothing(
    aftermath: Aftermath, form: str, point: str
) -> None:
    """Effect and message are both there, or neither is, and it is the right one of the two."""
    check_all_or_nothing(aftermath, form, point)


def check_all_or_nothing(aftermath: Aftermath, form: str, point: str) -> None:
    id_ = f"{form}-{point}"
    committed = PRODUCER_POINTS[point]
    assert (id_ in aftermath.effects) is committed
    assert (id_ in aftermath.delivered) is committed


def test_work_that_was_done_beside_the_transaction_is_found(aftermath: Aftermath) -> None:
    """The check above is one that can fail: of a session that is not joined half is left."""
    with pytest.raises(AssertionError):
        check_all_or_nothing(aftermath, *BROKEN)


@pytest.mark.parametrize(("form", "point"), PRODUCER_CASES)
def test_another_producer_of_the_group_answers_for_the_dead(
    aftermath: Aftermath, form: str, point: str
) -> None:
    """The broker's question gets the one right answer, and it stands in the log."""
    id_ = f"{form}-{point}"
    committed = PRODUCER_POINTS[point]
    assert aftermath.verdicts[id_][-1] is (Verdict.COMMIT if committed else Verdict.ROLLBACK)
    assert aftermath.log_states[id_] == (1 if committed else 2)


@pytest.fixture(scope="module")
def handled(stack: LocalStack) -> dict[str, tuple[int, list[Answer]]]:
    """Kill a consumer at each point, start another of its group: effects and answers by point."""
    topic = "dying"
    stack.create_topic(topic)
    url = prepared_url(stack, topic)
    answers: dict[str, list[Answer]] = {point: [] for point in CONSUMER_POINTS}
    with ExitStack() as resources:
        database = Database.mysql(url)
        resources.callback(database.close)
        broker = RocketMQ(stack.name_server)
        producer = resources.enter_context(
            TransactionProducer(group=topic, broker=broker, database=database, topics=[topic])
        )
        producer.send_in_transaction(Message(topic, {"id": "one"}), lambda _txn: None)
        common = {"do": "consume", "name_server": stack.name_server, "url": url, "topic": topic}
        victims = [_victim(group=f"{topic}-{point}", point=point, **common) for point in CONSUMER_POINTS]
        for victim in victims:
            _wait_killed(victim)
        for point in CONSUMER_POINTS:
            resources.enter_context(_survivor(broker, database, topic, point, answers[point]))
        until(lambda: all(answers.values()), "each group gets its message again", 90)
    counts = dict(rows(url, "SELECT note, COUNT(*) FROM effect GROUP BY note"))
    return {point: (counts.get(f"{topic}-{point}", 0), answers[point]) for point in CONSUMER_POINTS}


def _survivor(
    broker: RocketMQ, database: Database, topic: str, point: str, answers: list[Answer]
) -> IdempotentConsumer:
    def recorded(deliver: Deliver) -> Deliver:
        def record(delivery: Delivery) -> Answer:
            answers.append(deliver(delivery))
            return answers[-1]

        return record

    group = f"{topic}-{point}"
    consumer = IdempotentConsumer(
        group=group, broker=Wrapped(broker, around_deliver=recorded), database=database
    )

    @consumer.handles(topic)
    def award(txn: Transaction, delivery: Delivery) -> None:
        txn.execute("INSERT INTO effect (id, note) VALUES (%s, %s)", (delivery.json()["id"], group))

    return consumer


@pytest.mark.parametrize("point", CONSUMER_POINTS)
def test_a_consumer_killed_at_any_step_has_one_effect_in_the_end(
    handled: dict[str, tuple[int, list[Answer]]], point: str
) -> None:
    """The message comes again to another process of the group, and its effect is there once."""
    effects, answers = handled[point]
    assert effects == 1
    assert answers[-1] is Answer.ACK


def test_two_processes_of_a_group_may_publish_at_the_same_time(
    stack: LocalStack, topic: str, database_url: str, database: Database
) -> None:
    """Another process dies after its commit while this one goes on; every message arrives once."""
    broker = RocketMQ(stack.name_server)
    received: list[str] = []
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
    consumer.handles(topic)(lambda _txn, delivery: received.append(delivery.json()["id"]))
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    with producer, consumer:
        victim = _victim(
            do="produce",
            name_server=stack.name_server,
            url=database_url,
            topic=topic,
            group=f"g-{topic}",
            form="a",
            point="after-commit",
            id_="theirs",
        )
        stop = threading.Event()
        sent: list[str] = []

        def publish() -> None:
            while not stop.is_set():
                with producer.transaction() as txn:
                    txn.publish(topic, {"id": f"ours{len(sent)}"})
                sent.append(f"ours{len(sent)}")

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            _wait_killed(victim)
        finally:
            stop.set()
            thread.join()
        until(lambda: set(received) >= {"theirs", *sent}, "all messages of both processes", 60)
    assert sorted(received) == sorted({"theirs", *sent})
