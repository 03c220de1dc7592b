"""`rmq-txn status`: what waits, what failed, who runs, and how fast the tables grow."""

from __future__ import annotations

import argparse

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import (
    NAME_SERVER_VARIABLE,
    URL_VARIABLE,
    add_check_budget,
    add_json,
    add_name_server,
    add_url,
    cluster_if_named,
    opened,
)
from rmq_txn.cli.output import say

_EPILOG = f"""\
It reads, and changes nothing. Run it for the database of a producer, and for that of each consumer. With a
name server it tells, too, how many messages wait for the consumer groups of this database.

Exit {exit_codes.OK}: all of it goes on by itself.
Exit {exit_codes.FAILED}: a line marked with ! needs a person, and says where to look.

Example:
  {URL_VARIABLE}=mysql://user:password@host:3306/name {NAME_SERVER_VARIABLE}=rocketmq:9876 rmq-txn status
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status`."""
    status = commands.add_parser(
        "status",
        help="say what waits, what failed, who runs; fail when something needs a person",
        description="Say how a database with the tables of rmq_txn is, and who works with it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_url(status)
    add_name_server(status)
    add_check_budget(status)
    add_json(status)
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    from itertools import chain

    from rmq_txn import schema
    from rmq_txn.operating import status
    from rmq_txn.producer.outbox import ALARM_AFTER_BUDGET_SECONDS

    cluster = cluster_if_named(arguments)
    needs_a_person = False
    with opened(arguments) as database:
        schema.check(database)
        limit = arguments.check_budget_seconds + ALARM_AFTER_BUDGET_SECONDS
        lines = status.of_database(database, limit_seconds=limit)
        for line in chain(lines, status.of_lag(cluster, database) if cluster else ()):
            needs_a_person |= line.needs_a_person
            mark = "!" if line.needs_a_person else " "
            say(
                f"{mark} {line.of + ':':<10} {line.text}",
                "status",
                of=line.of,
                needs_a_person=line.needs_a_person,
                **line.numbers,
            )
    return exit_codes.FAILED if needs_a_person else exit_codes.OK
