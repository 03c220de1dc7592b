"""Read by gunicorn in the folder where it is started: a producer in each worker, started after the fork."""

from __future__ import annotations

from typing import Any

from service import producer

threads = 4


def post_worker_init(_worker: Any) -> None:
    """Start it when the worker listens to signals; without a producer the worker ends."""
    producer.start()


def worker_exit(_server: Any, _worker: Any) -> None:
    """Wait for what runs, and say good-bye to the brokers."""
    producer.close()
