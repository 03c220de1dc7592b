"""
The points service as the demo page sees it: through this service, so that the page has one origin.

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
from demo_chassis.events import Event

log = structlog.get_logger("demo.neighbour")

_KEPT = 1000
_PAUSE_SECONDS = 0.5
# It gives a sign of life each second; a replay of a parked message may take a while.
_SILENCE_SECONDS = 10.0
_ANSWER_SECONDS = 20.0

ALLOWED: Final = frozenset(
    {("GET", "points"), ("GET", "books"), ("GET", "health"), ("POST", "faults"), ("POST", "mend")}
)
"""What the page may ask it for: method and path."""


class Neighbour:
    """
    Follows the events of the points service and passes requests on. For one event loop.

    Args:
        url: its address as seen from here, "http://127.0.0.1:8002".
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._task: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False)

    def after(self, seen: int) -> list[Event]:
        """Return its events after one, oldest first."""
        newest = self._events[-1]["id"] if self._events else 0
        return [event for event in self._events if event["id"] > seen or seen > newest > 0]

    def start(self) -> None:
        """Begin to follow; it need not be there yet."""
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    async def pass_on(self, request: Request, path: str) -> Response:
        """Answer a request of the page with what the points service answers."""
        if (request.method, path) not in ALLOWED:
            return error_answer(404, "http_404", "the page has no business there")
        try:
            answer = await self._client.request(
                request.method,
                f"{self._url}/{path}",
                content=await request.body(),
                headers={"Content-Type": request.headers.get("content-type", "application/json")},
            )
        except httpx.HTTPError:
            text = "the points service does not answer; repeat it"
            return error_answer(503, "points_service_unavailable", text)
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def _follow(self) -> None:
        while True:
            try:
                await self._read_stream()
            except (httpx.HTTPError, httpx.StreamError):
                log.debug("the points service does not answer")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _read_stream(self) -> None:
        newest = self._events[-1]["id"] if self._events else 0
        async with self._client.stream(
            "GET", f"{self._url}/events", params={"after": newest}, timeout=_SILENCE_SECONDS
        ) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if event["id"] <= newest:
                        self._events.clear()  # its file was removed: another life begins at 1
                    newest = event["id"]
                    self._events.append(event)
