"""What a kind of server consists of: command line, files, and the question "do you serve?"."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from devstack.errors import StackError

_PROBE_PAUSE_SECONDS = 0.2  # a probe is work and log lines for a server that is busy starting


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


def wait_until_ready(
    seconds: float, alive: Callable[[], bool], probe: Callable[[], None], report: Callable[[str], str]
) -> None:
    """Return when a server answers its probe; StackError with a report at the deadline or if it ended."""
    deadline = time.monotonic() + seconds
    while True:
        if not alive():
            raise StackError(report("ended before it was ready"))
        try:
            probe()
        except NotReadyError as exc:
            if time.monotonic() > deadline:
                raise StackError(report(f"not ready after {seconds:g} s: {exc}")) from exc
        else:
            return
        time.sleep(_PROBE_PAUSE_SECONDS)
