"""
What brokers know of one transaction: its half messages, what became of them, and what they published.

By questions alone. A broker that asks about a half message stores it again, with the number of its
questions, at the end of its queue. What was decided it notes some seconds later, as offsets in a
second topic; and how far it is, as the offset of a group of its own: what lies before that is decided or
given up. So whatever is not surely decided counts as open here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.identity import (
    PROPERTY_OWNER,
    PROPERTY_POSITION,
    PROPERTY_STAMP,
    PROPERTY_TXN_ID,
    is_position,
    made_at,
)
from rmq_txn.remoting.broker_facts import BrokerFacts, Fate, HalfMessage, Published, Way
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.server import RemotingError
from rmq_txn.remoting.stored_message import StoredMessage

HALF_TOPIC: Final = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_TOPIC: Final = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
GIVEN_UP_TOPIC: Final = "TRANS_CHECK_MAX_TIME_TOPIC"
_ASKING_GROUP: Final = "CID_RMQ_SYS_TRANS"
QUEUE: Final = 0
"""The only one of the topics of half messages."""

MOST_READ: Final = 4096
"""How many half messages of a broker are read in search of a transaction whose message ids nobody knows."""
_MOST_FOUND: Final = 64
"""How many half messages may carry the id of one transaction: twice the most that is ours."""
_MOST_NOTES: Final = 2048
_MOST_GROUPS: Final = 50
_BEFORE_SECONDS: Final = 2.0
"""How far the clocks of broker and database may differ."""
_AFTER_SECONDS: Final = 120.0
"""No half message is sent later than this after its transaction began: twice the usual local timeout."""

_MOST_NOTE_BYTES: Final = 65_536
_OFFSET: Final = re.compile(rb"[0-9]{1,18}")
_COUNT: Final = re.compile(r"[0-9]{1,6}")

_TYPE: Final = 12  # of the flags of a message, MessageSysFlag.java
_COMMITTED: Final = 8


@dataclass(slots=True)
class _Broker:
    name: str
    client: RemotingClient
    noted: bool = False
    """Its notes were read: what it decided, and how far it is."""
    done: int = 0
    """Each half message before this offset is decided or given up."""
    decided: frozenset[int] = frozenset()
    copies: list[StoredMessage] = field(default_factory=list)
    given_up: set[str] = field(default_factory=set)
    published: list[Published] = field(default_factory=list)
    blind: bool = False


def look_up(
    cluster: ClusterSettings, txn_id: str, message_ids: Collection[str], topics: Collection[str]
) -> BrokerFacts:
    """
    Ask all brokers about a transaction. Who can't be asked becomes a gap of the answer, never an error.

    Bounded by the timeout of a question for each broker that is away, and by some hundred questions for
    one that is there. If no message id is known, half messages are read one by one from the time on at
    which the transaction began, `MOST_READ` of them.

    Args:
        message_ids: of its half messages (`UNIQ_KEY`), as far as they are known.
        topics: where it publishes, as far as that is known.
    """
    masters, gaps = cluster.every_master()
    brokers = [_Broker(name, client) for name, client in masters]
    _ask_each(brokers, gaps, _read_notes)
    _ask_each(brokers, gaps, lambda broker: _find_by_ids(broker, txn_id, message_ids))
    if not any(broker.copies for broker in brokers):
        _ask_each(brokers, gaps, lambda broker: _search(broker, txn_id, gaps))
    places = {(message_id, topic) for message_id in message_ids for topic in topics}
    places |= {(copy.message_id, _topic(copy)) for broker in brokers for copy in broker.copies}
    _ask_each(brokers, gaps, lambda broker: _find_published(broker, txn_id, places))
    published = tuple(message for broker in brokers for message in broker.published)
    halves = tuple(half for broker in brokers for half in _half_messages(broker))
    return BrokerFacts(halves, published, tuple(dict.fromkeys(gaps)))


def _ask_each(brokers: list[_Broker], gaps: list[str], ask: Callable[[_Broker], None]) -> None:
    """Ask each broker; one that is away is left out from then on, one that refuses may answer the next."""
    for broker in list(brokers):
        try:
            ask(broker)
        except RemotingError as error:  # access control, mostly: these topics are not a service's own
            gaps.append(f"broker {broker.name}: {error}")
        except BrokerUnavailableError as error:
            gaps.append(f"broker {broker.name}: {error}")
            brokers.remove(broker)


def _read_notes(broker: _Broker) -> None:
    """
    Read how far the broker is, before anything else: what changes meanwhile counts as open then.

    The notes before the offset of the broker's group are of half messages before its other offset.
    """
    client = broker.client
    at = max(client.consumer_offset(_ASKING_GROUP, OP_TOPIC, QUEUE) or 0, client.min_offset(OP_TOPIC, QUEUE))
    decided: set[int] = set()
    for note in client.read(OP_TOPIC, QUEUE, at, _MOST_NOTES):
        # "7,8,12,": many offsets since 5.0, one before; a remark of another kind is none.
        decided |= {int(part) for part in note.body[:_MOST_NOTE_BYTES].split(b",") if _OFFSET.fullmatch(part)}
    broker.decided = frozenset(decided)
    broker.done = client.consumer_offset(_ASKING_GROUP, HALF_TOPIC, QUEUE) or 0
    broker.noted = True


def _find_by_ids(broker: _Broker, txn_id: str, message_ids: Collection[str]) -> None:
    for message_id in message_ids:
        broker.copies += _of(txn_id, broker.client.messages_with_id(HALF_TOPIC, message_id))


def _search(broker: _Broker, txn_id: str, gaps: list[str]) -> None:
    """Find the half messages of a transaction by reading those of its time."""
    client, began = broker.client, made_at(txn_id)
    first = client.min_offset(HALF_TOPIC, QUEUE)
    at = client.offset_at(HALF_TOPIC, QUEUE, max(0, int((began - _BEFORE_SECONDS) * 1000)))
    pruned = first > 0
    read, age = 0, 0.0
    found: list[StoredMessage] = []
    for read, message in enumerate(client.read(HALF_TOPIC, QUEUE, max(at, first), MOST_READ), 1):
        age = message.stored_milliseconds / 1000 - began
        if read == 1 and pruned and message.offset == first and age > 0:
            gaps.append(
                f"broker {broker.name} has no half messages of that time any more, if it had any: the "
                f"oldest is {age:.0f} s younger than the transaction"
            )
        if age > _AFTER_SECONDS:
            break
        found += _of(txn_id, [message])
        if len(found) == _MOST_FOUND:
            gaps.append(
                f"broker {broker.name} has {_MOST_FOUND} half messages with its id, more are not read"
            )
            break
    if read == 0 and pruned and at <= first:
        gaps.append(f"broker {broker.name} has no half messages any more, of any time")
    if read >= MOST_READ and age <= _AFTER_SECONDS and not found:
        gaps.append(
            f"broker {broker.name} was searched for half messages up to {age:.0f} s after the transaction "
            f"began: {MOST_READ} of them, no more are read"
        )
    for message_id in {message.message_id: None for message in found}:
        indexed = _of(txn_id, client.messages_with_id(HALF_TOPIC, message_id))
        broker.copies += indexed
        if not indexed:
            broker.blind = True
    if broker.blind:
        broker.copies = found
        gaps.append(
            f"broker {broker.name} does not find messages by their id, is messageIndexEnable=true in its "
            "configuration? How often it asked, and what it published, is not known"
        )


def _find_published(broker: _Broker, txn_id: str, places: Collection[tuple[str, str]]) -> None:
    """Find by id and topic what consumers see, who of them has read it, and what the broker dropped."""
    client = broker.client
    for message_id in sorted({message_id for message_id, _topic in places}):
        if _of(txn_id, client.messages_with_id(GIVEN_UP_TOPIC, message_id)):
            broker.given_up.add(message_id)
    groups: dict[str, tuple[str, ...]] = {}
    for message_id, topic in sorted(places):
        for message in _of(txn_id, client.messages_with_id(topic, message_id)):
            if topic not in groups:
                groups[topic] = client.groups_of(topic)[:_MOST_GROUPS]
            offsets = {
                group: client.consumer_offset(group, topic, message.queue) or 0 for group in groups[topic]
            }
            broker.published.append(_published(broker.name, message, offsets))


def _published(broker: str, message: StoredMessage, offsets: Mapping[str, int]) -> Published:
    check_backs = _check_backs(message)
    if message.sys_flag & _TYPE != _COMMITTED:
        way = Way.PLAIN
    else:
        way = Way.CHECK_BACK if check_backs else Way.VERDICT
    return Published(
        broker=broker,
        topic=message.topic,
        queue=message.queue,
        offset=message.offset,
        message_id=message.message_id,
        position=_position(message),
        after_seconds=_after_seconds(message),
        way=way,
        check_backs=check_backs,
        waiting=tuple(
            (group, message.offset - at) for group, at in sorted(offsets.items()) if at <= message.offset
        ),
        read_by=tuple(group for group, at in sorted(offsets.items()) if at > message.offset),
    )


def _half_messages(broker: _Broker) -> Iterator[HalfMessage]:
    by_id: dict[str, list[StoredMessage]] = {}
    for copy in broker.copies:
        by_id.setdefault(copy.message_id, []).append(copy)
    for message_id, copies in by_id.items():
        newest = max(copies, key=lambda copy: copy.offset)
        yield HalfMessage(
            broker=broker.name,
            message_id=message_id,
            topic=_topic(newest),
            owner=newest.properties.get(PROPERTY_OWNER, ""),
            stamp=newest.properties.get(PROPERTY_STAMP, ""),
            position=_position(newest),
            after_seconds=_after_seconds(min(copies, key=lambda copy: copy.offset)),
            check_backs=_check_backs(newest),
            fate=_fate(broker, message_id, copies),
        )


def _fate(broker: _Broker, message_id: str, copies: Sequence[StoredMessage]) -> Fate:
    if any(item.message_id == message_id and item.way is not Way.PLAIN for item in broker.published):
        return Fate.COMMITTED
    if message_id in broker.given_up:
        return Fate.GIVEN_UP
    if broker.blind or not broker.noted:
        return Fate.UNCLEAR
    offsets = {copy.offset for copy in copies}
    return Fate.ROLLED_BACK if max(offsets) < broker.done or offsets & broker.decided else Fate.OPEN


def _of(txn_id: str, messages: Iterable[StoredMessage]) -> list[StoredMessage]:
    return [
        message
        for message in messages
        if message.properties.get(PROPERTY_TXN_ID) == txn_id
        and is_position(message.properties.get(PROPERTY_POSITION, ""))
    ]


def _topic(half: StoredMessage) -> str:
    return half.properties.get("REAL_TOPIC", "")


def _position(message: StoredMessage) -> int:
    return int(message.properties[PROPERTY_POSITION])


def _after_seconds(message: StoredMessage) -> float:
    return message.stored_milliseconds / 1000 - made_at(message.properties[PROPERTY_TXN_ID])


def _check_backs(message: StoredMessage) -> int:
    text = message.properties.get("TRANSACTION_CHECK_TIMES", "")
    return int(text) if _COUNT.fullmatch(text) else 0
