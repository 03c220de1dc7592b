"""Waiting for a condition with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.05


def until(condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """
    Ask `condition` again and again until it is true; return its value.

    Raises:
        AssertionError: it was not, for so long; the text says `what` was waited for.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last answer: {value!r}")
        time.sleep(_POLL_SECONDS)
