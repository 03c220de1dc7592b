"""Brokers are asked about a transaction: a server of this test answers in the bytes of the real one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from rmq_txn.identity import made_at
from rmq_txn.remoting import half_messages, wire
from rmq_txn.remoting.broker_facts import BrokerFacts, Fate, Way
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.half_messages import GIVEN_UP_TOPIC, HALF_TOPIC, OP_TOPIC, look_up
from tests.unit.test_malformed_answers import Line
from tests.unit.test_remoting import answer, frame

TXN = "0199f4b2c3d4a1b2c3d4e5f60718293a"
BEGAN = made_at(TXN)
NAME_SERVER, BROKER, OTHER = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
COMMITTED_FLAG = 8
PULL, QUERY, OFFSET, AT, MAX, MIN, CLUSTER, GROUPS = 11, 12, 14, 29, 30, 31, 106, 300


@dataclass(frozen=True)
class Stored:
    """One message of a broker of this test."""

    topic: str
    offset: int = 0
    message_id: str = "ID-0"
    txn_id: str = TXN
    check_backs: int = 0
    flags: int = 0
    body: bytes = b"{}"
    seconds: float = 0.1
    position: str = "0"

    def encode(self, place: int) -> bytes:
        """Write it as MessageDecoder.java lays it out."""
        properties = {
            "UNIQ_KEY": self.message_id,
            "rmq_txn_id": self.txn_id,
            "rmq_txn_n": self.position,
            "rmq_txn_owner": "accounts@here",
            "REAL_TOPIC": "transfer",
        }
        if self.check_backs:
            properties["TRANSACTION_CHECK_TIMES"] = str(self.check_backs)
        text = "".join(f"{name}\x01{value}\x02" for name, value in properties.items()).encode()
        host = bytes([127, 0, 0, 1]) + struct.pack(">i", 5000)
        at = int((BEGAN + self.seconds) * 1000)
        rest = struct.pack(">IIiiqqiq", 0xDAA320A7, 0, 0, 0, self.offset, place, self.flags, at)
        rest += host + struct.pack(">q", at) + host + struct.pack(">iq", 0, 0)
        rest += struct.pack(">i", len(self.body)) + self.body
        rest += struct.pack(">B", len(self.topic)) + self.topic.encode()
        rest += struct.pack(">H", len(text)) + text
        return struct.pack(">i", 4 + len(rest)) + rest


@dataclass
class Broker:
    """What one broker has, and how it answers."""

    stored: list[Stored] = field(default_factory=list)
    offsets: dict[tuple[str, str], int] = field(default_factory=dict)
    indexed: bool = True
    first: int = 0
    pulls: int = 0

    def says(self, code: int, asked: dict[str, str]) -> bytes:
        """Answer one request."""
        topic = asked["topic"]
        in_topic = [(n, message) for n, message in enumerate(self.stored) if message.topic == topic]
        if code == QUERY:
            # As the real one, which finds by a hash: another message comes along.
            found = [(n, m) for n, m in in_topic if m.message_id == asked["key"]] if self.indexed else []
            stray = Stored(topic, message_id="stray").encode(99) if found else b""
            return self._messages(found, stray) if found else answer(code=22)
        if code == PULL:
            self.pulls += 1
            found = [(n, m) for n, m in in_topic if m.offset >= int(asked["queueOffset"])][:32]
            return self._messages(found) if found else answer(code=19)
        if code == GROUPS:
            groups = sorted(group for group, of in self.offsets if of == topic)
            return answer(json.dumps({"groupList": groups}).encode())
        if code == OFFSET:
            found_offset = self.offsets.get((asked["consumerGroup"], topic))
            return answer(code=22) if found_offset is None else self._offset(found_offset)
        if code == AT:
            seconds = int(asked["timestamp"]) / 1000 - BEGAN
            return self._offset(min((m.offset for _n, m in in_topic if m.seconds >= seconds), default=0))
        return self._offset(self.first)

    @staticmethod
    def _messages(found: list[tuple[int, Stored]], more: bytes = b"") -> bytes:
        return answer(b"".join(message.encode(n) for n, message in found) + more)

    @staticmethod
    def _offset(offset: int) -> bytes:
        return answer(extFields={"offset": str(offset)})


class Answering(Line):
    """A connection to a server that answers what it is asked."""

    def __init__(self, says: Callable[[bytes], bytes]) -> None:
        super().__init__(b"")
        self._says = says

    def sendall(self, data: bytes) -> None:
        """Answer the request."""
        self._said = self._says(data)


Look = Callable[..., BrokerFacts]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Return a function that asks brokers, by name, about the transaction; None is one that is away."""

    def look_at(*message_ids: str, topics: tuple[str, ...] = (), **brokers: Broker | None) -> BrokerFacts:
        addresses = dict(zip(brokers, (BROKER, OTHER), strict=False))
        table = {
            name: {"brokerName": name, "cluster": "c", "brokerAddrs": {"0": address}}
            for name, address in addresses.items()
        }
        cluster = answer(json.dumps({"brokerAddrTable": table}).encode())
        at = {address: brokers[name] for name, address in addresses.items()}

        def says(address: str, request: bytes) -> bytes:
            header = json.loads(request[8 : 8 + int.from_bytes(request[5:8], "big")])
            broker = at.get(address)
            return cluster if broker is None else broker.says(header["code"], header["extFields"])

        def connect(endpoint: tuple[str, int], timeout: float) -> Line:
            address = f"{endpoint[0]}:{endpoint[1]}"
            if address != NAME_SERVER and at[address] is None:
                raise ConnectionRefusedError("nobody is there")
            return Answering(lambda request: says(address, request))

        monkeypatch.setattr(wire.socket, "create_connection", connect)
        return look_up(ClusterSettings(NAME_SERVER), TXN, message_ids, topics)

    return look_at


