"""
Work handed back to be run later: what COMMIT and an acknowledgement would declare done unseen.

A coroutine nobody awaits has had no effect. Business code hands one back by being an async function,
or by being a plain one that calls it: a lambda, a decorated function, a partial, a generator. The first
are refused when they are registered, the others when they return, before COMMIT
(docs/decisions/0036).
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import types
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from rmq_txn.errors import SettingsError
from rmq_txn.logs import describe

T = TypeVar("T")

_LAZY = (map, filter, zip, enumerate, *(kind for kind in vars(itertools).values() if isinstance(kind, type)))
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
# Of multiprocessing, gevent and Celery; methods of the class, since a mock has every attribute.
_RESULT_OF_A_TASK = ("ready", "get", "successful")
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_DEPTH = 16
_DEFERRING = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def refuse_deferring(function: Callable[..., object], what: str) -> None:
    """
    Refuse, at registration, a function that surely returns work instead of doing it.

    Looks through partials, methods and `__call__`, not through `functools.wraps`: a wrapper may be just
    what runs the coroutine (`asyncio.run`), and what it returns is looked at each time.

    Raises:
        SettingsError: it is an async function or a generator function.
    """
    if type(function) is types.FunctionType and not (
        function.__code__.co_flags & _DEFERRING or function.__dict__  # a mark, say; or what `wraps` leaves
    ):
        return  # nearly always; form B asks each time, and what follows makes 13 function calls
    inner: object = function
    for _ in range(_DEPTH):
        for kind, is_kind in (
            ("an async generator function", inspect.isasyncgenfunction),
            ("an async function", inspect.iscoroutinefunction),
            ("a generator function", inspect.isgeneratorfunction),
        ):
            if is_kind(inner):
                raise SettingsError(
                    f"{what} {name_of(function)!r} is {kind}: it would be taken for done without having run; "
                    "write a plain function, or run it to its end inside one (asyncio.run)"
                )
        inner = _inside(inner)
        if inner is None:
            return


def is_async(function: object) -> bool:
    """Whether a function is surely an async one: through partials, methods and `__call__`, as above."""
    inner: object = function
    for _ in range(_DEPTH):
        if inspect.iscoroutinefunction(inner):
            return True
        inner = _inside(inner)
        if inner is None:
            return False
    return False


def _inside(function: object) -> object:
    """Return what a call of `function` ends in, None if that is `function` itself."""
    if isinstance(function, functools.partial):
        return function.func
    if isinstance(function, (types.MethodType, staticmethod, classmethod)):
        return function.__func__
    if isinstance(function, (type, *_FUNCTIONS)):
        return None
    return getattr(type(function), "__call__", None)  # noqa: B004 - what it is, not whether


def name_of(function: object) -> str:
    """Return a name for messages; not every callable has one."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def call(function: Callable[..., T], what: str, *arguments: object) -> T:
    """
    Call business code of a consumer: what it returns has run, what it ends with can be counted.

    CancelledError, SystemExit and GeneratorExit would end a thread, and that is the transport's; they
    say nothing of the message. Ctrl-C is for the process, and comes to its main thread alone.

    Raises:
        SettingsError: as `refuse_deferred`.
        RuntimeError: instead of what is no `Exception`.
        Exception: whatever else it raises.
    """
    try:
        value = function(*arguments)
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        raise RuntimeError(f"{what} ended with {describe(error)}") from error
    refuse_deferred(value, what)
    return value


def refuse_deferred(value: object, what: str) -> None:
    """
    Refuse what a function returned if it is work that has not run; before COMMIT.

    What can be stopped is stopped, so that it neither runs after the rollback nor warns that nobody
    awaited it. Lists, tuples, sets and mappings are looked into, one level deep.

    Raises:
        SettingsError: it is a coroutine, a generator, a future, a task, a function and the like.
    """
    if type(value) in _PLAIN:
        return  # nearly always; what follows makes 11 function calls
    found = _kind(value)
    if found is None:
        parts: list[object] = []
        if isinstance(value, Mapping):
            parts = list(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts = list(value)
        kinds = [kind for part in parts if not isinstance(part, _FUNCTIONS) and (kind := _kind(part))]
        for part in parts:
            _stop(part)
        if not kinds:
            return
        found = f"{kinds[0]}, inside a {type(value).__name__}"
    _stop(value)
    raise SettingsError(
        f"{what} returned {found}: that work has not run, and nobody would notice; do it before returning "
        "(in async code: return asyncio.run(...)), or return None"
    )


def _kind(value: object) -> str | None:
    """Say what kind of deferred work `value` is; None if it is a plain value."""
    if inspect.iscoroutine(value):
        return "a coroutine"
    if inspect.isgenerator(value):
        return "a generator"
    if inspect.isasyncgen(value):
        return "an async generator"
    if isinstance(value, (Future, threading.Thread)):
        return f"a {type(value).__name__}"
    if isinstance(value, _FUNCTIONS):
        return f"the function {name_of(value)!r}"
    if isinstance(value, _LAZY):
        return f"a lazy {type(value).__name__}"
    if _generator_of(value) is not None:
        return "a context manager that was not entered"
    kind = type(value)
    if hasattr(kind, "__await__"):
        return f"an awaitable {kind.__name__}"
    if all(callable(getattr(kind, name, None)) for name in _RESULT_OF_A_TASK):
        return f"a task's {kind.__name__}"
    return None


def _generator_of(value: object) -> object:
    """Return the generator in what a function made with `contextlib.contextmanager` returned."""
    inner = getattr(value, "gen", None) if hasattr(type(value), "_recreate_cm") else None
    return inner if inspect.isgenerator(inner) or inspect.isasyncgen(inner) else None


def _stop(value: object) -> None:
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()
    elif isinstance(value, Future):
        value.cancel()
