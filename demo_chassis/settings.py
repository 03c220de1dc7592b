"""Settings of a service, read from environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar, TypeVar

from rmq_txn.errors import SettingsError

S = TypeVar("S", bound="ServiceSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """
    How to run one process of a service.

    Each field is the environment variable of its name in capitals after `prefix`.

    Attributes:
        database_url: mysql://user:password@host:port/database.
        name_server: host:port of RocketMQ's name server, several separated by ";".
        host: address to listen on.
        port: port to listen on.
        max_requests: handled or waited for at once, 1 to 1000; the next one is answered 503.
        max_body_bytes: of one request, 1024 to 1048576.
        receive_seconds: in which headers, and then the body, must have arrived, 1 to 60.
        log_format: "console" for people, "json" for machines.
    """

    prefix: ClassVar[str]
    limits: ClassVar[Mapping[str, tuple[int, int]]] = {
        "port": (1, 65535),
        "max_requests": (1, 1000),
        "max_body_bytes": (1024, 1024 * 1024),
        "receive_seconds": (1, 60),
    }
    """The least and the greatest value of each number."""

    database_url: str = field(repr=False)
    name_server: str = "127.0.0.1:9876"
    host: str = "127.0.0.1"
    port: int
    max_requests: int = 100
    max_body_bytes: int = 16_384
    receive_seconds: int = 10
    log_format: str = "console"

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        for name, (least, most) in self.limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise SettingsError(f"{self.variable(name)} is {value}, allowed is {least} to {most}")
        if self.log_format not in ("console", "json"):
            raise SettingsError(
                f"{self.variable('log_format')} is {self.log_format!r}, allowed is console or json"
            )

    @classmethod
    def variable(cls, name: str) -> str:
        """Return the environment variable of a field."""
        return cls.prefix + name.upper()

    @classmethod
    def from_environment(cls: type[S], environment: Mapping[str, str]) -> S:
        """
        Read the settings.

        Raises:
            SettingsError: a variable is missing, unknown or has no usable value.
        """
        known = {cls.variable(item.name): item for item in fields(cls)}
        unknown = sorted(name for name in environment if name.startswith(cls.prefix) and name not in known)
        if unknown:
            raise SettingsError(f"no such settings: {', '.join(unknown)}; there are {', '.join(known)}")
        values: dict[str, object] = {}
        for name, item in known.items():
            text = environment.get(name)
            if text is not None:
                values[item.name] = integer(name, text) if item.type == "int" else text
            elif item.default is MISSING:
                raise SettingsError(f"{name} is not set, it must be")
        return cls(**values)  # type: ignore[arg-type]


def integer(name: str, text: str) -> int:
    """
    Read the value of a variable.

    Raises:
        SettingsError: it is no whole number.
    """
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise SettingsError(f"{name} is {text!r}, allowed is a whole number")
    return int(text)
