"""
The driver's connection, watched: what became of its session is read from the server's own answers.

If the client asks for it when it connects, the server says in the answer to each statement whether a
transaction is open, whether it began anew, and whether anything of the session changed
(docs/decisions/0032). So nothing here costs a round trip, and cursors lent to business code are watched
as well. This module also stands as a DB-API module for DBUtils: `connect` and `threadsafety`.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CLIENT, COMMAND, CR, ER, SERVER_STATUS

from rmq_txn.database.pipelining import MOST_BYTES, Pipelining
from rmq_txn.database.tracking import NEWS, SCHEMA, SYSTEM_VARIABLE, TRANSACTION_STATE, read_news, sized
from rmq_txn.errors import LifecycleError, SettingsError
from rmq_txn.logs import get_logger

log = get_logger("database")
threadsafety = pymysql.threadsafety

# In these no byte of a longer character is a quote or a backslash, so what the driver escapes stays escaped,
# whatever the bytes mean. Not so in gbk, big5, sjis, cp932 and gb18030; the others have no use here.
SAFE_CHARACTER_SETS = frozenset({"utf8mb4", "utf8mb3", "utf8", "latin1", "ascii"})

_DESCRIBE = "SELECT @@max_allowed_packet, CONCAT_WS('/', @@hostname, @@port, @@server_id)"

if TYPE_CHECKING:
    _Connection = Connection[Any]
else:
    _Connection = Connection  # generic in its stubs only

_AUTOCOMMIT = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
_IN_TRANSACTION = SERVER_STATUS.SERVER_STATUS_IN_TRANS


class ServerThread(NamedTuple):
    """A connection as its server knows it: the id means another one after a restart, or elsewhere."""

    id: int
    server: str
    made_at: tuple[float, float]


def connect(**parameters: Any) -> WatchedConnection:
    """Open a connection; the parameters are PyMySQL's."""
    return WatchedConnection(**parameters)


class _OptionalTls:
    """The one context, made when it is needed first."""

    def __init__(self) -> None:
        self._context: Any = None

    def __call__(self, make: Callable[[Any], Any]) -> Any:
        if self._context is None:  # two threads may make two, and one stays
            self._context = make({})
        return self._context


_optional_tls = _OptionalTls()


