"""The consumer that a command line names, `package.module:name`, loaded as `python -m` would."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rmq_txn.consumer import IdempotentConsumer
from rmq_txn.errors import RmqTxnError, SettingsError
from rmq_txn.lifecycle import State

METAVAR = "package.module:consumer"
T = TypeVar("T")


def load_consumer(target: str) -> IdempotentConsumer:
    """
    Import the module and return the consumer it names, or what the function it names returns.

    The current directory is importable. The module's own code runs; the consumer is not started.

    Raises:
        SettingsError: no such module or name, not a consumer, one that was started already, or
            what the module's code raised. Errors of this package pass unchanged: a database that
            is away while a module is imported is still a database that is away.
    """
    module_name, colon, name = target.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise SettingsError(f"target is {target!r}, allowed is {METAVAR}, such as points_service:consumer")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _run(f"import of {module_name!r}", lambda: importlib.import_module(module_name))
    if not hasattr(module, name):
        raise SettingsError(f"module {module_name!r} has no {name!r}; it is {module.__file__}")
    found = getattr(module, name)
    if inspect.isroutine(found):
        found = _run(f"{target!r}", found)
    if not isinstance(found, IdempotentConsumer):
        raise SettingsError(
            f"{target!r} is of type {type(found).__name__}, allowed is an IdempotentConsumer, or a function "
            "without parameters that returns one"
        )
    if found.state is not State.NEW:
        raise SettingsError(
            f"{target!r} is {found.state.value} after the import of its module, needed is a new one; put "
            'start() or run() behind `if __name__ == "__main__":`'
        )
    return found


def _run(what: str, code: Callable[[], T]) -> T:
    """Run code of the user's; what it raises is told as the error of a setting, with its cause."""
    try:
        return code()
    except RmqTxnError:
        raise
    except Exception as error:
        raise SettingsError(f"{what} failed with {type(error).__name__}: {error}") from error
