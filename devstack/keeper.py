"""Keeps a server up as a service manager does, and keeps the log of each of its lives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from devstack.errors import StackError
from devstack.server import Server

_LOOK_SECONDS = 0.2
# A service that finds no broker or database ends at once: do not start it in a tight loop.
_RESTART_SECONDS = 1.0


class Keeper:
    """
    Starts a server again whenever it is down and not held. Thread-safe.

    Args:
        server: started by somebody else the first time.
        keep_logs: keep the log of each life, as `<name>.<number>.log` beside the current one.
    """

    def __init__(self, server: Server, *, keep_logs: bool = False) -> None:
        self.server = server
        self.starts = 0
        self._keep_logs = keep_logs
        self._lives: list[Path] = []
        self._held = threading.Event()
        self._stopping = threading.Event()
        self._acting = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {server.name}", daemon=True)
        self._thread.start()

    @property
    def logs(self) -> list[Path]:
        """Return the log files of all its lives, oldest first."""
        return [*self._lives, self.server.log_path]

    def hold(self) -> None:
        """Start it no more until `release`; a start that runs is waited for."""
        self._held.set()
        with self._acting:
            pass

    def release(self) -> None:
        """Keep it up again."""
        self._held.clear()

    def close(self) -> None:
        """Let it be."""
        self._stopping.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            with self._acting:
                if self._held.is_set() or self.server.alive:
                    continue
                if self._keep_logs and self.server.log_path.exists():
                    life = self.server.log_path.with_suffix(f".{len(self._lives)}.log")
                    self._lives.append(self.server.log_path.rename(life))
                try:
                    self.server.start(wait=False)
                    self.starts += 1
                except StackError as error:
                    print(f"keeper: {error}", flush=True)
            self._stopping.wait(_RESTART_SECONDS)


@contextmanager
def kept_up(*servers: Server) -> Iterator[None]:
    """Keep servers up while a block runs; nothing is stopped at its end."""
    with ExitStack() as cleanup:
        for server in servers:
            cleanup.callback(Keeper(server).close)
        yield