HALF = Stored(HALF_TOPIC, offset=4)
ASKED = replace(HALF, offset=9, check_backs=1, seconds=6.0)
PUBLISHED = Stored("transfer", flags=COMMITTED_FLAG)
DONE = {("CID_RMQ_SYS_TRANS", HALF_TOPIC): 10}


@pytest.mark.parametrize(
    ("broker", "fate"),
    [
        (Broker([HALF]), Fate.OPEN),
        (Broker([HALF, ASKED], {("CID_RMQ_SYS_TRANS", HALF_TOPIC): 9}), Fate.OPEN),
        (Broker([HALF, ASKED], DONE), Fate.ROLLED_BACK),
        (Broker([HALF, Stored(OP_TOPIC, body=b"2,4,")]), Fate.ROLLED_BACK),
        (Broker([HALF, Stored(OP_TOPIC, body=b"4")]), Fate.ROLLED_BACK),  # as 4.x notes it
        (Broker([HALF, Stored(OP_TOPIC, body=b"14,x4,4x,")]), Fate.OPEN),
        (Broker([HALF, Stored(GIVEN_UP_TOPIC)], DONE), Fate.GIVEN_UP),
        (Broker([HALF, PUBLISHED]), Fate.COMMITTED),
        (Broker([HALF, replace(PUBLISHED, flags=0)], DONE), Fate.ROLLED_BACK),
        (Broker([HALF], DONE, indexed=False), Fate.UNCLEAR),
    ],
)
def test_what_became_of_a_half_message_is_told_by_what_the_broker_stores(
    look: Look, broker: Broker, fate: Fate
) -> None:
    """The same whether its id is known or is to be searched."""
    for ids in (["ID-0"], []):
        (half,) = look(*ids, b1=broker).half_messages
        assert (half.fate, half.broker, half.topic, half.owner) == (fate, "b1", "transfer", "accounts@here")


def test_the_newest_copy_says_how_often_the_broker_asked_and_the_first_when_it_came(look: Look) -> None:
    (half,) = look("ID-0", b1=Broker([HALF, ASKED])).half_messages
    assert (half.check_backs, round(half.after_seconds, 3)) == (1, 0.1)


def test_how_a_message_was_published_and_who_has_read_it(look: Look) -> None:
    """By a verdict, for a check-back, as a plain message of another broker."""
    by_answer = replace(PUBLISHED, offset=1, check_backs=2)
    broker = Broker([HALF, PUBLISHED, by_answer], {("fast", "transfer"): 2, ("slow", "transfer"): 1})
    other = Broker([replace(PUBLISHED, flags=0, offset=5)])
    facts = look("ID-0", b1=broker, b2=other)
    assert [(item.way, item.broker, item.offset, item.check_backs) for item in facts.published] == [
        (Way.VERDICT, "b1", 0, 0),
        (Way.CHECK_BACK, "b1", 1, 2),
        (Way.PLAIN, "b2", 5, 0),
    ]
    first, second, third = facts.published
    assert (first.read_by, first.waiting) == (("fast", "slow"), ())
    assert (second.read_by, second.waiting) == (("fast",), (("slow", 0),))
    assert (third.read_by, third.waiting) == ((), ())
    assert facts.gaps == ()


