"""
One consumer process of `rmq-txn consume`: `python -m rmq_txn.cli.worker TARGET SUPERVISOR_PID PIPE`.

A fresh interpreter, since the native client does not survive a fork (docs/hazards.md, C2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from rmq_txn.cli import exit_codes, target
from rmq_txn.consumer import IdempotentConsumer
from rmq_txn.errors import RmqTxnError, SettingsError
from rmq_txn.lifecycle import State
from rmq_txn.logs import get_logger, log_to_stderr

log = get_logger("cli.worker")

_PR_SET_PDEATHSIG = 1


def main(name: str, supervisor_pid: int, pipe: int) -> int:
    """Load the consumer and run it until SIGTERM; write a byte into `pipe` when it has started."""
    if not _end_with(supervisor_pid):
        return exit_codes.FAILED
    try:
        consumer = target.load_consumer(name)
        log_to_stderr()  # unless the target has set up its own
        _ignore_a_second_signal(consumer)
        threading.Thread(target=_tell_when_ready, args=(consumer, pipe), daemon=True).start()
        consumer.run()
    except RmqTxnError as error:
        log_to_stderr()
        # What the user's own code raised is shown nowhere else.
        cause = error.__cause__ if isinstance(error, SettingsError) else None
        log.error("the consumer can't start", target=name, error=str(error), exc_info=cause)
        return exit_codes.of(error)
    return exit_codes.OK


def _end_with(supervisor_pid: int) -> bool:
    """
    Have the kernel kill this process when its supervisor dies; false if that has happened.

    SIGKILL, not SIGTERM: a process that hangs would stay for ever. It is a kill like any other, what
    was not acknowledged comes again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == supervisor_pid


def _ignore_a_second_signal(consumer: IdempotentConsumer) -> None:
    """
    Let `consumer.close` finish although SIGTERM comes twice: systemd tells children itself as well.

    `run` has its own handlers until it closes, then these are back. The supervisor kills who hangs.
    """

    def handle(_number: int, _frame: object) -> None:
        if consumer.state is State.NEW:  # not in run() yet
            raise SystemExit(exit_codes.OK)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _tell_when_ready(consumer: IdempotentConsumer, pipe: int) -> None:
    while consumer.state in (State.NEW, State.STARTING):
        time.sleep(0.05)
    if consumer.state is State.RUNNING:
        os.write(pipe, b".")
    os.close(pipe)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
