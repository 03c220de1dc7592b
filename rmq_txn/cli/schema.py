"""`rmq-txn schema`: print, apply, check the tables of this package, or say how they are."""

from __future__ import annotations

import argparse

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import URL_VARIABLE, add_json, add_url, opened
from rmq_txn.cli.output import say

_APPLY_EPILOG = f"""\
Examples:
  {URL_VARIABLE}=mysql://user:password@host:3306/name rmq-txn schema apply
  rmq-txn schema apply --database-url mysql://user@host:3306/name

A password on the command line is visible to every user of the machine; in the variable it is not.
"""


_CHECK_EPILOG = f"""\
Exit {exit_codes.OK}: as needed. {exit_codes.NO_SCHEMA}: missing, of another version, or incomplete.
Types of columns are not compared.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `schema` and its commands."""
    schema = commands.add_parser("schema", help="print, apply or check the tables of this package")
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
    add_url(apply)
    add_json(apply)
    apply.set_defaults(run=_apply)

    check = actions.add_parser(
        "check",
        help="say version and identity; fail if a table, column or index is missing",
        description="Look at the tables of this package, change nothing. For CI, and before a deployment.",
        epilog=_CHECK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_url(check)
    add_json(check)
    check.set_defaults(run=_check)

    status = actions.add_parser(
        "status",
        help="say which version the tables have, which is needed, and what to do",
        description="Look at the tables of this package, change nothing, and fail for nothing but a database "
        "that is away: tables that are missing or older are an answer.",
    )
    add_url(status)
    add_json(status)
    status.set_defaults(run=_status)


def _print(_arguments: argparse.Namespace) -> int:
    from rmq_txn import schema

    print(schema.script(), end="")  # as it is: for another program
    return exit_codes.OK


def _apply(arguments: argparse.Namespace) -> int:
    from rmq_txn import schema

    with opened(arguments) as database:
        applied = schema.apply(database)
    done = "created" if applied.created else "upgraded" if applied.upgraded else "already there"
    say(
        f"{done}: schema version {applied.version}, database id {applied.database_id}",
        "schema",
        done=done,
        version=applied.version,
        database_id=applied.database_id,
    )
    return exit_codes.OK


def _check(arguments: argparse.Namespace) -> int:
    from rmq_txn import schema
    from rmq_txn.errors import SchemaError

    with opened(arguments) as database:
        identity = schema.check(database)
        missing = schema.missing(database)
    if missing:
        raise SchemaError(
            f"the tables lack {', '.join(missing)}: compare with `rmq-txn schema print`, add what is missing"
        )
    say(
        f"schema version {identity.version}, database id {identity.database_id}",
        "schema",
        done="checked",
        version=identity.version,
        database_id=identity.database_id,
    )
    return exit_codes.OK


def _status(arguments: argparse.Namespace) -> int:
    from rmq_txn import schema

    with opened(arguments) as database:
        found = schema.status(database)
    tables = "no tables" if found.version is None else f"tables of version {found.version}"
    say(
        f"{tables}, this package needs version {schema.VERSION}: {found.advice or 'as needed'}",
        "schema",
        done="looked",
        version=found.version,
        needed=schema.VERSION,
        usable=not found.advice,
        missing=", ".join(found.missing),
    )
    return exit_codes.OK
