"""Settings of a stack: where it lives, on which ports, and how its servers are tuned."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Final

from devstack import software
from devstack.machine import free_port_block
from rmq_txn.testing.broker import SHORT_POLLS

CHECKOUT: Final = Path(__file__).resolve().parent.parent
DEFAULT_FOLDER: Final = CHECKOUT / ".devstack" / "stack"

# So that a choice reaches every stack of a test run, those of its child processes included.
DATABASE_VARIABLE: Final = "DEVSTACK_DATABASE"

# Level 3 is the first redelivery of a message that a consumer refused, level 4 the second, …
_FAST_DELAY_LEVELS: Final = "1s 1s 1s 1s 2s 2s 2s 3s 3s 3s 3s 3s 3s 3s 3s 3s 3s 3s"
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPorts:
    """
    The ports of one stack, all on this machine.

    Attributes:
        name_server: name server.
        broker: broker, remoting protocol; it also takes broker - 2 ("VIP") and broker + 1 (HA).
        proxy_grpc: proxy, gRPC (clients of RocketMQ 5).
        proxy_remoting: proxy, remoting protocol.
        database: MariaDB or MySQL.
    """

    name_server: int
    broker: int
    proxy_grpc: int
    proxy_remoting: int
    database: int

    def __post_init__(self) -> None:
        """Refuse ports that don't exist or are given twice."""
        taken = [
            *self.broker_ports,
            self.name_server,
            self.proxy_grpc,
            self.proxy_remoting,
            self.database,
        ]
        for port in taken:
            if not 1024 <= port <= 65535:
                raise ValueError(f"port is {port!r}, allowed is 1024 to 65535")
        if len(set(taken)) != len(taken):
            raise ValueError(
                f"ports {sorted(taken)} are not distinct; the broker takes its port, two below and one above"
            )

    @property
    def broker_ports(self) -> tuple[int, int, int]:
        """Return the three ports that the broker listens on."""
        return self.broker - 2, self.broker, self.replicas

    @property
    def replicas(self) -> int:
        """Return the broker's port for replicas (HA), which nobody uses here and RocketMQ always opens."""
        return self.broker + 1

    @classmethod
    def choose(cls) -> StackPorts:
        """Choose ports that are free now."""
        return cls.of_block(free_port_block())

    @classmethod
    def of_block(cls, first: int) -> StackPorts:
        """Return the ports of one stack in the block from `first` on; the second is left for a controller."""
        return cls(
            name_server=first,
            broker=first + 4,
            proxy_grpc=first + 6,
            proxy_remoting=first + 7,
            database=first + 8,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """
    How to run one stack.

    Attributes:
        folder: all data, configuration, logs and pid files; made if missing, one stack a folder.
        ports: None: free ones are chosen at the first start and kept in the folder.
        rocketmq_version: any 5.x of Maven Central that has the proxy.
        proxy: run RocketMQ's proxy, for gRPC clients, around the broker. Its ports are open on every
            address of the machine: RocketMQ has no setting for that.
        transaction_timeout_seconds: age of a half message when the broker asks about it first.
        transaction_check_interval_seconds: pause between two rounds of such questions.
        transaction_check_max: questions about a half message until the broker gives it up.
        advertised_host: where clients are told to find the broker, which listens on 127.0.0.1; another
            loopback address, such as 127.0.0.2, leaves its port there to a proxy in between.
        broker_properties: more lines for the broker's configuration; they win over ours.
        database: "installed" (MariaDB of this machine, else its MySQL), "mysql" or "mariadb-11", see
            devstack.software; default: the environment's DEVSTACK_DATABASE, else "installed".
        database_options: more options of the database server, "innodb_lock_wait_timeout": "5".
        name_server_heap_mb: heap of the name server, 64 or more.
        broker_heap_mb: heap of the process of the broker, 256 or more.
        short_lived: made to live for minutes. Java then leaves out its second compiler, which costs more
            than it brings before a server has run for long.
        credentials: user and secret with which the stack asks a broker that enforces access control.
        cache_folder: where what was fetched is kept for all stacks: jars of RocketMQ, database servers.
    """

    folder: Path = DEFAULT_FOLDER
    ports: StackPorts | None = None
    rocketmq_version: str = "5.4.0"
    proxy: bool = False
    transaction_timeout_seconds: float = 6.0
    transaction_check_interval_seconds: float = 30.0
    transaction_check_max: int = 15
    advertised_host: str = "127.0.0.1"
    broker_properties: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    database: str = field(default_factory=lambda: os.environ.get(DATABASE_VARIABLE, software.INSTALLED))
    database_options: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    name_server_heap_mb: int = 128
    broker_heap_mb: int = 512
    short_lived: bool = False
    credentials: tuple[str, str] | None = None
    cache_folder: Path = CHECKOUT / ".devstack"

    def __post_init__(self) -> None:
        """Validate, and make the folders absolute: servers have another working folder."""
        for name in ("folder", "cache_folder"):
            object.__setattr__(self, name, Path(getattr(self, name)).resolve())
        if not re.fullmatch(r"5\.\d+\.\d+", self.rocketmq_version):
            raise ValueError(
                f"rocketmq_version is {self.rocketmq_version!r}, allowed is 5.x.y, such as '5.4.0'"
            )
        if self.database not in software.DATABASES:
            raise ValueError(
                f"database is {self.database!r} (of {DATABASE_VARIABLE}, if not given), allowed is one of "
                f"{', '.join(software.DATABASES)}"
            )
        for name, least in (
            ("transaction_timeout_seconds", 0.001),
            ("transaction_check_interval_seconds", 0.001),
            ("transaction_check_max", 1),
            ("name_server_heap_mb", 64),
            ("broker_heap_mb", 256),
        ):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value!r}, allowed is {least} or more")
        for name in ("broker_properties", "database_options"):
            for key, value in getattr(self, name).items():
                if not re.fullmatch(r"[A-Za-z0-9_.-]+", key) or "\n" in value:
                    raise ValueError(
                        f"{name} has {key!r}: {value!r}, allowed are a name of letters, digits, "
                        f"'_', '.', '-' and a value of one line"
                    )

    @classmethod
    def for_tests(cls, folder: Path, **overrides: object) -> StackSettings:
        """
        Return settings with which check-back and redelivery take seconds instead of minutes.

        Args:
            folder: as in the class.
            overrides: any other field of the class; broker_properties are added to ours.
        """
        unknown = overrides.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
        more = overrides.pop("broker_properties", _NOTHING)
        if not isinstance(more, Mapping):
            raise TypeError(f"broker_properties is {more!r}, allowed is a mapping")
        values: dict[str, object] = {
            "transaction_timeout_seconds": 3.0,
            "transaction_check_interval_seconds": 5.0,
            "short_lived": True,
            **overrides,
            "broker_properties": {"messageDelayLevel": _FAST_DELAY_LEVELS, **SHORT_POLLS, **more},
        }
        return cls(folder=folder, **values)  # type: ignore[arg-type]
