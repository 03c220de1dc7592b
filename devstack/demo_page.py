"""
The demo page, served by the process that keeps the services up: no button of the page kills it.

It reads what happened from the files that the services write, so that the last words of a process that
was killed are seen while it is dead; who is away it learns from the kernel. Requests are passed on.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

from demo_account_service.page.lanes import AWAY, FROZEN, HERE, States, lanes
from demo_account_service.page.neighbour import ACCOUNT, POINTS, Relay
from demo_account_service.page.routes import create_page_router
from demo_chassis.answers import error_answer
from demo_chassis.events import EventFile
from demo_chassis.limits import Limits, server_settings
from devstack.errors import StackError
from devstack.local import LocalStack
from devstack.machine import require_free_ports
from devstack.server import Server, poll_until
from devstack.services import HOST, DemoService, events_path
from devstack.settings import CHECKOUT

DEFAULT_PORT: Final = 8000

_DOCUMENTS = CHECKOUT / "docs"
_PLAIN = {"X-Content-Type-Options": "nosniff"}

_START_SECONDS = 60.0  # beside other work; it takes a moment
_RECEIVE_SECONDS = 10.0
_MAX_REQUESTS = 128  # of all tabs; each has one stream
_MAX_BODY_BYTES = 16 * 1024


class _Lane:
    """
    One server, as the kernel and its own port tell. For one thread.

    Its port is asked until it is open, once a life: connections appear in its log.
    """

    def __init__(self, server: Server, port: int) -> None:
        self._server = server
        self._port = port
        self._serving: int | None = None  # the process that has opened its port

    def look(self) -> str:
        try:
            pid = self._server.pid
        except StackError:  # down
            return AWAY
        if self._server.frozen:
            return FROZEN
        if self._serving != pid:
            if not _is_open(self._port):
                return AWAY
            self._serving = pid
        return HERE


class _KernelLanes:
    """See Lanes. RocketMQ is as bad as the worse of its two servers."""

    def __init__(self, stack: LocalStack, account: DemoService, points: DemoService) -> None:
        self._account = _Lane(account, account.port)
        self._points = _Lane(points, points.port)
        ports = stack.ports
        self._rocketmq = (_Lane(stack.namesrv, ports.name_server), _Lane(stack.broker, ports.broker))

    def look(self) -> States:
        """See Lanes."""
        rocketmq = {lane.look() for lane in self._rocketmq}
        return lanes(
            account_service=self._account.look(),
            broker=next(state for state in (AWAY, FROZEN, HERE) if state in rocketmq),
            points_service=self._points.look(),
        )


@contextmanager
def page_served(stack: LocalStack, account: DemoService, points: DemoService, port: int) -> Iterator[str]:
    """
    Serve the page on 127.0.0.1 while a block runs; return its URL.

    Args:
        stack: runs.
        account, points: with `page_settings` of the stack's folder; they may be down.
        port: must be free.

    Raises:
        StackError: the port is taken.
    """
    require_free_ports("the demo page", [port])
    stopping = threading.Event()
    app = _make_app(stack, account, points, stopping)
    config = uvicorn.Config(
        app,
        host=HOST,
        port=port,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
        **server_settings(_RECEIVE_SECONDS),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="demo page", daemon=True)
    thread.start()
    try:
        poll_until(lambda: server.started or not thread.is_alive(), _START_SECONDS)
        if not server.started:
            raise StackError(f"the demo page could not be served on port {port}")
        yield f"http://{HOST}:{port}"
    finally:
        stopping.set()
        server.should_exit = True
        thread.join()


def _make_app(
    stack: LocalStack, account: DemoService, points: DemoService, stopping: threading.Event
) -> FastAPI:
    folder = stack.settings.folder
    to_account = Relay("account service", account.url, ACCOUNT)
    to_points = Relay("points service", points.url, POINTS)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await to_account.close()
        await to_points.close()

    app = FastAPI(title="Demo page", lifespan=lifespan, openapi_url=None)
    app.add_middleware(
        Limits,
        max_requests=_MAX_REQUESTS,
        max_body_bytes=_MAX_BODY_BYTES,
        receive_seconds=_RECEIVE_SECONDS,
    )
    settings = {
        "faults": True,
        "kept": True,
        "check_back_seconds": stack.settings.transaction_timeout_seconds,
    }
    page = create_page_router(
        EventFile(events_path(folder, "account")),
        EventFile(events_path(folder, "points")),
        _KernelLanes(stack, account, points),
        lambda: settings,
        is_stopping=stopping.is_set,
    )
    app.include_router(page)

    @app.get("/docs/{name}")
    def show_document(name: str) -> Response:
        if name not in {path.name for path in _DOCUMENTS.glob("*.md")}:
            return error_answer(404, "http_404", f"the checkout has no document {name!r}")
        return FileResponse(_DOCUMENTS / name, media_type="text/plain; charset=utf-8", headers=_PLAIN)

    @app.api_route("/points-service/{path}", methods=["GET", "POST"])
    async def pass_to_points(request: Request, path: str) -> Response:
        return await to_points.pass_on(request, path)

    # The last one: what nobody else knows is the account service's.
    @app.api_route("/{path}", methods=["GET", "POST"])
    async def pass_to_account(request: Request, path: str) -> Response:
        return await to_account.pass_on(request, path)

    return app


def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=0.2):
        return True
    return False
