"""
RocketMQ with failover: controllers inside three name servers, and replicas of one broker.

RocketMQ's controller mode, from the same jars: the controllers agree (Raft, by its DLedger library) on
which replica is master and which ones have all that it confirmed, and make another one master when it dies.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Final

from devstack.controllers import Controllers, ReplicaQuestions, Replication
from devstack.database import DatabaseServer
from devstack.errors import StackError
from devstack.machine import free_port_block, require_disk, require_memory
from devstack.program import NotReadyError
from devstack.rocketmq import BROKER_NAME, HOST, Broker, NameServer
from devstack.server import Server, poll_until
from devstack.services import Databases
from devstack.settings import StackPorts, StackSettings
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError

NAME_SERVERS: Final = 3
_PROBE_SECONDS: Final = 5.0
_TOPIC_SECONDS: Final = 120.0  # a slave copies topics each ten seconds; a busy machine is slow
_MEMORY_BESIDE_HEAPS_MB: Final = 1200
_MEGABYTE: Final = 1024 * 1024

SAFE: Final = {"allAckInSyncStateSet": "true", "minInSyncReplicas": "1"}
"""
A message is confirmed once every replica that may become master has it. One that falls behind, or dies,
leaves that set first; the last one confirms alone.
"""

_REPLICA: Final = {
    "enableControllerMode": "true",
    # Short, so that a failover takes seconds. How long a controller believes in a silent broker
    # (`controllerHeartBeatTimeoutMills`, 10 s) stays as it is: a busy machine would depose masters.
    "syncBrokerMetadataPeriod": "1000",
    "checkSyncStateSetPeriod": "1000",
    "syncControllerMetadataPeriod": "3000",
    "brokerHeartbeatInterval": "1000",
    "haSendHeartbeatInterval": "1000",
    "haHousekeepingInterval": "10000",
}


class ControllingNameServer(NameServer):
    """A name server with a controller inside, at `controller`, whose port is open on every address."""

    def __init__(self, settings: StackSettings, ports: StackPorts, number: int, controllers: str) -> None:
        super().__init__(settings, ports, number=number)
        port = _controller_port(ports)
        self.ports += (port,)
        self.controller = f"{HOST}:{port}"
        self._self_id = f"n{number}"
        self._peers = controllers

    def properties(self) -> dict[str, str]:
        """Add the controller's lines to those of a name server."""
        return {
            **super().properties(),
            "enableControllerInNamesrv": "true",
            "controllerDLegerGroup": "devstack-controllers",
            "controllerDLegerPeers": self._peers,
            "controllerDLegerSelfId": self._self_id,
            "controllerStorePath": str(self._home / "controller"),
            "mappedFileSize": str(16 * _MEGABYTE),  # 1 GB by default
            "scanInactiveMasterInterval": "1000",
        }

    def probe(self) -> None:
        """Ask which brokers it knows, and its controller who leads: a majority must have agreed."""
        super().probe()
        try:
            leader = Controllers(self.controller, timeout_seconds=_PROBE_SECONDS).leader()
        except (BrokerUnavailableError, RemotingError) as exc:
            raise NotReadyError(str(exc)) from exc
        if leader is None:
            raise NotReadyError(f"the controller {self.controller} knows no leader")


class Replica(Broker):
    """
    One replica of the broker, master or slave as the controllers say.

    It is ready when it is in the set of those that may become master, and every name server knows it.
    """

    def __init__(
        self, settings: StackSettings, ports: StackPorts, number: int, name_servers: str, controllers: str
    ) -> None:
        super().__init__(settings, ports, number=number)
        self._broker_name = BROKER_NAME
        self._name_server_address = name_servers
        self._controllers = controllers

    def properties(self, *, name_server: str, store: str) -> dict[str, str]:
        """Add what a replica needs to the lines of a broker."""
        lines = super().properties(name_server=name_server, store=store)
        return {**lines, **_REPLICA, **SAFE, "controllerAddr": self._controllers}

    def probe(self) -> None:
        """Ask the controllers whether it is in sync, and each name server whether it knows it."""
        try:
            state = Controllers(self._controllers, timeout_seconds=_PROBE_SECONDS).replication(BROKER_NAME)
            if state is None or state.master is None or self.address not in state.in_sync:
                raise NotReadyError(f"{self.address} is not in sync, the controllers say {state}")
            for address in self._name_server_address.split(";"):
                known = RemotingClient(address, timeout_seconds=_PROBE_SECONDS).cluster_info().brokers
                if BROKER_NAME not in known or self.address not in known[BROKER_NAME].addresses.values():
                    raise NotReadyError(f"name server {address} does not know {self.address}")
        except (BrokerUnavailableError, RemotingError) as exc:
            raise NotReadyError(str(exc)) from exc


