"""`rmq-txn outbox`: what waits in the outbox of a database."""

from __future__ import annotations

import argparse

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import URL_VARIABLE, add_check_budget, add_json, add_url, opened
from rmq_txn.cli.output import say, say_heading
from rmq_txn.errors import RmqTxnError

_STATUS_EPILOG = f"""\
A row is normal for as long as the broker may still ask about its message, and some minutes more.
Older ones mean that no producer of this database runs, or that a message can't be published: the
producers' log says which. Exit 0 if there is none, 1 if there is.

Example:
  {URL_VARIABLE}=mysql://user:password@host:3306/name rmq-txn outbox status
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `outbox` and its command."""
    outbox = commands.add_parser("outbox", help="show the copies of messages kept in a database")
    actions = outbox.add_subparsers(required=True, metavar="COMMAND")
    status = actions.add_parser(
        "status",
        help="count rows and ages by topic; fail when one is too old",
        description="Count the rows of the outbox by topic, with the age of the oldest.",
        epilog=_STATUS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_url(status)
    add_check_budget(status)
    add_json(status)
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    from rmq_txn import schema
    from rmq_txn.producer import outbox

    with opened(arguments) as database:
        schema.check(database)
        table = outbox.Outbox(database)
        try:
            counts = table.count_by_topic()
        finally:
            table.close()
    say_heading(f"{'topic':<40} {'rows':>10} {'oldest':>10}")
    for count in counts:
        say(
            f"{count.topic:<40} {count.rows:>10} {count.oldest_seconds:>8.0f} s",
            "outbox",
            topic=count.topic,
            rows=count.rows,
            oldest_seconds=round(count.oldest_seconds),
        )
    limit = arguments.check_budget_seconds + outbox.ALARM_AFTER_BUDGET_SECONDS
    late = [count.topic for count in counts if count.oldest_seconds > limit]
    if late:
        raise RmqTxnError(
            f"topics with rows older than {limit:.0f} s: {', '.join(late)}; is a producer of this "
            "database running, and what does its log say?"
        )
    return exit_codes.OK
