"""What databases and brokers say together: the twelve cases of a transaction, each from made facts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from rmq_txn.audit import Entry
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.operating.evidence import Copy, Delivered, Facts
from rmq_txn.operating.explanation import Explanation, Outcome, explain
from rmq_txn.producer.txlog import LogState
from rmq_txn.remoting.broker_facts import BrokerFacts, Fate, HalfMessage, Published, Way

DAY = 86_400.0
HALF = HalfMessage(
    "b1", "ID-0", "transfer", "accounts@here", "stamp", 0, 0.2, check_backs=0, fate=Fate.COMMITTED
)
SEEN = Published("b1", "transfer", 2, 7, "ID-0", 0, 0.3, Way.VERDICT, check_backs=0, read_by=("points",))
NOWHERE = Facts("0199f4b2c3d4a1b2c3d4e5f60718293a", age_seconds=60.0, brokers=BrokerFacts())
COMMITTED = replace(NOWHERE, state=LogState.COMMITTED, message_ids=("ID-0",))
DONE = Delivered("points", f"{NOWHERE.txn_id}.0/transfer/x", done=True)
COPY = Copy(0, "transfer", 0, 60.0)
OPEN = replace(HALF, fate=Fate.OPEN, check_backs=3)
GIVEN_UP = replace(HALF, fate=Fate.GIVEN_UP, check_backs=15)
ANSWERED = replace(SEEN, way=Way.CHECK_BACK, check_backs=1)
RELAYED = replace(SEEN, way=Way.PLAIN, offset=9)


def told(facts: Facts) -> Explanation:
    """Explain with the defaults of the command."""
    return explain(facts, retention_seconds=7 * DAY, relay_seconds=840.0)


def seen(
    facts: Facts, *published: Published, half: HalfMessage | None = HALF, gaps: tuple[str, ...] = ()
) -> Facts:
    """Return facts with what brokers say."""
    return replace(facts, brokers=BrokerFacts((half,) if half else (), published, gaps))


REPLAYED = Entry(
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "replayed", DONE.key, "points", "me@desk", ""
)
RESOLVED = replace(REPLAYED, action="resolved", subject=NOWHERE.txn_id, group="", note="committed")
PARKED = replace(DONE, state=ParkedState.EXHAUSTED, attempts=5, error="ValueError: no")
CASES = {
    "committed": (
        seen(replace(COMMITTED, delivered=(DONE,)), SEEN),
        (Outcome.COMMITTED, False),
        "message 0: published by the verdict of its producer: topic transfer, queue 2, offset 7 of broker b1",
    ),
    "rolled back by itself": (
        seen(NOWHERE, half=replace(HALF, fate=Fate.ROLLED_BACK)),
        (Outcome.ROLLED_BACK_ITSELF, False),
        "its half messages were rolled back: by its own process",
    ),
    "fenced by a check-back": (
        seen(
            replace(NOWHERE, state=LogState.ROLLED_BACK),
            half=replace(HALF, fate=Fate.ROLLED_BACK, check_backs=1),
        ),
        (Outcome.ROLLED_BACK, False),
        "was rolled back; 1 check-back asked",
    ),
    "running": (
        seen(replace(NOWHERE, running=True, message_ids=("ID-0",)), half=OPEN),
        (Outcome.RUNNING, False),
        "has no verdict that the broker has noted; 3 check-backs asked",
    ),
    "verdict lost, then a check-back": (
        seen(replace(COMMITTED, delivered=(DONE,)), ANSWERED),
        (Outcome.COMMITTED, False),
        "message 0: the verdict of its producer was lost; published for the answer to check-back 1",
    ),
    "published by the relay": (
        seen(replace(COMMITTED, delivered=(DONE,)), RELAYED, half=GIVEN_UP),
        (Outcome.COMMITTED, False),
        "published again as a plain message, as the relay does: topic transfer, queue 2, offset 9",
    ),
    "parked": (
        seen(replace(COMMITTED, delivered=(PARKED,)), SEEN),
        (Outcome.COMMITTED, True),
        "parked (exhausted), 5 failures, the last: ValueError: no",
    ),
    "handled": (
        seen(replace(COMMITTED, delivered=(DONE,)), SEEN),
        (Outcome.COMMITTED, False),
        "done: handled; further deliveries are skipped",
    ),
    "replayed": (
        seen(replace(COMMITTED, delivered=(DONE,), by_hand=(REPLAYED,)), SEEN),
        (Outcome.COMMITTED, False),
        "done: replayed; further deliveries are skipped",
    ),
    "dropped": (
        seen(replace(COMMITTED, delivered=(DONE,), by_hand=(replace(REPLAYED, action="dropped"),)), SEEN),
        (Outcome.COMMITTED, False),
        "done: dropped; further deliveries are skipped",
    ),
    "resolved": (
        seen(replace(COMMITTED, by_hand=(RESOLVED,)), half=replace(OPEN, check_backs=4)),
        (Outcome.COMMITTED, False),
        "by hand: 2026-01-02T03:04:05Z resolved by me@desk, 0199f4b2c3d4a1b2c3d4e5f60718293a: committed",
    ),
    "duplicate": (
        seen(replace(COMMITTED, delivered=(DONE,)), SEEN, replace(ANSWERED, offset=8)),
        (Outcome.COMMITTED, False),
        "message 0: 2 copies of it are there",
    ),
    "foreign owner": (
        replace(NOWHERE, foreign=(replace(OPEN, owner="accounts@elsewhere"),)),
        (Outcome.FOREIGN, True),
        "owned by accounts@elsewhere: 3 check-backs asked, open",
    ),
    "pruned": (
        seen(replace(NOWHERE, age_seconds=8 * DAY), SEEN),
        (Outcome.TOO_OLD, False),
        "it was committed once, for brokers gave it to consumers",
    ),
    "unknown id": (NOWHERE, (Outcome.UNKNOWN, True), "and the brokers have no message of it"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_has_its_sentence(case: str) -> None:
    """And no other case has it."""
    facts, expected, sentence = CASES[case]
    explanation = told(facts)
    assert (explanation.outcome, explanation.needs_a_person) == expected
    assert explanation.missing == ()
    told_it = {name for name, (other, _, _) in CASES.items() if sentence in " | ".join(told(other).known)}
    done = {name for name, (other, _, _) in CASES.items() if DONE in other.delivered}
    verdict = {"committed", "parked", "handled", "replayed", "dropped", "duplicate", "pruned"}
    assert told_it == {"committed": verdict, "handled": done - {"replayed", "dropped"}}.get(case, {case})


@pytest.mark.parametrize(
    ("facts", "next_step", "needs_a_person"),
    [
        (
            seen(COMMITTED, half=OPEN),
            "a producer of group accounts, which answers commit; is one running?",
            False,
        ),
        (
            seen(replace(COMMITTED, copies=(COPY,)), half=GIVEN_UP),
            "its copy is in the outbox, a relay publishes",
            False,
        ),
        (seen(COMMITTED, half=GIVEN_UP), "rmq-txn recover publishes it from its half message", True),
        (
            seen(COMMITTED, half=replace(HALF, fate=Fate.ROLLED_BACK)),
            "rmq-txn recover publishes it from its half message",
            True,
        ),
        (seen(COMMITTED, half=None), "neither a broker nor the outbox has it", True),
        (seen(replace(COMMITTED, delivered=(DONE,)), half=None), "", False),
        (seen(NOWHERE, half=OPEN), "its process decides it, or the next check-back", False),
        (seen(NOWHERE, half=GIVEN_UP), "nothing of it was committed and nothing is delivered", False),
        (seen(NOWHERE, SEEN), "was a database restored", True),
        (seen(replace(NOWHERE, state=LogState.ROLLED_BACK), SEEN), "was a database restored", True),
    ],
)
def test_what_comes_next_follows_from_both_sides(facts: Facts, next_step: str, needs_a_person: bool) -> None:
    explanation = told(facts)
    assert next_step in " | ".join(explanation.next)
    assert explanation.needs_a_person is needs_a_person


def test_a_gap_is_named_and_nothing_is_concluded_from_it() -> None:
    """A broker that is away may have the message, and may have decided it."""
    lost = told(seen(COMMITTED, half=None, gaps=("broker b2: away",)))
    nowhere = told(seen(NOWHERE, half=None, gaps=("broker b2: away",)))
    assert (lost.missing, nowhere.missing) == (("broker b2: away",), ("broker b2: away",))
    assert "neither a broker" not in " ".join(lost.next)
    assert nowhere.outcome is Outcome.NO_EVIDENCE


def test_brokers_that_were_not_asked_are_named() -> None:
    explanation = told(replace(COMMITTED, brokers=None))
    assert "pass --name-server" in explanation.missing[0]
    assert "has noted a message of it" in explanation.known[-1]


def test_what_the_broker_asked_about_though_it_was_decided_is_no_lost_verdict() -> None:
    text = " | ".join(told(seen(COMMITTED, SEEN, replace(ANSWERED, offset=8))).known)
    assert "published once more for the answer to check-back 1" in text
    assert "was lost" not in text


def test_groups_are_told_by_what_they_read_and_noted() -> None:
    """One is done, one waits, one read past it into another database; nobody at all."""
    waits = replace(SEEN, waiting=(("slow", 3),), read_by=("other", "points"))
    explanation = told(seen(replace(COMMITTED, delivered=(DONE,)), waits))
    known, then = " | ".join(explanation.known), " | ".join(explanation.next)
    assert "group slow has not read it, 3 messages of its queue come before it" in known
    assert "group other has read past it, and the databases asked have no row of it" in known
    assert "group points has" not in known
    assert "group slow gets it next or later" in then
    assert "group other: if its inbox is in another database, ask with --consumer-url" in then
    unread = told(seen(COMMITTED, replace(SEEN, read_by=())))
    assert "message 0: no consumer group reads topic transfer" in unread.known


def test_the_loser_of_a_repeated_send_is_told_from_the_winner() -> None:
    facts = replace(COMMITTED, delivered=(DONE,))
    orphan = replace(HALF, message_id="ID-LOST", fate=Fate.ROLLED_BACK)
    text = " | ".join(told(replace(facts, brokers=BrokerFacts((HALF, orphan), (SEEN,)))).known)
    assert "a send was repeated, its other half message ID-LOST: rolled back" in text
    assert "ID-0 " not in text


def test_a_forged_half_message_is_named_and_changes_nothing() -> None:
    explanation = told(replace(seen(replace(COMMITTED, delivered=(DONE,)), SEEN), forged=(OPEN,)))
    assert explanation.outcome is Outcome.COMMITTED
    assert not explanation.needs_a_person
    assert "was not signed by it" in " ".join(explanation.known)
    assert told(replace(NOWHERE, forged=(OPEN,))).outcome is Outcome.NO_EVIDENCE


def test_each_message_of_a_transaction_has_its_own_course() -> None:
    """Ten are done, the second is not: its key is no beginning of the tenth's."""
    ids = tuple(f"ID-{n}" for n in range(11))
    facts = replace(COMMITTED, message_ids=ids, delivered=(replace(DONE, key=f"{NOWHERE.txn_id}.10/t/x"),))
    waiting = replace(SEEN, message_id="ID-1", position=1, waiting=(("points", 0),), read_by=())
    done = replace(waiting, message_id="ID-10", position=10, waiting=(), read_by=("points",))
    lost = replace(GIVEN_UP, message_id="ID-2", position=2)
    explanation = told(replace(facts, brokers=BrokerFacts((lost,), (waiting, done), ("broker b2: away",))))
    known, then = " | ".join(explanation.known), " | ".join(explanation.next)
    assert "message 1: group points has not read it" in known
    assert "message 10: group" not in known
    assert "message 2: a broker that did not answer may have it" in then
    assert "neither a broker" not in then
    assert "message 3:" not in known + then
    assert explanation.needs_a_person
