"""`python -m demo_points_service`: one process of the points service, until SIGTERM or SIGINT."""

from __future__ import annotations

import os

from demo_chassis import logs
from demo_chassis.events import Events
from demo_chassis.faults import PointsFaults
from demo_chassis.metrics import Metrics
from demo_chassis.process import Process, end
from demo_chassis.watching import WatchedConsumer
from demo_points_service.app import create_app
from demo_points_service.awards import Points, register_handlers
from demo_points_service.page import create_router
from demo_points_service.settings import Settings
from rmq_txn import Database

# After SIGTERM running requests, deliveries that are already here, then the consumer, get this long
# each; together less than the 10 s that container platforms wait before SIGKILL.
_REQUESTS_SECONDS = 2
_DRAIN_SECONDS = 2.0
_CONSUMER_SECONDS = 4.0
GROUP = "points-service"

# /health answers beside the threads of requests and messages.
_HEALTH_CONNECTIONS = 1


def main() -> int:
    """Run the service and return the exit code."""
    return Process("demo_points_service", requests_seconds=_REQUESTS_SECONDS).run(_serve)


def _serve(process: Process) -> int:
    settings = Settings.from_environment(os.environ)
    logs.configure(settings.log_format)
    events = Events.from_environment("points", os.environ)
    metrics = Metrics.from_environment(GROUP, os.environ)
    faults = PointsFaults.from_environment(os.environ, events)
    faults.wait_while_stopped()
    database = Database.mysql(
        settings.database_url, pool_size=settings.threads + settings.http_threads + _HEALTH_CONNECTIONS
    )
    consumer = WatchedConsumer(
        name_server=settings.name_server,
        telemetry=metrics.telemetry,
        events=events,
        faults=faults,
        group=GROUP,
        database=database,
        threads=settings.threads,
        max_attempts=settings.max_attempts,
        drain_seconds=_DRAIN_SECONDS,
        close_timeout_seconds=_CONSUMER_SECONDS,
    )
    register_handlers(consumer)
    metrics.telemetry.watch(consumer, group=GROUP)
    try:
        process.make_tables(database)
        points = Points(database)
        page = create_router(events, faults, points, consumer, is_stopping=process.is_stopping)
        app = create_app(consumer, points, settings, page=page, metrics=metrics)
        return process.serve(app, settings)
    finally:
        consumer.close()  # nothing to do unless a signal came while it was starting
        database.close()


if __name__ == "__main__":
    end(main())
