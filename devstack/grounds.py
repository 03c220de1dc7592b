"""What a fault lab stands on: one server of each kind, or servers that fail over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Final, Protocol, TypeAlias

import pymysql

from devstack.database_cluster import DatabaseCluster, Follower
from devstack.errors import StackError
from devstack.local import LocalStack, forget_data
from devstack.proxy import TcpProxy
from devstack.replicas import ReplicatedCluster
from devstack.server import Server, poll_until
from devstack.services import HOST
from devstack.settings import StackSettings

Switches: TypeAlias = dict[str, Mapping[str, Callable[[bool], None]]]
"""By name what can be turned on and off there, by kind of fault; OSError while its server is away."""

# Where clients are told to find the broker; its proxy listens there.
_BROKER_HOST: Final = "127.0.0.2"
_AWAKE_SECONDS: Final = 10.0


class Ground(Protocol):
    """Servers, started by entering it, and what a lab may break of them."""

    lines: dict[str, TcpProxy]
    switches: Switches

    @property
    def stack(self) -> LocalStack | ReplicatedCluster:
        """Return the servers."""

    @property
    def kept(self) -> Sequence[Server]:
        """Return those that a service manager keeps up: they may be killed, paused and restarted."""

    @property
    def name_server(self) -> str:
        """Return what services are told."""

    def broker(self) -> str:
        """Return the address of the broker that takes messages now."""

    def __enter__(self) -> Ground:
        """Start all."""

    def __exit__(self, *_: object) -> None:
        """Stop all."""


class OneOfEach:
    """A name server, a broker and a database, with a proxy in the lines to the first two."""

    def __init__(self, settings: StackSettings) -> None:
        settings = replace(settings, advertised_host=_BROKER_HOST)
        forget_data(settings)
        self.stack = LocalStack(settings)
        self.lines: dict[str, TcpProxy] = {}
        self.switches: Switches = {"writes to the databases": {"read-only": self.stack.set_read_only}}
        self._cleanup = ExitStack()

    @property
    def kept(self) -> Sequence[Server]:
        """Return all servers."""
        return self.stack.servers

    @property
    def name_server(self) -> str:
        """Return where its proxy listens."""
        return f"{HOST}:{self.lines['the line to the name server'].port}"

    def broker(self) -> str:
        """Return the broker's own address, past the proxy."""
        return self.stack.broker_address

    def __enter__(self) -> OneOfEach:
        """Start all."""
        ports = self.stack.ports
        with ExitStack() as undo:
            for to, proxy in (
                ("the broker", TcpProxy(HOST, ports.broker, listen=(_BROKER_HOST, ports.broker))),
                ("the name server", TcpProxy(HOST, ports.name_server)),
            ):
                self.lines[f"the line to {to}"] = undo.enter_context(proxy)
            undo.enter_context(self.stack)
            self._cleanup = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all."""
        self._cleanup.close()


class WithFailover:
    """
    Two replicas of a broker with three controllers, and three databases behind a switch that follows.

    One broker and one database are away at a time: with two of three databases the cluster would be, too.
    """

    def __init__(self, settings: StackSettings, databases: type[DatabaseCluster]) -> None:
        self._databases = databases(settings.folder / "databases")
        self.stack = ReplicatedCluster(settings, databases=self._databases)
        self.lines: dict[str, TcpProxy] = {}
        self._node: int | None = None
        self._replica: Server | None = None
        self.switches: Switches = {
            "the database primary": {
                "primary killed": self._turn_node(Server.kill),
                "primary paused": self._turn_node(Server.pause),
                "primary demoted": self._turn_demoted,
            },
            "the RocketMQ master": {
                "master killed": self._turn_replica(Server.kill),
                "master paused": self._turn_replica(Server.pause),
            },
        }
        self._cleanup = ExitStack()

    @property
    def kept(self) -> Sequence[Server]:
        """Return the name servers, with their controllers."""
        return self.stack.name_servers

    @property
    def name_server(self) -> str:
        """Return all of them."""
        return self.stack.name_server

    def broker(self) -> str:
        """Return the master's address."""
        return self.stack.master()

    def __enter__(self) -> WithFailover:
        """Start all."""
        with ExitStack() as undo:
            undo.enter_context(self._databases)
            undo.enter_context(closing(Follower(self._databases)))
            undo.enter_context(self.stack)
            self._cleanup = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all."""
        self._cleanup.close()

    def _turn_node(self, away: Callable[[Server], None]) -> Callable[[bool], None]:
        def turn(on: bool) -> None:
            with _as_os_errors():
                if on:
                    self._node = self._primary()
                    away(self._databases.servers[self._node])
                elif self._node is not None:
                    self._restore_node(self._node)

        return turn

    def _restore_node(self, number: int) -> None:
        """
        Bring a node back that was killed or paused.

        A paused one that wakes may have been cut out and not know it: clients are with it still.
        """
        server = self._databases.servers[number]
        if server.frozen:
            server.resume()
            poll_until(lambda: self._databases.primary() not in (None, number), _AWAKE_SECONDS)
        server.end()
        self._databases.join(number)
        self._databases.wait_for_all()

    def _turn_demoted(self, on: bool) -> None:
        with _as_os_errors():
            if on:
                self._node = self._primary()
                self._databases.demote(self._node)
            elif self._node is not None:
                self._databases.promote(self._node)

    def _primary(self) -> int:
        self._node = None
        found = self._databases.primary()
        if found is None:
            raise StackError("no database takes writes now")
        return found

    def _turn_replica(self, away: Callable[[Server], None]) -> Callable[[bool], None]:
        def turn(on: bool) -> None:
            with _as_os_errors():
                if on:
                    self._replica = None
                    # Of the controllers: not each name server may be there to ask.
                    master = self.stack.replication().master
                    if master is None:
                        raise StackError("the RocketMQ broker has no master now")
                    self._replica = self.stack.brokers[master]
                    away(self._replica)
                elif self._replica is not None:
                    self._restore_replica(self._replica)

        return turn

    def _restore_replica(self, server: Server) -> None:
        """Bring a replica back, and wait until it is one in sync: the next fault may need it as master."""
        if server.frozen:
            server.resume()
        elif not server.alive:
            server.start(wait=False)
        server.wait_ready()


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Tell what servers say that are away, coming or going, as a switch has to."""
    try:
        yield
    except (StackError, pymysql.MySQLError) as error:
        raise OSError(str(error).splitlines()[0]) from error
