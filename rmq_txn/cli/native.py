"""`rmq-txn native`: install and check the native RocketMQ client library."""

from __future__ import annotations

import argparse
from pathlib import Path

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import add_json
from rmq_txn.cli.output import say, say_record
from rmq_txn.errors import NativeLibraryError, SettingsError
from rmq_txn.library import installer

_INSTALL = f"""\
Put {installer.FILE_NAME} (Linux x86-64, glibc) beside the Python package rocketmq.

Without --from it is taken from the source archive {installer.SDIST_NAME} {installer.SDIST_VERSION}, found
through the package index configured for pip or uv. The archive is neither built nor installed, no
code of it runs, and both it and the library must have the SHA-256 this package was tested with.
"""

_INSTALL_EPILOG = f"""\
Examples:
  rmq-txn native install
  rmq-txn native install --from {installer.SDIST_NAME}-{installer.SDIST_VERSION}.tar.gz
  rmq-txn native install --from ./rocketmq-client-cpp.deb --allow-unknown

The SHA-256 of the official rocketmq-client-cpp 2.x .deb is not known to this package, so that file
needs --allow-unknown: check its origin first.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `native` and its two commands."""
    native = commands.add_parser("native", help="install or check the native RocketMQ library")
    actions = native.add_subparsers(required=True, metavar="COMMAND")

    install = actions.add_parser(
        "install",
        help="put the library where the client finds it",
        description=_INSTALL,
        epilog=_INSTALL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    install.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help=f"a {installer.FILE_NAME}, the source archive (.tar.gz) or the official .deb; no network",
    )
    install.add_argument(
        "--allow-unknown",
        action="store_true",
        help="accept a library from FILE whose SHA-256 is not known (needed for the official .deb)",
    )
    add_json(install)
    install.set_defaults(run=_install)

    status = actions.add_parser(
        "status",
        help=f"exit {exit_codes.OK} only if the library is present and loads",
        description="Show the library, and load it once in a child process. "
        f"Exit {exit_codes.OK} if it is usable, {exit_codes.NOT_USABLE} if not.",
    )
    add_json(status)
    status.set_defaults(run=_status)


def _install(arguments: argparse.Namespace) -> int:
    if arguments.allow_unknown and arguments.source is None:
        raise SettingsError("--allow-unknown needs --from FILE")
    before = installer.status()
    path = installer.install(arguments.source, allow_unknown=arguments.allow_unknown)
    after = installer.status()
    done = "already there" if before.sha256 == after.sha256 else "installed"
    say(f"{done}: {path}, build {after.version}", "native", done=done, path=str(path), build=after.version)
    problem = installer.load_problem(str(path))
    if problem is not None:
        raise NativeLibraryError(f"{path} is in place but can't be used: {problem}")
    return exit_codes.OK


def _status(_arguments: argparse.Namespace) -> int:
    found = installer.status()
    problem = installer.usable_problem(found)
    elsewhere = f"no, but the system has {found.system_library}" if found.system_library else "no"
    fields = {
        "path": str(found.path or "none: rocketmq-client-python is not installed"),
        "present": "yes" if found.sha256 else elsewhere,
        "sha256": found.sha256 or "none",
        "build": found.version or "none",
        "platform": found.platform_problem or "supported",
        "loads": "yes" if problem is None else f"no: {problem}",
    }
    say_record("native", fields, width=10)
    if problem is None:
        return exit_codes.OK
    installer.require()  # says best what to run when it is the platform, the package or the file
    loaded = found.path if found.sha256 else found.system_library
    raise NativeLibraryError(f"{loaded} can't be used: {problem}; run `rmq-txn native install`")
