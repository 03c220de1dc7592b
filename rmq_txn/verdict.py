"""The answers given to a broker. Enums, not integers: `False` would be COMMIT to the native client."""

from __future__ import annotations

import enum


class Verdict(enum.Enum):
    """What becomes of a half message."""

    COMMIT = "commit"
    """The local transaction is committed: deliver."""
    ROLLBACK = "rollback"
    """The local transaction is proven never to commit: drop."""
    UNKNOWN = "unknown"
    """Any doubt: the broker asks again."""


class Answer(enum.Enum):
    """What becomes of a delivery."""

    ACK = "ack"
    """The handler's transaction is committed, or an earlier delivery's was."""
    RETRY = "retry"
    """Deliver again later."""
