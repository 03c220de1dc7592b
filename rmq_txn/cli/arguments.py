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
    from rmq_txn.remoting.cluster import ClusterSettings

URL_VARIABLE = "RMQ_TXN_DATABASE_URL"
NAME_SERVER_VARIABLE = "RMQ_TXN_NAME_SERVER"
ACCESS_KEY_VARIABLE = "RMQ_TXN_ACCESS_KEY"
SECRET_KEY_VARIABLE = "RMQ_TXN_SECRET_KEY"  # noqa: S105 - the name of a variable


def add_url(parser: argparse.ArgumentParser) -> None:
    """Add `--database-url`."""
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help=f"mysql://user:password@host:port/name (default: environment variable {URL_VARIABLE})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, as every command has it that prints; see `output`."""
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="one JSON object a line, for programs"
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


def add_name_server(parser: argparse.ArgumentParser) -> None:
    """Add `--name-server`."""
    parser.add_argument(
        "--name-server",
        metavar="HOST:PORT",
        help=f"several separated by ';' (default: {NAME_SERVER_VARIABLE}); the broker's user, if it asks for "
        f"one: {ACCESS_KEY_VARIABLE} and {SECRET_KEY_VARIABLE}",
    )


def cluster(arguments: argparse.Namespace) -> ClusterSettings:
    """
    Return the cluster that `--name-server` or the environment names.

    Raises:
        SettingsError: neither does, or what they say is not usable.
    """
    found = cluster_if_named(arguments)
    if found is None:
        raise SettingsError(f"which cluster? pass --name-server HOST:PORT or set {NAME_SERVER_VARIABLE}")
    return found


def cluster_if_named(arguments: argparse.Namespace) -> ClusterSettings | None:
    """Return as `cluster`; None if neither names one, for commands that can do without."""
    name_server = arguments.name_server or os.environ.get(NAME_SERVER_VARIABLE)
    if not name_server:
        return None
    from rmq_txn.remoting.cluster import ClusterSettings

    keys = os.environ.get(ACCESS_KEY_VARIABLE), os.environ.get(SECRET_KEY_VARIABLE)
    return ClusterSettings(name_server, access_key=keys[0] or None, secret_key=keys[1] or None)


def add_check_budget(parser: argparse.ArgumentParser) -> None:
    """Add `--check-budget-seconds`, by which copies in the outbox are judged."""
    parser.add_argument(
        "--check-budget-seconds",
        type=positive_number,
        default=600.0,
        metavar="SECONDS",
        help="as given to the producers (default: 600)",
    )


def add_retention(parser: argparse.ArgumentParser) -> None:
    """Add `--retention-days`, by which the absence of a log row is judged."""
    parser.add_argument(
        "--retention-days",
        type=positive_number,
        default=7.0,
        metavar="DAYS",
        help="as the producers keep their log (7)",
    )


def add_by(parser: argparse.ArgumentParser) -> None:
    """Add `--by`, for commands that are noted in the audit."""
    parser.add_argument(
        "--by", metavar="NAME", help="who does it, for `rmq-txn audit` (default: user@host of this process)"
    )


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
