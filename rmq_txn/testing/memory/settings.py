"""What a memory broker is told, with the defaults of RocketMQ 5.x."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from rmq_txn.errors import SettingsError
from rmq_txn.quantities import number_between, positive_number, positive_whole_number

DELAY_LEVELS: Final = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
"""`messageDelayLevel` of a broker."""
_FIRST_REDELIVERY_LEVEL: Final = 3
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FASTEST: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """See `MemoryBroker`."""

    transaction_timeout_seconds: float = 6.0
    transaction_check_interval_seconds: float = 30.0
    transaction_check_max: int = 15
    delay_levels: str = DELAY_LEVELS
    max_redeliveries: int = 16
    new_group_from: Literal["earliest", "latest"] = "earliest"
    speed: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no broker would take."""
        number_between("transaction_timeout_seconds", self.transaction_timeout_seconds, 0, 86_400)
        positive_number("transaction_check_interval_seconds", self.transaction_check_interval_seconds)
        positive_whole_number("transaction_check_max", self.transaction_check_max)
        positive_whole_number("max_redeliveries", self.max_redeliveries)
        number_between("speed", self.speed, 0, _FASTEST)
        if self.new_group_from not in ("earliest", "latest"):
            raise SettingsError(
                f"new_group_from is {self.new_group_from!r}, allowed is 'earliest' or 'latest'"
            )
        seconds_of_levels(self.delay_levels)

    def redelivery_seconds(self, redeliveries: int) -> float:
        """Return the pause before a message comes again of which so many redeliveries were made."""
        levels = seconds_of_levels(self.delay_levels)
        return levels[min(_FIRST_REDELIVERY_LEVEL + redeliveries, len(levels)) - 1]


def seconds_of_levels(text: str) -> list[int]:
    """
    Return the delay levels in seconds.

    Raises:
        SettingsError: not in the form of a broker, such as "1s 5s 10s".
    """
    levels = str(text).split()
    if not levels or not all(re.fullmatch(r"[0-9]{1,6}[smhd]", level) for level in levels):
        raise SettingsError(f"delay_levels is {text!r}, allowed is text such as '1s 5s 10s 1m 2h'")
    return [int(level[:-1]) * _UNITS[level[-1]] for level in levels]
