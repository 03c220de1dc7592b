"""The HTTP interface of the points service. README.md and /openapi.json are its contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from demo_chassis.answers import READ, error_answer
from demo_chassis.limits import Limits
from demo_chassis.logs import RequestLog
from demo_points_service.awards import Points
from demo_points_service.health import Health
from demo_points_service.models import (
    AllPointsAnswer,
    EntriesAnswer,
    EntryAnswer,
    HealthAnswer,
    Limit,
    PathUser,
    PointsAnswer,
    documented,
)
from demo_points_service.settings import Settings
from rmq_txn import IdempotentConsumer
from rmq_txn.errors import DatabaseUnavailableError, RmqTxnError

log = structlog.get_logger("points_service.http")

_DESCRIPTION = """
Gives the payer of each transfer one point for each whole yuan (`amount // 100`).
It hears of transfers by messages.

Errors are `{"error": {"code", "message", ...}}`; 503 has `Retry-After`.
"""


def create_app(
    consumer: IdempotentConsumer, points: Points, settings: Settings, *, page: APIRouter | None = None
) -> FastAPI:
    """
    Make the application; it starts and closes `consumer`.

    Args:
        consumer: a new one with its handlers, not started.
        points: the domain, on the same database.
        settings: its limits.
        page: what the demo page needs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = settings.http_threads
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

    app = FastAPI(
        title="Points service",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        # Their scripts come from a CDN; beside the demo page there are buttons that kill.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        Limits,
        max_requests=settings.max_requests,
        max_body_bytes=settings.max_body_bytes,
        receive_seconds=settings.receive_seconds,
    )
    app.add_middleware(RequestLog)  # the outer one: a line for what is refused, too
    app.add_exception_handler(DatabaseUnavailableError, _answer_database_unavailable)
    app.add_exception_handler(RequestValidationError, _answer_bad_input)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    app.include_router(_routes(points, Health(consumer, points)))
    if page is not None:
        app.include_router(page)
    return app


def _routes(points: Points, health: Health) -> APIRouter:
    """Make the public routes. Plain functions run in threads, where rmq_txn may block."""
    router = APIRouter()

    @router.get("/points", summary="The points of all users", responses=documented(*READ))
    def list_points() -> AllPointsAnswer:
        """The first 1000 by user."""
        return AllPointsAnswer(
            points=[PointsAnswer(user=user, points=number) for user, number in points.balances().items()]
        )

    @router.get("/points/{user}", summary="The points of a user", responses=documented("bad_input", *READ))
    def show_points(user: PathUser) -> PointsAnswer:
        """0 points for a user who never paid: this service knows of no accounts."""
        return PointsAnswer(user=user, points=points.balance(user))

    @router.get(
        "/points/{user}/entries", summary="The ledger of a user", responses=documented("bad_input", *READ)
    )
    def list_entries(user: PathUser, limit: Limit = 100) -> EntriesAnswer:
        """One entry for each transfer that the user paid, newest first."""
        return EntriesAnswer(
            user=user,
            entries=[
                EntryAnswer(
                    transfer_id=entry.transfer_id,
                    points=entry.points,
                    txn_id=entry.txn_id,
                    created_at=entry.created_at,
                )
                for entry in points.entries(user, limit)
            ],
        )

    @router.get(
        "/health",
        summary="Whether a transfer would earn its points now",
        response_model=HealthAnswer,
        responses={
            **documented(),
            503: {"model": HealthAnswer, "description": "It would not; the fields say why."},
        },
    )
    async def show_health(response: Response) -> Any:
        """Asks broker and database; takes 2 seconds at most, and always answers."""
        answer = await health.look()
        response.status_code = 503 if answer.status == "unavailable" else 200
        return answer

    return router


def _answer_database_unavailable(_request: Request, error: Exception) -> JSONResponse:
    log.warning("request failed", cause=str(error))
    return error_answer(503, "database_unavailable", "the database can't be reached; repeat the request")


def _answer_bad_input(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # registered for it only
    problems = [{"field": ".".join(map(str, item["loc"])), "problem": item["msg"]} for item in error.errors()]
    return error_answer(422, "bad_input", "the request is not valid", problems=problems)


def _answer_http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # registered for it only
    if error.status_code == 400:  # a body that is not JSON in UTF-8
        return error_answer(422, "bad_input", f"the request is not valid: {error.detail}")
    answer = error_answer(error.status_code, f"http_{error.status_code}", str(error.detail))
    answer.headers.update(error.headers or {})  # Allow, with 405
    return answer


def _answer_bug(_request: Request, error: Exception) -> JSONResponse:
    return error_answer(500, "internal", f"the service failed ({type(error).__name__}); its log says more")
