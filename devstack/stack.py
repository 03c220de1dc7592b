"""The seam: what demo, tests, benchmarks and fault runs may ask of any stack."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class ServerHandle(Protocol):
    """
    One running server. Methods may be called from any thread and return when it is done.

    A start after kill() or stop() serves the same data on the same ports.
    """

    @property
    def name(self) -> str:
        """Return the name used in messages."""

    @property
    def alive(self) -> bool:
        """Tell whether the process exists; a paused one does."""

    @property
    def pid(self) -> int:
        """Return the process id; StackError when it doesn't run."""

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait` return only when it serves, else StackError with its log."""

    def stop(self) -> None:
        """Stop it cleanly; nothing when it is down."""

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""

    def pause(self) -> None:
        """Freeze it with SIGSTOP: connections stay, nobody answers."""

    def resume(self) -> None:
        """Let it go on after pause()."""

    def restart(self) -> None:
        """Stop it cleanly and start it again."""

    def wait_ready(self, *, timeout_seconds: float | None = None) -> None:
        """Return when the server itself answers; StackError at the deadline or if it ended."""

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines that it wrote."""


@runtime_checkable
class Stack(Protocol):
    """A name server, a broker, with a proxy if asked for, and a database."""

    @property
    def name_server(self) -> str:
        """Return "host:port" for clients of the remoting protocol."""

    @property
    def broker_address(self) -> str:
        """Return "host:port" of the broker itself."""

    @property
    def proxy_address(self) -> str:
        """Return "host:port" for gRPC clients; StackError when it runs without a proxy."""

    @property
    def namesrv(self) -> ServerHandle:
        """Return the handle of the name server."""

    @property
    def broker(self) -> ServerHandle:
        """Return the handle of the broker, which contains the proxy if there is one."""

    @property
    def database(self) -> ServerHandle:
        """Return the handle of the database server."""

    def database_url(self, name: str) -> str:
        """Return "mysql://user:password@host:port/name" of a database made if it is missing."""

    def create_topic(self, name: str, queues: int = 4) -> None:
        """Create a topic and return when clients can find it."""
