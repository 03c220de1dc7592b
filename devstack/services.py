"""The two demo services as processes of a stack: start, kill, stop, ask, and read their logs."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from devstack.errors import StackError
from devstack.program import NotReadyError
from devstack.record import ServerRecord
from devstack.server import Server
from devstack.settings import CHECKOUT

HOST: Final = "127.0.0.1"
TOPIC: Final = "transfer"
ACCOUNT_DATABASE: Final = "account"
POINTS_DATABASE: Final = "points"
MAX_ATTEMPTS: Final = 4
"""Failures until a message is parked: few, for people who watch."""

_REQUEST_SECONDS = 30.0
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
# What a service reads; from a user's shell it must not reach the services of a demo.
_OWN_VARIABLES = ("ACCOUNT_SERVICE_", "POINTS_SERVICE_", "DEMO_")


class Databases(Protocol):
    """What a stack is asked for by those who look at the books only."""

    def database_url(self, name: str) -> str:
        """Return the URL of a database, made if it is missing."""


class Servers(Databases, Protocol):
    """What the services need of a stack."""

    @property
    def name_server(self) -> str:
        """Return "host:port" of the name server; several are separated by ';'."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an HTTP request."""

    status: int
    body: dict[str, Any]


class DemoService(Server):
    """
    A demo service as a process; like every server it ends with the process that started it.

    Args:
        module: what `python -m` runs.
        folder: the stack's folder.
        port: the port it listens on.
        environment: its settings, as environment variables.
        name: of log, pid file and messages; None: the module's. Several processes need several.
    """

    def __init__(
        self, module: str, folder: Path, port: int, environment: Mapping[str, str], name: str | None = None
    ) -> None:
        self._service = _ServiceProgram(module, folder.resolve(), port, environment, name)
        super().__init__(self._service)

    @property
    def url(self) -> str:
        """Return "http://127.0.0.1:port"."""
        return f"http://{HOST}:{self.port}"

    @property
    def settings(self) -> Mapping[str, str]:
        """Return its settings, as environment variables."""
        return self._service.settings

    @property
    def port(self) -> int:
        """Return the port it listens on."""
        return self._service.ports[0]

    @property
    def exit_code(self) -> int | None:
        """Return the exit status of the last process, minus the signal if one ended it; None: it runs."""
        record = ServerRecord.read(self._pid_file)
        return None if record is None else record.exit_code

    def start_with_crash_point(self, point: str, transfer_id: str) -> None:
        """Start it so that this transfer kills it with SIGKILL at `point`; see its faults.py."""
        self._service.crash_point = f"{point}:{transfer_id}"
        try:
            self.start()
        finally:
            self._service.crash_point = None

    def get(self, path: str) -> Answer:
        """Send a GET request; OSError or HTTPException when there is no answer."""
        return self._service.request("GET", path, None)

    def post(self, path: str, body: object) -> Answer:
        """Send a POST request with a JSON body; errors as `get`."""
        return self._service.request("POST", path, json.dumps(body).encode())

    def metrics(self) -> str:
        """Return what Prometheus would get; errors as `get`."""
        status, body = self._service.fetch("GET", "/metrics", None)
        if status != 200:
            raise StackError(f"/metrics of the {self.name} answers {status} {body[:200]!r}")
        return body.decode()

    def log_lines(self, event: str) -> Iterator[dict[str, Any]]:
        """Return the lines with this event that it logged since its last start."""
        for line in self.log_path.read_text(encoding="utf-8", errors="replace").splitlines():
            # Python itself may have written lines that are not ours.
            if line.startswith("{"):
                fields = json.loads(line)
                if fields.get("event") == event:
                    yield fields


