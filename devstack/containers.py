"""The stack of real servers as containers of one's own engine, with the images of docker-compose.yml."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from devstack import database
from devstack.errors import StackError
from devstack.program import wait_until_ready
from devstack.rocketmq import Broker, NameServer
from devstack.routes import create_topic
from devstack.settings import StackPorts, StackSettings
from rmq_txn.testing import engine, image
from rmq_txn.testing.broker import as_text
from rmq_txn.testing.engine import HOST, ContainerError

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network

MYSQL_IMAGE = "mysql:8.4"
_MYSQL_PORT = 3306
_PROXY_CONFIGURATION = "/etc/rocketmq/proxy.json"  # we put it there
_NAME_SERVER = "namesrv"  # its name in the network
_STOP_SECONDS = 30
_READY_SECONDS = 120.0


def new_network() -> Network:
    """
    Return a network of one's own that exists; remove() it after its containers.

    Raises:
        ContainerError: testcontainers is missing or no engine answers.
    """
    with engine.with_engine():
        from testcontainers.core.network import Network

        return Network().create()


def _broker_with_proxy() -> str:
    """Return the words that run proxy and broker in one process."""
    return image.java(
        *("org.apache.rocketmq.proxy.ProxyStartup", "-pm", "local"),
        *("-bc", image.CONFIGURATION, "-pc", _PROXY_CONFIGURATION),
        logging="rmq.proxy.logback.xml",  # contains the broker's
        heap_mb=(256, 512),
        more_options=image.DIRECT_MEMORY,
    )


class ContainerServer:
    """
    A handle of one server in a container; its methods may be called from any thread, one at a time.

    Args:
        name: the name used in messages.
        container: not started yet.
        probe: raises NotReadyError while the server does not answer.
        log_files: files in the container that it writes besides its output.
    """

    def __init__(
        self, name: str, container: DockerContainer, probe: Callable[[], None], *log_files: str
    ) -> None:
        self.name = name
        self._container = container
        self._probe = probe
        self._log_files = log_files
        self._made = False

    @property
    def alive(self) -> bool:
        """Tell whether the container runs; a paused one does."""
        return self._made and engine.runs(self._container)

    @property
    def pid(self) -> int:
        """Return the id of its process outside the container; StackError when it doesn't run."""
        return int(self._running().attrs["State"]["Pid"])

    def start(self, *, wait: bool = True) -> None:
        """Start it with its data on its ports; see ServerHandle."""
        if self.alive:
            raise StackError(f"{self.name} runs already, stop it first")
        try:
            if self._made:
                with engine.explained(f"cannot start {self._container.image} again"):
                    self._container.get_wrapped_container().start()
            else:
                engine.start(self._container)
        except ContainerError as exc:
            raise StackError(f"{self.name}: {exc}\n{self.log_tail()}") from exc
        self._made = True
        if wait:
            self.wait_ready()

    def stop(self) -> None:
        """Stop it with SIGTERM, kill it after 30 s; nothing when it is down."""
        if self.alive:
            with self._explained("stop"):
                self._unfrozen().stop(timeout=_STOP_SECONDS)

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        with self._explained("kill"):
            container = self._unfrozen()
            container.kill()
            container.wait(timeout=_STOP_SECONDS)

    def pause(self) -> None:
        """Freeze all its processes: connections stay, nobody answers."""
        with self._explained("pause"):
            self._running().pause()

    def resume(self) -> None:
        """Let it go on after pause()."""
        with self._explained("resume"):
            self._running().unpause()

    def restart(self) -> None:
        """Stop it cleanly, start it again and wait until it serves."""
        self.stop()
        self.start()

    def wait_ready(self, *, timeout_seconds: float | None = None) -> None:
        """Wait until the server itself answers; default: 120 s."""
        seconds = _READY_SECONDS if timeout_seconds is None else timeout_seconds
        wait_until_ready(seconds, lambda: self.alive, self._probe, self._report)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of its output and of its own log files."""
        return engine.logs(self._container, self._log_files, lines) if self._made else ""

    def remove(self) -> None:
        """Remove the container with its data."""
        self._container.stop()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            with engine.explained(f"can't {what} {self.name}"):
                yield
        except ContainerError as exc:
            raise StackError(f"{exc}\n{self.log_tail()}") from exc

    def _running(self) -> Any:
        if not self.alive:
            raise StackError(f"{self.name} is not running, start it first")
        return self._container.get_wrapped_container()

    def _unfrozen(self) -> Any:
        """Return the container, no longer paused: the engine sends no signals to a paused one."""
        container = self._running()
        if container.status == "paused":
            container.unpause()
        return container

    def _report(self, what: str) -> str:
        return f"{self.name} {what}\n{self.log_tail()}"


class ContainerStack:
    """
    RocketMQ and MySQL as containers, published on 127.0.0.1 only.

    As a context manager it starts all servers and removes them with their data at the end. When this
    process is killed, testcontainers' own reaper removes them, unless it is switched off.

    Args:
        settings: see StackSettings. Not used: folders, heaps and `advertised_host`, which is 127.0.0.1.
    """

    namesrv: ContainerServer
    broker: ContainerServer
    database: ContainerServer

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self._ports = settings.ports or StackPorts.choose()
        self._name_server = NameServer(settings, self._ports)
        self._broker = Broker(replace(settings, proxy=True), self._ports)  # published on HOST only
        self._image = f"apache/rocketmq:{settings.rocketmq_version}"
        self._secret = secrets.token_bytes(32)
        self._root_password = database.derived_password(self._secret, "root")
        self._resources = ExitStack()

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
        """Return "127.0.0.1:port" of the proxy for gRPC clients."""
        return self._broker.proxy_address

    def database_url(self, name: str) -> str:
        """Return the URL of a database, which is made with an account of its own if it is missing."""
        password = database.derived_password(self._secret, name)
        database.make_database(self._connect, name, "%", password)
        return f"mysql://{name}:{password}@{HOST}:{self._ports.database}/{name}"

    def create_topic(self, name: str, queues: int = 4) -> None:
        """Create a topic, or change its number of queues; return when the name server knows it."""
        create_topic(self._broker, name, queues)

    def start(self) -> None:
        """
        Start all servers and wait until they serve; images that are missing are pulled.

        Raises:
            StackError: testcontainers or an engine is missing, or a server did not come up; then
                everything is removed again.
        """
        try:
            self._start()
        except ContainerError as exc:
            self.close()
            raise StackError(str(exc)) from exc
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove all containers with their data, and their network."""
        self._resources.close()

    def __enter__(self) -> ContainerStack:
        """Start all servers."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove all servers; see close."""
        self.close()

    def _start(self) -> None:
        network = new_network()
        self._resources.callback(network.remove)
        self.namesrv = self._namesrv(network)
        self.broker = self._broker_with_proxy(network)
        self.database = self._mysql(network)
        servers = (self.namesrv, self.broker, self.database)
        for server in servers:
            self._resources.callback(server.remove)
        self.namesrv.start(wait=False)
        self.database.start(wait=False)
        # A broker that finds no name server tries again only after ten seconds.
        self.namesrv.wait_ready()
        self.broker.start(wait=False)
        for server in servers:
            server.wait_ready()

    def _namesrv(self, network: Network) -> ContainerServer:
        container = engine.new_container(self._image).with_command(
            ["bash", "-c", f"exec {image.name_server()}"]
        )
        container.with_network(network).with_network_aliases(_NAME_SERVER)
        engine.publish(container, {image.NAME_SERVER_PORT: self._ports.name_server})
        return ContainerServer(
            self._name_server.name, container, self._name_server.probe, image.NAME_SERVER_LOG
        )

    def _broker_with_proxy(self, network: Network) -> ContainerServer:
        name_server = f"{_NAME_SERVER}:{image.NAME_SERVER_PORT}"
        properties = {
            **self._broker.properties(name_server=name_server, store=image.STORE),
            "brokerIP1": HOST,  # where its port is published
            **self.settings.broker_properties,
        }
        proxy = self._broker.proxy_settings(name_server=name_server)
        container = engine.new_container(self._image).with_command(
            ["bash", "-c", f"exec {_broker_with_proxy()}"]
        )
        container.with_network(network)
        container.with_copy_into_container(as_text(properties).encode(), image.CONFIGURATION)
        container.with_copy_into_container(json.dumps(proxy).encode(), _PROXY_CONFIGURATION)
        # Clients are told these ports: the same inside and outside.
        ports = (self._ports.broker, self._ports.proxy_grpc, self._ports.proxy_remoting)
        engine.publish(container, {port: port for port in ports})
        files = (image.BROKER_LOG, image.PROXY_LOG)
        return ContainerServer(self._broker.name, container, self._broker.probe, *files)

    def _mysql(self, network: Network) -> ContainerServer:
        options = [f"--{key}={value}" for key, value in self.settings.database_options.items()]
        container = engine.new_container(MYSQL_IMAGE).with_command(["mysqld", *database.OPTIONS, *options])
        container.with_network(network).with_env("MYSQL_ROOT_PASSWORD", self._root_password)
        engine.publish(container, {_MYSQL_PORT: self._ports.database})
        return ContainerServer("database", container, partial(database.probe, self._connect))

    def _connect(self) -> Connection[Cursor]:
        return database.connect(self._ports.database, "root", self._root_password)
