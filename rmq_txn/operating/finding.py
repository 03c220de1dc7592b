"""What one check found: a state, a sentence, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """How bad it is."""

    OK = "ok"
    SKIPPED = "skipped"
    """It could not be looked at, for a reason that is no fault: not asked for, or not allowed to."""
    WARNING = "warning"
    """It works, and will hurt one day."""
    FAILED = "failed"
    """Something does not work, or a message can be lost or stand still."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What one check found.

    Attributes:
        check: a word or two for what was looked at: `tables`, `topic transfer`.
        text: a sentence with what was seen.
        advice: the next step; empty if there is nothing to do.
    """

    check: str
    state: State
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(check, State.OK, text)


def skipped(check: str, text: str, advice: str = "") -> Finding:
    """Say that something was not looked at."""
    return Finding(check, State.SKIPPED, text, advice)


def warning(check: str, text: str, advice: str) -> Finding:
    """Say that something will hurt one day."""
    return Finding(check, State.WARNING, text, advice)


def failed(check: str, text: str, advice: str) -> Finding:
    """Say that something does not work."""
    return Finding(check, State.FAILED, text, advice)
