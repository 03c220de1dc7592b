"""`rmq-txn schema`: print or apply the tables of this package."""

from __future__ import annotations

import argparse
import os

from rmq_txn.cli import exit_codes
from rmq_txn.errors import SettingsError

URL_VARIABLE = "RMQ_TXN_DATABASE_URL"

_APPLY_EPILOG = f"""\
Examples:
  {URL_VARIABLE}=mysql://user:password@host:3306/name rmq-txn schema apply
  rmq-txn schema apply --database-url mysql://user@host:3306/name

A password on the command line is visible to every user of the machine; in the variable it is not.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `schema` and its two commands."""
    schema = commands.add_parser("schema", help="print or apply the tables of this package")
    actions = schema.add_subparsers(required=True, metavar="COMMAND")

    show = actions.add_parser("print", help="print the DDL, for your own migration tool")
    show.set_defaults(run=_print)

    apply = actions.add_parser(
        "apply",
        help="create or upgrade the tables; harmless when they are there",
        description="Create what is missing of the tables of this package and show their version.",
        epilog=_APPLY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    apply.add_argument(
        "--database-url",
        metavar="URL",
        help=f"mysql://user:password@host:port/name (default: environment variable {URL_VARIABLE})",
    )
    apply.set_defaults(run=_apply)


def _print(_arguments: argparse.Namespace) -> int:
    from rmq_txn import schema

    print(schema.script(), end="")
    return exit_codes.OK


def _apply(arguments: argparse.Namespace) -> int:
    url = arguments.database_url or os.environ.get(URL_VARIABLE)
    if not url:
        raise SettingsError(f"which database? pass --database-url URL or set {URL_VARIABLE}")
    # The driver is loaded only here: `rmq-txn --help` and `native install` work without it.
    from rmq_txn import schema
    from rmq_txn.database import Database

    database = Database.mysql(url)
    try:
        applied = schema.apply(database)
    finally:
        database.close()
    done = "created" if applied.created else "upgraded" if applied.upgraded else "already there"
    print(f"{done}: schema version {applied.version}, database id {applied.database_id}")
    return exit_codes.OK
