"""Settings of the points service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from demo_chassis.settings import ServiceSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServiceSettings):
    """
    See ServiceSettings.

    Attributes:
        threads: messages handled at once, 1 to 200; each holds a database connection.
        http_threads: requests handled at once, 1 to 200; each may hold a database connection.
        max_attempts: failures of its handler after which a message is parked, 1 to 16.
    """

    prefix: ClassVar[str] = "POINTS_SERVICE_"
    limits: ClassVar[Mapping[str, tuple[int, int]]] = {
        **ServiceSettings.limits,
        "threads": (1, 200),
        "http_threads": (1, 200),
        "max_attempts": (1, 16),
    }

    port: int = 8002
    threads: int = 4
    http_threads: int = 8
    max_attempts: int = 8
