"""Counts the function calls of Python code, one by one, as the interpreter tells them."""

from __future__ import annotations

import socket
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

import pymysql

_DRIVER = pymysql.__path__[0]
_PACKAGES = sysconfig.get_path("purelib")
_LIBRARY = sysconfig.get_path("stdlib")


class Calls:
    """
    The calls of functions written in Python on one thread, ours and the driver's apart.

    What the standard library does counts for whom it does it; structlog, and all that stands in the
    place of the driver's own methods, for us. A generator counts each time it is resumed, as it costs a
    call. Calls of built-in functions are not counted, nor those of the reads of a socket: of two answers on
    their way together, the network decides whether one read brings both.

    Args:
        without: files whose calls are nobody's, such as the test's own.
    """

    def __init__(self, *without: str) -> None:
        self._nobodys = without
        self.ours: Counter[CodeType] = Counter()
        self.drivers: Counter[CodeType] = Counter()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what this thread calls in this block."""
        before = sys.getprofile()
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(before)

    def of(self, run: Callable[[], object]) -> Calls:
        """Count what `run` calls; return this."""
        with self.counted():
            run()
        return self

    def _note(self, frame: FrameType, event: str, _what: object) -> None:
        if event != "call" or frame.f_code.co_filename == socket.__file__:
            return
        asks: FrameType | None = frame
        while asks is not None and _is_library(asks.f_code.co_filename):
            asks = asks.f_back
        file = "" if asks is None else asks.f_code.co_filename
        if file.startswith(_DRIVER):
            self.drivers[frame.f_code] += 1
        elif file != __file__ and frame.f_code.co_filename not in self._nobodys:
            self.ours[frame.f_code] += 1

    def __str__(self) -> str:
        """Return both sums, then ours as lines, the most frequent first: for who wants to cut them."""
        return f"ours {self.ours.total()}, the driver's {self.drivers.total()}\n" + "\n".join(
            f"{count:4} {code.co_filename}:{code.co_firstlineno} {code.co_name}"
            for code, count in self.ours.most_common()
        )


def _is_library(file: str) -> bool:
    """Whether it is of the standard library; what it compiles itself, `<string>`, is for its caller, too."""
    return file.startswith(("<", _LIBRARY)) and not file.startswith(_PACKAGES)
