"""
Whether a transfer would earn its points now: asked of broker and database, when somebody asks this service.

The account service has a file much like this one; the services share no code.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

import structlog

from demo_points_service.awards import Points
from demo_points_service.models import HealthAnswer
from rmq_txn import IdempotentConsumer
from rmq_txn.errors import BrokerUnavailableError, DatabaseUnavailableError, LifecycleError

log = structlog.get_logger("points_service.health")
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


class Health:
    """What GET /health says. For one event loop."""

    def __init__(self, consumer: IdempotentConsumer, points: Points) -> None:
        self._consumer = consumer
        self._points = points
        self._broker = Question(self._ask_broker, (_SILENT, "unknown"))
        self._database = Question(self._ask_database, _SILENT)
        self._said: HealthAnswer | None = None

    async def look(self) -> HealthAnswer:
        """Ask broker and database at once; takes ANSWER_SECONDS at most."""
        (broker, registered), database = await asyncio.gather(self._broker.answer(), self._database.answer())
        state = self._consumer.state.value
        healthy = state == "running" and broker == registered == database == OK
        answer = HealthAnswer(
            status="ok" if healthy else "unavailable",
            consumer=state,
            registered=registered,
            broker=broker,
            database=database,
        )
        if answer != self._said:
            self._said = answer
            (log.info if healthy else log.warning)("health changed", **answer.model_dump())
        return answer

    def _ask_broker(self) -> tuple[str, str]:
        """Ask every broker of the topic; return how they are, and whether they know this consumer."""
        try:
            known = self._consumer.is_registered()
        except BrokerUnavailableError as error:
            log.info("the brokers can't be asked", cause=str(error))
            return _AWAY, "unknown"
        except LifecycleError:  # not running, which the state says
            return "not asked", "unknown"
        return OK, OK if known else "a broker does not know this consumer yet, it would not deliver to it"

    def _ask_database(self) -> str:
        try:
            self._points.ping()
        except DatabaseUnavailableError as error:
            log.info("the database can't be reached", cause=str(error))
            return _AWAY
        return OK
