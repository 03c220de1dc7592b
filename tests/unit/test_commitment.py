"""How long a caller waits after a lost COMMIT."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest

from rmq_txn import Database, InDoubtError, Message
from rmq_txn.database.session_state import SessionState
from rmq_txn.identity import Owner, new_txn_id
from rmq_txn.message import Outbound
from rmq_txn.producer.commitment import Commitment
from rmq_txn.verdict import Verdict

OUTCOME_SECONDS = 15.0


class Client:
    """Stores every half message at once."""

    def send_half(self, _message: Outbound, execute: Callable[[str], Verdict]) -> None:
        """Run the local transaction."""
        execute("message-1")


@pytest.mark.parametrize(
    ("waited", "most", "least"), [(0.0, 8.0, 8.0), (7.0, 5.0, 4.0), (10.0, 2.0, 2.0), (60.0, 2.0, 2.0)]
)
def test_a_lost_commit_is_looked_up_until_the_caller_must_have_an_outcome(
    waited: float, most: float, least: float
) -> None:
    """What is left of the time depends on how long COMMIT itself was waited for."""
    timeouts: list[float] = []

    def resolve(_txn_id: str, _message_id: str, _thread: object, timeout_seconds: float) -> Verdict:
        timeouts.append(timeout_seconds)
        return Verdict.UNKNOWN

    session: Any = SimpleNamespace(
        state=SessionState.COMMITTING,
        committing_since=time.monotonic() - waited,
        server_thread=None,
        rollback=lambda: False,
    )
    oracle: Any = SimpleNamespace(resolve=resolve)
    client: Any = Client()
    owner = Owner("owner", b"secret")
    nobody: Any = SimpleNamespace(now=time.monotonic)
    commitment = Commitment(client, oracle, owner, nobody, nobody, new_txn_id(), [Message("topic", b"x")])

    def local() -> None:
        raise pymysql.err.OperationalError(2013, "lost connection")

    with pytest.raises(InDoubtError):
        commitment.run(local, session)
    assert least <= timeouts[0] <= most


def test_the_default_timeouts_leave_time_for_one_look() -> None:
    """COMMIT's own wait, then one look on a stale connection, which is read from and made anew."""
    database = Database.mysql("mysql://u:p@h/d")
    commit = database._pool._parameters["read_timeout"]
    look = database._checks._parameters
    assert commit + look["read_timeout"] + look["connect_timeout"] < OUTCOME_SECONDS
