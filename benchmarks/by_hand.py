"""
The floors: the same work over the vendor's ctypes table and PyMySQL, with nothing in between.

No pool, no log lines, no closing, no protection from anything but what its statements give.
"""

from __future__ import annotations

import ctypes
import json
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pymysql

from rmq_txn.database.pool import parse_url
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.identity import PROPERTY_OWNER, PROPERTY_POSITION, PROPERTY_TXN_ID
from rmq_txn.transport import binding

_alive: list[object] = []
"""Held to the end of the process: the library calls into them."""

WORK = "UPDATE bench SET n = n + 1 WHERE id = %s"

OUTBOX = "bench_outbox"
"""Like ours, so that a floor writes what we write, and no relay publishes it."""

_INSERT_OUTBOX_ROW = STATEMENTS["insert_outbox_rows"].replace("rmq_txn_outbox", OUTBOX)


def connect(url: str) -> pymysql.Connection[Any]:
    """Open a connection without autocommit."""
    return pymysql.connect(**parse_url(url), autocommit=False)


def instance() -> bytes:
    """Return a name that no other client has."""
    return f"bench-{uuid.uuid4().hex}".encode()


def require_ok(status: int) -> None:
    """Raise what a native call answered, if it is no success."""
    if (problem := binding.check_status(status)) is not None:
        raise RuntimeError(problem)


def _start_push_consumer(name_server: str, topic: str, group: str, threads: int, on_message: object) -> None:
    dll = binding.ffi().dll
    handle = dll.CreatePushConsumer(group.encode())
    dll.SetPushConsumerMessageTrace(handle, binding.TRACE_OPEN)
    require_ok(dll.SetPushConsumerNameServerAddress(handle, name_server.encode()))
    require_ok(dll.SetPushConsumerInstanceName(handle, instance()))
    require_ok(dll.SetPushConsumerLogLevel(handle, binding.LOG_LEVEL_WARN))
    require_ok(dll.SetPushConsumerThreadCount(handle, threads))
    binding.pull_synchronously(handle, 8)  # as ours: this measures the wrapper, not the pull
    require_ok(dll.Subscribe(handle, topic.encode(), b"*"))
    dll.RegisterMessageCallback(handle, on_message)
    require_ok(dll.StartPushConsumer(handle))
    dll.SetPushConsumerMessageTrace(handle, binding.TRACE_CLOSE)


class Producer:
    """A transactional producer; each thread has a connection of its own."""

    def __init__(self, name_server: str, url: str, topic: str) -> None:
        _alive.append(self)
        self._table = binding.ffi()
        self._dll = self._table.dll
        self._topic = topic.encode()
        self._url = url
        self._mine = threading.local()
        self._on_check = self._table.TRANSACTION_CHECK_CALLBACK(lambda *_: binding.UNKNOWN)
        self._on_execute = self._table.LOCAL_TRANSACTION_EXECUTE_CALLBACK(self._execute)
        group = f"by-hand-{topic}".encode()
        self._handle = self._dll.CreateTransactionProducer(group, self._on_check, None)
        require_ok(self._dll.SetProducerNameServerAddress(self._handle, name_server.encode()))
        require_ok(self._dll.SetProducerInstanceName(self._handle, instance()))
        require_ok(self._dll.SetProducerLogLevel(self._handle, binding.LOG_LEVEL_WARN))
        require_ok(self._dll.StartProducer(self._handle))
        self._send({}, 0, lambda _id: None)  # alone: the first send makes the connection

    def _execute(self, _producer: int, message: int, _data: int | None) -> int:
        try:
            self._mine.local(binding.read_property(message, "UNIQ_KEY"))
        except BaseException as error:  # noqa: BLE001 - raised after the native call
            self._mine.failure = error
            return binding.UNKNOWN
        return binding.COMMIT

    def _send(self, properties: Mapping[str, str], number: int, local: Callable[[str], None]) -> None:
        self._mine.local, self._mine.failure = local, None
        body = json.dumps({"n": number}).encode()
        message = self._dll.CreateMessage(self._topic)
        self._dll.SetByteMessageBody(message, body, len(body))
        for name, value in properties.items():
            self._dll.SetMessageProperty(message, name.encode(), value.encode())
        result = self._table._CSendResult()  # noqa: SLF001 - the vendor names it so
        status = self._dll.SendMessageTransaction(
            self._handle, message, self._on_execute, None, ctypes.byref(result)
        )
        self._dll.DestroyMessage(message)
        if self._mine.failure is not None:
            raise self._mine.failure
        require_ok(status)

    def _cursor(self) -> pymysql.cursors.Cursor:
        if not hasattr(self._mine, "cursor"):
            self._mine.cursor = connect(self._url).cursor()
        return self._mine.cursor  # type: ignore[no-any-return]

    def same_form_a(self, number: int) -> None:
        """Send what form A sends, to database and broker."""
        cursor, txn_id = self._cursor(), uuid.uuid4().hex
        cursor.execute(STATEMENTS["set_tripwire"])
        cursor.execute(WORK, (number % 1000,))

        def local(message_id: str) -> None:
            cursor.execute(STATEMENTS["insert_log_row"], (txn_id, 1, message_id))
            cursor.execute(_INSERT_OUTBOX_ROW, self._outbox_row(txn_id, message_id, number))
            cursor.execute(STATEMENTS["release_tripwire"])
            cursor.connection.commit()

        self._send(self._stamp(txn_id), number, local)

    def same_form_b(self, number: int) -> None:
        """Send what form B sends, to database and broker."""
        cursor, txn_id = self._cursor(), uuid.uuid4().hex

        def local(message_id: str) -> None:
            cursor.execute(STATEMENTS["set_tripwire"])
            cursor.execute(STATEMENTS["insert_log_row"], (txn_id, 0, message_id))
            cursor.execute(WORK, (number % 1000,))
            cursor.execute(STATEMENTS["commit_log_row"], (txn_id,))
            cursor.execute(_INSERT_OUTBOX_ROW, self._outbox_row(txn_id, message_id, number))
            cursor.execute(STATEMENTS["release_tripwire"])
            cursor.connection.commit()

        self._send(self._stamp(txn_id), number, local)

    def naive(self, number: int) -> None:
        """Half message, log row, update, commit: the article, with none of its holes closed."""
        cursor, txn_id = self._cursor(), uuid.uuid4().hex

        def local(_message_id: str) -> None:
            cursor.execute(STATEMENTS["insert_log_row"], (txn_id, 1, ""))
            cursor.execute(WORK, (number % 1000,))
            cursor.connection.commit()

        self._send({PROPERTY_TXN_ID: txn_id}, number, local)

    def _outbox_row(self, txn_id: str, message_id: str, number: int) -> tuple[object, ...]:
        properties = json.dumps(self._stamp(txn_id))
        body = json.dumps({"n": number}).encode()
        return txn_id, 0, message_id, self._topic.decode(), None, None, properties, body

    @staticmethod
    def _stamp(txn_id: str) -> dict[str, str]:
        return {PROPERTY_TXN_ID: txn_id, PROPERTY_POSITION: "0", PROPERTY_OWNER: "bench@" + "0" * 36}


