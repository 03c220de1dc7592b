"""Both demo services as real processes on the servers of the test run, and their books."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack import LocalStack
from devstack.ledger import Books, Ledger
from devstack.machine import free_port_block
from devstack.services import (
    TOPIC,
    Answer,
    DemoService,
    account_service,
    page_settings,
    points_service,
    start_together,
    stop_together,
)
from tests.kit.wait import until

SEEDS = {"alice": 10**9, "bob": 10**9, "carol": 0}
# Check-back, and redelivery after a broker's or a consumer's end, on a busy machine.
DELIVERY_SECONDS = 60.0


class Demo:
    """Both services, and questions to both databases."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack
        self.folder: Path = stack.settings.folder
        self.first_port = free_port_block()
        stack.create_topic(TOPIC)
        for_account, for_points = page_settings(self.folder, self.first_port + 1)
        self.spans = self.folder / "account-spans.jsonl", self.folder / "points-spans.jsonl"
        for settings, path in zip((for_account, for_points), self.spans, strict=True):
            settings["DEMO_SPANS"] = str(path)
        self.account = account_service(
            stack, self.folder, port=self.first_port, seeds=SEEDS, more=for_account
        )
        self.points = points_service(stack, self.folder, port=self.first_port + 1, more=for_points)
        self.ledger = Ledger(stack)

    @property
    def services(self) -> tuple[DemoService, DemoService]:
        return self.account, self.points

    def start_those_down(self) -> None:
        """Start what a test killed or stopped."""
        start_together(*[service for service in self.services if not service.alive])

    def close(self) -> None:
        self.ledger.close()
        stop_together(*self.services)

    def transfer(
        self, transfer_id: str, amount: int = 2500, *, payer: str = "alice", payee: str = "bob"
    ) -> Answer:
        """Ask the account service for a transfer."""
        body = {"transfer_id": transfer_id, "from": payer, "to": payee, "amount": amount}
        return self.account.post("/transfers", body)

    def wait_for_points(self, transfer_id: str) -> Books:
        """Return the books as soon as the transfer is in the points ledger."""

        def books_with_entry() -> Books | None:
            books = self.ledger.read()
            return books if transfer_id in books.entries else None

        return until(books_with_entry, f"points for {transfer_id}", DELIVERY_SECONDS) or self.ledger.read()

    def wait_green(self, seconds: float = DELIVERY_SECONDS) -> None:
        """Wait until both are well: brokers that a test killed may still have to hear of them."""
        for service in self.services:
            until(lambda asked=service: asked.get("/health").status == 200, "a green health", seconds)

    def settle(self) -> None:
        """Wait until every committed transfer earned its points; then the books must be right."""
        until(lambda: not self.ledger.read().missing, "points for every transfer", DELIVERY_SECONDS)
        assert self.ledger.read().problems(sum(SEEDS.values())) == []

    def events(self, service: DemoService, event: str, txn_id: str) -> list[dict[str, Any]]:
        """Return what a service logged about a transaction since its last start."""
        return [line for line in service.log_lines(event) if line.get("txn_id") == txn_id]


@pytest.fixture(scope="session")
def demo_processes(stack: LocalStack) -> Iterator[Demo]:
    """Start both services once; they end with the test run."""
    demo = Demo(stack)
    try:
        yield demo
    finally:
        demo.close()


@pytest.fixture
def demo(demo_processes: Demo) -> Iterator[Demo]:
    """Return both services, serving; afterwards the invariant must hold, whatever the test did."""
    demo_processes.start_those_down()
    yield demo_processes
    demo_processes.start_those_down()
    demo_processes.settle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of both services' logs below a failure."""
    report = yield
    processes = getattr(item, "funcargs", {}).get("demo_processes") or getattr(item, "funcargs", {}).get(
        "demo"
    )
    if report.failed and processes is not None:
        for service in processes.services:
            report.sections.append((f"log of the {service.name}", service.log_tail(40)))
    return report
