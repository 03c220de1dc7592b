"""What a server tells about a session in the answers to its statements (docs/decisions/0032)."""

from __future__ import annotations

import functools

# What a session is asked to tell, for the statement that sets it up. MySQL's '*' of variables would tell of
# each statement that it has a number; that anything changed is told anyway.
TRACK = (
    "session_track_state_change = ON, session_track_schema = ON, "
    "session_track_system_variables = 'character_set_client', session_track_transaction_info = 'STATE'"
)

# Of the protocol, unknown to PyMySQL: SERVER_SESSION_STATE_CHANGED, and the kinds of news that follow it.
NEWS = 0x4000
SYSTEM_VARIABLE, SCHEMA, ANYTHING, TRANSACTION_STATE = 0, 1, 2, 5


@functools.lru_cache(maxsize=256)
def read_news(message: bytes) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """
    Read what follows the status in an answer: a text for people, then kinds and contents.

    Remembered: each transaction brings the same two or three, which took 16 function calls of the 256 of one.
    """
    _, at = sized(message, 0)
    news, _ = sized(message, at)
    found, at = [], 0
    while at < len(news):
        content, end = sized(news, at + 1)
        found.append((news[at], tuple(_texts(content))))
        at = end
    return tuple(found)


def _texts(content: bytes) -> list[str]:
    found, at = [], 0
    while at < len(content):
        text, at = sized(content, at)
        found.append(text.decode("utf-8", "replace"))
    return found or [""]


def sized(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the bytes behind a length-encoded size, and where they end."""
    size, at = data[at], at + 1
    if size > 0xFA:
        width = {0xFC: 2, 0xFD: 3, 0xFE: 8}[size]
        size, at = int.from_bytes(data[at : at + width], "little"), at + width
    return data[at : at + size], at + size
