"""What is the same message and what is not, over an upgrade too. On a real database, handed deliveries."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pymysql
import pytest

from rmq_txn import Delivery, IdempotentConsumer, Transaction, schema
from rmq_txn.consumer import parking
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.database.pool import parse_url
from rmq_txn.identity import new_txn_id
from rmq_txn.verdict import Answer
from tests.kit.bench import OWNER, Bench
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

ACK = Answer.ACK


def born(seconds_ago: float) -> str:
    """Make a transaction id of some time ago."""
    return f"{int((time.time() - seconds_ago) * 1000):012x}{new_txn_id()[12:]}"


def ours(txn_id: str, position: int = 0) -> dict[str, str]:
    """Return the properties of a message of ours."""
    return {"rmq_txn_id": txn_id, "rmq_txn_n": str(position), "rmq_txn_owner": OWNER}


def test_a_message_of_another_topic_or_owner_is_no_duplicate(bench: Bench) -> None:
    """It was acknowledged, its handler never called: whoever may send to a topic chose its id."""
    seen: list[str] = []
    both = IdempotentConsumer(group=bench.group, broker=bench.hands, database=bench.database)
    for topic in (bench.topic, "audit"):
        both.handles(topic)(lambda _txn, delivery: seen.append(f"{delivery.topic} {delivery.message_id}"))
    with both:
        message = bench.message(message_id="first")
        assert bench.hands.deliver(message) is ACK
        assert bench.hands.deliver(replace(message, message_id="again", redeliveries=1)) is ACK
        assert bench.hands.deliver(replace(message, topic="audit")) is ACK
        properties = {**message.properties, "rmq_txn_owner": "account-service@another"}
        assert bench.hands.deliver(replace(message, message_id="other", properties=properties)) is ACK
        del properties["rmq_txn_owner"]
        assert bench.hands.deliver(replace(message, message_id="forged", properties=properties)) is ACK
    topic = bench.topic
    assert seen == [f"{topic} first", "audit first", f"{topic} other", f"{topic} forged"]


@pytest.fixture
def upgraded(bench: Bench) -> Bench:
    """Return a bench whose tables were upgraded from version 2 two days ago."""
    with bench.database.transaction() as txn:
        txn.execute("UPDATE rmq_txn_identity SET upgraded_at = NOW() - INTERVAL 2 DAY")
    assert schema.check(bench.database).upgraded_at is not None
    return bench


BEFORE, AFTER = 3 * 86_400.0, 0.5 * 86_400.0
"""Seconds ago: before the upgrade, and so long after it that no process of version 2 runs."""


def test_rows_of_the_former_key_stop_duplicates_after_the_upgrade(upgraded: Bench) -> None:
    """Messages from before it only: those after it cost no row more, and nobody wrote a former key."""
    upgraded.consumer()
    handled, new = born(BEFORE), born(BEFORE)
    late = born(AFTER)
    with upgraded.database.transaction() as txn:
        for txn_id in (handled, late):
            txn.execute(
                "INSERT INTO rmq_txn_inbox (consumer_group, dedup_key) VALUES (%s, %s)",
                (upgraded.group, f"{txn_id}.0"),
            )
    for txn_id in (handled, new, late):
        message = upgraded.message(message_id=txn_id, properties=ours(txn_id))
        for redeliveries in (0, 1):
            assert upgraded.deliver(replace(message, redeliveries=redeliveries)) is ACK
    assert upgraded.effects() == [new, late]
    assert [key.split("/")[0] for key in upgraded.inbox()] == sorted(
        [f"{handled}.0", f"{new}.0", f"{new}.0", f"{late}.0", f"{late}.0"]
    )


def test_tables_made_new_hold_one_row_a_message(bench: Bench) -> None:
    """Who never upgraded pays nothing."""
    bench.consumer()
    bench.deliver(message := bench.message(properties=ours(born(BEFORE))))
    assert bench.inbox() == [message.dedup_key]


@pytest.mark.parametrize("first", ["old", "new"])
def test_a_process_of_version_2_and_a_new_one_exclude_each_other(upgraded: Bench, first: str) -> None:
    """In a rolling deployment one message may be at both at once, whoever began."""
    txn_id = born(2 * 86_400.0 - 60)  # a minute after the upgrade
    message = upgraded.message(properties=ours(txn_id))
    claim = "INSERT INTO rmq_txn_inbox (consumer_group, dedup_key) VALUES (%s, %s)"
    old_key = (upgraded.group, f"{txn_id}.0")
    inside, go_on = threading.Event(), threading.Event()

    def handler(txn: Transaction, delivery: Delivery) -> None:
        upgraded.award(txn, delivery)
        inside.set()
        assert go_on.wait(30)

    upgraded.consumer(handler)
    answers: list[Answer] = []
    new = threading.Thread(target=lambda: answers.append(upgraded.deliver(message)))
    with pymysql.connect(**parse_url(upgraded.url)) as old, old.cursor() as cursor:
        if first == "old":
            cursor.execute(claim, old_key)
            new.start()
            until(lambda: waits_for_a_lock(upgraded.url), "the new one waits for the old one")
            old.commit()
        else:
            new.start()
            assert inside.wait(30)
            cursor.execute("SET innodb_lock_wait_timeout = 1")
            with pytest.raises(pymysql.err.OperationalError, match="1205"):
                cursor.execute(claim, old_key)
            go_on.set()
            new.join(30)
            with pytest.raises(pymysql.err.IntegrityError, match="1062"):
                cursor.execute(claim, old_key)
    new.join(30)
    assert answers == [ACK]
    assert upgraded.effects() == ([] if first == "old" else [message.message_id])


def waits_for_a_lock(url: str) -> bool:
    """Whether a statement of this database waits for a claim."""
    found = rows(url, "SELECT info FROM information_schema.processlist WHERE db = DATABASE()")
    return any(
        "INSERT INTO rmq_txn_inbox" in (info or "") for (info,) in found if "processlist" not in (info or "")
    )


@pytest.mark.parametrize("when", [BEFORE, AFTER], ids=["before", "after"])
def test_a_message_that_version_2_parked_is_replayed_and_dropped(upgraded: Bench, when: float) -> None:
    """Under its former key, which `parked list` shows; a delivery in between changes nothing."""
    consumer = upgraded.consumer()
    for action in ("replay", "drop"):
        txn_id = born(when)
        message = upgraded.message(message_id=f"{action}-{when}", properties=ours(txn_id))
        key = f"{txn_id}.0"
        with upgraded.database.transaction() as txn:
            txn.execute(
                "INSERT INTO rmq_txn_inbox (consumer_group, dedup_key) VALUES (%s, %s)", (upgraded.group, key)
            )
            parking.park(txn, upgraded.group, key, ParkedState.EXHAUSTED, message, "by version 2")
        if when == BEFORE:
            assert upgraded.deliver(replace(message, redeliveries=1)) is ACK
        assert upgraded.parked() == [(ParkedState.EXHAUSTED, 0)]
        if action == "replay":
            assert consumer.replay(key)
            assert consumer.replay(key) is False
        else:
            with upgraded.database.transaction() as txn:
                assert parking.unpark(txn, upgraded.group, key)
        assert upgraded.parked() == []
        if when == BEFORE:
            assert upgraded.deliver(replace(message, redeliveries=2)) is ACK
    assert upgraded.effects() == [f"replay-{when}"]


def test_a_message_that_fails_takes_both_claims_back(upgraded: Bench) -> None:
    """And both stand when it is parked, so that a process of version 2 skips it as well."""
    failures = [ValueError("second"), ValueError("first")]

    def handler(_txn: Transaction, _delivery: Delivery) -> None:
        raise failures.pop()

    consumer = upgraded.consumer(handler, max_attempts=2)
    message = upgraded.message(properties=ours(born(BEFORE)))
    assert upgraded.deliver(message) is Answer.RETRY
    assert upgraded.inbox() == []
    assert upgraded.deliver(replace(message, redeliveries=1)) is ACK
    assert upgraded.inbox() == sorted([message.dedup_key, message.former_dedup_key or ""])
    assert consumer.park(message) is None
    with pytest.raises(IndexError):
        consumer.replay(message.dedup_key)


def test_a_key_of_the_users_own_has_no_former_one(upgraded: Bench) -> None:
    """It is what it was."""
    upgraded.consumer(dedup_key=lambda delivery: f"order-{delivery.message_id}")
    upgraded.deliver(message := upgraded.message(properties=ours(born(BEFORE))))
    assert upgraded.inbox() == [f"order-{message.message_id}"]
