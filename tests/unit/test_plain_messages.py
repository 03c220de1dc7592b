"""Publishing again: which broker is tried, in which case the message is refused, what is remembered."""

from __future__ import annotations

import time
import zlib
from types import SimpleNamespace
from typing import Any

import pytest

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError
from rmq_txn.message import Outbound
from rmq_txn.remoting.answers import Master
from rmq_txn.remoting.plain_messages import PlainSender
from rmq_txn.remoting.server import RemotingError
from rmq_txn.remoting.stored_message import COMPRESSED, StoredMessage

MESSAGE = Outbound("t", b"x", None, None, {})
AWAY = BrokerUnavailableError("away")
BUSY = RemotingError(2, "the broker is busy")
ILLEGAL = RemotingError(13, "too large")


class Cluster:
    """FAKE. Masters of one topic, each with what it answers; remembers who was asked."""

    send_timeout_seconds = 3.0

    def __init__(self, **masters: Exception | None) -> None:
        self.answers = masters
        self.asked: list[str] = []
        self.lines: list[Any] = []
        self.stored: dict[str, list[StoredMessage]] = {}
        self.routes = 0

    def masters(self, _topic: str) -> list[Master]:
        """Say who there is."""
        self.routes += 1
        return [Master(address, address, 4) for address in self.answers]

    def ask(self, address: str, line: Any = None, **_settings: Any) -> Any:
        """Return a client of that master."""
        self.lines.append(line)

        def store(*_request: object) -> None:
            self.asked.append(address)
            if (problem := self.answers[address]) is not None:
                raise problem

        def messages_with_id(_topic: str, _message_id: str) -> list[StoredMessage]:
            self.asked.append(address)
            if (problem := self.answers[address]) is not None:
                raise problem
            return self.stored.get(address, [])

        return SimpleNamespace(store=store, messages_with_id=messages_with_id, broker_config=unreachable)


def unreachable() -> dict[str, str]:
    """Be a question that nobody answers."""
    raise AWAY


def sender(cluster: Cluster) -> PlainSender:
    """Make a sender to a fake cluster."""
    broker: Any = cluster
    return PlainSender(broker, "g")


@pytest.mark.parametrize("problem", [AWAY, BUSY], ids=["away", "busy"])
def test_another_master_takes_what_one_does_not(problem: Exception) -> None:
    """Any of them may be the first."""
    for _ in range(20):
        cluster = Cluster(one=problem, two=None, three=problem)
        sender(cluster).send(MESSAGE, "ID")
        assert cluster.asked[-1] == "two"
        assert cluster.asked.count("two") == 1


def test_when_none_takes_it_each_was_asked_and_the_error_says_what_each_said() -> None:
    """The relay tries again later."""
    cluster = Cluster(one=AWAY, two=BUSY)
    with pytest.raises(BrokerUnavailableError, match="no broker of topic 't' took the message") as caught:
        sender(cluster).send(MESSAGE, "ID")
    assert sorted(cluster.asked) == ["one", "two"]
    assert "away" in str(caught.value)
    assert "busy" in str(caught.value)


def test_a_topic_without_a_master_says_so() -> None:
    """Not with an empty list of reasons."""
    with pytest.raises(BrokerUnavailableError, match="took the message: none is there"):
        sender(Cluster()).send(MESSAGE, "ID")


def test_a_message_that_one_refuses_is_not_tried_at_the_others() -> None:
    """They have the same limits; the relay must not wait for a broker because of it."""
    cluster = Cluster(one=ILLEGAL, two=ILLEGAL)
    with pytest.raises(InvalidMessageError, match=r"refuses th(e|is) message"):
        sender(cluster).send(MESSAGE, "ID")
    assert len(cluster.asked) == 1


