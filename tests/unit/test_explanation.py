"""What rows mean: facts in, sentences out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rmq_txn.consumer.parking import ParkedState
from rmq_txn.operating.evidence import Copy, Delivered, Facts
from rmq_txn.operating.explanation import Explanation, Outcome, explain
from rmq_txn.producer.txlog import LogState

DAY = 86_400.0
NOTHING = Facts("0199f4b2c3d4a1b2c3d4e5f60718293a", age_seconds=60.0)
COMMITTED = replace(NOTHING, state=LogState.COMMITTED, message_ids=("ID-0",))
DONE = Delivered("points", f"{NOTHING.txn_id}.0/transfer/x", done=True)


def told(facts: Facts) -> Explanation:
    """Explain with the defaults of the command."""
    return explain(facts, retention_seconds=7 * DAY, relay_seconds=840.0)


@pytest.mark.parametrize(
    ("facts", "outcome", "needs_a_person"),
    [
        (COMMITTED, Outcome.COMMITTED, False),
        (replace(NOTHING, state=LogState.ROLLED_BACK), Outcome.ROLLED_BACK, False),
        (replace(NOTHING, state=LogState.OPEN), Outcome.OPEN, True),
        (replace(NOTHING, running=True), Outcome.RUNNING, False),
        (NOTHING, Outcome.NO_EVIDENCE, True),
        (replace(NOTHING, age_seconds=8 * DAY), Outcome.TOO_OLD, True),
        (replace(COMMITTED, age_seconds=8 * DAY), Outcome.COMMITTED, False),
    ],
)
def test_each_state_has_its_outcome(facts: Facts, outcome: Outcome, needs_a_person: bool) -> None:
    explanation = told(facts)
    assert (explanation.outcome, explanation.needs_a_person) == (outcome, needs_a_person)
    assert explanation.known
    assert explanation.next


def test_a_copy_is_normal_until_no_relay_got_it_out() -> None:
    young, old = (told(replace(COMMITTED, copies=(Copy(0, "transfer", 3, age),))) for age in (839.0, 841.0))
    assert (young.needs_a_person, old.needs_a_person) == (False, True)
    assert "deleted when the broker surely has the message" in " ".join(young.next)
    assert "is a producer of this database running?" in " ".join(old.next)


def test_a_group_that_is_done_needs_nothing() -> None:
    explanation = told(replace(COMMITTED, delivered=(DONE,)))
    assert (explanation.next, explanation.needs_a_person) == ((), False)
    assert "group points" in explanation.known[-1]
    assert "further deliveries are skipped" in explanation.known[-1]


def test_what_fails_goes_on_and_what_is_parked_does_not() -> None:
    failing = replace(DONE, done=False, state=ParkedState.FAILING, attempts=2, error="ValueError: no")
    parked = replace(DONE, state=ParkedState.EXHAUSTED, attempts=5, error="ValueError: no")
    one, other = (told(replace(COMMITTED, delivered=(item,))) for item in (failing, parked))
    assert (one.needs_a_person, other.needs_a_person) == (False, True)
    assert "2 failures, the last: ValueError: no" in one.known[-1]
    assert one.next == ("group points: the broker delivers it again",)
    assert "parked (exhausted)" in other.known[-1]
    assert "look at the data" not in other.next[-1]


def test_what_may_have_had_its_effect_is_not_replayed_without_a_look() -> None:
    lost = replace(DONE, state=ParkedState.LOST)
    assert "after a look at the data" in told(replace(COMMITTED, delivered=(lost,))).next[-1]
