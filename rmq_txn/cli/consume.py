"""`rmq-txn consume`: run a consumer in supervised processes."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

from rmq_txn.cli import exit_codes, target
from rmq_txn.consumer.supervisor import LONGEST_PAUSE_SECONDS, Supervisor
from rmq_txn.errors import SettingsError
from rmq_txn.logs import get_logger, log_to_stderr

log = get_logger("cli.consume")

_LOOK_SECONDS = 0.1
_EXPLAIN_SECONDS = 60.0
# What a restart does not mend. Servers that are away are not among them.
_FINAL = frozenset({exit_codes.USAGE, exit_codes.NOT_USABLE, exit_codes.NO_SCHEMA})

_EPILOG = f"""\
A process that ends is started again, after pauses that grow to {LONGEST_PAUSE_SECONDS:g} s; also one that
ended with {exit_codes.OK} and was not told to. If the first processes can't start because of a setting, the
library or the tables, this ends with their exit code: {exit_codes.USAGE}, {exit_codes.NOT_USABLE} or \
{exit_codes.NO_SCHEMA}.
When processes crash again and again, the message that does it is looked for and named.

Signals: SIGTERM and SIGINT let running handlers finish and end with {exit_codes.OK}, or with \
{exit_codes.KILLED} if a process
had to be killed. SIGHUP restarts the processes one by one, and those that wait for their restart at once.

Example:
  rmq-txn consume points_service:consumer --processes 2
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `consume`."""
    consume = commands.add_parser(
        "consume",
        help="run a consumer in supervised processes",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    consume.add_argument("target", metavar=target.METAVAR, help="the consumer, or a function that returns it")
    consume.add_argument("--processes", type=int, default=1, metavar="N", help="default: 1")
    consume.add_argument(
        "--stop-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="how long a process may take to end before it is killed; more than the consumer's "
        "drain_seconds and close_timeout_seconds (default: 20)",
    )
    consume.set_defaults(run=_consume)


def _consume(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.processes <= 256:
        raise SettingsError(f"--processes is {arguments.processes}, allowed is 1 to 256")
    if not arguments.stop_seconds > 0:
        raise SettingsError(f"--stop-seconds is {arguments.stop_seconds:g}, allowed is more than 0")
    log_to_stderr()
    supervisor = Supervisor(
        spawn=lambda: Worker(arguments.target),
        explain=lambda: _explain_in_background(arguments.target),
        processes=arguments.processes,
        stop_seconds=arguments.stop_seconds,
        final=_FINAL,
    )
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    signal.signal(signal.SIGINT, lambda *_: supervisor.stop())
    signal.signal(signal.SIGHUP, lambda *_: supervisor.restart())
    while (status := supervisor.step()) is None:
        time.sleep(_LOOK_SECONDS)
    if status == exit_codes.OK and supervisor.killed:
        return exit_codes.KILLED
    return status


class Worker:
    """A process that runs `cli.worker`; it ends when the thread that made this one ends."""

    def __init__(self, name: str) -> None:
        ready, told = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the target is a module name of the user's
                [sys.executable, "-m", "rmq_txn.cli.worker", name, str(os.getpid()), str(told)],
                stdin=subprocess.DEVNULL,
                pass_fds=[told],
                start_new_session=True,  # Ctrl-C in a terminal is the supervisor's to pass on
            )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(told)
        os.set_blocking(ready, False)
        self._ready: int | None = ready
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """See `supervisor.Child`."""
        status = self._process.poll()
        if status is not None:
            self._close()
        return status

    def is_ready(self) -> bool:
        """See `supervisor.Child`."""
        if self._ready is None:
            return False
        with suppress(BlockingIOError):
            said = os.read(self._ready, 1)
            self._close()
            return bool(said)
        return False

    def send_signal(self, number: int, /) -> None:
        """See `supervisor.Child`."""
        self._process.send_signal(number)

    def _close(self) -> None:
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None


def _explain_in_background(name: str) -> None:
    try:
        threading.Thread(target=_explain, args=(name,), daemon=True).start()
    except RuntimeError as error:  # no thread left; the consumers matter more
        log.error("the cause of the crash loop can't be looked for", error=str(error))


def _explain(name: str) -> None:
    """Log what `rmq-txn offsets show` finds: in a process of its own, which loads the user's code."""
    command = [sys.executable, "-m", "rmq_txn", "offsets", "show", name]
    try:
        shown = subprocess.run(  # noqa: S603 - as above
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_EXPLAIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.error("the cause of the crash loop was not found in time", seconds=_EXPLAIN_SECONDS)
        return
    except OSError as error:
        log.error("the cause of the crash loop can't be looked for", error=str(error))
        return
    for line in shown.stdout.splitlines():
        log.critical("crash loop", found=line.strip())
    if shown.returncode != exit_codes.OK:
        log.error("the cause of the crash loop could not be looked for", said=shown.stderr)
