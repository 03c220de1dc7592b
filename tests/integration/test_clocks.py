"""Clocks that are days wrong: nothing is lost or parked by them, and they are said. On a real database."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rmq_txn.consumer import aging
from rmq_txn.consumer.health import HealthNotes
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.identity import new_txn_id
from rmq_txn.verdict import Answer
from tests.kit.bench import OWNER, Bench

pytestmark = pytest.mark.servers

DAY = 86_400.0


def message_of(
    bench: Bench, *, made: float = 0.0, sent: float = 0.0, stored: float = 0.0, **more: Any
) -> Any:
    """Make a message whose times are as given, in days from now."""

    def at(days: float) -> int:
        return int((time.time() + days * DAY) * 1000)

    txn_id = f"{at(made):012x}{new_txn_id()[12:]}"
    properties = {"rmq_txn_id": txn_id, "rmq_txn_n": "0", "rmq_txn_owner": OWNER}
    fields = {"born_milliseconds": at(sent), "stored_milliseconds": at(stored), "properties": properties}
    return bench.message(**(fields | more))


@pytest.mark.parametrize("days", [-8.0, 8.0, -400.0, 4_000.0])
def test_a_fresh_message_of_a_producer_whose_clock_is_days_wrong_is_handled_and_said(
    bench: Bench, caplog: pytest.LogCaptureFixture, days: float
) -> None:
    """The broker knows when it came."""
    consumer = bench.consumer()
    for _ in range(3):
        assert bench.deliver(message_of(bench, made=days, sent=days)) is Answer.ACK
    assert len(bench.effects()) == 3
    (problem,) = consumer.health().problems
    assert f"the clock of a producer of topic '{bench.topic}' is" in problem
    assert ("ahead of" if days > 0 else "behind") in problem
    assert [record.levelname for record in caplog.records].count("ERROR") == 1  # not each message


@pytest.mark.parametrize("days", [-8.0, 8.0])
def test_a_consumer_whose_clock_is_days_wrong_goes_by_the_databases(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, days: float
) -> None:
    """It parked everything, or handled what the inbox had forgotten."""
    consumer = bench.consumer()
    fresh, old = message_of(bench), message_of(bench, made=-8, sent=-8, stored=-8)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + days * DAY)
    assert bench.deliver(fresh) is Answer.ACK
    assert bench.effects() == [fresh.message_id]
    assert bench.deliver(old) is Answer.ACK
    assert bench.parked() == [(ParkedState.OVER_AGE, 0)]
    assert any("this machine's clock is" in problem for problem in consumer.health().problems)


OLD: dict[str, dict[str, float]] = {
    "all": {"made": -8, "sent": -8, "stored": -8},
    "published-again-by-the-relay": {"made": -8, "sent": 0, "stored": 0},
    "producer-ahead": {"made": 0, "sent": 0, "stored": -8},
    "producer-behind": {"made": -16, "sent": -16, "stored": -8},
    "redelivered": {"made": -8, "sent": -8, "stored": -8, "redeliveries": 1},
}


@pytest.mark.parametrize("times", OLD.values(), ids=OLD)
def test_what_the_inbox_may_have_forgotten_is_parked_as_an_error_with_every_clock(
    bench: Bench, caplog: pytest.LogCaptureFixture, times: dict[str, Any]
) -> None:
    """At INFO, without a word of clocks, nobody saw it."""
    bench.consumer()
    message = message_of(bench, **times)
    assert bench.deliver(message) is Answer.ACK
    assert (bench.effects(), bench.parked()) == ([], [(ParkedState.OVER_AGE, 0)])
    (line,) = [record for record in caplog.records if "parked untried" in record.getMessage()]
    assert line.levelname == "ERROR"
    for named in ("stored_by_the_brokers_clock", "now_by_the_databases_clock", "now_by_this_machines_clock"):
        assert named in line.getMessage()


def test_a_message_of_another_client_is_as_old_as_the_broker_says(bench: Bench) -> None:
    """Its sender's clock is not ours to mend, and it may have been delayed for days on purpose."""
    consumer = bench.consumer()
    assert bench.deliver(message_of(bench, sent=-8, properties={})) is Answer.ACK
    assert len(bench.effects()) == 1
    assert consumer.health().problems == ()
    assert bench.deliver(message_of(bench, stored=-8, properties={})) is Answer.ACK
    assert bench.parked() == [(ParkedState.OVER_AGE, 0)]


def test_the_databases_clock_is_read_again_after_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may set it."""
    aged = aging.Aging(bench.database, HealthNotes(), 7 * DAY)
    assert abs(aged._now() - time.time()) < 60
    aged._clock.set(time.time() - DAY)
    assert abs(aged._now() - time.time()) > DAY / 2
    monkeypatch.setattr(aging, "_READ_EACH_SECONDS", 0.0)
    assert abs(aged._now() - time.time()) < 60
