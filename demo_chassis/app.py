"""The shell of a service's HTTP interface: its life, its limits, its log, and how it says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from demo_chassis.answers import error_answer
from demo_chassis.limits import Limits
from demo_chassis.logs import RequestLog
from demo_chassis.metrics import Metrics, RequestSpans
from demo_chassis.settings import ServiceSettings
from rmq_txn import IdempotentConsumer, TransactionProducer
from rmq_txn.errors import RmqTxnError

ErrorHandler = Callable[[Request, Exception], Response]


class Beside(Protocol):
    """What runs in the event loop of a service, as long as it serves."""

    def start(self) -> None:
        """Begin; it must not block."""

    async def close(self) -> None:
        """End."""


def make_app(
    helper: TransactionProducer | IdempotentConsumer,
    settings: ServiceSettings,
    routers: Sequence[APIRouter],
    *,
    title: str,
    description: str,
    threads: int,
    errors: Mapping[type[Exception], ErrorHandler],
    bad_input: str = "the request is not valid",
    metrics: Metrics | None = None,
    beside: Beside | None = None,
) -> FastAPI:
    """
    Make the application; it starts and closes `helper`.

    Args:
        helper: a new one, not started.
        settings: its limits.
        routers: its routes; plain functions run in threads, where rmq_txn may block.
        title: of the interface.
        description: of the interface, in Markdown.
        threads: requests handled at once.
        errors: what to answer when a route raises one of these.
        bad_input: what a client is told whose request is not valid.
        metrics: gets a span for each request.
        beside: started after `helper`, closed before it.
    """
    app = FastAPI(
        title=title,
        version="1",
        description=description,
        lifespan=_lifespan(helper, threads, beside),
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
    if metrics is not None:
        app.add_middleware(RequestSpans, tracer=metrics.tracer)
    app.add_middleware(RequestLog)  # the outer one: a line for what is refused, too
    handlers = {
        **errors,
        RequestValidationError: _bad_input(bad_input),
        HTTPException: _http_error(bad_input),
        Exception: _answer_bug,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
    for router in routers:
        app.include_router(router)
    return app


def _lifespan(
    helper: TransactionProducer | IdempotentConsumer, threads: int, beside: Beside | None
) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = threads
        # In other threads: both calls block, and the event loop must not.
        try:
            await asyncio.to_thread(helper.start)
        except RmqTxnError as error:
            app.state.start_error = error  # `process.serve` raises it
            raise
        async with AsyncExitStack() as closing:
            closing.push_async_callback(asyncio.to_thread, helper.close)
            if beside is not None:
                beside.start()
                closing.push_async_callback(beside.close)
            yield

    return lifespan


def _bad_input(text: str) -> ErrorHandler:
    def answer(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # registered for it only
        problems = [
            {"field": ".".join(map(str, item["loc"])), "problem": item["msg"]} for item in error.errors()
        ]
        return error_answer(422, "bad_input", text, problems=problems)

    return answer


def _http_error(bad_input: str) -> ErrorHandler:
    def answer(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # registered for it only
        if error.status_code == 400:  # a body that is not JSON in UTF-8
            return error_answer(422, "bad_input", f"{bad_input}: {error.detail}")
        response = error_answer(error.status_code, f"http_{error.status_code}", str(error.detail))
        response.headers.update(error.headers or {})  # Allow, with 405
        return response

    return answer


def _answer_bug(_request: Request, error: Exception) -> Response:
    return error_answer(500, "internal", f"the service failed ({type(error).__name__}); its log says more")
