"""
The consuming half: deliveries of one message, the inbox, the handler's effect, the operator.

It assumes of the producing half only that the message comes at least once, and may come again, at any
time, to two consumers at once. So the two halves are checked apart, and what holds for each holds for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.explorer import Found, Step, explore
from tests.model.naming import Names

names = Names()

TRIES = 2
"""Failures of the handler after which a message is parked (`max_attempts`)."""


@dataclass(frozen=True)
class Protections:
    """What the code does against faults; a test switches off one at a time."""

    inbox: bool = True
    inbox_row_in_the_same_transaction: bool = True
    lock_wait_is_no_duplicate: bool = True
    tripwire: bool = True
    autocommit_off: bool = True
    ack_only_after_commit: bool = True
    parked_before_ack: bool = True
    parked_keeps_inbox_row: bool = True
    replay_takes_the_parked_row: bool = True
    age_rule: bool = True
    over_age_replay_needs_force: bool = True


class Delivery(NamedTuple):
    """One delivery on one consumer thread."""

    place: str = ""
    """'' not there, ready, claimed, handled, committing, unacknowledged (committed), acknowledged."""
    tripped: bool = False
    """The handler swallowed a deadlock: its transaction, with the inbox row, is gone and a new one runs."""
    acknowledged_early: bool = False


class State(NamedTuple):
    """Everything that matters at one moment."""

    faults_left: int
    deliveries: tuple[Delivery, Delivery] = (Delivery("ready"), Delivery())
    inbox: bool = False
    """The inbox row is durable."""
    effects: int = 0
    """How often the handler's writes are durable."""
    limbo: bool = False
    """A transaction whose client is gone: it holds the inbox row's lock, COMMIT may have been sent."""
    row_missing: bool = False
    """Without the row in the same transaction: the effect is durable, its inbox row not yet."""
    failures: int = 0
    parked: str = ""
    """The parked row: failed, or over age."""
    replaying: bool = False
    """An operator has read the parked row and is about to replay it."""
    old: bool = False
    """The message is older than the inbox retention; its inbox row was pruned."""


Steps = Iterator[Step[State]]


