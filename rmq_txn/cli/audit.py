"""`rmq-txn audit`: what people did by hand."""

from __future__ import annotations

import argparse

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import add_json, add_url, opened, positive_integer
from rmq_txn.cli.output import say


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `audit`."""
    audit = commands.add_parser(
        "audit",
        help="who dropped, replayed, resolved or recovered what, when and why",
        description="List what people did by hand to transactions and messages, newest first.",
    )
    audit.add_argument("txn_id", nargs="?", metavar="TXN_ID", help="of this transaction only, oldest first")
    add_url(audit)
    audit.add_argument("--limit", type=positive_integer, default=100, help="at most so many (100)")
    add_json(audit)
    audit.set_defaults(run=_audit)


def _audit(arguments: argparse.Namespace) -> int:
    from rmq_txn import audit, schema

    with opened(arguments) as database:
        schema.check(database)
        if arguments.txn_id is None:
            entries = audit.newest(database, arguments.limit)
        else:
            entries = audit.of_transaction(database, arguments.txn_id)[: arguments.limit]
    for entry in entries:
        say(
            str(entry),
            "audit",
            at=f"{entry.at:%Y-%m-%dT%H:%M:%SZ}",
            action=entry.action,
            subject=entry.subject,
            group=entry.group,
            by=entry.by,
            note=entry.note,
        )
    if not entries:
        say("nothing was done by hand")
    return exit_codes.OK
