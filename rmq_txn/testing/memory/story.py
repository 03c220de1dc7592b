"""What happened to each message, step by step, for the reader of a failed test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from rmq_txn.identity import PROPERTY_POSITION, PROPERTY_TXN_ID
from rmq_txn.message import Delivery, Outbound

_MOST_EVENTS = 10_000
"""Then the oldest are forgotten: a story is read by people."""


@dataclass(frozen=True, slots=True)
class Event:
    """
    One step of one message.

    Attributes:
        at: seconds of the virtual clock.
        txn_id: of the transaction that published the message; None if it was another client.
        message: how the message is named in the story.
        what: in words.
    """

    at: float
    txn_id: str | None
    message: str
    what: str


class Story:
    """The events of one broker, in order. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def tell(self, at: float, message: Outbound | Delivery, what: str) -> None:
        """Add an event."""
        event = Event(at, message.properties.get(PROPERTY_TXN_ID), _name(message), what)
        with self._lock:
            self._events.append(event)
            del self._events[:-_MOST_EVENTS]

    def events(self, txn_id: str | None = None) -> tuple[Event, ...]:
        """Return the events so far, or those of one transaction."""
        with self._lock:
            found = tuple(self._events)
        return found if txn_id is None else tuple(event for event in found if event.txn_id == txn_id)

    def text(self, txn_id: str | None = None) -> str:
        """Tell it transaction by transaction, in the order in which they began."""
        return "\n".join(_lines(self.events(txn_id)))


def _lines(events: tuple[Event, ...]) -> Iterator[str]:
    for txn_id in dict.fromkeys(event.txn_id for event in events):
        yield f"transaction {txn_id}" if txn_id else "messages that no transaction of rmq_txn published"
        for event in events:
            if event.txn_id == txn_id:
                yield f"  {event.at:>9.1f} s  {event.message}: {event.what}"


def _name(message: Outbound | Delivery) -> str:
    key = f" {message.key}" if message.key else ""
    tag = f" [{message.tag}]" if message.tag else ""
    return f"{message.topic}{tag}{key} #{message.properties.get(PROPERTY_POSITION, '?')}"