class ReplicatedCluster:
    """
    Three name servers with controllers, replicas of one broker, and a database, as processes of this machine.

    What the demo services and `devstack.ledger` ask of a stack (name servers, database, topics), and who is
    master. Ports are chosen anew by each object. As a context manager it starts all and stops all at the end.
    Some ports of controllers and replicas are open on every address: RocketMQ has no setting for them.

    Args:
        settings: see StackSettings; ports and proxy are not used. `broker_properties` win over SAFE.
        replicas: brokers, 2 or more.
        databases: where databases are, which then run already; None: on a server of its own.
    """

    def __init__(
        self, settings: StackSettings, *, replicas: int = 2, databases: Databases | None = None
    ) -> None:
        if replicas < 2:
            raise ValueError(f"replicas is {replicas!r}, allowed is 2 or more")
        self.settings = settings = replace(settings, proxy=False)
        ports = _different_ports(NAME_SERVERS + replicas)
        name_ports, broker_ports = ports[:NAME_SERVERS], ports[NAME_SERVERS:]
        peers = ";".join(
            f"n{number}-{HOST}:{_controller_port(item)}" for number, item in enumerate(name_ports, 1)
        )
        programs = [
            ControllingNameServer(settings, item, number, peers) for number, item in enumerate(name_ports, 1)
        ]
        self.name_server = ";".join(program.address for program in programs)
        self._controllers = ";".join(program.controller for program in programs)
        replicas_ = [
            Replica(settings, item, number, self.name_server, self._controllers)
            for number, item in enumerate(broker_ports, 1)
        ]
        self.name_servers = tuple(Server(program) for program in programs)
        self.brokers = {program.address: Server(program) for program in replicas_}
        """Handles by address."""
        own = DatabaseServer(settings, ports[0])
        self._own_database = [] if databases else [Server(own)]
        self._url = databases.database_url if databases else own.url

    @property
    def servers(self) -> list[Server]:
        """Return all handles, in the order of starting."""
        return [*self.name_servers, *self._own_database, *self.brokers.values()]

    def database_url(self, name: str) -> str:
        """Return the URL of a database, made if it is missing; see LocalStack.database_url."""
        return self._url(name)

    def replication(self) -> Replication:
        """Return who is master and who is in sync; StackError while the controllers don't know."""
        try:
            found = Controllers(self._controllers, timeout_seconds=_PROBE_SECONDS).replication(BROKER_NAME)
        except (BrokerUnavailableError, RemotingError) as exc:
            raise StackError(str(exc)) from exc
        if found is None:
            raise StackError(f"the controllers {self._controllers} know no replica of {BROKER_NAME}")
        return found

    def master(self) -> str:
        """Return the address of the master that runs and that all name servers tell; StackError if none."""
        found = self.replication().master
        if found is None or found not in self.brokers or not self.brokers[found].alive:
            raise StackError(f"{BROKER_NAME} has no master that runs (the controllers say {found})")
        for address in self.name_server.split(";"):
            try:
                known = RemotingClient(address, timeout_seconds=_PROBE_SECONDS).cluster_info().brokers
            except BrokerUnavailableError as exc:
                raise StackError(str(exc)) from exc
            if BROKER_NAME not in known or known[BROKER_NAME].master_address != found:
                raise StackError(f"name server {address} does not tell yet that {found} is master")
        return found

    def create_topic(self, name: str, queues: int = 4) -> None:
        """Create a topic; return when every name server and every replica that runs knows it."""
        RemotingClient(self.master(), timeout_seconds=_PROBE_SECONDS).create_topic(name, queues=queues)
        if not poll_until(lambda: self._all_know(name), _TOPIC_SECONDS):
            raise StackError(f"topic {name!r} did not reach every replica in {_TOPIC_SECONDS:g} s")

    def _all_know(self, topic: str) -> bool:
        try:
            for address in self.name_server.split(";"):
                RemotingClient(address, timeout_seconds=_PROBE_SECONDS).topic_route(topic)
            return all(
                topic in ReplicaQuestions(address, timeout_seconds=_PROBE_SECONDS).topics()
                for address, server in self.brokers.items()
                if server.alive
            )
        except (RemotingError, BrokerUnavailableError):
            return False

    def start(self) -> None:
        """Start all; return when they serve and every replica is in sync. Errors as `LocalStack.start`."""
        settings = self.settings
        settings.folder.mkdir(parents=True, exist_ok=True)
        require_disk(settings.folder)
        heaps_mb = NAME_SERVERS * settings.name_server_heap_mb + len(self.brokers) * settings.broker_heap_mb
        require_memory(heaps_mb + _MEMORY_BESIDE_HEAPS_MB)
        try:
            for server in (*self.name_servers, *self._own_database):
                server.start(wait=False)
            for server in self.name_servers:
                server.wait_ready()
            for server in self.brokers.values():
                server.start(wait=False)
            for server in (*self._own_database, *self.brokers.values()):
                server.wait_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all servers quickly; nothing when they are down."""
        for server in self._own_database:
            server.begin_stop()
        for server in (*self.brokers.values(), *self.name_servers):
            server.end()
        for server in self._own_database:
            server.stop()

    def __enter__(self) -> ReplicatedCluster:
        """Start all servers."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop all servers."""
        self.close()


def _controller_port(ports: StackPorts) -> int:
    return ports.name_server + 1  # nobody's, in the block that StackPorts.choose takes


def _different_ports(count: int) -> list[StackPorts]:
    blocks = set[int]()
    while len(blocks) < count:
        blocks.add(free_port_block())
    return [StackPorts.of_block(first) for first in blocks]
