"""What the deliveries of a consumer note, and what is told of it."""

from __future__ import annotations

import pytest

from rmq_txn.consumer import health
from rmq_txn.consumer.health import ConsumerHealth, HealthNotes


def test_nothing_noted_is_healthy() -> None:
    """Empty means that nobody has to look."""
    assert HealthNotes().read() == ConsumerHealth(0, ())


def test_held_deliveries_are_counted_by_their_cause_while_they_are_held() -> None:
    """And no longer."""
    notes = HealthNotes()
    with notes.holding("refuses"), notes.holding("refuses"), notes.holding("away"):
        seen = notes.read()
        assert (seen.held, seen.problems) == (
            3,
            ("2 deliveries are held: refuses", "1 deliveries are held: away"),
        )
        assert notes.read().oldest_held_seconds > seen.oldest_held_seconds > 0
    assert notes.read() == ConsumerHealth(0, ())


def test_what_nobody_handles_is_told_by_topic_and_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many kinds the first ones; forgotten when it has not come for longer than the broker ever waits."""
    notes = HealthNotes()
    for _ in range(3):
        notes.unhandled("transfer", "paid")
    notes.unhandled("transfer", None)
    first, second = notes.read().problems
    assert first.startswith("no handler for topic 'transfer' with tag 'paid': 3 deliveries given back")
    assert "with no tag: 1 deliveries" in second
    for number in range(20):
        notes.unhandled("transfer", f"tag-{number}")
    assert len(notes.read().problems) == 11
    assert notes.read().problems[-1] == "no handler for 12 more topics and tags"
    monkeypatch.setattr(health, "_REMEMBERED_SECONDS", 0.0)
    assert notes.read().problems == ()


def test_a_wrong_clock_is_worth_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health says it all the time, the log does not say it for each message."""
    notes = HealthNotes()
    assert [notes.clock("mine", "off"), notes.clock("mine", "more off"), notes.clock("yours", "off")] == [
        True,
        False,
        True,
    ]
    assert notes.read().problems == ("more off", "off")
    monkeypatch.setattr(health, "_CLOCK_TOLD_EACH_SECONDS", 0.0)
    assert notes.clock("mine", "off")
    assert notes.read().problems == ()
