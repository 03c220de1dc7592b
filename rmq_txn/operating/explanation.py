"""What became of one transaction: facts in, sentences out. Nothing is asked here."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from rmq_txn.audit import Action
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.operating.course import course
from rmq_txn.operating.evidence import Copy, Delivered, Facts
from rmq_txn.operating.sentences import Sentences
from rmq_txn.producer.txlog import LogState
from rmq_txn.remoting.broker_facts import Fate


class Outcome(enum.Enum):
    """What is known of a transaction."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    """By the fence of a check-back: it can't commit any more."""
    ROLLED_BACK_ITSELF = "rolled back by itself"
    """No row, and brokers were told to forget its half messages: by its own process."""
    RUNNING = "running"
    """Its row is there and not committed: it runs now, or its connection is still to be ended."""
    UNDECIDED = "undecided"
    """No row, and a broker waits for a verdict."""
    GIVEN_UP = "given up"
    """No row, and a broker asked as often as it does: nobody answered."""
    OPEN = "open"
    """The server committed it in the middle: its work may stand in part."""
    FOREIGN = "foreign"
    """No row, and half messages of another database."""
    NO_EVIDENCE = "no evidence"
    """No row: it never was, was rolled back by itself, or is another database's."""
    TOO_OLD = "too old"
    """No row, and none can be expected: older than the retention."""
    UNKNOWN = "unknown"
    """No row, and no broker knows it, each of which was asked."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    An answer for people.

    Attributes:
        known: what is a fact.
        missing: what nobody could say, and why.
        next: what happens by itself, or what to do.
        needs_a_person: nothing of it goes on by itself, or nobody can say.
    """

    outcome: Outcome
    known: tuple[str, ...]
    missing: tuple[str, ...]
    next: tuple[str, ...]
    needs_a_person: bool


def explain(facts: Facts, *, retention_seconds: float, relay_seconds: float) -> Explanation:
    """
    Say what facts mean.

    Args:
        retention_seconds: for how long log rows are kept.
        relay_seconds: after which age the copy of a message should be gone.
    """
    outcome = _outcome(facts, retention_seconds)
    said = Sentences()
    said.known.append(_EVIDENCE[outcome])
    seen = facts.brokers is not None and bool(facts.brokers.published)
    if seen and outcome is Outcome.TOO_OLD:
        said.known.append("it was committed once, for brokers gave it to consumers")
    else:
        said.next += [_NEXT[outcome]] if outcome in _NEXT else []
        said.needs_a_person = outcome in _FOR_A_PERSON
    if outcome is Outcome.COMMITTED:
        count = len(facts.message_ids)
        said.known.append(f"it published {count} message{'' if count == 1 else 's'}")
    course(said, facts)
    if seen and outcome in _NEVER_DELIVERED:
        said.known.append("it is delivered, and no log row says that it was committed")
        said.next.append("was a database restored, or is this another one's? Compare both sides")
        said.needs_a_person = True
    for copy in facts.copies:
        _copy(said, copy, late=copy.age_seconds > relay_seconds)
    for entry in facts.by_hand:
        said.known.append(f"by hand: {entry}")
    for item in facts.delivered:
        _delivery(said, item, {entry.action for entry in facts.by_hand if entry.subject == item.key})
    if outcome is Outcome.COMMITTED and not facts.delivered:
        said.known.append("no consumer group of the databases asked has noted a message of it")
        if facts.brokers is None or not facts.brokers.published:
            said.next.append(
                "if its consumers have another database, ask with --consumer-url; else it is on its way: "
                "rmq-txn offsets show says how far a group is"
            )
    return Explanation(outcome, tuple(said.known), tuple(said.missing), tuple(said.next), said.needs_a_person)


def _outcome(facts: Facts, retention_seconds: float) -> Outcome:
    if facts.state is not None:
        return {
            LogState.OPEN: Outcome.OPEN,
            LogState.COMMITTED: Outcome.COMMITTED,
            LogState.ROLLED_BACK: Outcome.ROLLED_BACK,
        }[facts.state]
    if facts.running:
        return Outcome.RUNNING
    return Outcome.TOO_OLD if facts.age_seconds > retention_seconds else _without_row(facts)


def _without_row(facts: Facts) -> Outcome:
    """Say what brokers know of a transaction of which the database knows nothing."""
    brokers = facts.brokers
    if brokers is None or brokers.published:
        return Outcome.NO_EVIDENCE
    fates = {half.fate for half in brokers.half_messages}
    if fates & {Fate.OPEN, Fate.UNCLEAR}:
        return Outcome.UNDECIDED
    if fates:
        return Outcome.GIVEN_UP if Fate.GIVEN_UP in fates else Outcome.ROLLED_BACK_ITSELF
    if facts.foreign:
        return Outcome.FOREIGN
    return Outcome.NO_EVIDENCE if brokers.gaps or facts.forged or facts.delivered else Outcome.UNKNOWN


