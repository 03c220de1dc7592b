"""Name server and broker of Apache RocketMQ: their configuration, command line and readiness."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from devstack.errors import StackError
from devstack.jars import rocketmq_jars
from devstack.program import NotReadyError
from devstack.settings import StackPorts, StackSettings
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError
from rmq_txn.remoting.wire import Credentials
from rmq_txn.testing.broker import READY_TOPIC, as_text, broker_properties, has_route

HOST = "127.0.0.1"
BROKER_NAME = "devstack-broker"
CLUSTER_NAME = "devstack"

_PROBE_SECONDS = 5.0
# RocketMQ frees mapped files and reads channel internals by reflection. Only Java 9 and newer know
# these options, and only they read the variable.
_JAVA_9_OPTIONS = " ".join(
    f"--add-{kind}={package}=ALL-UNNAMED"
    for kind, package in (
        ("opens", "java.base/java.nio"),
        ("opens", "java.base/sun.nio.ch"),
        ("opens", "java.base/java.util.concurrent"),
        ("exports", "java.base/jdk.internal.ref"),
        ("exports", "java.base/sun.nio.ch"),
    )
)


class _JavaServer:
    """What name server and broker share: a JVM whose home is inside the stack's folder."""

    ready_seconds = 300.0  # seconds on an idle machine; 120 were too few at load 40 on 2 cores
    stop_seconds = 30.0
    logging: str

    def __init__(
        self, name: str, settings: StackSettings, ports: tuple[int, ...], heap_mb: int, direct_mb: int
    ) -> None:
        self.name = name
        self.folder = settings.folder
        self.ports = ports
        self._settings = settings
        self._heap_mb = heap_mb
        self._direct_mb = direct_mb
        # RocketMQ keeps stores, offsets and logs under user.home unless told otherwise.
        self._home = settings.folder / name
        self._conf = self._home / "conf"

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ROCKETMQ_HOME": str(self._home),
            "RMQ_PROXY_HOME": str(self._home),
            "JDK_JAVA_OPTIONS": _JAVA_9_OPTIONS,
        }

    def _java(self, main_class: str, *arguments: str) -> list[str]:
        java = shutil.which("java")
        if java is None:
            raise StackError("java is not on PATH, install it: apt-get install default-jre-headless")
        jars = rocketmq_jars(self._settings.rocketmq_version, self._settings.cache_folder)
        return [
            java,
            f"-Xms{min(64, self._heap_mb)}m",
            f"-Xmx{self._heap_mb}m",
            f"-XX:MaxDirectMemorySize={self._direct_mb}m",
            # The collector with the least memory and threads; heaps are small and cores few.
            "-XX:+UseSerialGC",
            # Name server and broker are up with 5 s of processor time instead of 9.
            *(["-XX:TieredStopAtLevel=1"] if self._settings.short_lived else []),
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",  # no /tmp/hsperfdata file
            f"-Duser.home={self._home}",
            f"-Djava.io.tmpdir={self._home / 'tmp'}",
            # All jars are on one class path, each with a logging configuration of its own.
            f"-Drmq.logback.configurationFile={self.logging}",
            "-cp",
            f"{jars}/*",
            main_class,
            *arguments,
        ]

    def _write_properties(self, file_name: str, properties: Mapping[str, str]) -> Path:
        (self._home / "tmp").mkdir(parents=True, exist_ok=True)
        self._conf.mkdir(parents=True, exist_ok=True)
        path = self._conf / file_name
        path.write_text(as_text(properties))
        return path

    def _rocketmq_log(self, name: str) -> Path:
        return self._home / "logs" / "rocketmqlogs" / f"{name}.log"


class NameServer(_JavaServer):
    """
    The name server: knows which broker has which topic.

    Args:
        settings: see StackSettings.
        ports: its own is used.
        number: 2 and more: another one, with a folder of its own.
    """

    logging = "rmq.namesrv.logback.xml"

    def __init__(self, settings: StackSettings, ports: StackPorts, *, number: int = 1) -> None:
        name = "namesrv" if number == 1 else f"namesrv-{number}"
        super().__init__(name, settings, (ports.name_server,), settings.name_server_heap_mb, direct_mb=64)
        self.address = f"{HOST}:{ports.name_server}"
        self.more_logs: tuple[Path, ...] = (self._rocketmq_log("namesrv"),)
        self._port = ports.name_server

    def prepare(self) -> None:
        """Write its configuration."""
        self._write_properties("namesrv.conf", self.properties())

    def properties(self) -> dict[str, str]:
        """Return the lines of namesrv.conf."""
        return {
            "listenPort": str(self._port),
            "bindAddress": HOST,
            "kvConfigPath": str(self._home / "kvConfig.json"),
        }

    def command(self) -> list[str]:
        """Return the command line."""
        main_class = "org.apache.rocketmq.namesrv.NamesrvStartup"
        return self._java(main_class, "-c", str(self._conf / "namesrv.conf"))

    def probe(self) -> None:
        """Ask which brokers it knows; none is an answer, too."""
        try:
            RemotingClient(self.address, timeout_seconds=_PROBE_SECONDS).cluster_info()
        except (BrokerUnavailableError, RemotingError) as exc:
            raise NotReadyError(str(exc)) from exc


