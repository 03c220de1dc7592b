"""
A transaction for tasks of an event loop: each statement is awaited, and runs on the transaction's own thread.

A transaction belongs to one thread: the driver blocks there, and the native client calls it back there. So
that thread stays with the transaction, and does what a task asks it for, one thing after the other; the loop
is free meanwhile (docs/decisions/0060).
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from rmq_txn.database.transaction import Transaction
from rmq_txn.deferred import refuse_deferred, refuse_deferring
from rmq_txn.errors import LifecycleError, LocalTimeoutError
from rmq_txn.message import JSON

T = TypeVar("T")

_INTERRUPTED = (
    "an await of a statement was cancelled, nobody here knows whether the statement took effect, so nothing "
    "is committed; let the cancellation leave the block, and put a time limit around the whole block"
)


class OwningThread:
    """
    The thread that a transaction belongs to; made on it. `serve` is for that thread, the rest for any.

    Args:
        seconds: how long `serve` serves at most; None: without end.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._ident = threading.get_ident()
        self._until = None if seconds is None else time.monotonic() + seconds
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._over = False
        self._interrupted = False

    @property
    def is_this(self) -> bool:
        """Whether the caller runs on it."""
        return threading.get_ident() == self._ident

    def serve(self) -> None:
        """
        Do what is asked for until `dismiss`; what was asked before is done first.

        Raises:
            TimeoutError: it took longer than it may; what is asked from now on is refused.
        """
        try:
            while (call := self._next()) is not None:
                call()
        finally:
            with self._lock:
                self._over = True
            with suppress(queue.Empty):
                while True:
                    if (late := self._asked.get_nowait()) is not None:
                        late()  # refuses itself

    def _next(self) -> Callable[[], None] | None:
        if self._until is None:
            return self._asked.get()
        try:
            return self._asked.get(timeout=max(self._until - time.monotonic(), 0.0))
        except queue.Empty:
            raise TimeoutError from None

    def dismiss(self) -> None:
        """Let `serve` return."""
        self._asked.put(None)

    def require_uninterrupted(self) -> None:
        """
        Refuse to go on after an await of a statement was cancelled.

        Raises:
            LifecycleError: it was.
        """
        if self._interrupted:
            raise LifecycleError(_INTERRUPTED)

    def begin(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """
        Let it call `function`, after what was asked before.

        Raises:
            LifecycleError: its transaction is over.
        """
        result: Future[T] = Future()

        def call() -> None:
            if self._over:
                result.set_exception(LifecycleError("the transaction is over; use it inside its block"))
                return
            try:
                result.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001 - told to the task that asked
                result.set_exception(error)

        with self._lock:
            if self._over:
                raise LifecycleError("the transaction is over; use it inside its block")
            self._asked.put(call)
        return result

    async def ask(self, function: Callable[..., T], *arguments: object) -> T:
        """
        Let it call `function`, and return or raise what that did.

        Cancelled meanwhile, the call goes on, and the transaction can only be rolled back.
        """
        self.require_uninterrupted()
        result = self.begin(function, *arguments)
        if (cancelled := await once_done(result, waits_on=False)) is not None:
            self._interrupted = True
            raise cancelled
        return result.result()


async def once_done(future: Future[Any], *, waits_on: bool = True) -> asyncio.CancelledError | None:
    """
    Wait until a future of another thread is done; it is never cancelled.

    Args:
        waits_on: also after this task was cancelled.

    Returns:
        The first cancellation that came meanwhile, to be raised by the caller.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    cancelled: asyncio.CancelledError | None = None
    while not done.is_set():
        try:
            await done.wait()
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            if not waits_on:
                break
    return cancelled


def run_on(
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context,
    txn: Transaction,
    work: Callable[..., Awaitable[T]],
    *arguments: object,
    seconds: float | None = None,
    started: Callable[[asyncio.Task[None]], None] | None = None,
) -> T:
    """
    Run an async function with a transaction of this thread, as a task of another thread's loop.

    Blocks until the task is done; its statements run here meanwhile.

    Args:
        work: gets an `AsyncTransaction`, then `arguments`.
        context: the context variables that the task sees.
        started: gets the task, on its loop.
        seconds: how long it may take, None: without end. Then its task is cancelled.

    Raises:
        LocalTimeoutError: it took longer.
        LifecycleError: the loop is closed, or an await of a statement was cancelled on the way.
        BaseException: what the function raises, CancelledError included.
    """
    thread = OwningThread(seconds)
    result: Future[T] = Future()
    tasks: list[asyncio.Task[None]] = []

    async def run() -> None:
        try:
            result.set_result(await work(AsyncTransaction(txn, thread), *arguments))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised on the thread: SystemExit would end the loop
            result.set_exception(error)

    def finished(_: object) -> None:
        if not result.done():  # cancelled, perhaps before its first step
            result.set_exception(asyncio.CancelledError())
        thread.dismiss()

    def start() -> None:
        tasks.append(loop.create_task(run()))
        tasks[0].add_done_callback(finished)
        if started is not None:
            started(tasks[0])

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    try:
        loop.call_soon_threadsafe(start, context=context)
    except RuntimeError as error:
        raise LifecycleError("the event loop was closed, nothing can run on it") from error
    try:
        thread.serve()
    except TimeoutError as error:
        with suppress(RuntimeError):  # closed meanwhile
            loop.call_soon_threadsafe(cancel)
        raise too_long(txn.txn_id, seconds) from error
    value = result.result()
    thread.require_uninterrupted()
    return value


def too_long(txn_id: str, seconds: float | None) -> LocalTimeoutError:
    """Return the error of a transaction that a task held open for longer than it may."""
    return LocalTimeoutError(
        f"the local transaction took longer than local_timeout_seconds, {seconds:g}; nothing was committed",
        txn_id=txn_id,
    )


class AsyncTransaction:
    """
    A running local transaction, given to async business code. Of no use after its block or handler.

    For one task at a time: what is asked while something else runs waits for its turn. A statement blocks
    the transaction's own thread, never the loop. Cancelling the await of a statement does not stop the
    statement: the transaction can only be rolled back then, and says so.
    """

    def __init__(self, txn: Transaction, thread: OwningThread) -> None:
        self._txn = txn
        self._thread = thread

    @property
    def txn_id(self) -> str:
        """Id of this transaction on every row, message and log line."""
        return self._txn.txn_id

    async def execute(self, sql: str, args: Sequence[Any] | Mapping[str, Any] | None = None) -> int:
        """Run one statement; as `Transaction.execute`, errors too."""
        return await self._thread.ask(self._txn.execute, sql, args)

    async def insert_new(self, sql: str, args: Sequence[Any] | Mapping[str, Any]) -> bool:
        """Run an INSERT of one row; False if its key is taken. As `Transaction.insert_new`."""
        return await self._thread.ask(self._txn.insert_new, sql, args)

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement for each row of arguments; as `Transaction.executemany`."""
        return await self._thread.ask(self._txn.executemany, sql, rows)

    async def run(self, function: Callable[[Transaction], T]) -> T:
        """
        Call a plain function with the blocking `Transaction`, on its thread: code that is written already,
        and what works with a joined session, `txn.session`.

        Raises:
            SettingsError: it is an async function, or returned work that has not run.
            Exception: what the function raises.
        """
        refuse_deferring(function, "function")
        value = await self._thread.ask(function, self._txn)
        refuse_deferred(value, "the function")
        return value

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row of the last `execute`, None after the last one; it is here already."""
        return self._txn.fetchone()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the remaining rows of the last `execute`; they are here already."""
        return self._txn.fetchall()

    def publish(
        self,
        topic: str,
        body: Mapping[str, JSON] | bytes,
        *,
        key: str | None = None,
        tag: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Publish a message if, and only if, this transaction commits; as `Transaction.publish`."""
        self._txn.publish(topic, body, key=key, tag=tag, properties=properties)


async def begin_off_loop(begin: Callable[[], None], undo: Callable[[], None]) -> None:
    """
    Call `begin`, which blocks, on a thread of its own, for `async with`.

    Cancelled meanwhile, wait until it is through, undo it, and raise the cancellation.
    """
    thread = ThreadPoolExecutor(1)
    try:
        future = thread.submit(begin)
        cancelled = await once_done(future)
        if cancelled is not None:
            await once_done(thread.submit(undo))
            raise cancelled
        future.result()
    finally:
        thread.shutdown(wait=False)


async def end_off_loop(end: Callable[[], None]) -> None:
    """Call `end`, which blocks, on a thread of its own; a cancellation is raised when it is through."""
    thread = ThreadPoolExecutor(1)
    try:
        future = thread.submit(end)
        cancelled = await once_done(future)
        future.result()
        if cancelled is not None:
            raise cancelled
    finally:
        thread.shutdown(wait=False)
