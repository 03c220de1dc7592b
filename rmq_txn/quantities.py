"""Numbers and durations that a user may set: what is allowed, and one way to say that it is not."""

from __future__ import annotations

import math

from rmq_txn.errors import SettingsError

LONGEST_WAIT_SECONDS = 86_400
"""A day; some platforms can't wait for much longer than a month, and nobody means it."""
MOST_ATTEMPTS = 16
"""The broker delivers 17 times, closings and rebalances included, and then buries a message itself."""
LEAST_RETENTION_DAYS = 77 / 24
"""72 h in which the broker keeps a message, 5 h of redelivery."""


def number_between(name: str, value: float, least: float, most: float) -> float:
    """
    Return `value`.

    Raises:
        SettingsError: no number, or not from `least` to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise SettingsError(f"{name} is {value!r}, allowed is {least:g} to {most:g}")
    return value


def whole_number_between(name: str, value: int, most: int, most_is: str, why: str) -> int:
    """
    Return `value`.

    Args:
        most_is: what to call `most`.
        why: the reason for it.

    Raises:
        SettingsError: no whole number, or not from 1 to `most`.
    """
    if type(value) is not int or not 1 <= value <= most:
        raise SettingsError(f"{name} is {value!r}, allowed is 1 to {most_is}: {why}")
    return value


def positive_number(name: str, value: float) -> float:
    """
    Return `value`, such as a duration that can be waited for.

    Raises:
        SettingsError: no number, not finite, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise SettingsError(f"{name} is {value!r}, allowed is a number above 0")
    return value


def positive_whole_number(name: str, value: int) -> int:
    """
    Return `value`.

    Raises:
        SettingsError: not above 0, or not whole.
    """
    positive_number(name, value)
    if not isinstance(value, int):
        raise SettingsError(f"{name} is {value!r}, allowed is a whole number above 0")
    return value


def closing_seconds(name: str, value: float) -> float:
    """
    Return a duration for which something is waited at close.

    Raises:
        SettingsError: no number, negative, more than a day.
    """
    return number_between(name, value, 0, LONGEST_WAIT_SECONDS)


def attempts(name: str, value: int) -> int:
    """
    Return a number of failures after which a message is parked, if that comes before the broker's.

    Raises:
        SettingsError: not 1 to 16.
    """
    return whole_number_between(
        name, value, MOST_ATTEMPTS, str(MOST_ATTEMPTS), "the broker gives up after 17 deliveries"
    )


def retention_seconds(name: str, days: float) -> float:
    """
    Return for how long rows keyed by transaction are kept.

    Raises:
        SettingsError: the broker may ask and deliver for longer than that.
    """
    if isinstance(days, bool) or not isinstance(days, (int, float)) or not days >= LEAST_RETENTION_DAYS:
        raise SettingsError(  # NaN too
            f"{name} is {days!r}, the least is {LEAST_RETENTION_DAYS:.2f}: "
            "the broker may ask and deliver that long"
        )
    return days * 86_400
