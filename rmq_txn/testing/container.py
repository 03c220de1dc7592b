"""Apache RocketMQ in one container, for the tests of services that use this package."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final

from rmq_txn.errors import BrokerUnavailableError, LifecycleError, SettingsError
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError
from rmq_txn.testing import engine
from rmq_txn.testing import image as known
from rmq_txn.testing.broker import READY_TOPIC, SHORT_POLLS, as_text, broker_properties, delays_of, has_route
from rmq_txn.testing.engine import HOST, ContainerError

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_ASK_SECONDS: Final = 3.0
_PAUSE_SECONDS: Final = 0.2
_ROUTE_SECONDS: Final = 20.0
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

# A broker that finds no name server tries again only after ten seconds, so it starts second. It
# takes the shell's place: the engine's SIGTERM is its own.
_COMMAND: Final = (
    f"{known.name_server()} & "
    f"until (exec 3<>/dev/tcp/127.0.0.1/{known.NAME_SERVER_PORT}) 2>/dev/null; "
    f"do kill -0 $! || exit 1; sleep 0.2; done; "
    f"exec {known.broker()}"
)


class RocketMQContainer:
    """
    Name server and broker of Apache RocketMQ in one container, published on 127.0.0.1 only.

    As a context manager it starts them, and removes container and data at the end. Every start begins
    with an empty broker. Asks about half messages and redelivers within seconds, where a broker in
    production takes its time; the delays of delayed messages are all the same.

    Thread-safety: start() and stop() from one thread; everything else from any thread meanwhile.

    Not promised: that other containers reach it (clients are told 127.0.0.1), an engine on another
    machine, gRPC clients (no proxy), access control, data that stay.

    Args:
        image: one of apache/rocketmq, 5.x, or another with its folders, user and entry point.
        transaction_timeout_seconds: age of a half message when the broker asks about it first. A
            transaction that takes longer than this before its COMMIT may be fenced.
        transaction_check_interval_seconds: pause between two rounds of such questions.
        transaction_check_max: questions about a half message until the broker gives it up.
        redelivery_seconds: pause before a delivery that failed is made again; 1 or more.
        broker_properties: more lines of broker.conf; they win over ours.
        ready_timeout_seconds: how long a start may take once the image is there.

    Raises:
        SettingsError: an argument is out of its range.
    """

    def __init__(
        self,
        image: str = known.IMAGE,
        *,
        transaction_timeout_seconds: float = 3.0,
        transaction_check_interval_seconds: float = 5.0,
        transaction_check_max: int = 15,
        redelivery_seconds: int = 1,
        broker_properties: Mapping[str, str] = _NOTHING,
        ready_timeout_seconds: float = 120.0,
    ) -> None:
        for name, value, least in (
            ("transaction_timeout_seconds", transaction_timeout_seconds, 0.001),
            ("transaction_check_interval_seconds", transaction_check_interval_seconds, 0.001),
            ("transaction_check_max", transaction_check_max, 1),
            ("ready_timeout_seconds", ready_timeout_seconds, 0.001),
        ):
            if not least <= value < math.inf:
                raise SettingsError(f"{name} is {value!r}, allowed is {least} or more")
        if not isinstance(redelivery_seconds, int) or redelivery_seconds < 1:
            raise SettingsError(
                f"redelivery_seconds is {redelivery_seconds!r}, allowed is a whole number, 1 or more"
            )
        for key, text in broker_properties.items():
            if (
                not re.fullmatch(r"[A-Za-z0-9_.-]+", key)
                or not isinstance(text, str)
                or len(text.splitlines()) > 1
            ):
                raise SettingsError(
                    f"broker_properties has {key!r}: {text!r}, allowed are a name of letters, digits, "
                    f"'_', '.', '-' and a value of one line"
                )
        self._image = image
        self._timeout_seconds = transaction_timeout_seconds
        self._interval_seconds = transaction_check_interval_seconds
        self._check_max = transaction_check_max
        self._more = {**SHORT_POLLS, **delays_of(redelivery_seconds), **broker_properties}
        self._ready_seconds = ready_timeout_seconds
        self._container: DockerContainer | None = None
        self._name_server_port = self._broker_port = 0

    @property
    def name_server(self) -> str:
        """Return "127.0.0.1:port", what `RocketMQ` wants."""
        self._required()
        return f"{HOST}:{self._name_server_port}"

    def create_topic(self, name: str, queues: int = 4) -> None:
        """
        Create a topic, or change its number of queues; return when clients can find it.

        Raises:
            ContainerError: the broker refused, or the name server does not know it after 20 s.
        """
        self._required()
        deadline = time.monotonic() + _ROUTE_SECONDS
        try:
            self._ask(self._broker_port).create_topic(name, queues=queues)
            while not self._has_route(name):
                if time.monotonic() > deadline:
                    raise ContainerError(
                        f"the name server has no route of topic {name!r} after {_ROUTE_SECONDS:g} s\n"
                        f"{self.logs()}"
                    )
                time.sleep(_PAUSE_SECONDS)
        except (BrokerUnavailableError, RemotingError) as exc:
            raise ContainerError(f"cannot create topic {name!r}: {exc}\n{self.logs()}") from exc

    def logs(self, lines: int = 40) -> str:
        """Return the last lines of the container and of both servers' log files."""
        return engine.logs(self._required(), (known.NAME_SERVER_LOG, known.BROKER_LOG), lines)

    def start(self) -> RocketMQContainer:
        """
        Start the container, pulling its image if it is missing; return when both servers serve.

        Raises:
            ContainerError: testcontainers or an engine is missing, or the servers did not come up.
        """
        if self._container is not None:
            raise LifecycleError("this RocketMQContainer is started already, stop it or make another one")
        self._container, (self._name_server_port, self._broker_port) = engine.start_on_free_ports(
            2, self._new_container
        )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Remove the container with its data; nothing when it is not started."""
        if self._container is not None:
            container, self._container = self._container, None
            container.stop()

    def __enter__(self) -> RocketMQContainer:
        """Start; see start."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; see stop."""
        self.stop()

    def _required(self) -> DockerContainer:
        if self._container is None:
            raise LifecycleError("this RocketMQContainer does not run, start it or use it in a with block")
        return self._container

    def _new_container(self, ports: list[int]) -> DockerContainer:
        # The broker tells clients the port that it listens on and knows no other, so a port that the
        # engine chooses outside would lead them nowhere: it has to be the same outside and inside.
        name_server_port, broker_port = ports
        properties = broker_properties(
            name="broker",
            cluster="DefaultCluster",
            name_server=f"127.0.0.1:{known.NAME_SERVER_PORT}",
            advertised_host=HOST,
            port=broker_port,
            store=known.STORE,
            transaction_timeout_seconds=self._timeout_seconds,
            transaction_check_interval_seconds=self._interval_seconds,
            transaction_check_max=self._check_max,
        )
        container = engine.new_container(self._image)
        container.with_command(["bash", "-c", _COMMAND])
        container.with_copy_into_container(
            as_text({**properties, **self._more}).encode(), known.CONFIGURATION
        )
        engine.publish(container, {known.NAME_SERVER_PORT: name_server_port, broker_port: broker_port})
        return container

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while True:
            try:
                self._ask(self._broker_port).create_topic(READY_TOPIC, queues=1)
                problem = "the name server does not know the broker"
                if self._has_route(READY_TOPIC):
                    return
            except (BrokerUnavailableError, RemotingError) as exc:
                problem = str(exc)
            if not engine.runs(self._required()):
                raise ContainerError(f"{self._image} ended before it was ready\n{self.logs()}")
            if time.monotonic() > deadline:
                raise ContainerError(
                    f"{self._image} is not ready after {self._ready_seconds:g} s: {problem}\n{self.logs()}"
                )
            time.sleep(_PAUSE_SECONDS)

    def _has_route(self, topic: str) -> bool:
        return has_route(self._ask(self._name_server_port), topic, f"{HOST}:{self._broker_port}")

    def _ask(self, port: int) -> RemotingClient:
        return RemotingClient(f"{HOST}:{port}", timeout_seconds=_ASK_SECONDS)
