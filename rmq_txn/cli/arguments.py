"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rmq_txn.errors import SettingsError

if TYPE_CHECKING:
    from rmq_txn.database import Database

URL_VARIABLE = "RMQ_TXN_DATABASE_URL"


def add_url(parser: argparse.ArgumentParser) -> None:
    """Add `--database-url`."""
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help=f"mysql://user:password@host:port/name (default: environment variable {URL_VARIABLE})",
    )


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Database]:
    """
    Open the database that `--database-url` or the environment names, for one command.

    Raises:
        SettingsError: neither does.
    """
    url = arguments.database_url or os.environ.get(URL_VARIABLE)
    if not url:
        raise SettingsError(f"which database? pass --database-url URL or set {URL_VARIABLE}")
    # The driver is loaded only here: `rmq-txn --help` and `native install` work without it.
    from rmq_txn.database import Database

    database = Database.mysql(url)
    try:
        yield database
    finally:
        database.close()


def positive_number(text: str) -> float:
    """Read a number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def positive_integer(text: str) -> int:
    """Read a whole number above 0, for argparse."""
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value
