"""What the tests of the contract share: short local transactions, and our own properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rmq_txn.verdict import Answer, Verdict

COMMIT, ROLLBACK, UNKNOWN = Verdict.COMMIT, Verdict.ROLLBACK, Verdict.UNKNOWN
ACK, RETRY = Answer.ACK, Answer.RETRY


def commit(_message_id: str) -> Verdict:
    """Be the local transaction that commits."""
    return COMMIT


def must_not_run(_message_id: str) -> Verdict:
    """Be the local transaction that must not run."""
    raise AssertionError("execute was called")


def raising(problem: BaseException) -> Callable[[str], Verdict]:
    """Make a local transaction that raises."""

    def execute(_message_id: str) -> Verdict:
        raise problem

    return execute


def own_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """Return the properties of this package, without the list of the user's names."""
    return {name: properties[name] for name in ("rmq_txn_id", "rmq_txn_n", "rmq_txn_owner")}
