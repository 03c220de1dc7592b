"""
Signals wait while the native library runs on the main thread.

Python runs the handler of a signal at the first instruction of the next Python function of the main
thread. While that thread waits for a broker, this is our callback, before its `try`: what the handler
raises, KeyboardInterrupt for Ctrl-C, passes into C, where it is lost, and the verdict is what happened
to be in memory (docs/hazards.md, A4). So meanwhile signals are only remembered, and told again where an
exception can travel. Nothing is lost by it: Python runs no handler during native code anyway.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], object]

# Those for which programs have handlers that raise: to end, or for a timeout of their own.
_HELD: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGALRM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class HeldSignals:
    """For one native call. Does nothing off the main thread, where Python runs no handlers."""

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._came: list[int] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait in this block: it calls the library."""
        try:
            self._hold()
            yield
        finally:
            self._tell()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Let signals through again in this block of a callback, those that came meanwhile first."""
        try:
            self._tell()
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _HELD:
            handler = signal.getsignal(number)
            if callable(handler):  # not ignored, not the system's own, not one from C
                self._handlers[number] = handler
                signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)

    def _tell(self) -> None:
        try:
            for number, handler in list(self._handlers.items()):
                signal.signal(number, handler)
                del self._handlers[number]
            while self._came:
                signal.raise_signal(self._came.pop(0))
        finally:
            if self._handlers or self._came:
                self._tell()  # a handler raised; the others are owed theirs
