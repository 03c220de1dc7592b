"""What the demo page needs beside the service's own interface: files, events, faults, the books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, StringConstraints

from demo_account_service.page.lanes import Lanes
from demo_account_service.page.neighbour import Neighbour
from demo_account_service.transfers import IDENTIFIER, MAX_AMOUNT, Transfers
from demo_chassis.answers import error_answer
from demo_chassis.events import Event, Events, stream
from demo_chassis.faults import AccountFaults

_FOLDER = Path(__file__).parent
_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "books.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
    "requests.js": "text/javascript; charset=utf-8",
    "scene.js": "text/javascript; charset=utf-8",
    "tour.js": "text/javascript; charset=utf-8",
    "texts.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class FaultRequest(BaseModel):
    """The body of POST /faults."""

    model_config = ConfigDict(strict=True, extra="forbid")

    fault: Literal["kill_before_commit", "kill_after_commit", "slow_check_back"]
    transfer_id: Annotated[str, StringConstraints(pattern=IDENTIFIER)]


class After(Protocol):
    """Events of one service, by number."""

    def after(self, seen: int) -> Sequence[Event]:
        """Return those after one, oldest first."""


def create_page_router(
    account: After,
    points: After | None,
    lanes: Lanes,
    settings: Callable[[], dict[str, Any]],
    *,
    is_stopping: Callable[[], bool],
) -> APIRouter:
    """
    Make the routes that are the same whichever process serves the page: files, settings, events.

    Args:
        account, points: their events; None: the page shows the account service alone.
        lanes: who is away.
        settings: what the page shall know before it draws.
        is_stopping: ends the streams.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def index() -> FileResponse:
        return FileResponse(_FOLDER / "index.html", media_type="text/html; charset=utf-8", headers=_HEADERS)

    @router.get("/page/settings")
    def show_settings() -> dict[str, Any]:
        return {"points": points is not None, "max_amount": MAX_AMOUNT, **settings()}

    @router.get("/page/{name}")
    def file(name: str) -> Response:
        if name not in _TYPES:
            return _not_found(f"the page has no file {name!r}")
        return FileResponse(_FOLDER / name, media_type=_TYPES[name], headers=_HEADERS)

    @router.get("/events")
    async def list_events(
        after: Annotated[str, Query(pattern=r"^[0-9]{1,15}\.[0-9]{1,15}$")] = "0.0",
        last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,15}\.[0-9]{1,15}$")] = None,
    ) -> StreamingResponse:
        # Both services in one stream: a browser opens six connections to an origin, all tabs together.
        own, other = map(int, (last_event_id or after).split("."))

        def look() -> list[tuple[str, Event]]:
            nonlocal own, other
            found = []
            for event in account.after(own):
                own = event["id"]
                found.append((f"{own}.{other}", event))
            for event in points.after(other) if points else ():
                other = event["id"]
                found.append((f"{own}.{other}", event))
            return found

        return StreamingResponse(
            stream(look, is_stopping, lanes.look), media_type="text/event-stream", headers=_HEADERS
        )

    return router


def create_router(
    events: Events,
    faults: AccountFaults,
    transfers: Transfers,
    neighbour: Neighbour | None,
    lanes: Lanes,
    *,
    opened: int | None,
    is_stopping: Callable[[], bool],
) -> APIRouter:
    """
    Make the routes of the page as the account service serves it.

    Args:
        neighbour: the points service; None: the page shows this one alone.
        lanes: who is away.
        opened: what the sum of balances must be, in fen; None: nobody knows.
        is_stopping: ends the streams.
    """
    router = create_page_router(
        events, neighbour, lanes, lambda: {"faults": faults.enabled}, is_stopping=is_stopping
    )

    @router.get("/books")
    def books() -> dict[str, Any]:
        return {**transfers.books(), "opened": opened}

    @router.post("/faults")
    def arm(request: FaultRequest) -> Response:
        if not faults.enabled:
            return _not_found("faults are switched off here: DEMO_FAULTS is not 1")
        faults.arm(request.fault, request.transfer_id)
        return JSONResponse({"fault": request.fault, "transfer_id": request.transfer_id})

    @router.api_route("/points-service/{path}", methods=["GET", "POST"])
    async def pass_on(request: Request, path: str) -> Response:
        if neighbour is None:
            return _not_found("there is no points service: ACCOUNT_SERVICE_POINTS_URL is not set")
        return await neighbour.pass_on(request, path)

    return router


def _not_found(message: str) -> JSONResponse:
    return error_answer(404, "http_404", message)
