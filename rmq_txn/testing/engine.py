"""What is asked of testcontainers and of the container engine; nothing else here imports them."""

from __future__ import annotations

import io
import random
import socket
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from rmq_txn.errors import RmqTxnError
from rmq_txn.logs import get_logger

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

log = get_logger("testing")

HOST: Final = "127.0.0.1"
MYSQL_IMAGE: Final = "mysql:8.4"

# Below the range from which Linux takes the ports of outgoing connections: none of them, outside
# or inside a container, sits on the port of a server that is about to start.
_PORTS: Final = range(20_000, 32_000)
_PORT_ATTEMPTS: Final = 5
_FILE_BYTES: Final = 64 * 1024
_ENGINE_SECONDS: Final = 60.0
_MISSING: Final = "testcontainers is not installed, install it: pip install 'rmq-txn[testing]'"


class ContainerError(RmqTxnError):
    """No container: testcontainers or an engine is missing, or the servers did not come up."""


class PortTakenError(ContainerError):
    """Somebody listens on a port that a container was to be published on."""


def new_container(image: str) -> DockerContainer:
    """
    Return a container that is not started.

    Raises:
        ContainerError: testcontainers is missing, no engine answers, or it is on another machine.
    """
    with with_engine():
        from testcontainers.core.container import DockerContainer

        container = DockerContainer(image)
    host = container.get_docker_client().host()
    if host not in (HOST, "localhost"):
        raise ContainerError(
            f"the container engine is on {host}, use one of this machine: a broker in a container "
            f"tells its clients {HOST}"
        )
    return container


@contextmanager
def with_engine() -> Iterator[None]:
    """Say what to install or to start when the first question to the engine fails."""
    try:
        from docker.errors import DockerException
    except ImportError as exc:
        raise ContainerError(_MISSING) from exc
    try:
        _require_socket()
        yield
    except ImportError as exc:
        raise ContainerError(_MISSING) from exc
    except (DockerException, OSError) as exc:
        raise ContainerError(
            f"no container engine answers ({exc}), start Docker or say in DOCKER_HOST where it is"
        ) from exc


def _require_socket() -> None:
    """
    Raise OSError if nobody listens where the engine should.

    The engine's own client (docker 7.1) leaves its socket open then, and the ResourceWarning comes later, in
    whatever test runs at that time.
    """
    from docker.utils import parse_host
    from testcontainers.core.docker_client import get_docker_host

    scheme, _, path = parse_host(get_docker_host()).partition("://")
    if scheme == "http+unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_ENGINE_SECONDS)
            probe.connect(path)


@contextmanager
def mysql_container() -> Iterator[str]:
    """
    Run MySQL 8.4 in a container for this block; the value is the URL of an empty database.

    Raises:
        ContainerError: testcontainers or an engine is missing, or it did not start.
    """
    with with_engine():
        from testcontainers.community.mysql import MySqlContainer

        container = MySqlContainer(MYSQL_IMAGE)
    start(container)
    try:
        yield container.get_connection_url()
    finally:
        container.stop()


def start_on_free_ports(
    count: int, make: Callable[[list[int]], DockerContainer]
) -> tuple[DockerContainer, list[int]]:
    """
    Start a container that `make` returns for free ports, on others if somebody was faster.

    Raises:
        ContainerError: the engine can't start it.
    """
    attempt = 0
    while True:
        attempt += 1
        ports = free_ports(count)
        container = make(ports)
        try:
            start(container)
        except PortTakenError:
            if attempt == _PORT_ATTEMPTS:
                raise
        else:
            return container, ports


def start(container: DockerContainer) -> None:
    """
    Start a container, pulling its image if it is missing; remove it again if that fails.

    Raises:
        ContainerError: the engine can't start it.
    """
    try:
        with explained(f"cannot start {container.image}"):
            container.start()
    except BaseException:
        _remove(container)
        raise


@contextmanager
def explained(what: str) -> Iterator[None]:
    """
    Turn what the engine, the way to it or testcontainers' reaper says into ContainerError.

    An engine that is away or silent shows as OSError, the errors of `requests` among them.
    """
    from docker.errors import DockerException
    from testcontainers.core.exceptions import ContainerConnectException, ContainerStartException

    try:
        yield
    except (DockerException, OSError, ContainerConnectException, ContainerStartException) as exc:
        # The engine has no code for this, only these words.
        taken = any(words in str(exc) for words in ("already allocated", "already in use"))
        raise (PortTakenError if taken else ContainerError)(f"{what}: {exc}") from exc


def _remove(container: DockerContainer) -> None:
    """Remove what a failed start left; the error of the start is the one to tell."""
    try:
        with explained(f"cannot remove {container.image}"):
            container.stop()
    except ContainerError as error:
        log.warning("a container may be left behind", cause=str(error))


def publish(container: DockerContainer, ports: Mapping[int, int]) -> None:
    """Publish ports, inside to outside, on 127.0.0.1; testcontainers' own way is every address."""
    for inside, outside in ports.items():
        cast("dict[str, Any]", container.ports)[f"{inside}/tcp"] = (HOST, outside)


def runs(container: DockerContainer) -> bool:
    """Ask the engine whether a container runs; a paused one does."""
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    return bool(wrapped.status in ("running", "paused"))


def logs(container: DockerContainer, files: tuple[str, ...], lines: int) -> str:
    """Return the last lines of a container's output and, under their names, of files in it."""
    from docker.errors import NotFound

    wrapped = container.get_wrapped_container()
    parts = [wrapped.logs(tail=lines).decode(errors="replace")]
    for path in files:
        try:
            chunks, _stat = wrapped.get_archive(path)
        except NotFound:
            continue
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            for member in archive:
                file = archive.extractfile(member)
                text = "" if file is None else file.read()[-_FILE_BYTES:].decode(errors="replace")
                parts.append(f"--- {path}\n" + "\n".join(text.splitlines()[-lines:]))
    return "\n".join(parts)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now; somebody may before we do."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)  # at random: containers that start together must not meet
        if port not in found and _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: closed connections in TIME_WAIT don't keep a port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
