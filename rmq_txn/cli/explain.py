"""`rmq-txn explain`: what became of one transaction, by the rows of its databases and by its brokers."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import (
    NAME_SERVER_VARIABLE,
    URL_VARIABLE,
    add_check_budget,
    add_json,
    add_name_server,
    add_retention,
    add_url,
    cluster_if_named,
    opened,
)
from rmq_txn.cli.output import say

_EPILOG = f"""\
It reads log, outbox, inbox and parked messages, writes nothing and waits for no lock. With a name
server it asks the brokers, too: for half messages, check-backs, and what consumers were given. What
nobody can say is named. A message whose consumer has a dedup key of its own is not found in the inbox.

Exit {exit_codes.OK}: what became of it is known, or goes on by itself.
Exit {exit_codes.FAILED}: a person has to look.

Example:
  {URL_VARIABLE}=mysql://user:password@host:3306/account {NAME_SERVER_VARIABLE}=rocketmq:9876 \\
  rmq-txn explain 0199f4b2c3d4a1b2c3d4e5f60718293a --consumer-url mysql://user@host:3306/points
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `explain`."""
    explain = commands.add_parser(
        "explain",
        help="say what became of one transaction, and what happens next",
        description="Say what databases and brokers know of one transaction and its messages.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("txn_id", metavar="TXN_ID", help="as in receipts, errors and log lines")
    add_url(explain)
    add_name_server(explain)
    explain.add_argument(
        "--consumer-url",
        action="append",
        default=[],
        metavar="URL",
        help="another database with an inbox; may be given several times",
    )
    add_retention(explain)
    add_check_budget(explain)
    add_json(explain)
    explain.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from rmq_txn import schema
    from rmq_txn.operating import evidence, explanation
    from rmq_txn.producer.outbox import ALARM_AFTER_BUDGET_SECONDS

    cluster = cluster_if_named(arguments)
    with ExitStack() as resources:
        producers = resources.enter_context(opened(arguments))
        databases = [producers]
        for url in arguments.consumer_url:
            databases.append(resources.enter_context(opened(argparse.Namespace(database_url=url))))
        identity, *_ = [schema.check(database) for database in databases]
        facts = evidence.read(arguments.txn_id, producers, databases, identity=identity, cluster=cluster)
    told = explanation.explain(
        facts,
        retention_seconds=arguments.retention_days * 86_400,
        relay_seconds=arguments.check_budget_seconds + ALARM_AFTER_BUDGET_SECONDS,
    )
    say(
        f"{facts.txn_id}: {told.outcome.value}",
        "transaction",
        txn_id=facts.txn_id,
        outcome=told.outcome.value,
        age_seconds=round(facts.age_seconds),
        needs_a_person=told.needs_a_person,
    )
    for text in told.known:
        say(f"known: {text}", "known")
    for text in told.missing:
        say(f"missing: {text}", "missing")
    for text in told.next:
        say(f"next: {text}", "next")
    return exit_codes.FAILED if told.needs_a_person else exit_codes.OK
