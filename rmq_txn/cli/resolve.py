"""`rmq-txn resolve`: one transaction decided by a person, where nobody else can."""

from __future__ import annotations

import argparse

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import URL_VARIABLE, add_by, add_json, add_retention, add_url, opened
from rmq_txn.cli.output import say
from rmq_txn.errors import SettingsError

_ROLLED_BACK, _COMMITTED = "rolled-back", "committed"

_EPILOG = f"""\
Most are decided without you: check-back asks the same row. You are needed where the server committed a
transaction in the middle (`open` in `rmq-txn explain`), or where no producer will ever run again.
Without --as it only says how the transaction stands.

--as {_ROLLED_BACK} sets the fence that a check-back would set: it can't commit any more. A row that says
committed is proof and stays.
--as {_COMMITTED} is for an open row alone, when you saw that all of its business rows stand. Its check-backs
then answer commit; what brokers dropped before, `rmq-txn recover` publishes.

Who did it, when and why is kept: `rmq-txn audit`.
Exit {exit_codes.OK}: it is decided. Exit {exit_codes.FAILED}: it is not, or still runs.

Example:
  {URL_VARIABLE}=mysql://user:password@host:3306/account \\
  rmq-txn resolve 0199f4b2c3d4a1b2c3d4e5f60718293a --as {_ROLLED_BACK} --reason "host is gone, ticket 4711"
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `resolve`."""
    resolve = commands.add_parser(
        "resolve",
        help="decide one transaction by hand, where nobody else can",
        description="Say how a transaction stands by its row, and decide it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resolve.add_argument("txn_id", metavar="TXN_ID", help="as in receipts, errors and log lines")
    add_url(resolve)
    resolve.add_argument(
        "--as", dest="choice", choices=(_ROLLED_BACK, _COMMITTED), help="what became of it; needs --reason"
    )
    resolve.add_argument("--reason", metavar="TEXT", help="why, for the audit")
    add_by(resolve)
    add_retention(resolve)
    add_json(resolve)
    resolve.set_defaults(run=_resolve)


def _resolve(arguments: argparse.Namespace) -> int:
    if arguments.choice is not None and not (arguments.reason or "").strip():
        raise SettingsError("--reason is missing: say why, for whoever reads the audit later")
    from rmq_txn import audit, schema
    from rmq_txn.operating import resolution

    with opened(arguments) as database:
        schema.check(database)
        done = resolution.resolve(
            database,
            arguments.txn_id,
            None if arguments.choice is None else resolution.Choice(arguments.choice),
            by=arguments.by or audit.operator(),
            reason=arguments.reason or "",
            retention_seconds=arguments.retention_days * 86_400,
        )
    state = "no row" if done.state is None else done.state.name.lower().replace("_", " ")
    now = " now" if done.changed else ""
    then = f"; {done.next}" if done.next else ""
    say(
        f"{arguments.txn_id}: {state}{now}{then}",
        "resolution",
        txn_id=arguments.txn_id,
        state=state,
        changed=done.changed,
    )
    return exit_codes.OK if done.decided else exit_codes.FAILED
