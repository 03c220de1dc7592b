"""The states of one database transaction, as far as this process can know them."""

from __future__ import annotations

import enum


class SessionState(enum.Enum):
    """How far a session got. Set only after the server answered, except COMMITTING."""

    OPEN = "open"
    COMMITTING = "committing"
    """COMMIT was sent; until its answer is read nobody here knows."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    LOST = "lost"
    """The connection broke or is out of step, COMMIT not sent. Never committed, rollback not confirmed."""
