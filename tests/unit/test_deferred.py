"""Work that was handed back to be run later: refused at registration, or when it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from rmq_txn.deferred import is_async, refuse_deferred, refuse_deferring
from rmq_txn.errors import SettingsError


async def award(*_args: object) -> None:
    """Never awaited."""


async def stream(*_args: object) -> AsyncIterator[int]:
    """Never iterated."""
    yield 1


def steps(*_args: object) -> Iterator[int]:
    """Never iterated."""
    yield 1


def plain(*_args: object) -> None:
    """Do it at once."""


class Awarder:
    """Async in every way a class can be."""

    async def __call__(self, *_args: object) -> None:
        """Never awaited."""

    async def method(self, *_args: object) -> None:
        """Never awaited."""

    @classmethod
    async def of_class(cls, *_args: object) -> None:
        """Never awaited."""

    @staticmethod
    async def static(*_args: object) -> None:
        """Never awaited."""

    __wrapped__ = plain


class Plain:
    """A callable without a name."""

    def __call__(self, *_args: object) -> None:
        """Do it at once."""


ASYNC: dict[str, Callable[..., object]] = {
    "function": award,
    "generator": steps,
    "async-generator": stream,
    "partial": functools.partial(award, 1),
    "partial-of-partial": functools.partial(functools.partial(award, 1), 2),
    "partial-of-callable": functools.partial(Awarder(), 1),
    "call": Awarder(),
    "method": Awarder().method,
    "classmethod": Awarder.of_class,
    "staticmethod": Awarder.static,
    "mock": AsyncMock(),
}


@pytest.mark.parametrize("function", ASYNC.values(), ids=ASYNC)
def test_a_function_that_surely_defers_is_refused_at_registration(function: Callable[..., object]) -> None:
    """However it is wrapped."""
    with pytest.raises(SettingsError, match=r"handler '\w+' is an? .+function"):
        refuse_deferring(function, "handler")


def test_what_surely_is_async_is_known_and_what_runs_it_is_not() -> None:
    assert [name for name, function in ASYNC.items() if not is_async(function)] == [
        "generator",
        "async-generator",
    ]
    assert not any(map(is_async, (plain, runs_it, Plain(), MagicMock(), print)))


@functools.wraps(award)
def runs_it(*args: object) -> None:
    """Be what asgiref and others make of an async function."""
    asyncio.run(award(*args))


@pytest.mark.parametrize(
    "function", [plain, runs_it, Plain(), functools.partial(plain, 1), MagicMock(), print]
)
def test_a_function_that_does_its_work_is_taken(function: Callable[..., object]) -> None:
    """A wrapper that runs the coroutine carries its marks, and is none."""
    refuse_deferring(function, "handler")
    refuse_deferred(function(), "the handler")


class Task:
    """The shape of what Celery, gevent and multiprocessing return."""

    def ready(self) -> bool:
        """Say no."""
        return False

    get = successful = ready


class Lazy:
    """Awaitable, no coroutine."""

    def __await__(self) -> Iterator[None]:
        """Never awaited."""
        yield


DEFERRED: dict[str, Callable[[], object]] = {
    "coroutine": award,
    "async-generator": stream,
    "generator": steps,
    "future": Future,
    "thread": lambda: threading.Thread(target=plain),
    "awaitable": Lazy,
    "task": Task,
    "function": lambda: plain,
    "partial": lambda: functools.partial(plain),
    "method": lambda: Plain().__call__,
    "map": lambda: map(plain, [1]),
    "filter": lambda: filter(plain, [1]),
    "starmap": lambda: itertools.starmap(plain, [(1,)]),
    "context-manager": contextlib.contextmanager(steps),
    "async-context-manager": contextlib.asynccontextmanager(stream),
    "list": lambda: [None, award()],
    "tuple": lambda: (award(), award()),
    "mapping": lambda: {"a": award()},
}


@pytest.mark.parametrize("make", DEFERRED.values(), ids=DEFERRED)
def test_work_that_comes_back_without_having_run_is_refused(make: Callable[[], object]) -> None:
    """Coroutines are closed: nobody warns of one that was never awaited (warnings are errors here)."""
    with pytest.raises(SettingsError, match=r"the handler returned .+: that work has not run"):
        refuse_deferred(make(), "the handler")


def test_a_future_that_waits_for_its_turn_is_cancelled() -> None:
    """It must not run after the rollback."""
    future: Future[None] = Future()
    with pytest.raises(SettingsError, match="returned a Future"):
        refuse_deferred(future, "work")
    assert future.cancelled()


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        "text",
        b"",
        [1, {"a": 2}],
        {"a": print},
        iter([1]),
        range(3),
        MagicMock(),
        Plain(),
        Plain,
        object(),
    ],
)
def test_a_plain_value_passes(value: Any) -> None:
    """Form B gives it to its caller."""
    refuse_deferred(value, "work")
