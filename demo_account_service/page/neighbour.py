"""
A service as the demo page sees it: through the process that serves the page, so that it has one origin.

Only the page needs this. Transfers and points know each other by messages alone.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Final

import httpx
import structlog
from fastapi import Request, Response

from demo_chassis.answers import error_answer
from demo_chassis.events import Event, events_after, newest_id

log = structlog.get_logger("demo.neighbour")

_KEPT = 1000
_PAUSE_SECONDS = 0.5
# It gives a sign of life each second; a replay of a parked message may take a while.
_SILENCE_SECONDS = 10.0
_ANSWER_SECONDS = 20.0

Allowed = frozenset[tuple[str, str]]
"""What the page may ask a service for: method and path."""

ACCOUNT: Final[Allowed] = frozenset(
    {("GET", "accounts"), ("GET", "books"), ("GET", "health"), ("POST", "faults"), ("POST", "transfers")}
)
POINTS: Final[Allowed] = frozenset(
    {("GET", "points"), ("GET", "books"), ("GET", "health"), ("POST", "faults"), ("POST", "mend")}
)


class Relay:
    """
    Passes requests of the page on to one service. For one event loop.

    Args:
        name: of the service, as people say it: "points service".
        url: its address as seen from here, "http://127.0.0.1:8002".
        allowed: what may be asked.
    """

    def __init__(self, name: str, url: str, allowed: Allowed) -> None:
        self._name = name
        self._url = url.rstrip("/")
        self._allowed = allowed
        self._client = httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def pass_on(self, request: Request, path: str) -> Response:
        """Answer a request of the page with what the service answers."""
        if (request.method, path) not in self._allowed:
            return error_answer(404, "http_404", "the page has no business there")
        try:
            answer = await self._client.request(
                request.method,
                f"{self._url}/{path}",
                content=await request.body(),
                headers={"Content-Type": request.headers.get("content-type", "application/json")},
            )
        except (httpx.ConnectError, httpx.ConnectTimeout):
            code = f"{self._name.replace(' ', '_')}_unavailable"
            return error_answer(503, code, f"the {self._name} does not answer; repeat it")
        except httpx.HTTPError:
            # It had the request: what became of it nobody knows, as when a browser's own line breaks.
            return error_answer(504, "no_answer", f"the {self._name} went away while it was asked")
        return Response(answer.content, answer.status_code, media_type="application/json")


class Neighbour:
    """
    The points service: follows its events and passes requests on. For one event loop.

    Args:
        url: its address as seen from here, "http://127.0.0.1:8002".
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._task: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(trust_env=False)
        self._relay = Relay("points service", url, POINTS)
        self._connected = False

    @property
    def is_connected(self) -> bool:
        """Whether its stream is open: it ends with the process."""
        return self._connected

    def after(self, seen: int) -> list[Event]:
        """See events_after."""
        return events_after(self._events, seen)

    def start(self) -> None:
        """Begin to follow; it need not be there yet."""
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()
        await self._relay.close()

    async def pass_on(self, request: Request, path: str) -> Response:
        """See Relay."""
        return await self._relay.pass_on(request, path)

    async def _follow(self) -> None:
        while True:
            try:
                await self._read_stream()
            except (httpx.HTTPError, httpx.StreamError):
                log.debug("the points service does not answer")
            finally:
                self._connected = False
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _read_stream(self) -> None:
        newest = newest_id(self._events)
        async with self._client.stream(
            "GET", f"{self._url}/events", params={"after": newest}, timeout=_SILENCE_SECONDS
        ) as answer:
            answer.raise_for_status()
            self._connected = True
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if event["id"] <= newest:
                        self._events.clear()  # its file was removed: another life begins at 1
                    newest = event["id"]
                    self._events.append(event)
