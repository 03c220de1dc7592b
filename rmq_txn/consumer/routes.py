"""Which handler a delivery goes to, what is ignored on purpose, and what nobody here wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from rmq_txn.database.transaction import Transaction
from rmq_txn.errors import SettingsError
from rmq_txn.message import Delivery, check_tag, check_topic

Handler: TypeAlias = Callable[[Transaction, Delivery], object]

ANY_TAG = "*"


class Routes:
    """
    The handlers of one consumer, by topic and tag. Filled by one thread, then only read.

    The broker filters nothing for us: members of a group that differ in what they handle would
    swallow each other's messages (docs/decisions/0037).
    """

    def __init__(self) -> None:
        self._handlers: dict[str, dict[str, Handler]] = {}
        self._ignored: set[tuple[str, str | None]] = set()

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that have a handler."""
        return tuple(self._handlers)

    def add(self, topic: str, tag: str, handler: Handler) -> None:
        """Give a topic and tag, or every tag without its own, to a handler; errors as `refuse_taken`."""
        self.refuse_taken(topic, tag)
        self._handlers.setdefault(topic, {})[tag] = handler

    def ignore(self, topic: str, tag: str | None) -> None:
        """Ignore a topic and tag; None: messages without a tag. Errors as `refuse_taken`."""
        self.refuse_taken(topic, tag)
        self._ignored.add((topic, tag))

    def refuse_taken(self, topic: str, tag: str | None) -> None:
        """
        Refuse a second word about the same messages: one of the two would silently not hold.

        Raises:
            InvalidMessageError: topic or tag can't be subscribed to.
            SettingsError: it has a handler, or is ignored.
        """
        check_topic(topic)
        if tag is not None and tag != ANY_TAG:
            check_tag(tag)
        if tag in self._handlers.get(topic, {}):
            raise SettingsError(f"topic {topic!r} with tag {tag!r} has a handler already")
        if (topic, tag) in self._ignored:
            raise SettingsError(f"topic {topic!r} with tag {tag!r} is ignored already")

    def find(self, delivery: Delivery) -> Handler | None:
        """Return the handler of a delivery; None: it is ignored, or this process has none."""
        by_tag = self._handlers.get(delivery.topic, {})
        if delivery.tag in by_tag and delivery.tag != ANY_TAG:
            return by_tag[delivery.tag]
        if (delivery.topic, delivery.tag) in self._ignored:
            return None
        return by_tag.get(ANY_TAG)

    def ignores(self, delivery: Delivery) -> bool:
        """Whether a delivery without a handler is ignored on purpose."""
        return bool({(delivery.topic, delivery.tag), (delivery.topic, ANY_TAG)} & self._ignored)
