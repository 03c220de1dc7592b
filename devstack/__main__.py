"""`python -m devstack`: a stack that outlives the command, until `down`."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from devstack.errors import StackError
from devstack.local import LocalStack
from devstack.machine import ports_open_to_others
from devstack.settings import DATABASE_VARIABLE, DEFAULT_FOLDER, StackSettings
from devstack.software import DATABASES

EXIT_OK = 0
EXIT_FAILED = 1  # StackError: the machine lacks something or a server did not come up
EXIT_USAGE = 2  # argparse's own
EXIT_NOT_RUNNING = 3  # status: at least one server is down (the code of init scripts)

SERVERS = ("namesrv", "broker", "database")
_ENV_EXAMPLE = """\
example: eval "$(./dev stack env account points)"
sets NAME_SERVER, ACCOUNT_URL, POINTS_URL, and ROCKETMQ_CLIENT_LOG_DIR, without which a program that uses the
native client directly writes its log to /logs of the file system
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--folder",
        type=Path,
        default=DEFAULT_FOLDER,
        help="where the stack lives (default: %(default)s)",
    )
    parser = argparse.ArgumentParser(
        prog="python -m devstack", description="Run RocketMQ and a database on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[common], help="start the servers and return")
    up.add_argument(
        "--fast-checks",
        action="store_true",
        help="ask about half messages after 3 s and redeliver after 1 s, as tests do",
    )
    up.add_argument(
        "--proxy",
        action="store_true",
        help="run RocketMQ's proxy as well, for gRPC clients: its ports are open on every address",
    )
    up.add_argument(
        "--database",
        choices=DATABASES,
        help="MariaDB, else MySQL of this machine (installed, the default), or one fetched from Debian's "
        "unstable suite; the data of each stays apart",
    )
    env = commands.add_parser(
        "env",
        parents=[common],
        help="print addresses as lines for a shell; databases are made if they are missing",
        epilog=_ENV_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    env.add_argument("databases", nargs="*", metavar="DATABASE", help="such as account: sets ACCOUNT_URL")
    topic = commands.add_parser("topic", parents=[common], help="make a topic")
    topic.add_argument("name", metavar="NAME")
    for name, what in (
        ("pause", "freeze a server (SIGSTOP): connections stay, nobody answers"),
        ("resume", "let a paused server go on"),
    ):
        commands.add_parser(name, parents=[common], help=what).add_argument("server", choices=SERVERS)
    commands.add_parser("down", parents=[common], help="stop the servers, keep their data")
    commands.add_parser(
        "status", parents=[common], help=f"print addresses; exit {EXIT_NOT_RUNNING} if one is down"
    )
    logs = commands.add_parser("logs", parents=[common], help="print the end of each server's log")
    logs.add_argument("--lines", type=int, default=40, help="lines a file (default: %(default)s)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    up = options.command == "up"
    if up and options.database:
        os.environ[DATABASE_VARIABLE] = options.database
    make = StackSettings.for_tests if up and options.fast_checks else StackSettings
    settings = make(folder=options.folder, proxy=up and options.proxy)
    try:
        stack = LocalStack(settings, outlives_starter=True)
        if options.command == "up":
            return _up(stack)
        if options.command == "down":
            return _down(stack)
        if options.command == "logs":
            return _logs(stack, options.lines)
        if options.command == "env":
            return _env(stack, options.databases)
        if options.command == "topic":
            return _topic(stack, options.name)
        if options.command in ("pause", "resume"):
            return _pause_or_resume(stack, options.command, options.server)
        return _status(stack)
    except StackError as exc:
        print(f"devstack: {exc}", file=sys.stderr)
        return EXIT_FAILED


def _up(stack: LocalStack) -> int:
    alive = [server for server in stack.servers if server.alive]
    if len(alive) < len(stack.servers):
        if alive and all(server.owner_pid is None for server in alive):
            # An earlier `up` was killed half-way, or a server died since.
            print(f"devstack: only {', '.join(s.name for s in alive)} is up, starting afresh")
            stack.close()
        print("devstack: starting name server, database and broker ...", flush=True)
        stack.start()
    return _status(stack)


def _down(stack: LocalStack) -> int:
    for server in stack.servers:
        if server.owner_pid is not None:
            raise StackError(
                f"{server.name} belongs to process {server.owner_pid} and ends with it; end that"
            )
    stack.stop()
    print(f"devstack: all servers are down, their data stays in {stack.settings.folder}")
    return EXIT_OK


def _status(stack: LocalStack) -> int:
    addresses = {
        "namesrv": stack.name_server,
        "broker": stack.broker_address,
        "database": f"127.0.0.1:{stack.ports.database}",
    }
    for server in stack.servers:
        state = f"pid {server.pid}  {addresses[server.name]}" if server.alive else "down"
        print(f"{server.name:<9} {state}")
    print(f"folder    {stack.settings.folder}")
    if stack.broker.alive:
        # Asked of the kernel: only who started the broker knows whether it has a proxy.
        ports = ", ".join(map(str, sorted(ports_open_to_others(stack.broker.pid))))
        print(f"open      {ports} of the broker on every address: RocketMQ can't bind them to 127.0.0.1")
    return EXIT_OK if all(server.alive for server in stack.servers) else EXIT_NOT_RUNNING


def _env(stack: LocalStack, databases: Sequence[str]) -> int:
    _require_running(stack)
    values = {
        "NAME_SERVER": stack.name_server,
        "ROCKETMQ_CLIENT_LOG_DIR": str(stack.settings.folder / "logs" / "clients"),
    }
    try:
        values |= {f"{name.upper()}_URL": stack.database_url(name) for name in databases}
    except ValueError as exc:
        raise StackError(str(exc)) from exc
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    return EXIT_OK


def _topic(stack: LocalStack, name: str) -> int:
    _require_running(stack)
    stack.create_topic(name)
    print(f"devstack: topic {name} is there")
    return EXIT_OK


def _pause_or_resume(stack: LocalStack, command: str, name: str) -> int:
    server = next(server for server in stack.servers if server.name == name)
    if command == "pause":
        server.pause()
        print(f"devstack: {name} is paused; ./dev stack resume {name} lets it go on")
    else:
        server.resume()
        print(f"devstack: {name} goes on")
    return EXIT_OK


def _require_running(stack: LocalStack) -> None:
    for server in stack.servers:
        if not server.alive:
            raise StackError(f"{server.name} is not running, start it: ./dev stack up")


def _logs(stack: LocalStack, lines: int) -> int:
    for server in stack.servers:
        print(f"===== {server.name}: {server.log_path}")
        print(server.log_tail(lines))
    return EXIT_OK


if __name__ == "__main__":
    # `logs | head` ends as it does for other commands; servers get their own signal settings.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
