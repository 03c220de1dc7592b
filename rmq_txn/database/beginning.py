"""How a transaction begins: its tripwire, on a live connection, and in the same write what may go with it."""

from __future__ import annotations

import time
from contextlib import suppress

import pymysql
from pymysql.constants import SERVER_STATUS

from rmq_txn.database.connection import ServerThread, WatchedConnection
from rmq_txn.database.pool import NO_SUCH_THREAD, ConnectionPool, error_code, is_unavailable
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.logs import get_logger

log = get_logger("session")

# What the last answer on a connection says if somebody was here before us and left something.
_LEFT_OVER = SERVER_STATUS.SERVER_STATUS_IN_TRANS | SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT


def begin(
    connection: WatchedConnection, pool: ConnectionPool, ours: str | None = None
) -> int | pymysql.MySQLError:
    """
    Begin a transaction, on a new connection if this one can't carry it.

    Args:
        ours: a statement of ours that brings no rows, and that a rollback takes back, for the same write.

    Returns:
        The answer to `ours`: how many rows it changed, or its error.

    Raises:
        DatabaseUnavailableError: no connection can be made, or the server does no such work now.
        pymysql.MySQLError: whatever else it says to the tripwire.
    """
    statements = [STATEMENTS["set_tripwire"]] if ours is None else [STATEMENTS["set_tripwire"], ours]
    answers: list[int | pymysql.MySQLError] = []
    if _is_fit(connection):
        answers = connection.query_each(statements)
    if not answers or (isinstance(answers[0], pymysql.MySQLError) and is_unavailable(answers[0])):
        # Nothing of this transaction stays: a new connection is safe, here and never later.
        lost, together = connection.server_thread, connection.takes_together
        try:
            with suppress(pymysql.MySQLError):  # closed already
                connection.close()
            connection.connect()
        except pymysql.MySQLError as error:
            pool.unavailable(error)
        # Where the answers alone were lost, `ours` holds its locks. On one run of a server ids only grow, and
        # a proxy that was started again gives small ones to others.
        if answers and ours is not None and together and lost.id < connection.server_thread.id:
            with suppress(pymysql.MySQLError):  # then the next statement tells, or waits for the lock
                end(connection, lost)
        answers = connection.query_each(statements)
    tripwire = answers[0]
    if isinstance(tripwire, pymysql.MySQLError):
        if is_unavailable(tripwire):
            pool.unavailable(tripwire)
        raise tripwire
    if len(answers) < len(statements):  # one at a time, where a first one that changes no row is the last
        answers += connection.query_each(statements[1:])
    return answers[-1]


def _is_fit(connection: WatchedConnection) -> bool:
    """Whether a connection can carry a transaction, by what is known of it."""
    if not connection.open:
        return False  # it broke in its last transaction
    # Read before: a cluster that registers its log at a savepoint reports a transaction by then.
    if connection.server_status & _LEFT_OVER:
        # BEGIN would have committed what is open; a savepoint would take it for its own, and
        # with autocommit on it would hold nothing together.
        log.warning(
            "a connection came back with a transaction open or autocommit on, it is replaced: "
            "business code switched autocommit, or used the connection after its block"
        )
        return False
    return True


def end(connection: WatchedConnection, thread: ServerThread) -> bool:
    """
    End another connection of ours on the server, with its open transaction. Gone already is fine.

    Returns:
        False if the id may be another connection's: the server is another one, or was started after
        that connection was made. Then nothing was ended.

    Raises: pymysql.MySQLError
    """
    with connection.cursor() as cursor:
        cursor.execute(STATEMENTS["read_uptime"])
        ((_, uptime),) = cursor.fetchall()
        # Both clocks: the first stands still while a machine sleeps, the second may be set.
        monotonic, wall = thread.made_at
        age = max(time.monotonic() - monotonic, time.time() - wall)
        if connection.server != thread.server or int(uptime) < age:
            return False
        try:
            cursor.execute(STATEMENTS["kill_connection"], (thread.id,))
        except pymysql.MySQLError as error:
            if error_code(error) != NO_SUCH_THREAD:
                raise
    return True