def test_messages_of_another_transaction_are_not_ours(look: Look) -> None:
    """Whatever id they share with ours; nor is one whose position is none."""
    strange = [replace(HALF, txn_id="f" * 32), replace(HALF, offset=5, position="-1")]
    facts = look("ID-0", topics=("transfer",), b1=Broker([*strange, replace(PUBLISHED, txn_id="f" * 32)]))
    assert (facts.half_messages, facts.published) == ((), ())


def test_a_broker_that_is_away_is_a_gap_and_the_others_are_asked(look: Look) -> None:
    facts = look("ID-0", b1=None, b2=Broker([HALF]))
    (gap,) = facts.gaps
    assert gap.startswith("broker b1: ")
    assert "nobody is there" in gap
    assert [half.broker for half in facts.half_messages] == ["b2"]


def test_a_cluster_without_brokers_is_a_gap(look: Look) -> None:
    assert look("ID-0").gaps == ("no broker is registered with the name server",)


def test_a_search_begins_at_the_time_of_the_transaction_and_ends_soon_after(look: Look) -> None:
    """What is older is not read, nor what is younger by minutes."""
    old = [Stored(HALF_TOPIC, offset=n, txn_id="f" * 32, seconds=-60.0) for n in range(100)]
    young = [Stored(HALF_TOPIC, offset=n, txn_id="f" * 32, seconds=600.0) for n in range(101, 300)]
    broker = Broker([*old, replace(HALF, offset=100), *young])
    facts = look(b1=broker)
    assert (len(facts.half_messages), facts.gaps) == (1, ())
    assert broker.pulls == 2  # one page of half messages, and one question for notes


def test_a_search_that_was_cut_short_says_so(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_messages, "MOST_READ", 40)
    crowd = [Stored(HALF_TOPIC, offset=n, txn_id="f" * 32, seconds=1.0) for n in range(50)]
    (gap,) = look(b1=Broker(crowd)).gaps
    assert "up to 1 s after the transaction began: 40 of them, no more are read" in gap


def test_what_the_broker_no_longer_keeps_is_a_gap(look: Look) -> None:
    later = Stored(HALF_TOPIC, offset=70, txn_id="f" * 32, seconds=3600.0)
    (gap,) = look(b1=Broker([later], first=70)).gaps
    assert "no half messages of that time any more, if it had any: the oldest is 3600 s younger" in gap
    (gap,) = look(b1=Broker(first=70)).gaps
    assert gap == "broker b1 has no half messages any more, of any time"
    old = Stored(HALF_TOPIC, offset=70, txn_id="f" * 32, seconds=-3600.0)
    assert look(b1=Broker([old, replace(later, offset=71)], first=70)).gaps == ()


def test_a_crowd_that_carries_one_id_is_not_read_to_its_end(look: Look) -> None:
    """Who may send to a topic may send a thousand."""
    crowd = [Stored(HALF_TOPIC, offset=n, message_id=f"ID-{n}") for n in range(200)]
    facts = look(b1=Broker(crowd))
    assert len(facts.half_messages) == 64
    assert facts.gaps == ("broker b1 has 64 half messages with its id, more are not read",)


def test_a_broker_without_an_index_is_a_gap(look: Look) -> None:
    (gap,) = look("ID-0", b1=Broker([HALF], indexed=False)).gaps
    assert "is messageIndexEnable=true" in gap


def test_a_name_server_that_is_away_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise ConnectionRefusedError("nobody is there")

    monkeypatch.setattr(wire.socket, "create_connection", refuse)
    (gap,) = look_up(ClusterSettings(NAME_SERVER), TXN, [], []).gaps
    assert gap.startswith("no broker was asked: ")


def test_an_answer_of_the_wrong_kind_is_a_gap(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once, though each question got it."""
    monkeypatch.setattr(Broker, "says", lambda *_: frame({"code": 1, "flag": 1, "opaque": 1, "remark": "no"}))
    assert look(b1=Broker()).gaps == ("broker b1: the server answered code 1: no",)


class Guarded(Broker):
    """It lets nobody read its notes, as access control has it for a service."""

    def says(self, code: int, asked: dict[str, str]) -> bytes:
        """Refuse, or answer."""
        refused = answer(code=16, remark="not yours")
        return refused if asked["topic"] == OP_TOPIC else super().says(code, asked)


def test_a_broker_that_lets_nobody_read_its_notes_tells_what_it_published(look: Look) -> None:
    """And from what was not read nothing is concluded."""
    (half,) = look("ID-0", b1=Guarded([HALF], DONE)).half_messages
    assert half.fate is Fate.UNCLEAR
    facts = look("ID-0", b1=Guarded([HALF, PUBLISHED], DONE))
    assert [item.fate for item in facts.half_messages] == [Fate.COMMITTED]
    assert facts.gaps == ("broker b1: the server answered code 16: not yours",)
