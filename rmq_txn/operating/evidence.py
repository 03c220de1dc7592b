"""
What is known of one transaction: the rows of its databases, read, and what the brokers say.

Plain reads, which wait for nobody and hold nobody up; nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from rmq_txn import audit
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.database import Database
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.identity import Owner, age_seconds, require_txn_id
from rmq_txn.producer import txlog
from rmq_txn.producer.txlog import LogState
from rmq_txn.pruning import inbox_groups
from rmq_txn.remoting.broker_facts import BrokerFacts, HalfMessage
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.half_messages import look_up
from rmq_txn.schema import Identity


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
    """
    What is known of one transaction; ages are by the clock of the producer's database.

    Attributes:
        message_ids: of its messages by position, as the log row has them.
        brokers: what they say of the half messages that this database owns; None if they were not asked.
        foreign: half messages that carry its id and are owned by another database.
        forged: half messages that carry its id and name this database, which did not sign them.
        by_hand: what people did to it and to its messages.
    """

    txn_id: str
    age_seconds: float
    state: LogState | None = None
    message_ids: tuple[str, ...] = ()
    running: bool = False
    copies: tuple[Copy, ...] = ()
    delivered: tuple[Delivered, ...] = ()
    brokers: BrokerFacts | None = None
    foreign: tuple[HalfMessage, ...] = ()
    forged: tuple[HalfMessage, ...] = ()
    by_hand: tuple[audit.Entry, ...] = ()

    def noted(self, position: int) -> list[Delivered]:
        """What consumer groups noted of one message."""
        keys = f"{self.txn_id}.{position}", f"{self.txn_id}.{position}/"
        return [item for item in self.delivered if item.key == keys[0] or item.key.startswith(keys[1])]


def read(
    txn_id: str,
    producers: Database,
    consumers: Sequence[Database],
    *,
    identity: Identity,
    cluster: ClusterSettings | None = None,
) -> Facts:
    """
    Read the rows of a transaction, then ask the brokers.

    Args:
        consumers: databases with an inbox; that of the producers may be among them.
        identity: of the producers' database.
        cluster: where to ask; None asks no broker.

    Raises:
        SettingsError: `txn_id` has not the form of one.
        DatabaseUnavailableError: a database can't be asked. Brokers that can't be are named in the facts.
    """
    require_txn_id(txn_id)
    facts = _read_rows(txn_id, producers, consumers)
    if cluster is None:
        return facts
    topics = {copy.topic for copy in facts.copies}
    return _sorted(facts, look_up(cluster, txn_id, facts.message_ids, topics), identity)


def _read_rows(txn_id: str, producers: Database, consumers: Sequence[Database]) -> Facts:
    with closing(producers.sideline("question")) as sideline:
        # Uncommitted rows first: one that commits meanwhile is then seen by the second read.
        with sideline.session() as session:
            session.execute(STATEMENTS["read_uncommitted"])
        with sideline.session() as session:
            uncommitted = txlog.look_up(session, txn_id)
    with closing(producers.sideline("question")) as sideline, sideline.session() as session:
        row = txlog.look_up(session, txn_id)
        session.execute(STATEMENTS["look_up_copies"], (txn_id,))
        copies = tuple(
            Copy(position, topic.decode("ascii", "replace"), failures, float(age))
            for position, topic, failures, age in session.cursor.fetchall()
        )
        session.execute(STATEMENTS["read_clock"])
        ((now,),) = session.cursor.fetchall()
    seen = row or uncommitted
    return Facts(
        txn_id=txn_id,
        age_seconds=age_seconds(txn_id, float(now)),
        state=None if row is None else row.state,
        message_ids=() if seen is None else seen.message_ids,
        running=row is None and uncommitted is not None,
        copies=copies,
        delivered=tuple(item for database in consumers for item in _delivered(database, txn_id)),
        by_hand=tuple(
            entry
            for database in dict.fromkeys([producers, *consumers])
            for entry in audit.of_transaction(database, txn_id)
        ),
    )


def _sorted(facts: Facts, brokers: BrokerFacts, identity: Identity) -> Facts:
    """Tell our half messages from those that only carry our id: anybody may send such."""
    own: list[HalfMessage] = []
    foreign: list[HalfMessage] = []
    forged: list[HalfMessage] = []
    for half in brokers.half_messages:
        signer = Owner(half.owner, identity.secret)
        if half.owner.rpartition("@")[2] != identity.database_id:
            foreign.append(half)
        elif half.stamp and not signer.is_stamp(half.stamp, facts.txn_id, half.position):
            forged.append(half)
        else:
            own.append(half)
    strangers = {half.message_id for half in foreign + forged} - set(facts.message_ids)
    published = tuple(item for item in brokers.published if item.message_id not in strangers)
    return replace(
        facts,
        brokers=replace(brokers, half_messages=tuple(own), published=published),
        foreign=tuple(foreign),
        forged=tuple(forged),
    )


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


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
