"""
Signals wait while the native library runs on the main thread.

Python runs the handler of a signal at the first instruction of the next Python function of the main
thread. While that thread waits for a broker, this is our callback, before its `try`: what the handler
raises, KeyboardInterrupt for Ctrl-C, passes into C, where it is lost, and the verdict is what happened
to be in memory (docs/hazards.md, A4). So meanwhile signals are only remembered, and told again where an
exception can travel. Nothing is lost by it: Python runs no handler during native code anyway.
"""

from __future__ import annotations

# What `signal` is made of. That one turns numbers into enum members and back in Python: 100 of the 400
# function calls of a transaction, for numbers that we only hand on (docs/decisions/0054).
import _signal  # type: ignore[import-not-found]
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], object]

# Those for which programs have handlers that raise: to end, or for a timeout of their own.
_HELD: Final = tuple(
    map(
        int,
        (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGALRM,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ),
    )
)


class _MainThread:
    """Which thread runs the handlers of signals; in a forked process it is the one that forked."""

    def __init__(self) -> None:
        self.note()
        os.register_at_fork(after_in_child=self.note)

    def note(self) -> None:
        self.id = threading.main_thread().ident


_MAIN = _MainThread()


class HeldSignals:
    """
    For one native call. Does nothing off the main thread, where Python runs no handlers.

    `hold` before the library is called, `tell` in a `finally` after it; in its callback `tell` first, where
    an exception can travel, and `hold` in a `finally` before it returns. What `tell` raises is a handler's.
    """

    def __init__(self) -> None:
        self._numbers = _HELD if threading.get_ident() == _MAIN.id else ()
        self._handlers: dict[int, _Handler] = {}
        self._came: list[int] = []

    def hold(self) -> None:
        """Let signals wait from now on."""
        for number in self._numbers:
            # Asked each time: a program may set its handlers at any moment.
            handler = _signal.getsignal(number)
            if callable(handler):  # not ignored, not the system's own, not one from C
                self._handlers[number] = handler
                _signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)

    def tell(self) -> None:
        """Let signals through again, those that came meanwhile first."""
        try:
            for number, handler in list(self._handlers.items()):
                _signal.signal(number, handler)
                del self._handlers[number]
            while self._came:
                _signal.raise_signal(self._came.pop(0))
        finally:
            if self._handlers or self._came:
                self.tell()  # a handler raised; the others are owed theirs