def test_the_masters_of_a_topic_are_asked_for_once_while_all_is_well() -> None:
    """And again after a failure: then they may be others."""
    cluster = Cluster(one=None)
    made = sender(cluster)
    for _ in range(3):
        made.send(MESSAGE, "ID")
    assert cluster.routes == 1
    cluster.answers = {"one": AWAY}
    with pytest.raises(BrokerUnavailableError):
        made.send(MESSAGE, "ID")
    cluster.answers = {"two": None}
    made.send(MESSAGE, "ID")
    assert cluster.asked[-1] == "two"
    assert cluster.routes == 2


def test_the_connection_to_each_master_is_kept() -> None:
    """By address: two masters don't share one."""
    cluster = Cluster(one=BUSY, two=None)
    made = sender(cluster)
    for _ in range(20):
        made.send(MESSAGE, "ID")
    assert None not in cluster.lines
    assert len(set(cluster.lines)) == len(set(cluster.asked)) == 2


OURS = Outbound("t", b"body", "key", None, {"rmq_txn_id": "1", "color": "red"})


def stored(body: bytes = b"body", flags: int = 0, **properties: str) -> StoredMessage:
    """Make a message as a broker has it, with what brokers and clients add."""
    told = {"rmq_txn_id": "1", "color": "red", "KEYS": "key", "UNIQ_KEY": "ID", "TRAN_MSG": "true"}
    return StoredMessage("t", 0, 1, 2, flags, 3, "127.0.0.1:1", 4, 0, body, {**told, **properties})


def test_any_master_may_have_it() -> None:
    """Each stores what was sent to it."""
    for _ in range(10):
        cluster = Cluster(one=None, two=None)
        cluster.stored["two"] = [stored(b"other"), stored()]
        assert sender(cluster).is_published(OURS, "ID")


@pytest.mark.parametrize(
    "other",
    [
        stored(b"other"),
        stored(KEYS="other"),
        stored(TAGS="a tag"),
        stored(color="blue"),
        stored(rmq_txn_id="2"),
        stored(b"no zlib", COMPRESSED),
    ],
    ids=["body", "key", "tag", "property", "our-property", "unreadable"],
)
def test_what_consumers_would_not_take_for_it_is_not_it(other: StoredMessage) -> None:
    """Whoever may send to the topic can repeat an id."""
    cluster = Cluster(one=None)
    cluster.stored["one"] = [other]
    assert not sender(cluster).is_published(OURS, "ID")


def test_a_compressed_body_is_compared_as_it_was_sent() -> None:
    """The client compresses large ones."""
    cluster = Cluster(one=None)
    cluster.stored["one"] = [stored(zlib.compress(b"body"), COMPRESSED)]
    assert sender(cluster).is_published(OURS, "ID")


@pytest.mark.parametrize("problem", [AWAY, RemotingError(16, "no permission")], ids=["away", "refused"])
def test_one_that_can_not_be_asked_may_have_it(problem: Exception) -> None:
    """Unless another has it; and its address is asked for anew."""
    cluster = Cluster(one=problem, two=None)
    made = sender(cluster)
    with pytest.raises(BrokerUnavailableError, match=r"not every broker of topic 't' says.*one: "):
        made.is_published(OURS, "ID")
    cluster.stored["two"] = [stored()]
    assert made.is_published(OURS, "ID")
    assert cluster.routes == 2


def test_the_masters_are_asked_for_anew_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was deposed may go on to show what its successor never had."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    cluster = Cluster(old=None)
    cluster.stored["old"] = [stored()]
    made = sender(cluster)
    assert made.is_published(OURS, "ID")
    cluster.answers = {"new": None}
    now += 11.0
    assert not made.is_published(OURS, "ID")
    made.send(OURS, "ID")
    assert cluster.asked == ["old", "new", "new"]
    assert cluster.routes == 2


def test_sending_and_looking_share_what_is_known_of_the_masters() -> None:
    """A relay looks before it sends: one question to a name server for both."""
    cluster = Cluster(one=None)
    made = sender(cluster)
    for _ in range(3):
        assert not made.is_published(OURS, "ID")
        made.send(OURS, "ID")
    assert cluster.routes == 1
