"""
Transactions of a producer for tasks of an event loop: what blocks runs on a thread, a cancellation is told.

A thread can't be cancelled. So a task that is cancelled waits until its transaction has ended, and raises the
cancellation then, with the outcome as its cause (docs/decisions/0060):

    no cause                  nothing was committed
    CancelledTooLateError     COMMIT was sent, and took effect
    InDoubtError              COMMIT was sent, and nobody can say now what became of it
    any other error           the transaction had failed by itself; nothing was committed
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NoReturn, TypeVar, cast

from rmq_txn.aio import AsyncTransaction, OwningThread, once_done, run_on, too_long
from rmq_txn.database.transaction import Join, Transaction
from rmq_txn.deferred import is_async
from rmq_txn.errors import CancelledTooLateError, LifecycleError
from rmq_txn.logs import get_logger
from rmq_txn.producer.receipt import PublishingTransaction, Receipt

log = get_logger("producer")
T = TypeVar("T")

_task_of_block: contextvars.ContextVar[tuple[object, object, str] | None] = contextvars.ContextVar(
    "task_of_block", default=None
)
"""Who is inside which block: producer, task and transaction. A child task inherits it, and is not meant."""


class _Stopped(Exception):
    """Rolls back a transaction whose task was cancelled before COMMIT was sent."""


class _Ending(Join):
    """What is joined, if anything is, and the last look at a cancellation before COMMIT is sent."""

    def __init__(self, joined: Join | None) -> None:
        self._joined = joined
        self.stopped = False

    @property
    def session(self) -> Any:
        """See `Join.session`."""
        if self._joined is None:
            raise LifecycleError("nothing was joined to this transaction; give join= to what began it")
        return self._joined.session

    def begin(self, txn: Transaction) -> None:
        """See `Join.begin`."""
        if self._joined is not None:
            self._joined.begin(txn)

    def flush(self) -> None:
        """See `Join.flush`."""
        if self._joined is not None:
            self._joined.flush()

    def commit(self, commit: Callable[[], None]) -> None:
        """See `Join.commit`."""
        self.require_wanted()
        if self._joined is None:
            commit()
        else:
            self._joined.commit(commit)

    def end(self) -> None:
        """See `Join.end`."""
        if self._joined is not None:
            self._joined.end()

    def after_commit(self) -> None:
        """See `Join.after_commit`."""
        if self._joined is not None:
            self._joined.after_commit()

    def require_wanted(self) -> None:
        """Raise if the task was cancelled."""
        if self.stopped:
            raise _Stopped


class PublishingAsyncTransaction(AsyncTransaction):
    """The running transaction of `async with producer.atransaction()`."""

    def __init__(self, txn: PublishingTransaction, thread: OwningThread) -> None:
        super().__init__(txn, thread)
        self._publishing = txn

    @property
    def receipt(self) -> Receipt[None]:
        """
        The receipt, once the block has ended; also when it was cancelled too late.

        Raises:
            LifecycleError: the block runs still, or did not commit.
        """
        return self._publishing.receipt


async def _tell(cancelled: asyncio.CancelledError, future: Future[Any], began: Sequence[str]) -> NoReturn:
    """Wait for the end of a transaction, then raise the cancellation with what became of it as its cause."""
    if future.cancel():  # it was still waiting for a thread
        raise cancelled
    await once_done(future)
    outcome = future.exception()
    if outcome is None:
        log.warning("cancelled after COMMIT was sent, and committed", txn_id=began[0])
        outcome = CancelledTooLateError(
            "the task was cancelled after COMMIT was sent: it is committed, its messages will be delivered",
            txn_id=began[0],
        )
    raise cancelled from (None if isinstance(outcome, (_Stopped, asyncio.CancelledError)) else outcome)


async def send(
    threads: ThreadPoolExecutor,
    send_in_transaction: Callable[[Callable[[Transaction], T]], Receipt[T]],
    work: Callable[[Transaction], T] | Callable[[AsyncTransaction], Coroutine[Any, Any, T]],
    seconds: float,
) -> Receipt[T]:
    """Run form B on a thread, its work there or on this loop; see `asend_in_transaction`."""
    loop, ending, context = asyncio.get_running_loop(), _Ending(None), contextvars.copy_context()
    began: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    def worked(txn: Transaction) -> T:
        began.append(txn.txn_id)
        ending.require_wanted()
        if is_async(work):
            async_work = cast(Callable[[AsyncTransaction], Coroutine[Any, Any, T]], work)
            value = run_on(loop, context, txn, async_work, seconds=seconds, started=started)
        else:
            value = cast(Callable[[Transaction], T], work)(txn)
        ending.require_wanted()
        return value

    def started(task: asyncio.Task[None]) -> None:
        tasks.append(task)
        if ending.stopped:
            task.cancel()

    future = threads.submit(contextvars.copy_context().run, send_in_transaction, worked)
    cancelled = await once_done(future, waits_on=False)
    if cancelled is not None:
        ending.stopped = True
        for task in tasks:
            task.cancel()
        await _tell(cancelled, future, began)
    return future.result()


class AsyncBlock:
    """
    The block of `async with producer.atransaction()`; its transaction runs on a thread of the producer.

    Used once, by one task.
    """

    def __init__(
        self,
        producer: object,
        threads: ThreadPoolExecutor,
        transaction: Callable[[Join], AbstractContextManager[PublishingTransaction]],
        join: Join | None,
        seconds: float,
    ) -> None:
        self._producer = producer
        self._threads = threads
        self._transaction = transaction
        self._seconds = seconds
        self._ending = _Ending(join)
        self._begun: Future[PublishingAsyncTransaction | None] = Future()  # None: it could not begin
        self._thread: OwningThread | None = None
        self._error: BaseException | None = None

    async def __aenter__(self) -> PublishingAsyncTransaction:
        outer = _task_of_block.get()
        if outer is not None and outer[:2] == (self._producer, asyncio.current_task()):
            raise LifecycleError(
                f"atransaction() inside transaction {outer[2]} of the same producer; publish in the outer one"
            )
        self._future = self._threads.submit(contextvars.copy_context().run, self._run)
        cancelled = await once_done(self._begun, waits_on=False)
        if cancelled is not None:
            self._ending.stopped = True
            if self._thread is not None:
                self._thread.dismiss()
            await _tell(cancelled, self._future, [])
        txn = self._begun.result()
        if txn is None:
            cancelled = await once_done(self._future)
            self._future.result()
            raise cancelled or LifecycleError("the transaction did not begin")
        _task_of_block.set((self._producer, asyncio.current_task(), txn.txn_id))
        return txn

    def _run(self) -> None:
        """Begin, do what the block asks for, and end as it ended: all of it on one thread."""
        try:
            with self._transaction(self._ending) as txn:
                self._thread = thread = OwningThread(self._seconds)
                self._ending.require_wanted()
                self._begun.set_result(PublishingAsyncTransaction(txn, thread))
                try:
                    thread.serve()
                except TimeoutError as error:
                    raise too_long(txn.txn_id, self._seconds) from error
                self._ending.require_wanted()
                if self._error is not None:
                    raise self._error
                thread.require_uninterrupted()
        finally:
            if not self._begun.done():
                self._begun.set_result(None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        txn = self._begun.result()
        if txn is None or self._thread is None:
            return  # never entered
        _task_of_block.set(None)
        self._error = error
        self._thread.dismiss()
        if isinstance(error, GeneratorExit):
            return  # the coroutine is thrown away, and may await no more; the thread rolls back
        if error is None:
            cancelled = await once_done(self._future, waits_on=False)
            if cancelled is not None:
                self._ending.stopped = True
                await _tell(cancelled, self._future, [txn.txn_id])
            self._future.result()
            return
        cancelled = await once_done(self._future)
        self._error = None
        error.__traceback__ = traceback  # without the way through the thread
        outcome = self._future.exception()
        if isinstance(error, asyncio.CancelledError):
            cancelled = error
        if cancelled is not None and cancelled is not outcome:
            raise cancelled from outcome
        if outcome is not None and outcome is not error:
            raise outcome from error
