"""`python -m rmq_txn` is the command `rmq-txn`, for when the script folder is not on the PATH."""

from __future__ import annotations

from rmq_txn.cli import run

if __name__ == "__main__":
    run()
