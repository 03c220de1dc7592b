"""
The command `rmq-txn`. One module a subcommand; this one parses, runs and turns errors into text.

Every error is one line on stderr, `rmq-txn: <message>`, and one of the codes in `exit_codes`.
Credentials in URLs are never printed. Neither the native library nor a database driver is loaded
before a command needs it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from typing import NoReturn

from rmq_txn.cli import (
    audit,
    completion,
    consume,
    dlq,
    doctor,
    exit_codes,
    explain,
    native,
    offsets,
    outbox,
    output,
    parked,
    prune,
    recover,
    resolve,
    schema,
    status,
)
from rmq_txn.errors import RmqTxnError
from rmq_txn.logs import one_line, redact

_EPILOG = f"""\
Exit codes: {exit_codes.OK} done, {exit_codes.FAILED} failed, {exit_codes.USAGE} wrong arguments, \
{exit_codes.NOT_USABLE} native library not usable,
{exit_codes.UNAVAILABLE} database or broker did not answer, \
{exit_codes.NO_SCHEMA} tables missing or of another version,
{exit_codes.KILLED} a consumer process had to be killed, {exit_codes.INTERRUPTED} interrupted.
"""


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and never shows a password it was given."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message} (see `{self.prog} --help`)")
        raise SystemExit(exit_codes.USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. Its namespace has `run`, a function from the namespace to an exit code."""
    parser: argparse.ArgumentParser = _Parser(
        prog="rmq-txn",
        description="Tools for rmq_txn: local database transactions and RocketMQ messages that live "
        "or die together.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    native.add_parser(commands)
    schema.add_parser(commands)
    consume.add_parser(commands)
    offsets.add_parser(commands)
    parked.add_parser(commands)
    dlq.add_parser(commands)
    outbox.add_parser(commands)
    prune.add_parser(commands)
    status.add_parser(commands)
    doctor.add_parser(commands)
    explain.add_parser(commands)
    resolve.add_parser(commands)
    recover.add_parser(commands)
    audit.add_parser(commands)
    completion.add_parser(commands, parser)
    return parser


def main(argv: list[str]) -> int:
    """
    Run one command and return its exit code.

    Raises:
        SystemExit: only by argparse, for `--help`, `--version` and arguments it can't parse.
    """
    arguments = build_parser().parse_args(argv)
    try:
        with output.printed(as_json=getattr(arguments, "as_json", False)):
            code: int = arguments.run(arguments)
        sys.stdout.flush()  # here, so that a closed pipe is our error and not one at exit
    except RmqTxnError as exc:
        return _complain(str(exc), exit_codes.of(exc))
    except BrokenPipeError:
        # `rmq-txn schema print | head`: nobody reads on. stdout must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILED
    except KeyboardInterrupt:
        return _complain("interrupted", exit_codes.INTERRUPTED)
    return code


def run() -> NoReturn:
    """Be the console script."""
    sys.exit(main(sys.argv[1:]))


def _complain(message: str, code: int = exit_codes.FAILED) -> int:
    # One line: tools that collect stderr by line keep it whole.
    print(f"rmq-txn: {one_line(' '.join(redact(message).split()))}", file=sys.stderr)
    return code


def _version() -> str:
    try:
        return f"rmq-txn {importlib.metadata.version('rmq-txn')}"
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "rmq-txn, not installed"
