"""The fault lab: real servers, two processes of each service, a proxy in each line, and the load."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from devstack import hurried
from devstack.database_cluster import DatabaseCluster
from devstack.errors import StackError
from devstack.evidence import Evidence
from devstack.faults import Fault, FaultMachine, Happened
from devstack.grounds import Ground, OneOfEach, WithFailover
from devstack.keeper import Keeper
from devstack.ledger import Books, Ledger, drop_the_key_that_hides_duplicates
from devstack.load import SEEDS, Load
from devstack.machine import free_port_block
from devstack.proxy import proxied, through
from devstack.server import Server
from devstack.services import (
    ACCOUNT_DATABASE,
    POINTS_DATABASE,
    TOPIC,
    DemoService,
    account_service,
    page_settings,
    points_service,
    start_together,
    stop_together,
)
from devstack.settings import StackSettings
from rmq_txn.errors import DatabaseUnavailableError, InDoubtError
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError

# More than a run can use up: with the intervals of tests 15 questions are over after 75 s.
_MANY_QUESTIONS: Final = 1000
_GIVEN_UP_TOPIC: Final = "TRANS_CHECK_MAX_TIME_TOPIC"
# Generous: a busy machine is slow, and a broker may take a minute to find its feet.
_READY_SECONDS: Final = 180.0
_HEAL_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 2.0
_SAY_SECONDS: Final = 10.0
# Longer than a check interval: an extra or a second delivery would come by then.
_QUIET_SECONDS: Final = 12.0


class Lab:
    """
    The servers, two processes of each service, and a proxy in each line; all of it ends with the lab.

    Args:
        folder: where all of it lives; emptied first if it is an earlier lab's.
        impatient: the broker gives a half message up after three questions, and the outbox of the
            account service is hurried accordingly.
        redeliveries: the broker's pauses between them, as `messageDelayLevel`; None: those of tests.
        buttons: the services take the faults of single transfers, as the buttons of the demo page ask for.
        asks_after_seconds: how old a half message is when the broker asks about it; None: as in tests.
        databases: the kind of database cluster that fails over, beside brokers that do; None: one of each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        impatient: bool = False,
        redeliveries: str | None = None,
        buttons: bool = False,
        asks_after_seconds: float | None = None,
        databases: type[DatabaseCluster] | None = None,
    ) -> None:
        self._began = time.monotonic()
        self._cleanup = ExitStack()
        more = {} if redeliveries is None else {"messageDelayLevel": redeliveries}
        settings = StackSettings.for_tests(
            folder,
            transaction_check_max=hurried.QUESTIONS if impatient else _MANY_QUESTIONS,
            broker_properties=more,
            **({} if asks_after_seconds is None else {"transaction_timeout_seconds": asks_after_seconds}),
        )
        self._account_module = "devstack.hurried" if impatient else "demo_account_service"
        self._ground: Ground = OneOfEach(settings) if databases is None else WithFailover(settings, databases)
        self.stack = self._ground.stack
        self.lines = self._ground.lines
        self.switches = self._ground.switches
        self.keepers: dict[str, Keeper] = {}
        self._buttons = buttons
        self.accounts: list[DemoService] = []
        self.points: list[DemoService] = []

    def say(self, text: str) -> None:
        """Print one line with the seconds since the start."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def __enter__(self) -> Lab:
        """Start everything."""
        with ExitStack() as undo:
            undo.enter_context(self._cleanup)
            self._start()
            self._cleanup = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self._cleanup.close()

    def _start(self) -> None:
        stack = self.stack
        self.say(f"starting the servers, and two processes of each service, in {stack.settings.folder}")
        self._cleanup.enter_context(self._ground)
        stack.create_topic(TOPIC)
        self._first_port = free_port_block()
        for number in (1, 2):
            name = f"account-{number}"
            more = self._lines_of(name, "ACCOUNT_SERVICE_", ACCOUNT_DATABASE)
            service = account_service(
                stack,
                stack.settings.folder,
                port=self._first_port + number,
                seeds=SEEDS,
                name=name,
                more=more,
                module=self._account_module,
            )
            self.accounts.append(service)
            name = f"points-{number}"
            more = self._lines_of(name, "POINTS_SERVICE_", POINTS_DATABASE)
            service = points_service(
                stack, stack.settings.folder, port=self._first_port + 4 + number, name=name, more=more
            )
            self.points.append(service)
        services = (*self.accounts, *self.points)
        self._cleanup.callback(stop_together, *services)
        start_together(*services)
        drop_the_key_that_hides_duplicates(stack)
        for server in (*services, *self._ground.kept):
            keeper = self.keepers[server.name] = Keeper(server, keep_logs=server in services)
            self._cleanup.callback(keeper.close)

    def _lines_of(self, name: str, prefix: str, database: str) -> dict[str, str]:
        url = self.stack.database_url(database)
        proxy = self._cleanup.enter_context(proxied(url))
        self.lines[f"the line to the database of {name}"] = proxy
        return {
            **self._buttons_of(name, prefix),
            f"{prefix}DATABASE_URL": through(url, proxy),
            f"{prefix}NAME_SERVER": self._ground.name_server,
        }

    def _buttons_of(self, name: str, prefix: str) -> dict[str, str]:
        """Two processes have two folders: what is armed is remembered by the one that was asked."""
        if not self._buttons:
            return {}
        for_account, for_points = page_settings(self.stack.settings.folder / name, self._first_port + 5)
        return for_account if prefix == "ACCOUNT_SERVICE_" else for_points

    def start_load(self, clients: int, *, pause_seconds: float = 0.0) -> Load:
        """Let some clients transfer money, on both processes of the account service."""
        load = Load(self.accounts, secrets.token_hex(3), clients=clients, pause_seconds=pause_seconds)
        self._cleanup.callback(load.stop)
        load.start()
        return load

    def run(self, plan: Sequence[Fault], load: Load, *, transfers: int) -> None:
        """Let the plan happen, and the load go on until `transfers` are committed."""
        machine = FaultMachine(self.keepers, self.lines, self.switches, self.say)
        try:
            machine.run(plan)
        finally:
            machine.stop()
        last_said = 0.0
        while len(load.committed) < transfers:
            if time.monotonic() - last_said > _SAY_SECONDS:
                last_said = time.monotonic()
                self.say(f"{len(load.committed)} of {transfers} transfers are committed")
            time.sleep(_LOOK_SECONDS)

    def run_in_turn(self, faults: Sequence[Fault], *, calm_seconds: float) -> list[Happened]:
        """Let faults happen one after the other, with calm between; return when each of them was there."""
        machine = FaultMachine(self.keepers, self.lines, self.switches, self.say)
        try:
            machine.run_in_turn(faults, calm_seconds=calm_seconds, wait_well=self._wait_up)
        finally:
            machine.stop()
        return machine.happened

    def heal(self, load: Load) -> Books:
        """End the load; wait until every transfer has its points, and then for what comes too late."""
        load.stop()
        self._wait_up()
        self.say("all is up again, waiting for the last answers and points")
        load.join(_HEAL_SECONDS)
        with Ledger(self.stack) as ledger:
            deadline = time.monotonic() + _HEAL_SECONDS
            books = self._read(ledger)
            while books.missing and time.monotonic() < deadline:
                self.say(f"{len(books.missing)} of {len(books.transfers)} transfers have no points yet")
                time.sleep(_LOOK_SECONDS)
                books = self._read(ledger)
            self.say(f"{len(books.entries)} of {len(books.transfers)}; now {_QUIET_SECONDS:g} s of quiet")
            time.sleep(_QUIET_SECONDS)
            return self._read(ledger)

    def _wait_up(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        for keeper in reversed(self.keepers.values()):  # the servers first, then who needs them
            self._wait_ready(keeper.server, deadline)

    def _wait_ready(self, server: Server, deadline: float) -> None:
        while True:
            try:
                server.wait_ready(timeout_seconds=max(0.0, deadline - time.monotonic()))
            except StackError:  # a service that ended because what it needs was not up yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_SECONDS)
            else:
                return

    def _read(self, ledger: Ledger) -> Books:
        while True:
            try:
                return ledger.read()
            except (DatabaseUnavailableError, InDoubtError) as error:  # a connection of before
                self.say(f"the books can't be read yet: {error}")
                time.sleep(_LOOK_SECONDS)

    def given_up(self) -> int:
        """Return how many half messages the broker asked about in vain, and dropped."""
        broker = RemotingClient(self._ground.broker())
        try:
            return broker.max_offset(_GIVEN_UP_TOPIC, 0)
        except RemotingError:  # the topic does not exist before the first one
            return 0

    def evidence(self) -> Evidence:
        """Read the logs of all lives of all services."""
        services = {service.name for service in (*self.accounts, *self.points)}
        return Evidence(log for name in services for log in self.keepers[name].logs)