class WatchedConnection(_Connection):
    """
    A PyMySQL connection that notices what its server says about the session. For one thread.

    A server, or a proxy before it, that knows no session tracking tells less: the flags of its answers alone.

    Attributes:
        made_at: when it was made, by the monotonic clock and by the wall clock.
        server: which server answered; another one has another name.
        server_thread: what the server knows this connection as, until the next `connect`.
        changed: something of the session is not as it was after connecting, its database or a user
            variable included. Not told by the server: variables set inside a SELECT, named locks, HANDLER.
        elsewhere: business code selected another database.
        lease: what the pool lent it with, while it is lent.
        unsettled: `settle` may have something to do. An attribute, as it is asked before each statement.
        ended: the server ended the transaction that `watch_transaction` saw begin: what was written in it
            before is durable, unless the text was ROLLBACK. A deadlock is not meant: then nothing is.
            Not seen: a stored procedure that commits and begins again in one call.
        untransactional: a table was written to that knows no transactions.
        packet_bytes: the largest statement that the server takes; 0 while connecting.
        failures: the numbers of the errors since `watch_transaction`.
    """

    made_at: tuple[float, float]
    server: str
    server_thread: ServerThread
    if TYPE_CHECKING:  # of PyMySQL, not in its stubs
        server_status: int
        server_thread_id: tuple[int]
        server_capabilities: int
        _result: Any
        _sock: Any

    def __init__(self, *, pipelining: Pipelining | None = None, **parameters: Any) -> None:
        self.failures: set[int] = set()
        self._pipelining = pipelining or Pipelining()
        self._unanswered = False
        self._more_answers = 0  # after the one that is read next
        self._pid = os.getpid()
        self.packet_bytes = 0
        self.lease: Any = None
        self._as_new()
        super().__init__(client_flag=CLIENT.SESSION_TRACK, **parameters)

    def _create_ssl_ctx(self, wanted: Any) -> Any:
        """
        Share the context of TLS that is taken if it is offered, and believes every certificate.

        Making one reads all authorities of the system, 15 to 60 ms for each connection, to ask none of them.
        If PyMySQL ever makes it in another way, this is not called, and all that is lost is that time.
        """
        if wanted:
            return self._made_ssl_ctx(wanted)
        return _optional_tls(self._made_ssl_ctx)

    def _made_ssl_ctx(self, wanted: Any) -> Any:
        return super()._create_ssl_ctx(wanted)  # type: ignore[misc]

    def connect(self, sock: Any = None) -> None:
        """Connect, and take what the session is then for what it should be."""
        self._unsafe = ""
        self.packet_bytes = 0
        made_at = (time.monotonic(), time.time())
        self._unanswered = False
        self._more_answers = 0
        self._pid = os.getpid()
        super().connect(sock)
        try:
            with self.cursor() as cursor:
                cursor.execute(_DESCRIBE)
                ((self.packet_bytes, self.server),) = cursor.fetchall()
        except BaseException:
            self.close()
            raise
        self.made_at = made_at
        self.server_thread = ServerThread(self.server_thread_id[0], self.server, made_at)
        self._as_new()
        if self._pipelining.allowed is None:
            self._try_pipelining()

    @property
    def takes_together(self) -> bool:
        """Whether `query_each` sends statements in one write, as far as is known."""
        return self._pipelining.allowed is not False

    def _try_pipelining(self) -> None:
        """Find out whether two statements that come in one write are both answered; connect again if not."""
        self._pipelining.allowed = self.query_each(["DO 0", "DO 0"]) == [0, 0]
        if self._pipelining.allowed:
            return
        try:
            self.connect()
        except pymysql.MySQLError:
            self._pipelining.allowed = None  # the server went away just then, that says nothing
            raise
        log.warning("statements are sent one at a time: two that came together were not answered")

    def _as_new(self) -> None:
        self.changed = self.elsewhere = self.unsettled = False
        self._unsafe = ""
        self.watch_transaction()

    def watch_transaction(self) -> None:
        """Begin to watch a transaction; none of its statements was sent yet."""
        self.ended = self.untransactional = self._in_transaction = False
        self.failures.clear()

    def query(self, sql: str | bytes, unbuffered: bool = False) -> int:
        """
        Send one statement, as PyMySQL does.

        Raises:
            SettingsError: business code chose a character set in which escaping is not safe.
            pymysql.OperationalError: 1153, the statement is larger than the server takes. Sent, it
                would look like a lost connection, for ever.
        """
        if self._unsafe:
            raise SettingsError(
                f"the session has the character set {self._unsafe!r}, allowed are "
                f"{', '.join(sorted(SAFE_CHARACTER_SETS))}: in it values can't be escaped safely; "
                "take the SET NAMES out of the business code"
            )
        data = sql.encode(self.encoding) if isinstance(sql, str) else sql
        if len(data) >= self.packet_bytes > 0:
            raise pymysql.OperationalError(
                ER.NET_PACKET_TOO_LARGE,
                f"the statement is {len(data)} bytes, max_allowed_packet of the server is "
                f"{self.packet_bytes} bytes; raise it there, or make the value smaller",
            )
        return super().query(data, unbuffered)

    def query_each(self, statements: Sequence[str]) -> list[int | pymysql.MySQLError]:
        """
        Run statements that bring no rows, on a connection that is settled; never COMMIT.

        In one write where that is possible. Then one that fails does not keep the next ones from running, so
        the transaction has to be rolled back.

        Returns:
            How many rows each changed, or its error. Shorter than `statements` if the connection was lost, or
            if they were sent one at a time and one failed, or the first changed nothing.

        Raises: SettingsError, as `query`.
        """
        commands = bytearray()
        for sql in statements:
            data = sql.encode(self.encoding)
            # Each is a command of its own, in one packet with the number 0.
            commands += struct.pack("<iB", len(data) + 1, COMMAND.COM_QUERY) + data
        answers: list[int | pymysql.MySQLError] = []
        if (
            self._pipelining.allowed is False
            or self.ended  # each may be durable at once then
            or self._unsafe
            or self._sock is None
            or len(commands) >= min(MOST_BYTES, self.packet_bytes)
        ):
            for sql in statements:
                try:
                    answers.append(self.query(sql))
                except pymysql.MySQLError as error:
                    answers.append(error)
                    break
                if not answers[0]:
                    break
            return answers
        try:
            self._write_bytes(bytes(commands))
        except pymysql.MySQLError as error:
            return [error]
        for self._more_answers in reversed(range(len(statements))):
            self._next_seq_id = 1  # of packets: the answer to a command with the number 0
            try:
                answers.append(self._read_query_result())
            except pymysql.MySQLError as error:
                answers.append(error)
                if not self.open:
                    break
        return answers

    def settle(self) -> None:
        """
        Read what is left of the last statement, and select our database again if another one is selected.

        Raises: pymysql.MySQLError, also a late one of the last statement.
        """
        self.read_results()
        if self.elsewhere:
            self.select_db(self.db)
            self.elsewhere = False
        self.unsettled = False

    @property
    def usable(self) -> bool:
        """
        Whether it is in step with its server, and of this process.

        Not if a signal handler raised between a statement and its answer: the next one would read that
        answer for its own, and a COMMIT believe it. And not in a process that was forked meanwhile: what it
        sent, ROLLBACK included, would end the transaction of its parent.
        """
        return not self._unanswered and self._pid == os.getpid()

    def _refuse_out_of_step(self) -> NoReturn:
        raise pymysql.OperationalError(
            CR.CR_COMMANDS_OUT_OF_SYNC,
            "a statement was interrupted before its answer was read, what became of it is not known; "
            "leave the block, and do it in a new transaction",
        )

    # These three read their answers by themselves.

    def _request_authentication(self) -> None:
        super()._request_authentication()  # type: ignore[misc]
        self._unanswered = False

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """See PyMySQL."""
        super().set_character_set(charset, collation)
        self._unanswered = False

    def show_warnings(self) -> Any:
        """See PyMySQL."""
        warnings = super().show_warnings()  # type: ignore[no-untyped-call]
        self._unanswered = False
        return warnings

    def _write_bytes(self, data: bytes) -> None:
        """All that is ever sent passes here; PyMySQL ignores what this raises when it says good-bye."""
        if self._unanswered and data[3] == 0:  # the packet's number: with 0 a command begins
            self._refuse_out_of_step()
        if self._pid != os.getpid():
            raise LifecycleError(
                f"this transaction runs in process {self._pid} and can't be used in process {os.getpid()}, "
                "which was forked inside it: they share one connection; fork before the transaction, or end "
                "the forked process by os._exit()"
            )
        self._unanswered = True
        super()._write_bytes(data)  # type: ignore[misc]

    def read_results(self) -> None:
        """
        Read what is left of the last statement, so that its late error is not taken for the next one's.

        Raises: pymysql.MySQLError of that statement.
        """
        if self._unanswered:
            self._refuse_out_of_step()
        result = self._result
        if result is not None and result.unbuffered_active:
            result._finish_unbuffered_query()  # noqa: SLF001 - what PyMySQL does itself, with a warning
        while self._result is not None and self._result.has_next:
            self.next_result()

    def _read_query_result(self, unbuffered: bool = False) -> int:
        try:
            rows: int = super()._read_query_result(unbuffered)  # type: ignore[misc]
        except pymysql.MySQLError as error:
            self._unanswered = self._more_answers > 0
            self._heed_failure(error)
            raise
        self._unanswered = self._more_answers > 0
        result = self._result
        if result.server_status is not None:  # an answer without rows; those with rows tell nothing
            self._heed(result.server_status, result.message)
        self.unsettled = self.elsewhere or bool(result.has_next) or result.unbuffered_active
        return rows

    def _read_ok_packet(self) -> Any:
        try:
            answer = super()._read_ok_packet()  # type: ignore[misc]
        except pymysql.MySQLError:
            self._unanswered = False
            raise
        self._unanswered = False
        self._heed(answer.server_status, answer.message)
        return answer

    def text_of(self, message: bytes) -> bytes:
        """Return the text for people in an answer without rows, such as `Rows matched: 1  Changed: 0 ...`."""
        if not message or not self.server_capabilities & CLIENT.SESSION_TRACK:
            return message  # all of it
        return sized(message, 0)[0]

    def _heed_failure(self, error: pymysql.MySQLError) -> None:
        code = error.args[0] if error.args else None
        if isinstance(code, int):
            self.failures.add(code)
        if code == ER.LOCK_DEADLOCK:
            self._in_transaction = False  # rolled back: its end is no commit

    def _heed(self, status: int, message: bytes) -> None:
        in_transaction = bool(status & _IN_TRANSACTION)
        if (self._in_transaction and not in_transaction) or status & _AUTOCOMMIT:
            self.ended = True
        self._in_transaction = in_transaction
        if not status & NEWS:
            return
        for kind, news in read_news(message):
            if kind == TRANSACTION_STATE:
                self._heed_transaction_state(news[0])
                continue
            self.changed = True
            if kind == SCHEMA:
                self.elsewhere = self.unsettled = news[0] != self.db
            elif kind == SYSTEM_VARIABLE:
                name, value = news[:2]
                if name == "character_set_client" and value not in SAFE_CHARACTER_SETS:
                    self._unsafe = value

    def _heed_transaction_state(self, state: str) -> None:
        # Eight characters. First: T for BEGIN as text and for COMMIT AND CHAIN, which leave the flag "in a
        # transaction" as it is; ours are I, begun by a statement. Last: L under LOCK TABLES, which commits
        # and is not ended by COMMIT. Fourth: w for a write to a table of MyISAM and the like.
        if state.startswith("T") or state.endswith("L"):
            self.ended = True
        if state[3:4] == "w":
            self.untransactional = True
