"""The stack of real servers on this machine, without containers."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from devstack.database import DatabaseServer
from devstack.errors import StackError
from devstack.guard import write_atomically
from devstack.machine import require_disk, require_memory
from devstack.rocketmq import Broker, NameServer
from devstack.routes import create_topic
from devstack.server import Server
from devstack.settings import StackPorts, StackSettings

# Beside their heaps: class data, threads and buffers of two JVMs, and the database.
_MEMORY_BESIDE_HEAPS_MB = 600
_PORTS_FILE = "ports.json"


class LocalStack:
    """
    RocketMQ and a database as processes of this machine, listening on 127.0.0.1 where they can.

    Not bound to it are the `open_ports`: RocketMQ has no setting for them.

    As a context manager it starts all servers and stops them at the end; they also end when this
    process ends in any other way. Data and ports stay in the folder: the next start finds them.

    Args:
        settings: see StackSettings.
        outlives_starter: True: servers go on after this process, until stop() from any process.
    """

    def __init__(self, settings: StackSettings, *, outlives_starter: bool = False) -> None:
        self.settings = settings
        self._ports_file = settings.folder / _PORTS_FILE
        self.ports = settings.ports or self._remembered_ports() or StackPorts.choose()
        self._name_server = NameServer(settings, self.ports)
        self._broker = Broker(settings, self.ports)
        self._database = DatabaseServer(settings, self.ports)
        self.namesrv = Server(self._name_server, outlives_starter=outlives_starter)
        self.broker = Server(self._broker, outlives_starter=outlives_starter)
        self.database = Server(self._database, outlives_starter=outlives_starter)

    @property
    def servers(self) -> tuple[Server, Server, Server]:
        """Return all handles in the order of starting."""
        return self.namesrv, self.broker, self.database

    @property
    def name_server(self) -> str:
        """Return "127.0.0.1:port" of the name server."""
        return self._name_server.address

    @property
    def broker_address(self) -> str:
        """Return "127.0.0.1:port" of the broker."""
        return self._broker.address

    @property
    def proxy_address(self) -> str:
        """Return "127.0.0.1:port" of the proxy for gRPC clients; StackError when there is none."""
        if not self.settings.proxy:
            raise StackError("this stack runs without RocketMQ's proxy: StackSettings(proxy=True)")
        return self._broker.proxy_address

    @property
    def open_ports(self) -> tuple[int, ...]:
        """Return the ports that are open on every address of this machine."""
        return self._broker.open_ports

    def database_url(self, name: str) -> str:
        """
        Return the URL of a database, which is made with an account of its own if it is missing.

        The account may do everything, DDL included, inside that database and nothing outside.

        Args:
            name: a lower-case letter, then up to 31 lower-case letters, digits and '_'.
        """
        return self._database.url(name)

    def set_read_only(self, on: bool) -> None:
        """
        Let the database server refuse writes of all ordinary accounts, as after a failover, or take them.

        A restart ends it, too.

        Raises:
            OSError: the server can't be asked now.
        """
        self._database.set_read_only(on)

    def create_topic(self, name: str, queues: int = 4) -> None:
        """Create a topic, or change its number of queues; return when the name server knows it."""
        create_topic(self._broker, name, queues)

    def start(self) -> None:
        """
        Start all servers and wait until they serve.

        Raises:
            StackError: the machine lacks something, a stack runs in this folder already, or a
                server did not come up; then those that did are stopped again.
        """
        folder = self.settings.folder
        folder.mkdir(parents=True, exist_ok=True)
        heaps_mb = self.settings.name_server_heap_mb + self.settings.broker_heap_mb
        with self._starting():
            for server in self.servers:
                server.require_stopped()
            require_disk(folder)
            require_memory(heaps_mb + _MEMORY_BESIDE_HEAPS_MB)
            self.remember_ports()
            try:
                self.namesrv.start(wait=False)
                self.database.start(wait=False)
                # A broker that finds no name server tries again only after ten seconds.
                self.namesrv.wait_ready()
                self.broker.start(wait=False)
                self.database.wait_ready()
                self.broker.wait_ready()
            except BaseException:
                self.close()
                raise

    def stop(self) -> None:
        """Stop all servers cleanly, whoever started them; nothing when they are down."""
        for server in reversed(self.servers):
            server.begin_stop()
        for server in reversed(self.servers):
            server.stop()

    def close(self) -> None:
        """
        Stop all servers quickly; nothing when they are down.

        A clean stop of the broker takes 10 to 20 s (its two shutdown hooks wait for each other's
        threads). Its files are memory-mapped, so a killed broker has lost no message it confirmed,
        only up to 5 s of consumer offsets: those messages are delivered again.
        """
        self.database.begin_stop()
        for server in (self.broker, self.namesrv):
            server.end()
        self.database.stop()

    def __enter__(self) -> LocalStack:
        """Start all servers."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop all servers; see close."""
        self.close()

    def remember_ports(self) -> None:
        """Write the ports down for the next start: from now on the folder is this stack's."""
        write_atomically(self._ports_file, json.dumps(asdict(self.ports), indent=2) + "\n")

    def _remembered_ports(self) -> StackPorts | None:
        try:
            return StackPorts(**json.loads(self._ports_file.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as exc:
            raise StackError(f"{self._ports_file} is damaged ({exc}), remove it") from exc

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Let one process at a time start servers in this folder."""
        path: Path = self.settings.folder / "start.lock"
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise StackError(
                    f"another process is starting a stack in {self.settings.folder}, wait for it "
                    f"or use another folder"
                ) from exc
            yield


def forget_data(settings: StackSettings) -> None:
    """Remove what an earlier stack left in the folder of these settings; StackError when one runs there."""
    if (settings.folder / _PORTS_FILE).exists():
        for server in LocalStack(settings).servers:
            server.require_stopped()
        shutil.rmtree(settings.folder)
