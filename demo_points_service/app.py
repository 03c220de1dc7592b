"""The HTTP interface of the points service. README.md and /openapi.json are its contract."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from demo_chassis.answers import READ, error_answer
from demo_chassis.app import make_app
from demo_chassis.health import Health
from demo_chassis.metrics import Metrics
from demo_chassis.metrics import create_router as create_metrics_router
from demo_points_service.awards import Points
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
from rmq_txn.errors import DatabaseUnavailableError, LifecycleError

log = structlog.get_logger("points_service.http")

_DESCRIPTION = """
Gives the payer of each transfer one point for each whole yuan (`amount // 100`).
It hears of transfers by messages.

Errors are `{"error": {"code", "message", ...}}`; 503 has `Retry-After`.
"""


def create_app(
    consumer: IdempotentConsumer,
    points: Points,
    settings: Settings,
    *,
    page: APIRouter | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """
    Make the application; it starts and closes `consumer`.

    Args:
        consumer: a new one with its handlers, not started.
        points: the domain, on the same database.
        settings: its limits.
        page: what the demo page needs.
        metrics: what GET /metrics tells.
    """
    routers = [_routes(points, consumer, metrics), *([page] if page is not None else [])]
    return make_app(
        consumer,
        settings,
        routers,
        title="Points service",
        description=_DESCRIPTION,
        threads=settings.http_threads,
        errors={DatabaseUnavailableError: _answer_database_unavailable},
        metrics=metrics,
    )


def _routes(points: Points, consumer: IdempotentConsumer, metrics: Metrics | None) -> APIRouter:
    """Make the public routes. Plain functions run in threads, where rmq_txn may block."""
    router = APIRouter()
    health = Health(
        consumer,
        points,
        unknown="a broker does not know this consumer yet, it would not deliver to it",
    )

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
        seen = await health.look()
        numbers = await asyncio.to_thread(_numbers_of, consumer)
        response.status_code = 503 if seen.status == "unavailable" else 200
        return HealthAnswer(
            status=seen.status,
            consumer=seen.state,
            registered=seen.registered,
            broker=seen.broker,
            database=seen.database,
            problems=list(seen.problems),
            **numbers,
        )

    if metrics is not None:
        router.include_router(create_metrics_router(metrics, health))
    return router


def _numbers_of(consumer: IdempotentConsumer) -> dict[str, Any]:
    try:
        seen = consumer.health()
    except LifecycleError:  # not running, which the state says
        return {"lag": None, "failing": 0, "parked": 0}
    return {"lag": seen.lag, "failing": seen.failing, "parked": seen.parked}


def _answer_database_unavailable(_request: Request, error: Exception) -> JSONResponse:
    log.warning("request failed", cause=str(error))
    return error_answer(503, "database_unavailable", "the database can't be reached; repeat the request")
