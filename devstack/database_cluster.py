"""
Three database servers of one machine that hold the same data and outlive the loss of one.

`devstack.galera` and `devstack.group_replication` say how such a cluster is made.
A switch in front leads new connections to the primary, as a proxy or a virtual address does.
"""

from __future__ import annotations

import re
import shutil
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pymysql

from devstack.database import ADMIN, HOST, DatabaseServer
from devstack.errors import StackError
from devstack.machine import free_port_block, require_memory
from devstack.proxy import TcpProxy
from devstack.server import Server, poll_until
from devstack.settings import StackPorts, StackSettings
from rmq_txn.testing.server_software import run_to_its_end

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

NODES: Final = 3
JOIN_SECONDS: Final = 180.0
_RECOVER_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.1
_NODE_MEMORY_MB: Final = 250


class Node(DatabaseServer):
    """
    One server of a cluster. Its data begin as a copy of a seed, the same for all.

    Attributes:
        group_port: where the other nodes reach it.
        options: what it is told beside what every server of a stack is told.
    """

    def __init__(self, settings: StackSettings, port: int, group_port: int, seed: Path) -> None:
        super().__init__(settings, _ports(port))
        self.name = settings.folder.name
        self.group_port = group_port
        self.ports = (port, group_port)
        self.options: list[str] = []
        self._seed = seed

    @property
    def data(self) -> Path:
        """Return the folder of its data."""
        return self._home / self._software().data_folder

    def prepare(self) -> None:
        """Copy the seed once. No statements at the start: a node that joins must not write."""
        if not self._home.exists():
            self._copy(self._seed)
        self._init_file.write_text("")

    def begin_with(self, other: Node) -> None:
        """Take the data of another node, which is stopped."""
        self._copy(other._home)

    def _copy(self, home: Path) -> None:
        of_one_server = ("auto.cnf", "*.pid", "*.sock*", "galera.cache", "gvwstate.dat")
        shutil.copytree(home, self._home, ignore=shutil.ignore_patterns(*of_one_server))

    def command(self) -> list[str]:
        """Return the command line."""
        return [*super().command(), *self.options]

    def recovered_position(self) -> str:
        """Return "cluster:number" of the last transaction of Galera in its data, whatever ended it."""
        done = run_to_its_end([*self.command(), "--wsrep-recover"], _RECOVER_SECONDS)
        found = re.findall(r"Recovered position:\s*([-0-9a-f]{36}:-?\d+)", done.stdout)
        if not found:
            raise StackError(f"{self.name} does not say where its data end:\n{done.stdout[-4000:]}")
        return str(found[-1])

    @property
    def password(self) -> str:
        """Return the administrator's password, which the seed's secret gives all nodes."""
        return self._password(ADMIN)

    def connect(self) -> Connection[Cursor]:
        """Connect as the administrator."""
        return self._connect()

    def ask(self, *statements: str) -> tuple[tuple[Any, ...], ...]:
        """Run statements as the administrator and return the rows of the last."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return tuple(cursor.fetchall())


class DatabaseCluster(ABC):
    """
    Three nodes and a switch. A context manager; what it starts ends with it, and with this process.

    Args:
        folder: where all of it lives; removed first, and at the end by who made it.
        more_options: of every node, over ours.

    Attributes:
        nodes: their programs; `servers` are their processes, in the same order.
        switch: leads to the primary, so far as `follow` or a test turned it there.
    """

    database: str

    def __init__(self, folder: Path, more_options: Sequence[str] = ()) -> None:
        self._folder = folder.resolve()
        self._more_options = tuple(more_options)
        first = free_port_block()
        seed = StackSettings(folder=self._folder / "seed", database=self.database)
        self._seed = DatabaseServer(seed, _ports(first))
        self.nodes = tuple(
            Node(
                StackSettings(folder=self._folder / f"node-{number}", database=self.database),
                first + number,
                first + NODES + number,
                seed.folder / "database",
            )
            for number in range(NODES)
        )
        self.servers = tuple(Server(node) for node in self.nodes)
        self.first_port = first
        self.name = str(uuid.uuid4())
        self._urls: dict[str, str] = {}
        self._cleanup = ExitStack()

    def __enter__(self) -> DatabaseCluster:
        """Start all nodes; StackError when they do not find each other."""
        with ExitStack() as undo:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            require_memory(NODES * _NODE_MEMORY_MB)
            self._make_seed()
            for server in self.servers:
                undo.callback(server.end)
            self.switch = undo.enter_context(TcpProxy(HOST, self.nodes[0].port))
            self._found()
            for number in range(1, NODES):
                self.join(number)
            self._wait_for(NODES)
            self._cleanup = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the nodes: their data are of no use to anybody."""
        self._cleanup.close()

    def _make_seed(self) -> None:
        """Let a server that is alone make the administrator's account, and stop it cleanly."""
        server = Server(self._seed)
        try:
            server.start()
        finally:
            server.stop()

    def _start(self, number: int, *more: str) -> None:
        self.nodes[number].options = [*self.options(number), *self._more_options, *more]
        self.servers[number].start()

    @abstractmethod
    def options(self, number: int) -> list[str]:
        """Return what makes a node a member of this cluster."""

    @abstractmethod
    def _found(self) -> None:
        """Start the first node as a cluster of its own."""

    @abstractmethod
    def join(self, number: int) -> None:
        """Start a node that is down, with the data it has; return when it is a full member."""

    @abstractmethod
    def members(self, number: int) -> int:
        """Return how many full members a node sees, itself included; 0 if it is none."""

    @abstractmethod
    def is_primary(self, number: int) -> bool:
        """Whether a node takes writes now. For Galera that is each that is in step and not read only."""

    def primary(self) -> int | None:
        """Ask the nodes who takes writes; the one that the switch leads to, if it does. None: nobody."""
        for number in sorted(range(NODES), key=lambda n: self.nodes[n].port != self.switch.target[1]):
            server = self.servers[number]
            try:
                if server.alive and not server.frozen and self.is_primary(number):
                    return number
            except pymysql.MySQLError:
                continue  # it is going down, or coming up
        return None

    def turn_to(self, number: int) -> None:
        """Turn the switch to a node."""
        self.switch.lead_to(HOST, self.nodes[number].port)

    @abstractmethod
    def demote(self, number: int) -> None:
        """Let the primary be one no more: it runs, answers, and refuses writes; another node takes them."""

    @abstractmethod
    def promote(self, number: int) -> None:
        """Let a demoted node be the primary again, and turn the switch to it."""

    def database_url(self, name: str) -> str:
        """Return the URL of a database through the switch; made, with its account, if it is missing."""
        if name not in self._urls:
            number = self.primary()
            if number is None:
                raise StackError("no node of the cluster takes writes, wait for one or start one")
            self._urls[name] = self.at(self.nodes[number].url(name), self.switch.port)
        return self._urls[name]

    @staticmethod
    def at(url: str, port: int) -> str:
        """Return a URL of this cluster that leads to another port: a node's, or the switch's."""
        return re.sub(r"@[^/]+/", f"@{HOST}:{port}/", url)

    def wait_for_all(self) -> None:
        """Return when every node sees all of them as full members; StackError if that takes too long."""
        self._wait_for(NODES)

    def _wait_for(self, members: int) -> None:
        """Return when every node that is alive sees so many members; StackError if that takes too long."""

        def complete() -> bool:
            alive = [number for number, server in enumerate(self.servers) if server.alive]
            try:
                return all(self.members(number) == members for number in alive)
            except pymysql.MySQLError:
                return False

        if not poll_until(complete, JOIN_SECONDS):
            tails = "\n".join(f"--- {server.name}\n{server.log_tail()}" for server in self.servers)
            raise StackError(f"the cluster has no {members} members after {JOIN_SECONDS:g} s\n{tails}")


class Follower:
    """Turns the switch of a cluster to whoever is the primary, until it is closed."""

    def __init__(self, cluster: DatabaseCluster) -> None:
        self._cluster = cluster
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            number = self._cluster.primary()
            if number is not None:
                self._cluster.turn_to(number)

    def close(self) -> None:
        """Stop following."""
        self._closing.set()
        self._thread.join()


def _ports(port: int) -> StackPorts:
    """Return ports of which only the database's is used."""
    return StackPorts(name_server=1024, broker=1030, proxy_grpc=1040, proxy_remoting=1041, database=port)
