"""The exit codes of `rmq-txn`, for scripts, health checks and whoever restarts services."""

from __future__ import annotations

from rmq_txn.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    NativeLibraryError,
    RmqTxnError,
    SchemaError,
    SettingsError,
)

OK = 0  # done, or nothing was left to do
FAILED = 1  # the message says what failed and what to do next; nothing was done by halves
USAGE = 2  # wrong arguments, settings or target, as argparse has it: nothing was tried
NOT_USABLE = 3  # native library: missing, can't be installed or loaded, or the wrong platform
UNAVAILABLE = 4  # database or broker did not answer: the same command may work later
NO_SCHEMA = 5  # our tables are missing or of another version: rmq-txn schema apply
KILLED = 6  # `consume`: a process did not end in time and was killed; its messages come again
INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 + SIGINT


def of(error: RmqTxnError) -> int:
    """Return the exit code that an error of this package ends a command with."""
    if isinstance(error, SettingsError):
        return USAGE
    if isinstance(error, NativeLibraryError):
        return NOT_USABLE
    if isinstance(error, (DatabaseUnavailableError, BrokerUnavailableError)):
        return UNAVAILABLE
    return NO_SCHEMA if isinstance(error, SchemaError) else FAILED
