"""
What brokers dropped although it was committed, and its publication after all.

Normally there is none: the copy in the outbox outlives the broker's questions. Without copies, or after a
person decided a transaction, the half message that the broker still stores is the last place to take it from.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rmq_txn import audit
from rmq_txn.audit import Action
from rmq_txn.database import Database
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import (
    PROPERTY_NAMES,
    PROPERTY_OWNER,
    PROPERTY_POSITION,
    PROPERTY_STAMP,
    PROPERTY_TXN_ID,
    Owner,
    age_seconds,
    is_position,
    is_txn_id,
    require_txn_id,
)
from rmq_txn.message import Outbound
from rmq_txn.producer import txlog
from rmq_txn.producer.txlog import LogRow, LogState
from rmq_txn.remoting.broker_facts import Fate
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.dropped import HalfMessageStore
from rmq_txn.remoting.half_messages import GIVEN_UP_TOPIC, look_up
from rmq_txn.remoting.plain_messages import PlainSender
from rmq_txn.remoting.stored_message import StoredMessage
from rmq_txn.schema import Identity


class Found(enum.Enum):
    """How one message stands."""

    LOST = "lost"
    """Committed, dropped by its broker, and nowhere else: it can be published from its half message."""
    RECOVERED = "recovered"
    """It was lost, and is published now."""
    MISSING = "missing"
    """Committed, and neither a broker nor the outbox has it any more."""
    OPEN = "open"
    """The server committed its transaction in the middle: a person decides it first."""
    UNKNOWN = "unknown"
    """Nobody can say now, or ever: the text says why."""
    ASKED = "still asked about"
    """Its broker has no verdict yet: check-back decides it."""
    PUBLISHED = "published"
    """By a late verdict, or by a relay."""
    COPIED = "in the outbox"
    """A relay publishes it."""
    NOT_COMMITTED = "not committed"
    REPEATED = "sent again"
    """The half message of a send that was repeated: another one of the same message counts."""
    FOREIGN = "foreign"
    """Of another database, or of no producer of ours."""

    @property
    def needs_a_person(self) -> bool:
        """Whether nothing of it goes on by itself."""
        return self in (Found.LOST, Found.MISSING, Found.OPEN, Found.UNKNOWN)

    @property
    def is_as_it_should_be(self) -> bool:
        """Whether there is nothing to tell but how many of them there are."""
        return self in (Found.PUBLISHED, Found.NOT_COMMITTED, Found.REPEATED, Found.FOREIGN)


@dataclass(frozen=True, slots=True)
class Case:
    """One message, or a transaction of which no message is known (`position` is None then)."""

    found: Found
    txn_id: str
    text: str
    position: int | None = None
    topic: str = ""
    message_id: str = ""


class Recovery:
    """
    Looks for lost messages, and publishes them if it may. For one thread; to be closed.

    Args:
        retention_seconds: for how long log rows are kept: that there is none proves nothing of older ones.
        publish: False only says what it would do.
        by: for the audit.

    Raises:
        BrokerUnavailableError: no broker can be asked; from the constructor.
        DatabaseUnavailableError: the database can't be asked; from both methods. Those that were published
            stay so, and are found as published by the next run.
    """

    def __init__(
        self,
        database: Database,
        identity: Identity,
        cluster: ClusterSettings,
        *,
        retention_seconds: float,
        publish: bool,
        by: str,
    ) -> None:
        self._identity = identity
        self._cluster = cluster
        self._retention_seconds = retention_seconds
        self._publish = publish
        self._by = by
        self._store = HalfMessageStore(cluster)
        self._sideline = database.sideline("recovery")
        self._senders: dict[str, PlainSender] = {}

    def close(self) -> None:
        """End the connections. Idempotent."""
        self._sideline.close()
        for sender in self._senders.values():
            sender.close()

    @property
    def gaps(self) -> Sequence[str]:
        """What could not be asked so far, a sentence each."""
        return tuple(self._store.gaps)

    def of_all(self, within_seconds: float) -> Iterator[Case]:
        """Go through what brokers gave up in the last seconds, by the clock of the database."""
        seen: set[tuple[str, bool]] = set()
        for half in self._store.given_up(self._now() - within_seconds):
            ours = self._is_ours(half)
            if (half.message_id, ours) in seen:
                continue
            # Not by the id alone: a stranger's message with an id of ours must not hide ours.
            seen.add((half.message_id, ours))
            txn_id = half.properties.get(PROPERTY_TXN_ID, "")
            if ours:
                yield self._judge(half, *self._rows(txn_id))
            else:
                yield self._case(Found.FOREIGN, txn_id, topic=_topic(half), message_id=half.message_id)

    def of_transaction(self, txn_id: str) -> Iterator[Case]:
        """
        Go through the messages of one transaction, whatever its brokers did with them.

        Raises:
            SettingsError: `txn_id` has not the form of one.
        """
        require_txn_id(txn_id)
        row, copied = self._rows(txn_id)
        if row is None or row.state is not LogState.COMMITTED:
            yield self._without_commit(txn_id, row)
            return
        for position, message_id in enumerate(row.message_ids):
            told = partial(self._case, txn_id=txn_id, position=position, message_id=message_id)
            copies = [copy for copy in self._store.copies(message_id) if self._is_ours(copy)]
            if position in copied:
                yield told(Found.COPIED)
            elif not copies:
                yield told(Found.UNKNOWN if self._store.gaps else Found.MISSING)
            elif waiting := self._undecided(txn_id, copies):
                yield told(waiting)
            else:
                yield self._judge(copies[-1], row, copied)

    def _judge(self, half: StoredMessage, row: LogRow | None, copied: set[int]) -> Case:
        """Say how a half message of ours stands about which its broker asks no more."""
        txn_id, position = half.properties[PROPERTY_TXN_ID], int(half.properties[PROPERTY_POSITION])
        topic, message_id = _topic(half), half.message_id
        if row is None or row.state is not LogState.COMMITTED:
            case = self._without_commit(txn_id, row)
            return replace(case, position=position, topic=topic, message_id=message_id)
        told = partial(self._case, txn_id=txn_id, position=position, topic=topic, message_id=message_id)
        if not row.proves_commit_of(position, message_id):
            return told(Found.REPEATED)
        if position in copied:
            return told(Found.COPIED)
        published = self._store.published(topic, message_id)
        try:
            message = _outbound(half)
        except InvalidMessageError as error:
            if any(stored.is_same_as(half) for stored in published):
                return told(Found.PUBLISHED)
            return replace(told(Found.UNKNOWN), text=str(error))
        if any(stored.is_copy_of(message) for stored in published):
            return told(Found.PUBLISHED)
        if self._store.gaps:
            return told(Found.UNKNOWN)
        return self._recover(told(Found.LOST), half, message)

    def _recover(self, lost: Case, half: StoredMessage, message: Outbound) -> Case:
        bodies = {copy.body for copy in self._store.copies(half.message_id)}
        if bodies != {half.body}:  # who may send to the topic can repeat an id, and a stamp that he read
            text = "half messages with its id have different bodies: somebody forged one, none is published"
            return replace(lost, found=Found.UNKNOWN, text=text)
        if not self._publish:
            return lost
        # The entry first: a COMMIT after it that fails leaves a message published and no entry, and a next
        # run finds it published; an entry of what was never sent would be a lie.
        with self._sideline.session() as session:
            audit.write(
                session,
                Action.RECOVERED,
                f"{lost.txn_id}.{lost.position}",
                by=self._by,
                note=f"message {lost.message_id} for topic {lost.topic}",
            )
            self._sender(half).send(message, half.message_id)
        return replace(lost, found=Found.RECOVERED, text=_WORDS[Found.RECOVERED])

    def _sender(self, half: StoredMessage) -> PlainSender:
        """Return the one of its producer group, which remembers where the brokers are."""
        group = half.properties[PROPERTY_OWNER].rpartition("@")[0]
        if group not in self._senders:
            self._senders[group] = PlainSender(self._cluster, group)
        return self._senders[group]

    def _undecided(self, txn_id: str, copies: Sequence[StoredMessage]) -> Found | None:
        """Say whether the broker has yet to decide a half message; None: it has, or gave it up."""
        if any(copy.topic == GIVEN_UP_TOPIC for copy in copies):
            return None
        half = copies[-1]
        facts = look_up(self._cluster, txn_id, [half.message_id], [_topic(half)])
        fates = {found.fate for found in facts.half_messages if found.message_id == half.message_id}
        if fates & {Fate.OPEN}:
            return Found.ASKED
        return Found.UNKNOWN if not fates or Fate.UNCLEAR in fates else None

    def _is_ours(self, half: StoredMessage) -> bool:
        """Whether a producer of this database signed it."""
        given = half.properties
        txn_id, position = given.get(PROPERTY_TXN_ID, ""), given.get(PROPERTY_POSITION, "")
        owner = Owner(given.get(PROPERTY_OWNER, ""), self._identity.secret)
        return (
            is_txn_id(txn_id)
            and is_position(position)
            and owner.name.rpartition("@")[2] == self._identity.database_id
            and owner.is_stamp(given.get(PROPERTY_STAMP, ""), txn_id, int(position))
        )

    def _without_commit(self, txn_id: str, row: LogRow | None) -> Case:
        if row is not None:
            return self._case(Found.OPEN if row.state is LogState.OPEN else Found.NOT_COMMITTED, txn_id)
        age = age_seconds(txn_id, self._now())
        if age <= self._retention_seconds:
            return self._case(Found.NOT_COMMITTED, txn_id)
        text = f"it is {age / 86_400:.1f} days old and has no row, which was pruned if it had one"
        return Case(Found.UNKNOWN, txn_id, text)

    def _case(
        self, found: Found, txn_id: str, position: int | None = None, topic: str = "", message_id: str = ""
    ) -> Case:
        if found is Found.UNKNOWN:
            gaps = "; ".join(self._store.gaps) or "its broker's notes can't be read now"
            text = f"not known while brokers can't be asked: {gaps}"
        else:
            text = _WORDS[found]
        return Case(found, txn_id, text, position, topic, message_id)

    def _rows(self, txn_id: str) -> tuple[LogRow | None, set[int]]:
        """Read the log row, and the positions of which the outbox has a copy."""
        with self._sideline.session() as session:
            session.execute(STATEMENTS["look_up_copies"], (txn_id,))
            copied = {position for position, *_ in session.cursor.fetchall()}
            return txlog.look_up(session, txn_id), copied

    def _now(self) -> float:
        with self._sideline.session() as session:
            session.execute(STATEMENTS["read_clock"])
            ((now,),) = session.cursor.fetchall()
        return float(now)


def _topic(half: StoredMessage) -> str:
    return half.properties.get("REAL_TOPIC", "")


def _outbound(half: StoredMessage) -> Outbound:
    return Outbound(
        topic=_topic(half),
        body=half.plain_body,
        key=half.properties.get("KEYS"),
        tag=half.properties.get("TAGS"),
        properties=half.publisher_properties(PROPERTY_NAMES),
    )


_WORDS = {
    Found.LOST: "it was committed, its broker dropped it, nothing else has it: --yes publishes it",
    Found.RECOVERED: "it was committed, its broker had dropped it: published now, as a relay does it",
    Found.MISSING: "it was committed, and no broker stores its half message any more, so none can tell: "
    "rmq-txn explain says whether consumers noted it; if not, do for them by hand what it would have done",
    Found.OPEN: "the server committed its transaction in the middle: first decide it with rmq-txn resolve",
    Found.ASKED: "its broker has no verdict yet: check-back decides it while a producer of its group runs",
    Found.PUBLISHED: "consumers were given it: by a late verdict, or by a relay",
    Found.COPIED: "its copy is in the outbox: a relay publishes it, or published it",
    Found.NOT_COMMITTED: "its transaction did not commit: right to drop",
    Found.REPEATED: "a send was repeated, and another half message of the same message counts",
    Found.FOREIGN: "not of a producer of this database",
}
