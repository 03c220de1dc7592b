"""Settings of the account service, and the accounts that it opens at its start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from demo_account_service.transfers import IDENTIFIER, MAX_AMOUNT
from demo_chassis.settings import ServiceSettings, integer
from rmq_txn.errors import SettingsError

SEED_VARIABLE = "DEMO_SEED_ACCOUNTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServiceSettings):
    """
    See ServiceSettings.

    Attributes:
        threads: requests handled at once, 1 to 200; each may hold a database connection.
        points_url: where the demo page finds the points service, seen from here; "": nowhere.
    """

    prefix: ClassVar[str] = "ACCOUNT_SERVICE_"
    limits: ClassVar[Mapping[str, tuple[int, int]]] = {**ServiceSettings.limits, "threads": (1, 200)}

    port: int = 8001
    threads: int = 32
    points_url: str = ""

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        ServiceSettings.__post_init__(self)
        if self.points_url and not re.fullmatch(r"https?://[^/\s]+/?", self.points_url):
            raise SettingsError(
                f"{self.variable('points_url')} is {self.points_url!r}, allowed is http://host:port"
            )


def seed_accounts(environment: Mapping[str, str]) -> dict[str, int]:
    """
    Read the accounts to open at start, such as `alice=100000,bob=100000`, in fen.

    Raises:
        SettingsError: a part of it is not user=balance, or a user is named twice.
    """
    balances: dict[str, int] = {}
    for part in filter(None, map(str.strip, environment.get(SEED_VARIABLE, "").split(","))):
        user, _, text = part.partition("=")
        balance = integer(SEED_VARIABLE, text)
        if not re.fullmatch(IDENTIFIER, user) or not 0 <= balance <= MAX_AMOUNT or user in balances:
            raise SettingsError(
                f"{SEED_VARIABLE} has the part {part!r}, allowed is user=balance, each user once, "
                f"0 to {MAX_AMOUNT} fen"
            )
        balances[user] = balance
    return balances
