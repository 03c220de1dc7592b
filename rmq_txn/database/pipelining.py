"""
Several statements in one write, their answers read afterwards: one round trip instead of some.

The protocol of MySQL and MariaDB allows it: the server reads the next command when it has answered the one
before. What stands between may not bear it (docs/decisions/0073-what-can-wait-is-sent-together.md).
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_BYTES = 2_000_000
"""Sent before the first answer is read. Twice what the driver puts into one INSERT of many rows."""


@dataclass
class Pipelining:
    """
    What is known about a server, and what stands before it. Shared by the connections of a database.

    Attributes:
        allowed: whether statements that come in one write are answered; None: not tried yet. Two threads may
            try at the same time, and find the same.
    """

    allowed: bool | None = None
