"""Settings of the account service, read from environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields

from demo_account_service.transfers import IDENTIFIER, MAX_AMOUNT
from rmq_txn.errors import SettingsError

PREFIX = "ACCOUNT_SERVICE_"
SEED_VARIABLE = "DEMO_SEED_ACCOUNTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    How to run one process of the service.

    Each field is the environment variable of its name in capitals after ACCOUNT_SERVICE_.

    Attributes:
        database_url: mysql://user:password@host:port/database.
        name_server: host:port of RocketMQ's name server, several separated by ";".
        host: address to listen on.
        port: port to listen on.
        threads: requests handled at once, 1 to 200; each may hold a database connection.
        max_requests: handled or waited for at once, 1 to 1000; the next one is answered 503.
        max_body_bytes: of one request, 1024 to 1048576.
        receive_seconds: in which headers, and then the body, must have arrived, 1 to 60.
        log_format: "console" for people, "json" for machines.
        points_url: where the demo page finds the points service, seen from here; "": nowhere.
    """

    database_url: str = field(repr=False)
    name_server: str = "127.0.0.1:9876"
    host: str = "127.0.0.1"
    port: int = 8001
    threads: int = 32
    max_requests: int = 100
    max_body_bytes: int = 16_384
    receive_seconds: int = 10
    log_format: str = "console"
    points_url: str = ""

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        for name, least, most in (
            ("port", 1, 65535),
            ("threads", 1, 200),
            ("max_requests", 1, 1000),
            ("max_body_bytes", 1024, 1024 * 1024),
            ("receive_seconds", 1, 60),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise SettingsError(f"{PREFIX}{name.upper()} is {value}, allowed is {least} to {most}")
        if self.log_format not in ("console", "json"):
            raise SettingsError(f"{PREFIX}LOG_FORMAT is {self.log_format!r}, allowed is console or json")
        if self.points_url and not re.fullmatch(r"https?://[^/\s]+/?", self.points_url):
            raise SettingsError(f"{PREFIX}POINTS_URL is {self.points_url!r}, allowed is http://host:port")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """
        Read the settings.

        Raises:
            SettingsError: a variable is missing, unknown or has no usable value.
        """
        known = {PREFIX + item.name.upper(): item for item in fields(cls)}
        unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
        if unknown:
            raise SettingsError(f"no such settings: {', '.join(unknown)}; there are {', '.join(known)}")
        values: dict[str, object] = {}
        for name, item in known.items():
            text = environment.get(name)
            if text is not None:
                values[item.name] = _integer(name, text) if item.type == "int" else text
            elif item.default is MISSING:
                raise SettingsError(f"{name} is not set, it must be")
        return cls(**values)  # type: ignore[arg-type]


def seed_accounts(environment: Mapping[str, str]) -> dict[str, int]:
    """
    Read the accounts to open at start, such as `alice=100000,bob=100000`, in fen.

    Raises:
        SettingsError: a part of it is not user=balance, or a user is named twice.
    """
    balances: dict[str, int] = {}
    for part in filter(None, map(str.strip, environment.get(SEED_VARIABLE, "").split(","))):
        user, _, text = part.partition("=")
        balance = _integer(SEED_VARIABLE, text)
        if not re.fullmatch(IDENTIFIER, user) or not 0 <= balance <= MAX_AMOUNT or user in balances:
            raise SettingsError(
                f"{SEED_VARIABLE} has the part {part!r}, allowed is user=balance, each user once, "
                f"0 to {MAX_AMOUNT} fen"
            )
        balances[user] = balance
    return balances


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise SettingsError(f"{name} is {text!r}, allowed is a whole number")
    return int(text)
