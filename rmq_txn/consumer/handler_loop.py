"""The event loop of a consumer: its async handlers run there, and nothing of ours blocks it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeAlias

from rmq_txn.aio import AsyncTransaction, run_on
from rmq_txn.consumer.routes import Handler
from rmq_txn.database.transaction import Transaction
from rmq_txn.message import Delivery

AsyncHandler: TypeAlias = Callable[[AsyncTransaction, Delivery], Coroutine[Any, Any, object]]


class HandlerLoop:
    """
    One loop on a thread of its own, made when the first async handler is called. Thread-safe.

    One for all handlers of a consumer, so what is bound to a loop, such as an HTTP client, can be shared.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._handlers = 0
        self._thread: threading.Thread | None = None
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    def runs(self, handler: AsyncHandler) -> Handler:
        """
        Return a handler for a delivery's thread, which runs `handler` on the loop.

        The thread does the statements meanwhile, and returns what the handler returns, or raises what it
        raises.
        """

        def run(txn: Transaction, delivery: Delivery) -> object:
            loop = self._enter()
            try:
                return run_on(loop, contextvars.copy_context(), txn, handler, delivery)
            finally:
                with self._lock:
                    self._handlers -= 1

        return run

    def _enter(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            self._handlers += 1
            if self._thread is None:
                name = f"rmq-txn-{self._group}-loop"
                self._thread = threading.Thread(
                    target=lambda: asyncio.run(self._run()), name=name, daemon=True
                )
                self._thread.start()
        loop, _ = self._running.result()
        return loop

    async def _run(self) -> None:
        stopped = asyncio.Event()
        self._running.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()

    def close(self, timeout_seconds: float) -> None:
        """
        End the loop, with the tasks that handlers left there. Idempotent; it may never have been made.

        While a handler runs, which a close has waited for long enough, the loop is left to end with the
        process, as the thread of a plain handler is: cancelled, it would count as failed.
        """
        with self._lock:
            thread = self._thread
            if thread is None or not thread.is_alive() or self._handlers:
                return
            loop, stopped = self._running.result()
            loop.call_soon_threadsafe(stopped.set)
        thread.join(timeout_seconds)
