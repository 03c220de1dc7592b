"""The exit codes of `rmq-txn`, for scripts and health checks."""

from __future__ import annotations

OK = 0  # done, or nothing was left to do
FAILED = 1  # the message says what failed and what to do next; nothing was done by halves
USAGE = 2  # wrong arguments or settings, as argparse has it: nothing was tried
NOT_USABLE = 3  # native library: missing, can't be installed or loaded, or the wrong platform
UNAVAILABLE = 4  # the database did not answer: the same command may work later
INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 + SIGINT
