"""What the demo page needs beside the service's own interface: events, faults, the books."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from demo_chassis.answers import error_answer
from demo_chassis.events import Event, Events, stream
from demo_chassis.faults import MAX_STOP_SECONDS, PointsFaults
from demo_points_service.awards import IDENTIFIER, Points
from rmq_txn import IdempotentConsumer

Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER)]

# The answer to the request that stops the service leaves before the service does.
_ANSWER_SECONDS = 0.2


class FaultRequest(BaseModel):
    """A fault of one transfer, in the body of POST /faults."""

    model_config = ConfigDict(strict=True, extra="forbid")

    fault: Literal["fail", "poison", "deliver_twice"]
    transfer_id: Identifier
    times: int = Field(default=1, ge=1, le=16)


class StopRequest(BaseModel):
    """The fault of the whole service, in the body of POST /faults."""

    model_config = ConfigDict(strict=True, extra="forbid")

    fault: Literal["stop"]
    seconds: int = Field(ge=1, le=MAX_STOP_SECONDS)


class MendRequest(BaseModel):
    """The body of POST /mend."""

    model_config = ConfigDict(strict=True, extra="forbid")

    transfer_id: Identifier


def create_router(
    events: Events,
    faults: PointsFaults,
    points: Points,
    consumer: IdempotentConsumer,
    *,
    is_stopping: Callable[[], bool],
) -> APIRouter:
    """Make the routes of the page; `is_stopping` ends the streams."""
    router = APIRouter(include_in_schema=False)

    @router.get("/books")
    def books() -> dict[str, Any]:
        return points.books()

    @router.get("/events")
    async def list_events(
        after: Annotated[int, Query(ge=0)] = 0,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> StreamingResponse:
        seen = after if last_event_id is None else last_event_id

        def look() -> list[tuple[str, Event]]:
            nonlocal seen
            found = events.after(seen)
            if found:
                seen = found[-1]["id"]
            return [(str(event["id"]), event) for event in found]

        return StreamingResponse(
            stream(look, is_stopping), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    @router.post("/faults")
    def arm(request: FaultRequest | StopRequest) -> Response:
        if not faults.enabled:
            return _not_found("faults are switched off here: DEMO_FAULTS is not 1")
        if isinstance(request, StopRequest):
            threading.Timer(_ANSWER_SECONDS, faults.stop, [request.seconds]).start()
            return JSONResponse({"fault": request.fault, "seconds": request.seconds})
        faults.arm(request.fault, request.transfer_id, request.times)
        return JSONResponse({"fault": request.fault, "transfer_id": request.transfer_id})

    @router.post("/mend")
    def mend(request: MendRequest) -> Response:
        if not faults.enabled:
            return _not_found("faults are switched off here: DEMO_FAULTS is not 1")
        failed = faults.mend(request.transfer_id)
        replayed = False
        if failed is not None:
            txn_id, key = failed
            # False if it is not parked (yet): then the broker delivers it again.
            replayed = consumer.replay(key)
            events.tell("replayed" if replayed else "mended", txn_id, request.transfer_id)
        return JSONResponse({"transfer_id": request.transfer_id, "replayed": replayed})

    return router


def _not_found(message: str) -> JSONResponse:
    return error_answer(404, "http_404", message)
