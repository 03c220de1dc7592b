"""What brokers dropped, read from brokers that go away or can't find messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.dropped import HalfMessageStore
from rmq_txn.remoting.server import TOPIC_NOT_EXIST, RemotingError


class Broker:
    """A broker that gave up two messages, and goes away after the first of them was read."""

    def __init__(self, *, goes: bool = False, gave_up: bool = True, **settings: str) -> None:
        self._goes, self._gave_up, self._settings, self._gone = goes, gave_up, settings, False

    def broker_config(self) -> dict[str, str]:
        return self._settings

    def max_offset(self, _topic: str, _queue: int) -> int:
        if not self._gave_up:
            raise RemotingError(TOPIC_NOT_EXIST, "no such topic")
        return 2

    def min_offset(self, _topic: str, _queue: int) -> int:
        return 0

    def offset_at(self, _topic: str, _queue: int, _milliseconds: int) -> int:
        return 0

    def read(self, _topic: str, _queue: int, _offset: int, _most: int) -> Iterator[str]:
        yield "first"
        self._gone = self._goes
        self._require()
        yield "second"

    def messages_with_id(self, topic: str, message_id: str) -> list[str]:
        self._gone = self._goes
        self._require()
        return [f"{message_id} of {topic}"]

    def _require(self) -> None:
        if self._gone:
            raise BrokerUnavailableError("nobody is there")


class Cluster:
    """Brokers by name, all of which have a master."""

    def __init__(self, **brokers: Broker) -> None:
        self._brokers = brokers

    def every_master(self) -> tuple[list[tuple[str, Any]], list[str]]:
        return list(self._brokers.items()), [] if self._brokers else ["no broker is registered"]


def store(**brokers: Broker) -> HalfMessageStore:
    """Open the store of made-up brokers."""
    cluster: Any = Cluster(**brokers)
    return HalfMessageStore(cluster)


def test_a_broker_that_goes_away_between_two_messages_is_a_gap_once_and_the_others_are_read() -> None:
    """It is left out by a question about the first message, and then by the end of its own reading."""
    opened = store(b1=Broker(goes=True), b2=Broker())
    read: list[Any] = []
    for message in opened.given_up(0.0):
        read.append(message)
        opened.copies("ID")
    assert read == ["first", "first", "second"]
    assert opened.gaps == ["broker b1: nobody is there"]
    assert opened.published("transfer", "ID") == ["ID of transfer"]  # b2 has it


def test_a_broker_that_never_gave_up_has_no_such_topic_and_is_no_gap() -> None:
    opened = store(b1=Broker(gave_up=False))
    assert (list(opened.given_up(0.0)), opened.gaps) == ([], [])


def test_a_broker_that_finds_nothing_by_id_is_a_gap() -> None:
    (gap,) = store(b1=Broker(messageIndexEnable="false")).gaps
    assert gap.startswith("broker b1 finds no messages by their id")


def test_without_a_broker_nothing_is_opened() -> None:
    with pytest.raises(BrokerUnavailableError, match="no broker is registered"):
        store()
