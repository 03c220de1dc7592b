"""What brokers say of one transaction, as values; `half_messages` asks for them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fate(enum.Enum):
    """What became of a half message."""

    OPEN = "open"
    """The broker has noted no verdict: it asks, or asks again."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    GIVEN_UP = "given up"
    """The broker asked as often as it does, and dropped it."""
    UNCLEAR = "unclear"
    """The broker did not say: it has no index of keys, or lets nobody read its notes. A gap says which."""


class Way(enum.Enum):
    """How a message came into its topic."""

    VERDICT = "verdict"
    """By the verdict of its producer."""
    CHECK_BACK = "check-back"
    """By the answer to a check-back."""
    PLAIN = "plain"
    """As a plain message: by the relay, or by hand."""


@dataclass(frozen=True, slots=True)
class HalfMessage:
    """One half message. Its properties are what its sender wrote, whoever that was."""

    broker: str
    message_id: str
    topic: str
    """Where it is to be published."""
    owner: str
    stamp: str
    position: int
    after_seconds: float
    """When it was stored, by the broker's clock, since its transaction began by the clock of its producer."""
    check_backs: int
    """How often the broker has asked about it."""
    fate: Fate


@dataclass(frozen=True, slots=True)
class Published:
    """One message as consumers see it; the same message may be there several times."""

    broker: str
    topic: str
    queue: int
    offset: int
    message_id: str
    position: int
    after_seconds: float
    """As of a half message."""
    way: Way
    check_backs: int
    """Which question was answered; 0 if none was."""
    waiting: tuple[tuple[str, int], ...] = ()
    """Groups that have not read it yet, and how many messages of its queue come before it for each."""
    read_by: tuple[str, ...] = ()
    """Groups that have read past it."""


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """
    What brokers say of one transaction.

    Attributes:
        gaps: what could not be asked or told, a sentence each; empty if all was.
    """

    half_messages: tuple[HalfMessage, ...] = ()
    published: tuple[Published, ...] = ()
    gaps: tuple[str, ...] = ()