_BY_HAND = (Action.REPLAYED.value, Action.DROPPED.value)
_FOR_A_PERSON = frozenset(
    {Outcome.OPEN, Outcome.FOREIGN, Outcome.NO_EVIDENCE, Outcome.TOO_OLD, Outcome.UNKNOWN}
)
_NEVER_DELIVERED = frozenset({Outcome.OPEN, Outcome.ROLLED_BACK, Outcome.NO_EVIDENCE})
_NO_ROW = "this database has no log row of it"
_EVIDENCE = {
    Outcome.COMMITTED: "its log row is committed, and so is its work",
    Outcome.ROLLED_BACK: "a check-back fenced it: nothing of it was committed, or ever will be",
    Outcome.ROLLED_BACK_ITSELF: f"{_NO_ROW} and its half messages were rolled back: by its own process",
    Outcome.RUNNING: "its log row is written and not committed",
    Outcome.UNDECIDED: f"{_NO_ROW} yet, and a broker waits for a verdict",
    Outcome.GIVEN_UP: f"{_NO_ROW}, and a broker gave it up: its check-backs got no answer, or unknown",
    Outcome.OPEN: "its log row is committed as open: the server committed it in the middle, by DDL mostly",
    Outcome.FOREIGN: f"{_NO_ROW}: its half messages are those of another database",
    Outcome.NO_EVIDENCE: _NO_ROW,
    Outcome.TOO_OLD: f"{_NO_ROW}, and it is older than log rows are kept",
    Outcome.UNKNOWN: f"{_NO_ROW}, and the brokers have no message of it",
}
_NEXT = {
    Outcome.ROLLED_BACK: "safe to do again, as a new transaction",
    Outcome.ROLLED_BACK_ITSELF: "nothing of it was committed: safe to do again, as a new transaction",
    Outcome.RUNNING: (
        "it ends by itself, or the server ends it when its client is silent; check-backs are answered "
        "unknown until then: ask again"
    ),
    Outcome.UNDECIDED: (
        "its process decides it, or the next check-back, which fences it if that is gone; a verdict is noted "
        "some seconds late: ask again"
    ),
    Outcome.GIVEN_UP: "nothing of it was committed and nothing is delivered: safe to do again",
    Outcome.OPEN: (
        "its messages are not delivered: look at its business rows, a part of them may stand, then decide it "
        "with rmq-txn resolve"
    ),
    Outcome.FOREIGN: "ask with the --database-url of the service that owns it",
    Outcome.NO_EVIDENCE: (
        "if its own process rolled it back there is nothing to do; if its half message is with the broker, "
        "the next check-back fences it; is it the transaction of another database?"
    ),
    Outcome.TOO_OLD: "its rows were pruned, if there were any: look at its business rows",
    Outcome.UNKNOWN: (
        "is the id whole, and of this database and cluster? It sent nothing, or brokers keep its messages no "
        "more: look at its business rows"
    ),
}


def _copy(said: Sentences, copy: Copy, *, late: bool) -> None:
    said.known.append(
        f"message {copy.position} for topic {copy.topic} has its copy in the outbox for "
        f"{copy.age_seconds:.0f} s, published again in vain {copy.failures} times"
    )
    said.next.append(
        f"message {copy.position}: no relay got it out, is a producer of this database running? Its log "
        "says why"
        if late
        else f"message {copy.position}: its copy is deleted when the broker surely has the message, or "
        "published again; a duplicate of it is skipped"
    )
    said.needs_a_person |= late


def _delivery(said: Sentences, item: Delivered, by_hand: set[str]) -> None:
    """Say what a group noted, and what follows of it, if anything."""
    whose = f"group {item.group}, key {item.key}"
    why = f"{item.attempts} failures, the last: {item.error}" if item.error else f"{item.attempts} failures"
    if item.state is None:
        how = next((how for how in _BY_HAND if how in by_hand), "handled")
        said.known.append(f"{whose}: done: {how}; further deliveries are skipped")
    elif item.state is ParkedState.FAILING:
        said.known.append(f"{whose}: failing, {why}")
        said.next.append(f"group {item.group}: the broker delivers it again")
    else:
        look = ", after a look at the data, for its effect may stand" if item.state.needs_force else ""
        said.known.append(f"{whose}: parked ({item.state.name.lower()}), {why}")
        said.next.append(f"group {item.group}: mend the cause, then rmq-txn parked replay{look}")
        said.needs_a_person = True
