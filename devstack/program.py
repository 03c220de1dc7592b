"""What a kind of server consists of: command line, files, and the question "do you serve?"."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class NotReadyError(Exception):
    """A server can't answer yet; the text says what it said, for the error at the deadline."""


class ServerProgram(Protocol):
    """What a kind of server is made of; `Server` does the rest."""

    name: str
    folder: Path  # the stack's folder, where the process works
    ports: tuple[int, ...]
    ready_seconds: float  # how long a start may take
    stop_seconds: float  # how long a clean stop may take before it is killed
    more_logs: tuple[Path, ...]  # files it writes besides stdout and stderr

    def prepare(self) -> None:
        """Write configuration and initialise data; repeated before each start."""

    def command(self) -> list[str]:
        """Return the path of the program and its arguments."""

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the process."""

    def probe(self) -> None:
        """Ask the server itself whether it serves; raise NotReadyError while it doesn't."""