@dataclass(frozen=True)
class Consuming:
    """The model of the consumer, with some protections on."""

    on: Protections
    faults: int

    def fault(self, s: State, text: str, **changes: Any) -> Steps:
        if s.faults_left:
            yield Step(f"FAULT {text}", s._replace(faults_left=s.faults_left - 1, **changes), is_fault=True)

    def locked(self, s: State) -> bool:
        """Whether an open transaction holds the inbox row, so that a parallel claim waits."""
        holding = any(d.place in ("claimed", "handled", "committing") and not d.tripped for d in s.deliveries)
        return self.on.inbox and (holding or s.limbo)

    # One delivery, in the order of the protocol.

    @names("rmq_txn.consumer.inbox.claim")
    def claim(self, s: State, n: int) -> Steps:
        d = s.deliveries[n]
        if d.place != "ready":
            return
        if s.inbox and self.on.inbox:
            yield Step(f"consumer {n}: handled before, skipped", put(s, n, Delivery("unacknowledged")))
        elif s.old and self.on.age_rule and not self.locked(s):
            then = self.park(put(s, n, Delivery("unacknowledged")), "over age")
            yield Step(f"consumer {n}: older than the inbox remembers: parked, not handled", then)
        elif not self.locked(s):
            early = not self.on.ack_only_after_commit
            text = " and acknowledges" if early else ""
            claimed = Delivery("claimed", acknowledged_early=early)
            yield Step(f"consumer {n}: inserts the inbox row{text}", put(s, n, claimed))
        elif not self.on.lock_wait_is_no_duplicate:
            then = put(s, n, Delivery("unacknowledged"))
            yield Step(f"consumer {n}: waits for the inbox row's lock, takes it for a duplicate", then)

    @names("rmq_txn.consumer.IdempotentConsumer.handles")
    def handle(self, s: State, n: int) -> Steps:
        d = s.deliveries[n]
        if d.place != "claimed":
            return
        yield Step(f"consumer {n}: the handler writes", put(s, n, d._replace(place="handled")))
        yield from self.fault(
            put(s, n, d._replace(place="handled", tripped=True)),
            f"consumer {n}: the handler swallows a deadlock and goes on; the inbox row is gone",
        )
        if s.failures + 1 < TRIES:
            again = put(s, n, back(d))._replace(failures=s.failures + 1)
            yield Step(f"consumer {n}: the handler raises: rollback, deliver again", again)
        else:
            then = put(s, n, Delivery("unacknowledged"))
            then = self.park(then, "failed") if self.on.parked_before_ack else then
            yield Step(f"consumer {n}: the handler raises once too often: parked", then)

    @names("rmq_txn.database.session.Session.commit")
    def commit(self, s: State, n: int) -> Steps:
        d = s.deliveries[n]
        if d.place == "handled":
            if d.tripped and self.on.tripwire:
                then = put(s, n, back(d))
                if not self.on.autocommit_off:
                    then = then._replace(effects=s.effects + 1)  # durable since the handler wrote it
                yield Step(f"consumer {n}: TransactionLostError: rollback, deliver again", then)
            else:
                yield Step(f"consumer {n}: sends COMMIT", put(s, n, d._replace(place="committing")))
        if d.place == "committing":
            then = self.durable(put(s, n, d._replace(place="unacknowledged")), d)
            yield Step(f"database: consumer {n}'s transaction is durable", then)
            limbo = put(s, n, back(d))._replace(limbo=True)
            yield from self.fault(limbo, f"consumer {n} loses its connection in COMMIT and tries again")

    def durable(self, s: State, d: Delivery) -> State:
        s = s._replace(effects=s.effects + 1)
        if not self.on.inbox or d.tripped:
            return s
        if not self.on.inbox_row_in_the_same_transaction:
            return s._replace(row_missing=True)
        return s._replace(inbox=True)

    def park(self, s: State, why: str) -> State:
        """The parked row and, in the same transaction, the inbox row: later deliveries are skipped."""
        return s._replace(parked=s.parked or why, inbox=s.inbox or self.on.parked_keeps_inbox_row)

    def write_missing_row(self, s: State) -> Steps:
        if s.row_missing:
            yield Step("consumer: writes the inbox row afterwards", s._replace(row_missing=False, inbox=True))

    def end_limbo(self, s: State) -> Steps:
        """The server gets to know of a broken connection; COMMIT came before, or never."""
        if s.limbo:
            yield Step("database: COMMIT had arrived", self.durable(s, Delivery())._replace(limbo=False))
            yield Step("database: COMMIT never arrived, rolled back", s._replace(limbo=False))

    @names("rmq_txn.verdict.Answer")
    def acknowledge(self, s: State, n: int) -> Steps:
        if s.deliveries[n].place == "unacknowledged":
            yield Step(f"consumer {n}: acknowledges", put(s, n, Delivery("acknowledged")))

    # What goes wrong around it.

    def crash(self, s: State, n: int) -> Steps:
        d = s.deliveries[n]
        if d.place in ("claimed", "handled", "committing", "unacknowledged"):
            then = put(s, n, back(d))._replace(row_missing=False, limbo=s.limbo or d.place == "committing")
            yield from self.fault(then, f"consumer {n} is killed ({d.place})")

    def deliver_again(self, s: State) -> Steps:
        """The broker after a rebalance; the outbox relay; a producer whose commit was asked about twice."""
        for n in (0, 1):
            if s.deliveries[n].place in ("", "acknowledged"):
                yield from self.fault(
                    put(s, n, Delivery("ready")), f"the message is delivered again, to consumer {n}"
                )

    def grow_old(self, s: State) -> Steps:
        """Anything may take longer than the retention: the relay of an outbox has no limit."""
        quiet = all(d.place in ("", "ready", "acknowledged") for d in s.deliveries)
        if quiet and not s.old and not s.limbo and not s.row_missing:
            yield Step("a week passes, the inbox row is pruned", s._replace(old=True, inbox=False))

    def replay(self, s: State) -> Steps:
        """By two operators at once. What is over age needs --force, and then it is his word."""
        may = s.parked == "failed" or (s.parked == "over age" and not self.on.over_age_replay_needs_force)
        if may and not s.replaying:
            yield Step("operator: reads the parked row", s._replace(replaying=True))
        if self.locked(s):
            return
        done = s._replace(parked="", effects=s.effects + 1, inbox=self.on.inbox)
        if may:
            yield Step("another operator: replays the message, its parked row is gone", done)
        if s.replaying and (may or not self.on.replay_takes_the_parked_row):
            text = "operator: replays the message, its parked row is gone"
            yield Step(text, done._replace(replaying=False))
        elif s.replaying:
            yield Step("operator: another one was faster", s._replace(replaying=False))

    def steps(self, s: State) -> Steps:
        for n in (0, 1):
            for action in (self.claim, self.handle, self.commit, self.acknowledge, self.crash):
                yield from action(s, n)
        for around in (
            self.write_missing_row,
            self.end_limbo,
            self.deliver_again,
            self.grow_old,
            self.replay,
        ):
            yield from around(s)

    def explore(self) -> Found:
        return explore(State(self.faults), self.steps, wrong, finished, LOST)


def put(s: State, n: int, d: Delivery) -> State:
    return s._replace(deliveries=(d, s.deliveries[1]) if n == 0 else (s.deliveries[0], d))


def back(d: Delivery) -> Delivery:
    """Not acknowledged: it comes again."""
    return Delivery("acknowledged" if d.acknowledged_early else "ready")


TWICE = "the message had its effect twice"
LOST = "the message was acknowledged, and its effect will never come"


def wrong(s: State) -> str | None:
    return TWICE if s.effects > 1 else None


def finished(s: State) -> bool:
    quiet = all(d.place in ("", "acknowledged") for d in s.deliveries) and not s.limbo
    return quiet and (s.effects == 1 or s.parked != "")