class Consumer:
    """A push consumer that writes an inbox row and the work in one transaction, then acknowledges."""

    def __init__(
        self, name_server: str, url: str, topic: str, group: str, *, threads: int, tripwire: bool
    ) -> None:
        _alive.append(self)
        table = binding.ffi()
        self._dll = table.dll
        self._group = group
        self._tripwire = tripwire
        self.gate = threading.Event()
        self.handled = queue.SimpleQueue[int]()
        self._cursors = queue.SimpleQueue[pymysql.cursors.Cursor]()
        for _ in range(threads):
            self._cursors.put(connect(url).cursor())
        self._on_message = table.MSG_CALLBACK_FUNC(binding.nothing_escapes(1, "by hand")(self._handle))
        _start_push_consumer(name_server, topic, group, threads, self._on_message)

    def _handle(self, _consumer: int, message: int) -> int:
        txn_id, position = (binding.read_property(message, p) for p in (PROPERTY_TXN_ID, PROPERTY_POSITION))
        key = f"{txn_id}.{position}"
        number = json.loads(self._dll.GetMessageBody(message))["n"]
        self.gate.wait()
        cursor = self._cursors.get()
        try:
            if self._tripwire:
                cursor.execute(STATEMENTS["set_tripwire"])
            cursor.execute(STATEMENTS["claim_inbox_row"], (self._group, key.encode()))
            cursor.execute(WORK, (number % 1000,))
            if self._tripwire:
                cursor.execute(STATEMENTS["release_tripwire"])
            cursor.connection.commit()
        except pymysql.MySQLError:
            cursor.connection.rollback()
            return binding.RECONSUME_LATER
        finally:
            self._cursors.put(cursor)
        self.handled.put(number)
        return binding.CONSUME_SUCCESS


class Listener:
    """A push consumer that only looks: it calls `seen` with each number, and acknowledges."""

    def __init__(self, name_server: str, topic: str, group: str, seen: Callable[[int], None]) -> None:
        _alive.append(self)
        table = binding.ffi()
        self._dll, self._seen = table.dll, seen
        self._on_message = table.MSG_CALLBACK_FUNC(binding.nothing_escapes(1, "by hand")(self._handle))
        _start_push_consumer(name_server, topic, group, 4, self._on_message)

    def _handle(self, _consumer: int, message: int) -> int:
        self._seen(json.loads(self._dll.GetMessageBody(message))["n"])
        return binding.CONSUME_SUCCESS
