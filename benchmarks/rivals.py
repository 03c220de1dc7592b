"""What people use instead, written as they would: an outbox that is polled, and a send without atomicity."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pymysql

from benchmarks import by_hand
from rmq_txn.transport import binding

POLLED = "bench_polled"
POLL_SECONDS = 0.1
_PAGE = 500
_PATIENCE_SECONDS = 60.0
_SEND_MILLISECONDS = 10_000


class Sender:
    """A plain producer of the native client."""

    def __init__(self, name_server: str, topic: str) -> None:
        self._table = binding.ffi()
        self._dll = self._table.dll
        self._topic = topic.encode()
        self._handle = self._dll.CreateProducer(f"plain-{topic}".encode())
        by_hand.require_ok(self._dll.SetProducerNameServerAddress(self._handle, name_server.encode()))
        by_hand.require_ok(self._dll.SetProducerInstanceName(self._handle, by_hand.instance()))
        by_hand.require_ok(self._dll.SetProducerLogLevel(self._handle, binding.LOG_LEVEL_WARN))
        by_hand.require_ok(self._dll.SetProducerSendMsgTimeout(self._handle, _SEND_MILLISECONDS))
        by_hand.require_ok(self._dll.StartProducer(self._handle))
        self.send(b'{"n": -1}')  # alone: the first send makes the connection

    def send(self, body: bytes) -> None:
        """Send, and wait for the answer."""
        message = self._dll.CreateMessage(self._topic)
        self._dll.SetByteMessageBody(message, body, len(body))
        result = self._table._CSendResult()  # noqa: SLF001 - the vendor names it so
        status = self._dll.SendMessageSync(self._handle, message, ctypes.byref(result))
        self._dll.DestroyMessage(message)
        by_hand.require_ok(status)


class Writer:
    """Transactions on a connection a thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._mine = threading.local()

    def cursor(self) -> pymysql.cursors.Cursor:
        """Return the cursor of this thread."""
        if not hasattr(self._mine, "cursor"):
            self._mine.cursor = by_hand.connect(self._url).cursor()
        return self._mine.cursor  # type: ignore[no-any-return]

    def only_work(self, number: int) -> None:
        """Commit the work, and tell nobody."""
        cursor = self.cursor()
        cursor.execute(by_hand.WORK, (number % 1000,))
        cursor.connection.commit()


class PlainAfterCommit(Writer):
    """Commit, then send: what is lost in between is lost."""

    def __init__(self, name_server: str, url: str, topic: str) -> None:
        super().__init__(url)
        self._sender = Sender(name_server, topic)

    def work(self, number: int, before_commit: Callable[[], None] = lambda: None) -> None:
        """Do one."""
        cursor = self.cursor()
        cursor.execute(by_hand.WORK, (number % 1000,))
        before_commit()
        cursor.connection.commit()
        self._sender.send(json.dumps({"n": number}).encode())


class PolledOutbox(Writer):
    """A row for each message, and one thread that sends and deletes what it finds each 100 ms."""

    def __init__(self, name_server: str, url: str, topic: str) -> None:
        super().__init__(url)
        self._sender = Sender(name_server, topic)
        self._polling = by_hand.connect(url)
        self._wanted = threading.Event()
        threading.Thread(target=self._poll_for_ever, daemon=True).start()

    def work(self, number: int, before_commit: Callable[[], None] = lambda: None) -> None:
        """Do one."""
        self._wanted.set()
        cursor = self.cursor()
        cursor.execute(by_hand.WORK, (number % 1000,))
        cursor.execute(f"INSERT INTO {POLLED} (body) VALUES (%s)", (json.dumps({"n": number}).encode(),))
        before_commit()
        cursor.connection.commit()

    def wait_until_sent(self) -> None:
        """Wait until no row is left; then rest until the next work, so that others have their turn alone."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._rows_left():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the polled outbox was not empty after {_PATIENCE_SECONDS:g} s")
            time.sleep(0.005)
        self._wanted.clear()

    def _rows_left(self) -> bool:
        cursor = self.cursor()
        cursor.execute(f"SELECT 1 FROM {POLLED} LIMIT 1")
        found = bool(cursor.fetchall())
        cursor.connection.rollback()
        return found

    def _poll_for_ever(self) -> None:
        while self._wanted.wait():
            if self._publish_page() < _PAGE:
                time.sleep(POLL_SECONDS)

    def _publish_page(self) -> int:
        cursor: Any = self._polling.cursor()
        cursor.execute(f"SELECT id, body FROM {POLLED} ORDER BY id LIMIT {_PAGE} FOR UPDATE SKIP LOCKED")
        rows = cursor.fetchall()
        for _id, body in rows:
            self._sender.send(body)
        if rows:
            cursor.execute(f"DELETE FROM {POLLED} WHERE id IN %s", ([id_ for id_, _body in rows],))
        self._polling.commit()
        return len(rows)
