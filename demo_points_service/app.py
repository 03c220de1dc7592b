"""The HTTP interface of the points service. README.md is its contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from demo_points_service.awards import IDENTIFIER, MAX_LISTED, Points
from rmq_txn import IdempotentConsumer
from rmq_txn.errors import DatabaseUnavailableError, RmqTxnError

log = structlog.get_logger("points_service.http")

PathIdentifier = Annotated[str, Path(pattern=IDENTIFIER)]


def create_app(
    consumer: IdempotentConsumer, points: Points, *, threads: int, page: APIRouter | None = None
) -> FastAPI:
    """
    Make the application; it starts and closes `consumer`.

    Args:
        consumer: a new one with its handlers, not started.
        points: the domain, on the same database.
        threads: requests handled at once.
        page: what the demo page needs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = threads
        # In other threads: both calls block, and the event loop must not.
        try:
            await asyncio.to_thread(consumer.start)
        except RmqTxnError as error:
            app.state.start_error = error  # __main__ turns it into a sentence and an exit code
            raise
        try:
            yield
        finally:
            await asyncio.to_thread(consumer.close)

    app = FastAPI(title="Points service", version="1", lifespan=lifespan)
    if page is not None:
        app.include_router(page)
    app.add_exception_handler(DatabaseUnavailableError, _answer_database_unavailable)
    app.add_exception_handler(RequestValidationError, _answer_bad_input)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)

    # Endpoints are plain functions: FastAPI runs them in threads, where rmq_txn may block.

    @app.get("/points")
    def list_points() -> dict[str, Any]:
        return {"points": [{"user": user, "points": number} for user, number in points.balances().items()]}

    @app.get("/points/{user}")
    def show_points(user: PathIdentifier) -> dict[str, Any]:
        return {"user": user, "points": points.balance(user)}

    @app.get("/points/{user}/entries")
    def list_entries(
        user: PathIdentifier, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 100
    ) -> dict[str, Any]:
        return {
            "user": user,
            "entries": [
                {
                    "transfer_id": entry.transfer_id,
                    "points": entry.points,
                    "txn_id": entry.txn_id,
                    "created_at": entry.created_at.isoformat(),
                }
                for entry in points.entries(user, limit)
            ],
        }

    @app.get("/health")
    async def health() -> JSONResponse:
        # Not in the threads of the other endpoints: those may all be waiting.
        database = await asyncio.to_thread(_database_state, points)
        state = consumer.state.value
        healthy = state == "running" and database == "ok"
        return JSONResponse(
            {"status": "ok" if healthy else "unavailable", "consumer": state, "database": database},
            status_code=200 if healthy else 503,
        )

    return app


def _database_state(points: Points) -> str:
    try:
        points.ping()
    except DatabaseUnavailableError as error:
        log.warning("the database can't be reached", cause=str(error))
        return "unavailable"
    return "ok"


def _error(status: int, code: str, message: str, **more: object) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": {"code": code, "message": message, **more}}, status, headers)


def _answer_database_unavailable(_request: Request, error: Exception) -> JSONResponse:
    log.warning("request failed", cause=str(error))
    return _error(503, "database_unavailable", "the database can't be reached; repeat the request")


def _answer_bad_input(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # registered for it only
    problems = [{"field": ".".join(map(str, item["loc"])), "problem": item["msg"]} for item in error.errors()]
    return _error(422, "bad_input", "the request is not valid", problems=problems)


def _answer_http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # registered for it only
    return _error(error.status_code, f"http_{error.status_code}", str(error.detail))


def _answer_bug(_request: Request, error: Exception) -> JSONResponse:
    return _error(500, "internal", f"the service failed ({type(error).__name__}); its log says more")
