"""`python -m demo_account_service`: one process of the account service, until SIGTERM or SIGINT."""

from __future__ import annotations

import os

from demo_account_service.app import create_app
from demo_account_service.page.lanes import OwnLanes
from demo_account_service.page.neighbour import Neighbour
from demo_account_service.page.routes import create_router
from demo_account_service.settings import Settings, seed_accounts
from demo_account_service.transfers import TOPIC, Transfers
from demo_chassis import logs
from demo_chassis.events import Events
from demo_chassis.faults import AccountFaults
from demo_chassis.metrics import Metrics
from demo_chassis.process import Process, end
from demo_chassis.watching import WatchedProducer
from rmq_txn import Database

# After SIGTERM running requests get this long, then transactions, the outbox and the client of the
# producer get this long each; together less than the 10 s that container platforms wait before SIGKILL.
_REQUESTS_SECONDS = 3
_PRODUCER_SECONDS = 1.5
GROUP = "account-service"

# /health answers beside the request threads.
_HEALTH_CONNECTIONS = 1


def main() -> int:
    """Run the service and return the exit code."""
    return Process("demo_account_service", requests_seconds=_REQUESTS_SECONDS).run(_serve)


def _serve(process: Process) -> int:
    settings = Settings.from_environment(os.environ)
    seeds = seed_accounts(os.environ)
    logs.configure(settings.log_format)
    events = Events.from_environment("account", os.environ)
    metrics = Metrics.from_environment(GROUP, os.environ)
    faults = AccountFaults.from_environment(os.environ, events)
    database = Database.mysql(settings.database_url, pool_size=settings.threads + _HEALTH_CONNECTIONS)
    producer = WatchedProducer(
        name_server=settings.name_server,
        telemetry=metrics.telemetry,
        events=events,
        faults=faults,
        group=GROUP,
        database=database,
        topics=[TOPIC],
        close_timeout_seconds=_PRODUCER_SECONDS,
    )
    metrics.telemetry.watch(producer, group=GROUP)
    try:
        process.make_tables(database)
        transfers = Transfers(producer, database)
        if seeds:
            transfers.open_accounts(seeds)
        neighbour = Neighbour(settings.points_url) if settings.points_url else None
        page = create_router(
            events,
            faults,
            transfers,
            neighbour,
            OwnLanes(producer, neighbour),
            opened=sum(seeds.values()) if seeds else None,
            is_stopping=process.is_stopping,
        )
        app = create_app(producer, transfers, settings, page=page, metrics=metrics, beside=neighbour)
        return process.serve(app, settings)
    finally:
        producer.close()  # nothing to do unless a signal came while it was starting
        database.close()


if __name__ == "__main__":
    end(main())
