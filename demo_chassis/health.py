"""Whether a service would do its work now: asked of broker and database, when somebody asks the service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

import structlog

from rmq_txn import IdempotentConsumer, TransactionProducer
from rmq_txn.errors import BrokerUnavailableError, DatabaseUnavailableError, LifecycleError

log = structlog.get_logger("demo.health")
T = TypeVar("T")

OK: Final = "ok"
ANSWER_SECONDS: Final = 2.0
"""Probes wait for some seconds; a health check that hangs tells them nothing."""
_SILENT = f"no answer within {ANSWER_SECONDS:g} s"
_AWAY = "does not answer"


class Question(Generic[T]):
    """
    A question to a server that may hang: whoever wants to know shares the answer. For one event loop.

    Not in the threads of the requests: those may all be waiting. On a daemon thread: one that hangs
    does not hold up the end of the process.

    Args:
        ask: asks; returns what is known.
        silent: what is known when the answer takes too long.
    """

    def __init__(self, ask: Callable[[], T], silent: T) -> None:
        self._ask = ask
        self._silent = silent
        self._asked: Future[T] | None = None

    async def answer(self) -> T:
        """Ask, unless a question is on its way; return the answer, or `silent` in time."""
        if self._asked is None or self._asked.done():
            asked: Future[T] = Future()
            # Noted once the thread runs: a question that nobody asks would be waited for for ever.
            threading.Thread(target=self._run, args=(asked,), name="health", daemon=True).start()
            self._asked = asked
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._asked)), ANSWER_SECONDS)
        except asyncio.TimeoutError:
            return self._silent

    def _run(self, asked: Future[T]) -> None:
        try:
            asked.set_result(self._ask())
        except BaseException as error:  # noqa: BLE001 - for whoever waits for the answer
            asked.set_exception(error)


class Domain(Protocol):
    """What the service is about, over its database."""

    def ping(self) -> None:
        """Return if the database answers; else raise DatabaseUnavailableError."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How things stand; "ok", or why not."""

    state: str
    registered: str
    broker: str
    database: str
    problems: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["ok", "degraded", "unavailable"]:
        """
        "ok", "degraded" or "unavailable".

        Problems do not make it unavailable: all processes of a database have the same, so that a load
        balancer would switch all of them off, while the work is done.
        """
        if self.state != "running" or not self.broker == self.registered == self.database == OK:
            return "unavailable"
        return "degraded" if self.problems else "ok"


class Health:
    """
    What GET /health says. For one event loop.

    Args:
        helper: the producer or consumer that does the service's work.
        domain: it asks the database.
        unknown: what follows for the service when a broker does not know `helper`.
    """

    def __init__(
        self,
        helper: TransactionProducer | IdempotentConsumer,
        domain: Domain,
        *,
        unknown: str,
    ) -> None:
        self._helper = helper
        self._domain = domain
        self._unknown = unknown
        self._broker = Question(self._ask_broker, (_SILENT, "unknown"))
        self._database = Question(self._ask_database, _SILENT)
        self._said: Seen | None = None

    async def look(self) -> Seen:
        """Ask broker and database at once; takes ANSWER_SECONDS at most."""
        (broker, registered), database = await asyncio.gather(self._broker.answer(), self._database.answer())
        state = self._helper.state.value
        seen = Seen(state, registered, broker, database, await asyncio.to_thread(self._ask_problems))
        if seen != self._said:
            self._said = seen
            say = log.info if seen.status == OK else log.warning
            say("health changed", status=seen.status, **asdict(seen))
        return seen

    def _ask_broker(self) -> tuple[str, str]:
        """Ask every broker of the topics; return how they are, and whether they know the helper."""
        try:
            known = self._helper.is_registered()
        except BrokerUnavailableError as error:
            log.info("the brokers can't be asked", cause=str(error))
            return _AWAY, "unknown"
        except LifecycleError:  # not running, which the state says
            return "not asked", "unknown"
        return OK, OK if known else self._unknown

    def _ask_database(self) -> str:
        try:
            self._domain.ping()
        except DatabaseUnavailableError as error:
            log.info("the database can't be reached", cause=str(error))
            return _AWAY
        return OK

    def _ask_problems(self) -> tuple[str, ...]:
        try:
            return self._helper.health().problems
        except LifecycleError:  # not running, which the state says
            return ()
