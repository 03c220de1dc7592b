"""
Every error this package raises on purpose. A leaf exists only where a caller acts differently.

    RmqTxnError
    ├── InvalidMessageError      refused before anything was sent or written
    ├── SettingsError            a setting or a registration is wrong
    ├── LifecycleError           used before start, after close, in another process, nested
    ├── NativeLibraryError       the RocketMQ client library is missing or unusable
    ├── SchemaError              our tables are missing or older than this package
    ├── DatabaseUnavailableError the database did not answer; nothing was committed
    ├── BrokerUnavailableError   the broker could not be reached at start
    ├── Reject                   raised by a handler: park this message, don't try again
    └── TransactionError         the outcome of one transaction
        ├── HalfMessageError     broker did not take it, nothing committed, safe to retry
        ├── FencedError          a check-back said ROLLBACK first, nothing committed
        ├── LocalTimeoutError    the local transaction took too long, nothing committed
        ├── TransactionLostError the server ended our transaction behind our back
        ├── CancelledTooLateError a task was cancelled, but its transaction is committed
        └── InDoubtError         nobody can say yet; check-back will
"""

from __future__ import annotations


class RmqTxnError(Exception):
    """Root of every error raised by this package. Can be pickled, attributes included."""

    def __reduce__(self) -> tuple[object, ...]:
        # Pickle makes an exception again by calling its class with `args`, which lack what a subclass takes
        # beside them: a pool of `multiprocessing` that gets such an error hangs. So without `__init__`.
        return _restore, (type(self), self.args), self.__dict__


class InvalidMessageError(RmqTxnError, ValueError):
    """A message was refused before anything was sent or written."""


class SettingsError(RmqTxnError, ValueError):
    """A setting or a registration is wrong; the message says what is allowed."""


class LifecycleError(RmqTxnError, RuntimeError):
    """An object was used in a state, thread or process in which it can't work."""


class NativeLibraryError(RmqTxnError):
    """The native RocketMQ client library is missing or fails its self-check."""


class SchemaError(RmqTxnError):
    """The tables of this package are missing from the database, or older than the package."""


class DatabaseUnavailableError(RmqTxnError):
    """
    The database did not answer, or answered that it does no such work now (read only, no room).

    When it is raised out of a transaction, nothing of that transaction was committed.
    """


class BrokerUnavailableError(RmqTxnError):
    """The broker or its name server could not be reached; nothing was sent."""


class Reject(RmqTxnError):
    """
    Raised by a handler: no later try can succeed, park this message now.

    The handler's writes are rolled back; the message goes to `rmq_txn_parked` with this text, for
    `rmq-txn parked`. Not to be used for what may pass: any other exception means "again".
    """


class TransactionError(RmqTxnError):
    """
    Base of the outcomes of one transaction that are not a commit.

    Attributes:
        txn_id: the id that every log line, row and message of this transaction carries.
    """

    def __init__(self, message: str, *, txn_id: str) -> None:
        super().__init__(f"{message} (txn_id {txn_id})")
        self.txn_id = txn_id


class HalfMessageError(TransactionError):
    """
    The broker did not take a half message, so the local transaction was not committed.

    Orphan half messages may exist on the broker; check-back rolls them back. Safe to retry.
    """


class FencedError(TransactionError):
    """
    A check-back answered ROLLBACK before the local transaction could commit; nothing was written.

    Happens when the broker asked before the log row existed: a long stall. Safe to retry.
    """


class LocalTimeoutError(TransactionError):
    """
    The local transaction took longer than `local_timeout_seconds`; nothing was committed.

    A retry takes as long: shorten the work, or raise the limit.
    """


class TransactionLostError(TransactionError):
    """
    The database server ended the local transaction before its COMMIT.

    Causes: a statement that commits (DDL, LOCK TABLES, COMMIT or autocommit as text), then what was
    written before it is durable although the message is rolled back; or business code that swallowed a
    deadlock. Raised also instead of what the block raised afterwards, which is its `__cause__`.
    The message is never delivered. Not safe to retry blindly: find the statement.
    """


class CancelledTooLateError(TransactionError):
    """
    The cause of an `asyncio.CancelledError` whose transaction is committed all the same.

    COMMIT was sent when the task was cancelled, and took effect; the messages will be delivered. Don't retry.
    """


class InDoubtError(TransactionError):
    """
    COMMIT was sent, its answer was lost, and the database can't be asked now.

    If it published, check-back decides later by the same evidence, and the messages follow. Look
    the transaction up by a business key before retrying.
    """


def _restore(kind: type[RmqTxnError], args: tuple[object, ...]) -> RmqTxnError:
    return kind.__new__(kind, *args)
