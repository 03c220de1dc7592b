"""The HTTP interface of the account service. README.md is its contract."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from starlette.exceptions import HTTPException

from demo_account_service.neighbour import Neighbour
from demo_account_service.transfers import (
    IDENTIFIER,
    MAX_AMOUNT,
    BusyError,
    ConflictingTransferError,
    InsufficientFundsError,
    Order,
    Transfers,
    UnknownAccountError,
    UnknownTransferError,
)
from rmq_txn import TransactionProducer
from rmq_txn.errors import (
    DatabaseUnavailableError,
    FencedError,
    HalfMessageError,
    InDoubtError,
    LifecycleError,
    LocalTimeoutError,
    RmqTxnError,
    TransactionLostError,
)

log = structlog.get_logger("account_service.http")

Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER)]
PathIdentifier = Annotated[str, Path(pattern=IDENTIFIER)]

# What an error means to the client: status, code, and a sentence that says what to do. None: the
# error's own text, which was written for clients.
_ERRORS: dict[type[Exception], tuple[int, str, str | None]] = {
    UnknownAccountError: (404, "unknown_account", None),
    UnknownTransferError: (404, "unknown_transfer", None),
    InsufficientFundsError: (409, "insufficient_funds", None),
    ConflictingTransferError: (409, "conflicting_transfer", None),
    BusyError: (503, "busy", "other transfers hold these accounts, nothing was changed; repeat it"),
    HalfMessageError: (
        503,
        "broker_unavailable",
        "the message broker can't be reached, nothing was changed; repeat the transfer",
    ),
    FencedError: (
        503,
        "timed_out",
        "the message broker answered too late, nothing was changed; repeat the transfer",
    ),
    LocalTimeoutError: (503, "timed_out", "the transfer took too long, nothing was changed; repeat it"),
    DatabaseUnavailableError: (
        503,
        "database_unavailable",
        "the database can't be reached, nothing was changed; repeat the request",
    ),
    TransactionLostError: (
        500,
        "transaction_lost",
        "the database ended the transaction early, no message was sent; do not repeat, ask the operator",
    ),
}


class TransferRequest(BaseModel):
    """The body of POST /transfers."""

    model_config = ConfigDict(strict=True, extra="forbid")

    transfer_id: Identifier | None = None
    payer: Identifier = Field(alias="from")
    payee: Identifier = Field(alias="to")
    amount: int = Field(gt=0, le=MAX_AMOUNT)

    @model_validator(mode="after")
    def _two_users(self) -> TransferRequest:
        if self.payer == self.payee:
            raise ValueError("from and to are the same user")
        return self


def create_app(
    producer: TransactionProducer,
    transfers: Transfers,
    *,
    threads: int,
    page: APIRouter | None = None,
    neighbour: Neighbour | None = None,
) -> FastAPI:
    """
    Make the application; it starts and closes `producer`.

    Args:
        producer: a new one, not started.
        transfers: the domain, on that producer.
        threads: requests handled at once.
        page: the routes of the demo page.
        neighbour: what that page follows; started and closed here.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = threads
        # In other threads: both calls block, and the event loop must not.
        try:
            await asyncio.to_thread(producer.start)
        except RmqTxnError as error:
            app.state.start_error = error  # __main__ turns it into a sentence and an exit code
            raise
        if neighbour is not None:
            neighbour.start()
        try:
            yield
        finally:
            if neighbour is not None:
                await neighbour.close()
            await asyncio.to_thread(producer.close)

    app = FastAPI(title="Account service", version="1", lifespan=lifespan)
    if page is not None:
        app.include_router(page)
    for error in _ERRORS:
        app.add_exception_handler(error, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_input)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)

    # Endpoints are plain functions: FastAPI runs them in threads, where rmq_txn may block.

    @app.post("/transfers", status_code=201)
    def create_transfer(request: TransferRequest, response: Response) -> Any:
        order = Order(request.transfer_id or uuid.uuid4().hex, request.payer, request.payee, request.amount)
        try:
            outcome = transfers.transfer(order)
        except InDoubtError as error:
            return _error(
                503,
                "in_doubt",
                "nobody can say yet whether this transfer was committed; repeat it with this "
                "transfer_id, it will happen once at most",
                transfer_id=order.transfer_id,
                txn_id=error.txn_id,
            )
        response.status_code = 200 if outcome.repeated else 201
        return {"transfer_id": order.transfer_id, "txn_id": outcome.txn_id, "state": "committed"}

    @app.get("/transfers/{transfer_id}")
    def show_transfer(transfer_id: PathIdentifier) -> dict[str, Any]:
        transfer = transfers.find(transfer_id)
        return {
            "transfer_id": transfer_id,
            "txn_id": transfer.txn_id,
            "state": "committed",
            "from": transfer.order.payer,
            "to": transfer.order.payee,
            "amount": transfer.order.amount,
            "created_at": transfer.created_at.isoformat(),
        }

    @app.get("/accounts")
    def list_accounts() -> dict[str, Any]:
        balances = transfers.accounts()
        return {"accounts": [{"user": user, "balance": balance} for user, balance in balances.items()]}

    @app.get("/accounts/{user}")
    def show_account(user: PathIdentifier) -> dict[str, Any]:
        return {"user": user, "balance": transfers.balance(user)}

    @app.get("/health")
    async def health() -> JSONResponse:
        # Not in the threads of the other endpoints: those may all be waiting for a slow broker.
        database = await asyncio.to_thread(_database_state, transfers)
        state = producer.state.value
        problems = await asyncio.to_thread(_problems, producer)
        healthy = state == "running" and database == "ok" and not problems
        return JSONResponse(
            {
                "status": "ok" if healthy else "unavailable",
                "producer": state,
                "database": database,
                "problems": problems,
            },
            status_code=200 if healthy else 503,
        )

    return app


def _database_state(transfers: Transfers) -> str:
    try:
        transfers.ping()
    except DatabaseUnavailableError as error:
        log.warning("the database can't be reached", cause=str(error))
        return "unavailable"
    return "ok"


def _problems(producer: TransactionProducer) -> list[str]:
    try:
        return list(producer.health().problems)
    except LifecycleError:  # not running, which the state says
        return []


def _error(status: int, code: str, message: str, **more: object) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": {"code": code, "message": message, **more}}, status, headers)


def _answer_error(_request: Request, error: Exception) -> JSONResponse:
    status, code, message = _ERRORS[type(error)]
    if status >= 500:
        log.warning("request failed", code=code, cause=str(error))
    txn_id = getattr(error, "txn_id", None)
    return _error(status, code, message or str(error), **({"txn_id": txn_id} if txn_id else {}))


def _answer_bad_input(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # registered for it only
    problems = [{"field": ".".join(map(str, item["loc"])), "problem": item["msg"]} for item in error.errors()]
    return _error(422, "bad_input", "the request is not valid, nothing was changed", problems=problems)


def _answer_http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # registered for it only
    if error.status_code == 400:  # a body that is not JSON in UTF-8
        return _error(422, "bad_input", f"the request is not valid, nothing was changed: {error.detail}")
    return _error(error.status_code, f"http_{error.status_code}", str(error.detail))


def _answer_bug(_request: Request, error: Exception) -> JSONResponse:
    return _error(500, "internal", f"the service failed ({type(error).__name__}); its log says more")
