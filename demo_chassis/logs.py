"""Structured logs: lines of this service, of rmq_txn and of uvicorn in one format, on stderr."""

from __future__ import annotations

import logging
import time
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo_chassis.limits import UNCOUNTED
from rmq_txn.logs import unpack_fields

log = structlog.get_logger("demo.requests")

_MAX_PATH: Final = 200


def configure(log_format: str) -> None:
    """
    Send every log line of this process through structlog.

    Args:
        log_format: "console" for people, "json" for machines.
    """
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without the values of variables: among them are bodies and passwords.
    plain = structlog.dev.plain_traceback
    last: list[structlog.typing.Processor] = [
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=plain)
    ]
    if log_format == "json":
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, unpack_fields],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # what it asks for the page has a line already


class RequestLog:
    """
    One line for each request, when it is answered: what, with which status, how long, whose ids.

    Never a body, a header or a query. A /health or /metrics that answers as before is not worth a line.
    Endpoints put `transfer_id` and `txn_id` into `request.state.ids`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._watched: dict[str, int | None] = {}  # /health also of the service that is asked for the page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, _without_known_tracebacks(scope, send))
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        status: int | None = None
        ids: dict[str, str] = {}
        scope.setdefault("state", {})["ids"] = ids

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            status = 500  # answered outside of this
            raise
        finally:
            is_watching = (
                scope["path"].endswith(UNCOUNTED) and status != 404
            )  # 404: any path somebody invents
            if not is_watching or status != self._watched.get(scope["path"]):
                line = log.info if status is not None and status < 500 else log.warning
                # As it came, with its percent signs: a decoded path may hold a line break.
                path = scope["raw_path"].decode("ascii", "replace")[:_MAX_PATH]
                seconds = round(time.monotonic() - began, 4)
                line(
                    "request",
                    method=scope["method"],
                    path=path,
                    status=status,  # None: the client went away, or the service ends
                    duration_seconds=seconds,
                    **ids,
                )
            if is_watching:
                self._watched[scope["path"]] = status


def _without_known_tracebacks(scope: Scope, send: Send) -> Send:
    """Keep starlette's traceback out of the log if __main__ will say in a sentence why it can't start."""

    async def sent(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed" and hasattr(scope["app"].state, "start_error"):
            message = {**message, "message": ""}
        await send(message)

    return sent
