"""The HTTP interface of the account service. README.md and /openapi.json are its contract."""

from __future__ import annotations

import uuid
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from demo_account_service.models import (
    AccountAnswer,
    AccountsAnswer,
    Committed,
    HealthAnswer,
    PathTransferId,
    PathUser,
    TransferAnswer,
    TransferRequest,
    documented,
)
from demo_account_service.settings import Settings
from demo_account_service.transfers import (
    BusyError,
    ConflictingTransferError,
    InsufficientFundsError,
    Order,
    Transfers,
    UnknownAccountError,
    UnknownTransferError,
)
from demo_chassis.answers import READ, error_answer
from demo_chassis.app import Beside, make_app
from demo_chassis.health import Health
from demo_chassis.metrics import Metrics
from demo_chassis.metrics import create_router as create_metrics_router
from rmq_txn import TransactionProducer
from rmq_txn.errors import (
    DatabaseUnavailableError,
    FencedError,
    HalfMessageError,
    InDoubtError,
    LocalTimeoutError,
    TransactionLostError,
)

log = structlog.get_logger("account_service.http")

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
    InDoubtError: (
        503,
        "in_doubt",
        "nobody can say yet whether this transfer was committed; repeat it with this transfer_id",
    ),
    TransactionLostError: (
        500,
        "transaction_lost",
        "the database ended the transaction early, no message was sent; do not repeat, ask the operator",
    ),
}

_DESCRIPTION = """
Moves money between accounts. Each committed transfer publishes one message, which lives or dies with it.

Money is integer fen, 1/100 yuan. Errors are `{"error": {"code", "message", ...}}`; 503 has `Retry-After`.
"""


def create_app(
    producer: TransactionProducer,
    transfers: Transfers,
    settings: Settings,
    *,
    page: APIRouter | None = None,
    metrics: Metrics | None = None,
    beside: Beside | None = None,
) -> FastAPI:
    """
    Make the application; it starts and closes `producer`.

    Args:
        producer: a new one, not started.
        transfers: the domain, on that producer.
        settings: its limits.
        page: the routes of the demo page.
        metrics: what GET /metrics tells.
        beside: what that page follows; started and closed here.
    """
    routers = [_routes(transfers, producer, metrics), *([page] if page is not None else [])]
    return make_app(
        producer,
        settings,
        routers,
        title="Account service",
        description=_DESCRIPTION,
        threads=settings.threads,
        errors=dict.fromkeys(_ERRORS, _answer_error),
        bad_input="the request is not valid, nothing was changed",
        metrics=metrics,
        beside=beside,
    )


def _routes(transfers: Transfers, producer: TransactionProducer, metrics: Metrics | None) -> APIRouter:
    """Make the public routes. Plain functions run in threads, where rmq_txn may block."""
    router = APIRouter()
    health = Health(
        producer,
        transfers,
        unknown="a broker does not know this producer yet, check-backs would not reach it",
    )

    @router.post(
        "/transfers",
        summary="Move money",
        status_code=201,
        response_model=Committed,
        response_description="Committed now.",
        responses={
            200: {"model": Committed, "description": "An earlier request with this transfer_id committed."},
            **documented(
                "unknown_account",
                "insufficient_funds",
                "conflicting_transfer",
                "broker_unavailable",
                "timed_out",
                "busy",
                "in_doubt",
                "transaction_lost",
                "bad_input",
                *READ,
            ),
        },
    )
    def create_transfer(body: TransferRequest, request: Request, response: Response) -> Any:
        """Both balances change and one message is published, or nothing happens at all."""
        order = Order(body.transfer_id or uuid.uuid4().hex, body.payer, body.payee, body.amount)
        request.state.ids["transfer_id"] = order.transfer_id
        outcome = transfers.transfer(order)
        request.state.ids["txn_id"] = outcome.txn_id
        response.status_code = 200 if outcome.repeated else 201
        return Committed(transfer_id=order.transfer_id, txn_id=outcome.txn_id)

    @router.get(
        "/transfers/{transfer_id}",
        summary="A transfer",
        responses=documented("unknown_transfer", "bad_input", *READ),
    )
    def show_transfer(transfer_id: PathTransferId, request: Request) -> TransferAnswer:
        """Only committed transfers are found."""
        request.state.ids["transfer_id"] = transfer_id
        transfer = transfers.find(transfer_id)
        return TransferAnswer(
            transfer_id=transfer_id,
            txn_id=transfer.txn_id,
            payer=transfer.order.payer,
            payee=transfer.order.payee,
            amount=transfer.order.amount,
            created_at=transfer.created_at,
        )

    @router.get("/accounts", summary="All accounts", responses=documented(*READ))
    def list_accounts() -> AccountsAnswer:
        """The first 1000 by user."""
        return AccountsAnswer(
            accounts=[
                AccountAnswer(user=user, balance=balance) for user, balance in transfers.accounts().items()
            ]
        )

    @router.get(
        "/accounts/{user}", summary="An account", responses=documented("unknown_account", "bad_input", *READ)
    )
    def show_account(user: PathUser) -> AccountAnswer:
        """The balance of one user."""
        return AccountAnswer(user=user, balance=transfers.balance(user))

    @router.get(
        "/health",
        summary="Whether a transfer would work now",
        response_model=HealthAnswer,
        responses={
            **documented(),
            503: {"model": HealthAnswer, "description": "It would not; the fields say why."},
        },
    )
    async def show_health(response: Response) -> Any:
        """Asks broker and database; takes 2 seconds at most, sends no message, and always answers."""
        seen = await health.look()
        response.status_code = 503 if seen.status == "unavailable" else 200
        return HealthAnswer(
            status=seen.status,
            producer=seen.state,
            registered=seen.registered,
            broker=seen.broker,
            database=seen.database,
            problems=list(seen.problems),
        )

    if metrics is not None:
        router.include_router(create_metrics_router(metrics, health))
    return router


def _answer_error(request: Request, error: Exception) -> JSONResponse:
    status, code, message = _ERRORS[type(error)]
    more: dict[str, str] = {}
    if isinstance(txn_id := getattr(error, "txn_id", None), str):
        more["txn_id"] = request.state.ids["txn_id"] = txn_id
    if code == "in_doubt":
        more["transfer_id"] = request.state.ids["transfer_id"]
    if status >= 500:
        log.warning("request failed", code=code, cause=str(error), **request.state.ids)
    return error_answer(status, code, message or str(error), **more)