class _ServiceProgram:
    """See ServerProgram."""

    ready_seconds = 120.0  # beside other work; a start takes a second or two
    stop_seconds = 10.0
    more_logs: tuple[Path, ...] = ()  # it logs to stderr

    def __init__(
        self, module: str, folder: Path, port: int, environment: Mapping[str, str], name: str | None
    ) -> None:
        self.name = name or module.removeprefix("demo_").replace("_", "-")
        self.folder = folder
        self.ports: tuple[int, ...] = (port,)
        self.crash_point: str | None = None
        self._module = module
        self.settings = dict(environment)

    def prepare(self) -> None:
        """Nothing: a service makes its tables itself."""

    def command(self) -> list[str]:
        """Return the command line; `-X` lets any name=value pass, ours names the stack's folder."""
        return [sys.executable, "-X", f"devstack={self.folder}", "-m", self._module]

    def environment(self) -> dict[str, str]:
        """Return the environment: ours, without settings of services that happen to be in it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)}
        crash = {} if self.crash_point is None else {"DEMO_CRASH": self.crash_point}
        return {**inherited, "PYTHONPATH": str(CHECKOUT), **self.settings, **crash}

    def probe(self) -> None:
        """Ask for its health."""
        try:
            answer = self.request("GET", "/health", None)
        except (OSError, http.client.HTTPException) as exc:
            raise NotReadyError(repr(exc)) from exc
        if answer.status != 200:
            raise NotReadyError(f"/health answers {answer.status} {answer.body}")

    def request(self, method: str, path: str, body: bytes | None) -> Answer:
        """Send one request on a connection of its own; the answer is JSON."""
        status, answer = self.fetch(method, path, body)
        return Answer(status, json.loads(answer))

    def fetch(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Send one request on a connection of its own; return status and body."""
        connection = http.client.HTTPConnection(HOST, self.ports[0], timeout=_REQUEST_SECONDS)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def account_service(
    stack: Servers,
    folder: Path,
    *,
    port: int,
    seeds: Mapping[str, int],
    name: str | None = None,
    more: Mapping[str, str] = _NOTHING,
    module: str = "demo_account_service",
) -> DemoService:
    """
    Describe a process of the account service of a stack that runs; nothing is started yet.

    Args:
        stack, folder, port, name: as in DemoService.
        seeds: the accounts it opens, in fen.
        more: settings that win over those of the stack, as environment variables.
        module: another one that runs the service.
    """
    environment = {
        **_settings("ACCOUNT_SERVICE_", stack, ACCOUNT_DATABASE, port),
        "DEMO_SEED_ACCOUNTS": ",".join(f"{user}={balance}" for user, balance in seeds.items()),
        **more,
    }
    return DemoService(module, folder, port, environment, name)


def points_service(
    stack: Servers, folder: Path, *, port: int, name: str | None = None, more: Mapping[str, str] = _NOTHING
) -> DemoService:
    """Describe a process of the points service; see `account_service`."""
    environment = {**_settings("POINTS_SERVICE_", stack, POINTS_DATABASE, port), **more}
    return DemoService("demo_points_service", folder, port, environment, name)


def page_settings(folder: Path, points_port: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return what account and points service need more for the demo page, with its faults."""
    both = {"DEMO_FAULTS": "1", "DEMO_FOLDER": str(_page_folder(folder))}
    return (
        {**both, "ACCOUNT_SERVICE_POINTS_URL": f"http://{HOST}:{points_port}"},
        {**both, "POINTS_SERVICE_MAX_ATTEMPTS": str(MAX_ATTEMPTS)},
    )


def events_path(folder: Path, service: str) -> Path:
    """Return where a service with those settings writes its events: "account" or "points"."""
    return _page_folder(folder) / f"{service}-events.jsonl"


def _page_folder(folder: Path) -> Path:
    return folder.resolve() / "page"


def start_together(*services: DemoService) -> None:
    """Start services at the same time; return when all serve."""
    for service in services:
        service.start(wait=False)
    for service in services:
        service.wait_ready()


def stop_together(*services: DemoService) -> None:
    """Stop services at the same time; nothing for those that are down."""
    for service in services:
        service.begin_stop()
    for service in services:
        service.stop()


def _settings(prefix: str, stack: Servers, database: str, port: int) -> dict[str, str]:
    return {
        f"{prefix}DATABASE_URL": stack.database_url(database),
        f"{prefix}NAME_SERVER": stack.name_server,
        f"{prefix}HOST": HOST,
        f"{prefix}PORT": str(port),
        f"{prefix}LOG_FORMAT": "json",
    }