class Broker(_JavaServer):
    """
    The broker; with the setting `proxy` the proxy is around it in one process ("local" mode).

    It listens on HOST, but RocketMQ opens some ports on every address of the machine and has no setting
    for that: the one for replicas, and those of the proxy. See `open_ports`.

    Args:
        settings: see StackSettings.
        ports: those of the name server and its own; the database's is not used.
        number: 2 and more: another master of the same cluster, with a store of its own.
    """

    def __init__(self, settings: StackSettings, ports: StackPorts, *, number: int = 1) -> None:
        self.open_ports: tuple[int, ...] = (ports.replicas,)
        logs = ["broker"]
        self.logging = "rmq.broker.logback.xml"
        if settings.proxy:
            self.open_ports += (ports.proxy_grpc, ports.proxy_remoting)
            logs.append("proxy")
            self.logging = "rmq.proxy.logback.xml"  # contains the broker's
        own_ports = (*ports.broker_ports, *self.open_ports[1:])
        suffix = "" if number == 1 else f"-{number}"
        super().__init__(f"broker{suffix}", settings, own_ports, settings.broker_heap_mb, direct_mb=256)
        self.address = f"{HOST}:{ports.broker}"
        self._advertised_address = f"{settings.advertised_host}:{ports.broker}"
        self._broker_name = f"{BROKER_NAME}{suffix}"
        self.proxy_address = f"{HOST}:{ports.proxy_grpc}"
        self.more_logs: tuple[Path, ...] = tuple(map(self._rocketmq_log, logs))
        self._stack_ports = ports
        self._name_server_address = f"{HOST}:{ports.name_server}"
        self._proxy_remoting_address = f"{HOST}:{ports.proxy_remoting}"

    def prepare(self) -> None:
        """Write the configuration of the broker, and of the proxy if there is one."""
        settings = self._settings
        store = self._home / "store"
        # The broker fails with a NullPointerException when it can't make these itself.
        store.mkdir(parents=True, exist_ok=True)
        properties = {
            **self.properties(name_server=self._name_server_address, store=str(store)),
            "brokerIP2": HOST,
            "bindAddress": HOST,
            **settings.broker_properties,
        }
        self._write_properties("broker.conf", properties)
        if settings.proxy:
            proxy = self.proxy_settings(name_server=self._name_server_address)
            (self._conf / "proxy.json").write_text(json.dumps(proxy, indent=2) + "\n")

    def properties(self, *, name_server: str, store: str) -> dict[str, str]:
        """Return the lines of broker.conf that are the same in every place; both as the broker sees them."""
        settings = self._settings
        return broker_properties(
            name=self._broker_name,
            cluster=CLUSTER_NAME,
            name_server=name_server,
            advertised_host=settings.advertised_host,
            port=self._stack_ports.broker,
            store=store,
            transaction_timeout_seconds=settings.transaction_timeout_seconds,
            transaction_check_interval_seconds=settings.transaction_check_interval_seconds,
            transaction_check_max=settings.transaction_check_max,
        )

    def proxy_settings(self, *, name_server: str) -> dict[str, object]:
        """Return the configuration of the proxy; clients are told to find it on HOST."""
        return {
            "rocketMQClusterName": CLUSTER_NAME,
            "proxyClusterName": CLUSTER_NAME,
            "proxyName": f"{self._broker_name}-proxy",
            "proxyMode": "LOCAL",
            "namesrvAddr": name_server,
            "localServeAddr": HOST,
            "remotingAccessAddr": HOST,
            "grpcServerPort": self._stack_ports.proxy_grpc,
            "remotingListenPort": self._stack_ports.proxy_remoting,
            # Long polls of clients would hold a stop for 30 s.
            "grpcShutdownTimeSeconds": 1,
        }

    def command(self) -> list[str]:
        """Return the command line."""
        configuration = str(self._conf / "broker.conf")
        if not self._settings.proxy:
            return self._java("org.apache.rocketmq.broker.BrokerStartup", "-c", configuration)
        return self._java(
            "org.apache.rocketmq.proxy.ProxyStartup",
            *("-pm", "local"),
            *("-bc", configuration),
            *("-pc", str(self._conf / "proxy.json")),
        )

    def probe(self) -> None:
        """
        Create a topic and find its route; with a proxy there, too, and the gRPC port open.

        After a restart the topic exists, so its route proves that the broker has registered all
        its topics. That takes 10 s more when its first attempt came before its connection to the
        name server was up: it doesn't repeat it earlier.
        """
        try:
            self._client(self.address).create_topic(READY_TOPIC, queues=1)
            proxies = [self._proxy_remoting_address] if self._settings.proxy else []
            for address in (self._name_server_address, *proxies):
                route = self._client(address).topic_route(READY_TOPIC)
                if not route.brokers:
                    raise NotReadyError(f"{address} has a route without a broker")
            if self._settings.proxy:
                socket.create_connection((HOST, self._stack_ports.proxy_grpc), _PROBE_SECONDS).close()
        except (BrokerUnavailableError, RemotingError, OSError) as exc:
            raise NotReadyError(str(exc)) from exc

    def create_topic(self, name: str, queues: int) -> None:
        """Create a topic and wait until the name server knows it; see LocalStack.create_topic."""
        self._client(self.address).create_topic(name, queues=queues)

    def has_route(self, topic: str) -> bool:
        """Tell whether the name server sends clients of a topic to this broker."""
        return has_route(self._client(self._name_server_address), topic, self._advertised_address)

    def _client(self, address: str) -> RemotingClient:
        user = self._settings.credentials
        credentials = None if user is None else Credentials(*user)
        return RemotingClient(address, timeout_seconds=_PROBE_SECONDS, credentials=credentials)
