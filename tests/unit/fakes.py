"""
FAKES. A transport and a database without servers, for refusals that come before anything is sent.

They record what they are asked to do, so that a test can say "nothing was". They prove nothing about
commits: that is what the contract and integration tiers are for, on real servers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rmq_txn import Database, schema
from rmq_txn.database.connection import ServerThread
from rmq_txn.database.pool import ConnectionPool
from rmq_txn.database.session_state import SessionState
from rmq_txn.database.sideline import Sideline
from rmq_txn.errors import DatabaseUnavailableError
from rmq_txn.message import Outbound
from rmq_txn.producer.presence import Presence
from rmq_txn.transport import Checker, Deliver, Execute, Lag, TagFilter

URL = "mysql://app:pw@127.0.0.1:1/shop"


class FakeTransport:
    """FAKE. Takes every half message and runs `execute`; nothing is delivered or asked."""

    def __init__(self) -> None:
        self.sent: list[Outbound] = []
        self.life: list[str] = []
        self.subscriptions: dict[str, tuple[str, ...]] = {}
        self.problem: Exception | None = None
        self.registered: bool | Exception = True
        self.topics: tuple[str, ...] = ()

    def producer(self, group: str, check: Checker) -> FakeClient:
        """See Transport."""
        return FakeClient(self)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> FakeClient:
        """See Transport."""
        self.subscriptions = {topic: tuple(tags) for topic, tags in subscriptions.items()}
        return FakeClient(self)


class FakeClient:
    """FAKE. Both kinds of client."""

    def __init__(self, transport: FakeTransport) -> None:
        self._transport = transport

    def start(self, topics: Sequence[str] = ()) -> None:
        """Remember the topics, and fail with the transport's problem, if it has one."""
        self._transport.topics = tuple(topics)
        self._transport.life.append("start")
        if self._transport.problem is not None:
            raise self._transport.problem

    def send_half(self, message: Outbound, execute: Execute) -> None:
        """Take the message."""
        self._transport.sent.append(message)
        execute("FAKE-ID")

    def send_plain(self, _message: Outbound, _message_id: str) -> None:
        """Take the message."""

    def is_published(self, _message: Outbound, _message_id: str) -> bool:
        """Show nothing."""
        return False

    def is_registered(self, _topic: str) -> bool:
        """Say what the transport was told to; the broker of a fake knows everybody."""
        if isinstance(self._transport.registered, Exception):
            raise self._transport.registered
        return self._transport.registered

    def lag(self) -> Lag:
        """Say that nothing waits."""
        return Lag(0, 0)

    def filters(self) -> tuple[TagFilter, ...]:
        """Say that nothing is left out."""
        return ()

    instance = "fake-instance"

    def registered_clients(self, topic: str) -> dict[str, frozenset[str]]:
        """Say what `is_registered` says, for one broker."""
        return {"fake": frozenset([self.instance] if self.is_registered(topic) else [])}

    def close(self, *_seconds: float) -> None:
        """Close."""
        self._transport.life.append("close")


class FakeSession:
    """FAKE. Accepts every statement, so that only the producer's own refusals are tested."""

    def __init__(self, txn_id: str, statements: list[str]) -> None:
        self.txn_id = txn_id
        self.state = SessionState.OPEN
        self.server_thread = ServerThread(0, "fake", (0.0, 0.0))
        self._statements = statements
        self.began = time.monotonic()
        self.cursor = SimpleNamespace(mogrify=lambda sql, _args: sql)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Record a statement."""
        self._statements.append(sql)
        return len(rows)

    def execute(self, sql: str, args: Any = None) -> int:
        """Record a statement."""
        self._statements.append(sql)
        return 1

    def insert_new(self, sql: str, args: Any) -> bool:
        """Record a statement; no key is ever taken."""
        return self.execute(sql, args) == 1

    def write_last(self, sql: str, args: Any, copies: Iterator[str], *, release: bool) -> bool:
        """Record the statements."""
        self._statements.extend([sql, *copies])
        return True

    def fail(self, error: BaseException) -> BaseException:
        """Record ROLLBACK; nothing is ever lost."""
        self.rollback()
        return error

    def commit(self) -> None:
        """Record COMMIT."""
        self._statements.append("COMMIT")
        self.state = SessionState.COMMITTED

    def rollback(self) -> bool:
        """Record ROLLBACK, once."""
        if self.state is SessionState.OPEN:
            self._statements.append("ROLLBACK")
            self.state = SessionState.ROLLED_BACK
        return self.state is SessionState.ROLLED_BACK


class FakePool:
    """FAKE. Refuses every connection."""

    def borrow(self) -> None:
        """Refuse."""
        raise DatabaseUnavailableError("this is a fake")

    def close(self) -> None:
        """Close."""


class FakeDatabase:
    """FAKE. Hands out fake sessions and records their statements."""

    def __init__(self, pool_size: int = 16) -> None:
        self.pool_size = pool_size
        self.statements: list[str] = []

    local_timeout_seconds = 60

    def sideline(self, purpose: str) -> Sideline:
        """Hand out a connection that nobody can make."""
        return Sideline(cast(ConnectionPool, FakePool()), purpose)

    def begin(self, txn_id: str, *, ours_first: bool = False) -> FakeSession:
        """Open a fake session."""
        return FakeSession(txn_id, self.statements)

    @property
    def as_database(self) -> Database:
        """Return this, called a Database."""
        return cast(Database, self)


def fake_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer the schema check, and take the producer's row, without a server."""
    identity = schema.Identity("fake-database-id", b"fake secret", None)
    monkeypatch.setattr(schema, "check", lambda _database: identity)
    monkeypatch.setattr(Presence, "_write", lambda _presence, *, closing: [])
