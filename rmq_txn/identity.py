"""Who a transaction is: its id, the owner that may decide it, and the properties that carry both."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from dataclasses import dataclass, field

from rmq_txn.errors import SettingsError

PROPERTY_TXN_ID = "rmq_txn_id"
PROPERTY_POSITION = "rmq_txn_n"
PROPERTY_OWNER = "rmq_txn_owner"
PROPERTY_STAMP = "rmq_txn_stamp"
# Names of the user's properties: the native client can read a property only by its name.
PROPERTY_NAMES = "rmq_txn_names"
MAX_DEDUP_KEY_BYTES = 255
OWN_PROPERTIES = (PROPERTY_TXN_ID, PROPERTY_POSITION, PROPERTY_OWNER, PROPERTY_STAMP)
# What a check-back is told of its half message; the last one is W3C's trace context (rmq_txn.telemetry).
CHECK_PROPERTIES = (*OWN_PROPERTIES, "traceparent")

_TXN_ID = re.compile(r"[0-9a-f]{32}")
# Canonical and short: it becomes part of a key, and comes from whoever can send to the topic.
_POSITION = re.compile(r"0|[1-9][0-9]{0,3}")
# Group and database id; a group has 120 characters, a UUID 36.
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,120}@[0-9A-Za-z-]{1,36}")
_STAMP_BYTES = 16  # half of the HMAC; nobody guesses 128 bits, and the broker stores them with each message
_MILLISECONDS_DIGITS = 12  # 48 bits of Unix milliseconds: good until the year 10889


def new_txn_id(unix_seconds: float | None = None) -> str:
    """
    Make a transaction id: 32 hex characters, 48 bits of Unix milliseconds, then 80 random bits.

    Args:
        unix_seconds: now, by the database's clock; by this machine's if not given.

    Time-ordered, so that rows keyed by it are inserted at the right edge of the B-tree and can be
    pruned as a key range. Unique by its random part; two ids of one millisecond have no order.
    """
    milliseconds = time.time_ns() // 1_000_000 if unix_seconds is None else int(unix_seconds * 1000)
    return f"{milliseconds:012x}{os.urandom(10).hex()}"


def is_txn_id(text: str) -> bool:
    """Whether `text` has the form of a transaction id of this package."""
    return _TXN_ID.fullmatch(text) is not None


def require_txn_id(text: str) -> None:
    """Raise `SettingsError` if what a person gave has not the form of a transaction id."""
    if not is_txn_id(text):
        raise SettingsError(
            f"TXN_ID is {text!r}, allowed are 32 hex digits in lower case, as in log lines and receipts"
        )


def is_position(text: str) -> bool:
    """Whether `text` has the form of a position: a decimal number below 10,000, written one way."""
    return _POSITION.fullmatch(text) is not None


def age_seconds(txn_id: str, now: float | None = None) -> float:
    """
    Seconds since `txn_id` was made; negative when clocks disagree.

    Args:
        now: Unix seconds by the clock to judge by; by this machine's if not given.
    """
    return (time.time() if now is None else now) - made_at(txn_id)


def owner_of(producer_group: str, database_id: str) -> str:
    """
    Name the only ones who may answer a check-back: this producer group on this database.

    Brokers ask *any* producer of a group. Two services that share a group by mistake have
    different databases, and neither holds the other's evidence.
    """
    return f"{producer_group}@{database_id}"


@dataclass(frozen=True, slots=True)
class Owner:
    """
    The only ones who may answer a check-back, and what they sign with. A value.

    Args:
        name: see `owner_of`; readable by everybody who can read a message.
        secret: of the database; only who can read that knows it.
    """

    name: str
    secret: bytes = field(repr=False)

    def stamp(self, txn_id: str, position: int) -> str:
        """Sign one half message: what its asker can check, and no stranger can make."""
        text = f"{txn_id}.{position}@{self.name}"
        return hmac.digest(self.secret, text.encode(), "sha256")[:_STAMP_BYTES].hex()

    def is_stamp(self, stamp: str, txn_id: str, position: int) -> bool:
        """Whether `stamp` is the one of this half message, in a time that tells nothing."""
        return hmac.compare_digest(stamp.encode(), self.stamp(txn_id, position).encode())


def is_owner(text: str) -> bool:
    """Whether `text` has the form of an owner: what `owner_of` makes."""
    return _OWNER.fullmatch(text) is not None


def dedup_key(txn_id: str, position: int, topic: str, owner: str) -> str:
    """
    Key under which a consumer remembers message number `position` (from 0) of a transaction.

    The id first: rows are inserted in the order of time. Then what else makes it this message: a
    message of another topic, or of another database, that carries the same id is another one
    (docs/decisions/0039). At most 182 bytes.
    """
    return f"{txn_id}.{position}/{_short(topic, 127)}/{_digest(owner)[:16]}"


def former_dedup_key(txn_id: str, position: int) -> str:
    """Key of the same message in the rows of version 2 and older."""
    return f"{txn_id}.{position}"


def foreign_dedup_key(topic: str, message_id: str) -> str:
    """Key of a message that another client sent: topic and unique key, each at most 127 bytes."""
    return f"{_short(topic, 127)}/{_short(message_id, 127)}"


def _short(text: str, limit_bytes: int) -> str:
    """Return `text`, or a digest of it: a stranger may send longer ones than any client of RocketMQ."""
    return text if len(text.encode("utf-8", "backslashreplace")) <= limit_bytes else f"sha256:{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def made_at(txn_id: str) -> float:
    """Unix seconds at which `txn_id` was made, by its producer's clock."""
    return int(txn_id[:_MILLISECONDS_DIGITS], 16) / 1000


def least_txn_id(unix_seconds: float) -> str:
    """Return an id below all that are made from then on, and above all that were made before."""
    return f"{max(0, int(unix_seconds * 1000)):012x}".ljust(32, "0")
