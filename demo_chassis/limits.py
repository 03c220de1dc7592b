"""What one client may cost a service: bytes, time, and requests at once."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from demo_chassis.answers import error_answer

log = structlog.get_logger("demo.limits")

HEALTH: Final = "/health"
METRICS: Final = "/metrics"
UNCOUNTED: Final = (HEALTH, METRICS)
"""What watches the service always gets its answer."""
HEADER_BYTES: Final = 16 * 1024
"""The longest request line with its headers; beyond it uvicorn answers 400, in plain text."""


class _TooLargeError(Exception):
    """The body is larger than allowed."""


class _GoneError(Exception):
    """The client went away before its request was here."""


class Limits:
    """
    Refuses what is too much, before a thread or a connection to the database is spent on it.

    A body is read here, whole: it is small, and while a slow client sends it no thread waits.

    Args:
        app: what gets the requests that pass.
        max_requests: handled or waited for at once; `UNCOUNTED` always answers.
        max_body_bytes: of one request.
        receive_seconds: in which a body must have arrived.
    """

    def __init__(
        self, app: ASGIApp, *, max_requests: int, max_body_bytes: int, receive_seconds: float
    ) -> None:
        self._app = app
        self._max_requests = max_requests
        self._max_body_bytes = max_body_bytes
        self._receive_seconds = receive_seconds
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = scope["path"] not in UNCOUNTED
        if counted and self._running >= self._max_requests:
            text = f"{self._max_requests} requests are being handled, nothing was changed; repeat it"
            await _refuse(503, "overloaded", text, scope, receive, send)
            return
        self._running += counted
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self._running -= counted

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self._receive_seconds)
        except _GoneError:
            return
        except _TooLargeError:
            text = f"the body is larger than {self._max_body_bytes} bytes, nothing was changed"
            await _refuse(413, "body_too_large", text, scope, receive, send)
            return
        except asyncio.TimeoutError:
            text = f"the request did not arrive within {self._receive_seconds:g} s, nothing was changed"
            await _refuse(408, "too_slow", text, scope, receive, send)
            return
        arrived: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return arrived.pop() if arrived else await receive()

        await self._app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        # What a client declares; one that declares nothing sends chunks, which are counted.
        if int(Headers(scope=scope).get("content-length", "0")) > self._max_body_bytes:
            raise _TooLargeError
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body_bytes:
                raise _TooLargeError
        return bytes(body)


async def _refuse(status: int, code: str, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    answer = error_answer(status, code, text)
    answer.headers["Connection"] = "close"  # the rest of the request is not read
    await answer(scope, receive, send)


class TimedProtocol(H11Protocol):
    """
    HTTP/1.1 by uvicorn, which waits for ever for the headers of a request. This one does not.

    A connection that was opened, or began a request, and has not sent all headers in time is closed.
    """

    header_seconds = 10.0
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        # Between two requests uvicorn's own keep-alive timeout runs, until the first byte comes.
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._due is None:
            self._due = self.loop.call_later(self.header_seconds, self._close_slow)

    def _unwatch(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _close_slow(self) -> None:
        log.warning("a client did not send its headers in time, its connection is closed", client=self.client)
        self.transport.close()


def server_settings(receive_seconds: float) -> dict[str, Any]:
    """Return what uvicorn has to be told for these limits; headers get as long as a body."""

    class Protocol(TimedProtocol):
        header_seconds = receive_seconds

    return {"http": Protocol, "ws": "none", "h11_max_incomplete_event_size": HEADER_BYTES}
