"""
What became of one transaction, as far as databases say it: its rows read, then put into sentences.

Plain reads, which wait for nobody and hold nobody up; nothing is written. Brokers are not asked: what
they were sent and did not deliver yet is not seen here.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from rmq_txn.consumer.parking import ParkedState
from rmq_txn.database import Database
from rmq_txn.database.sideline import Sideline
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import SettingsError
from rmq_txn.identity import age_seconds, is_txn_id
from rmq_txn.producer.txlog import LogState
from rmq_txn.pruning import inbox_groups


class Outcome(enum.Enum):
    """What is known of a transaction."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    """By the fence of a check-back: it can't commit any more."""
    RUNNING = "running"
    """Its row is there and not committed: it runs now, or its connection is still to be ended."""
    OPEN = "open"
    """The server committed it in the middle: its work may stand in part."""
    NO_EVIDENCE = "no evidence"
    """No row: it never was, was rolled back by itself, or is another database's."""
    TOO_OLD = "too old"
    """No row, and none can be expected: older than the retention."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One message of a transaction that waits in the outbox."""

    position: int
    topic: str
    failures: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one consumer group noted of one message. `state` is None if it is neither failing nor parked."""

    group: str
    key: str
    done: bool
    """It has an inbox row: the group skips further deliveries."""
    state: ParkedState | None = None
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What databases say of one transaction; ages are by the clock of the producer's database."""

    txn_id: str
    age_seconds: float
    state: LogState | None = None
    messages: int = 0
    running: bool = False
    copies: tuple[Copy, ...] = ()
    delivered: tuple[Delivered, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    An answer for people.

    Attributes:
        known: what is a fact.
        next: what happens by itself, or what to do.
        needs_a_person: nothing of it goes on by itself, or nobody can say.
    """

    outcome: Outcome
    known: tuple[str, ...]
    next: tuple[str, ...]
    needs_a_person: bool


def read(txn_id: str, producers: Database, consumers: Sequence[Database]) -> Facts:
    """
    Read the rows of a transaction.

    Args:
        consumers: databases with an inbox; that of the producers may be among them.

    Raises:
        SettingsError: `txn_id` has not the form of one.
        DatabaseUnavailableError: a database can't be asked.
    """
    if not is_txn_id(txn_id):
        raise SettingsError(
            f"TXN_ID is {txn_id!r}, allowed are 32 hex digits in lower case, as in log lines and receipts"
        )
    with closing(producers.sideline("question")) as sideline:
        # Uncommitted rows first: one that commits meanwhile is then seen by the second read.
        with sideline.session() as session:
            session.execute(STATEMENTS["read_uncommitted"])
        uncommitted = _log_row(sideline, txn_id)
    with closing(producers.sideline("question")) as sideline:
        row = _log_row(sideline, txn_id)
        with sideline.session() as session:
            session.execute(STATEMENTS["look_up_copies"], (txn_id,))
            copies = tuple(
                Copy(position, topic.decode("ascii", "replace"), failures, float(age))
                for position, topic, failures, age in session.cursor.fetchall()
            )
            session.execute(STATEMENTS["read_clock"])
            ((now,),) = session.cursor.fetchall()
    return Facts(
        txn_id=txn_id,
        age_seconds=age_seconds(txn_id, float(now)),
        state=None if row is None else row[0],
        messages=0 if row is None else row[1],
        running=row is None and uncommitted is not None,
        copies=copies,
        delivered=tuple(item for database in consumers for item in _delivered(database, txn_id)),
    )


def _log_row(sideline: Sideline, txn_id: str) -> tuple[LogState, int] | None:
    with sideline.session() as session:
        session.execute(STATEMENTS["look_up_log_row"], (txn_id,))
        row = session.cursor.fetchone()
    if row is None:
        return None
    state, message_ids = row
    return LogState(state), len(message_ids.split(b",")) if message_ids else 0


def _delivered(database: Database, txn_id: str) -> list[Delivered]:
    # All keys of the transaction: "/" comes after "."
    first, last = f"{txn_id}.", f"{txn_id}/"
    with closing(database.sideline("question")) as sideline:
        groups = inbox_groups(sideline)
        with sideline.session() as session:
            session.execute(STATEMENTS["look_up_failures"], (first, last))
            failed = {
                (_text(group), _text(key)): (ParkedState(state), attempts, _text(error))
                for group, key, state, attempts, error in session.cursor.fetchall()
            }
            done = set()
            for group in groups:
                session.execute(STATEMENTS["look_up_inbox_rows"], (group, first, last))
                done |= {(group, _text(key)) for (key,) in session.cursor.fetchall()}
    found = []
    for group, key in sorted(done | set(failed)):
        state, attempts, error = failed.get((group, key), (None, 0, ""))
        handled = (group, key) in done
        if handled and state is ParkedState.FAILING:
            state = None  # a counter that was left over
        found.append(Delivered(group, key, handled, state, attempts, error))
    return found


def explain(facts: Facts, *, retention_seconds: float, relay_seconds: float) -> Explanation:
    """
    Say what facts mean.

    Args:
        retention_seconds: for how long log rows are kept.
        relay_seconds: after which age the copy of a message should be gone.
    """
    outcome = _outcome(facts, retention_seconds)
    known = [_EVIDENCE[outcome]]
    then = [_NEXT[outcome]] if outcome in _NEXT else []
    needs = outcome in (Outcome.OPEN, Outcome.NO_EVIDENCE, Outcome.TOO_OLD)
    if outcome is Outcome.COMMITTED:
        known.append(f"it published {facts.messages} message{'' if facts.messages == 1 else 's'}")
    for copy in facts.copies:
        late = copy.age_seconds > relay_seconds
        known.append(
            f"message {copy.position} for topic {copy.topic} has its copy in the outbox for "
            f"{copy.age_seconds:.0f} s, published again in vain {copy.failures} times"
        )
        then.append(
            f"message {copy.position}: no relay got it out, is a producer of this database running? Its log "
            "says why"
            if late
            else f"message {copy.position}: its copy is deleted when the broker surely has the message, or "
            "published again; a duplicate of it is skipped"
        )
        needs = needs or late
    for item in facts.delivered:
        fact, step = _delivery(item)
        known.append(fact)
        if step:
            then.append(step)
            needs = needs or item.done
    if outcome is Outcome.COMMITTED and not facts.delivered:
        known.append("no consumer group of the databases asked has noted a message of it")
        then.append(
            "if its consumers have another database, ask with --consumer-url; else it is on its way: "
            "rmq-txn offsets show says how far a group is"
        )
    return Explanation(outcome, tuple(known), tuple(then), needs)


def _outcome(facts: Facts, retention_seconds: float) -> Outcome:
    if facts.state is not None:
        return {
            LogState.OPEN: Outcome.OPEN,
            LogState.COMMITTED: Outcome.COMMITTED,
            LogState.ROLLED_BACK: Outcome.ROLLED_BACK,
        }[facts.state]
    if facts.running:
        return Outcome.RUNNING
    return Outcome.TOO_OLD if facts.age_seconds > retention_seconds else Outcome.NO_EVIDENCE


_EVIDENCE = {
    Outcome.COMMITTED: "its log row is committed, and so is its work",
    Outcome.ROLLED_BACK: "a check-back fenced it: nothing of it was committed, or ever will be",
    Outcome.RUNNING: "its log row is written and not committed",
    Outcome.OPEN: "its log row is committed as open: the server committed it in the middle, by DDL mostly",
    Outcome.NO_EVIDENCE: "this database has no log row of it",
    Outcome.TOO_OLD: "this database has no log row of it, and it is older than log rows are kept",
}
_NEXT = {
    Outcome.ROLLED_BACK: "safe to do again, as a new transaction",
    Outcome.RUNNING: (
        "it ends by itself, or the server ends it when its client is silent; check-backs are answered "
        "unknown until then: ask again"
    ),
    Outcome.OPEN: "its messages are not delivered: look at its business rows, a part of them may stand",
    Outcome.NO_EVIDENCE: (
        "if its own process rolled it back there is nothing to do; if its half message is with the broker, "
        "the next check-back fences it; is it the transaction of another database?"
    ),
    Outcome.TOO_OLD: "its rows were pruned, if there were any: look at its business rows",
}


def _delivery(item: Delivered) -> tuple[str, str]:
    """Say what a group noted, and what follows of it, if anything."""
    whose = f"group {item.group}, key {item.key}"
    if item.state is None:
        return (
            f"{whose}: done: handled, a replay included, or dropped by hand; further deliveries are skipped",
            "",
        )
    why = f"{item.attempts} failures, the last: {item.error}" if item.error else f"{item.attempts} failures"
    if not item.done:
        return f"{whose}: failing, {why}", f"group {item.group}: the broker delivers it again"
    look = ", after a look at the data, for its effect may stand" if item.state.needs_force else ""
    return (
        f"{whose}: parked ({item.state.name.lower()}), {why}",
        f"group {item.group}: mend the cause, then rmq-txn parked replay{look}",
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
