"""`rmq-txn recover`: messages that were committed and that a broker dropped, published after all."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, closing
from itertools import chain
from typing import TYPE_CHECKING

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import (
    NAME_SERVER_VARIABLE,
    URL_VARIABLE,
    add_by,
    add_json,
    add_name_server,
    add_retention,
    add_url,
    cluster,
    opened,
    positive_number,
)
from rmq_txn.cli.output import say

if TYPE_CHECKING:
    from rmq_txn.operating.recovery import Case

_EPILOG = f"""\
A broker asks about a half message a few times, then drops it into TRANS_CHECK_MAX_TIME_TOPIC. Each one of
this database is compared with its log row, the outbox, and what consumers were given. Normally none is
lost: the copy in the outbox outlives the questions, and a relay publishes it.

Without --yes nothing is changed. With it, what is lost is published from its half message, as the relay
does it: consumers skip it if they had it all the same. It is noted in `rmq-txn audit`.

Exit {exit_codes.OK}: nothing is lost, or all of it was published.
Exit {exit_codes.FAILED}: something is lost, or can't be told.

Example:
  {URL_VARIABLE}=mysql://user:password@host:3306/account {NAME_SERVER_VARIABLE}=rocketmq:9876 \\
  rmq-txn recover --within 24
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `recover`."""
    recover = commands.add_parser(
        "recover",
        help="find messages that were committed and that brokers dropped, and publish them",
        description="Compare what brokers gave up with the tables; publish what was committed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recover.add_argument(
        "txn_ids",
        nargs="*",
        metavar="TXN_ID",
        help="the messages of these transactions, whatever brokers did with them (default: all given up)",
    )
    add_url(recover)
    add_name_server(recover)
    recover.add_argument(
        "--within",
        type=positive_number,
        default=72.0,
        metavar="HOURS",
        help="what was given up in the last hours (72, for so long brokers keep it by default)",
    )
    recover.add_argument("--yes", action="store_true", help="publish what is lost")
    add_by(recover)
    add_retention(recover)
    add_json(recover)
    recover.set_defaults(run=_recover)


def _recover(arguments: argparse.Namespace) -> int:
    from rmq_txn import audit, schema
    from rmq_txn.operating.recovery import Recovery

    brokers = cluster(arguments)
    counts: Counter[str] = Counter()
    open_ends = False
    with ExitStack() as resources:
        database = resources.enter_context(opened(arguments))
        recovery = resources.enter_context(
            closing(
                Recovery(
                    database,
                    schema.check(database),
                    brokers,
                    retention_seconds=arguments.retention_days * 86_400,
                    publish=arguments.yes,
                    by=arguments.by or audit.operator(),
                )
            )
        )
        cases: Iterable[Case]
        if arguments.txn_ids:
            cases = chain.from_iterable(map(recovery.of_transaction, arguments.txn_ids))
        else:
            cases = recovery.of_all(arguments.within * 3600)
        for case in cases:
            counts[case.found.value] += 1
            open_ends |= case.found.needs_a_person
            if arguments.txn_ids or not case.found.is_as_it_should_be:
                _tell(case)
        for gap in recovery.gaps:
            say(f"missing: {gap}", "missing")
            open_ends = True
    told = ", ".join(f"{number} {found}" for found, number in sorted(counts.items())) or "none was given up"
    say(told, "recovery", found=dict(sorted(counts.items())))
    return exit_codes.FAILED if open_ends else exit_codes.OK


def _tell(case: Case) -> None:
    name = case.txn_id or "?"
    place = "" if case.position is None else f".{case.position}"
    topic = f" topic {case.topic}" if case.topic else ""
    say(
        f"{case.found.value}: {name}{place}{topic}: {case.text}",
        "message",
        found=case.found.value,
        txn_id=case.txn_id,
        position=case.position,
        topic=case.topic,
        message_id=case.message_id,
    )
