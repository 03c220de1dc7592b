"""What goes over HTTP, as types: requests, answers and errors. /openapi.json is made of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from demo_account_service.transfers import IDENTIFIER, MAX_AMOUNT, MAX_LISTED
from demo_chassis import answers
from demo_chassis.answers import Answer, Problem

ERRORS: Final[dict[int, dict[str, str]]] = {
    404: {
        "unknown_account": "There is no account of this user; nothing was changed.",
        "unknown_transfer": "No transfer of this id was committed.",
        "http_404": "There is no such route.",
    },
    405: {"http_405": "The route does not know this method; the header Allow names those it knows."},
    408: {"too_slow": "The request did not arrive in time; nothing was changed."},
    409: {
        "insufficient_funds": "The payer's balance is less than the amount; nothing was changed.",
        "conflicting_transfer": "The transfer_id was committed with other users or another amount.",
    },
    413: {"body_too_large": "The body is larger than this service reads; nothing was changed."},
    422: {"bad_input": "The request is not valid, `problems` lists the fields; nothing was changed."},
    500: {
        "transaction_lost": "The database ended the transaction early. Do not repeat, find the cause.",
        "internal": "A bug; the log says more.",
    },
    503: {
        "broker_unavailable": "The broker did not take the message; nothing was changed. Repeat.",
        "timed_out": "The transfer took too long; nothing was changed. Repeat.",
        "busy": "Other transfers hold these accounts; nothing was changed. Repeat.",
        "database_unavailable": "The database does not answer; nothing was changed. Repeat.",
        "overloaded": "Too many requests at once; nothing was changed. Repeat.",
        "in_doubt": "The answer to COMMIT was lost. Repeat with the transfer_id of this answer: it "
        "happens once at most.",
    },
}
"""Each code, under its status, and what it means to a client."""
CODES: Final = tuple(code for codes in ERRORS.values() for code in codes)

Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER, min_length=1, max_length=64)]
TxnId = Annotated[
    str, StringConstraints(pattern="^[0-9a-f]{32}$"), Field(examples=["019f3c8a5e0b" + "4d" * 10])
]
PathUser = Annotated[str, Path(pattern=IDENTIFIER, max_length=64, examples=["alice"])]
PathTransferId = Annotated[str, Path(pattern=IDENTIFIER, max_length=64, examples=["t-1"])]
Fen = Annotated[int, Field(description="Money in fen, 1/100 yuan.", examples=[2500])]


class TransferRequest(BaseModel):
    """A transfer to make."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"transfer_id": "t-1", "from": "alice", "to": "bob", "amount": 2500}]
        },
    )

    transfer_id: Identifier | None = Field(
        default=None,
        description="Makes a repetition harmless. Without it the service makes one, and a client that "
        "gets no answer can't repeat safely.",
    )
    payer: Identifier = Field(alias="from", description="The user who pays.")
    payee: Identifier = Field(alias="to", description="The user who is paid, another one.")
    amount: int = Field(gt=0, le=MAX_AMOUNT, description="In fen, 1/100 yuan.")

    @model_validator(mode="after")
    def _two_users(self) -> TransferRequest:
        if self.payer == self.payee:
            raise ValueError("from and to are the same user")
        return self


class Committed(Answer):
    """A transfer that is committed; its message will be delivered."""

    transfer_id: Identifier = Field(examples=["t-1"])
    txn_id: TxnId
    state: Literal["committed"] = "committed"


class TransferAnswer(Committed):
    """A committed transfer, as it was asked for."""

    payer: Identifier = Field(serialization_alias="from", examples=["alice"])
    payee: Identifier = Field(serialization_alias="to", examples=["bob"])
    amount: Fen
    created_at: datetime = Field(examples=["2026-11-25T09:30:00.123000Z"])


class AccountAnswer(Answer):
    """One account."""

    user: Identifier = Field(examples=["alice"])
    balance: Fen


class AccountsAnswer(Answer):
    """The accounts, by user."""

    accounts: list[AccountAnswer] = Field(max_length=MAX_LISTED)


class HealthAnswer(Answer):
    """Whether a transfer would work now."""

    status: Literal["ok", "degraded", "unavailable"] = Field(
        description="`degraded`: it would, and there are problems.", examples=["ok"]
    )
    producer: str = Field(description="The state of the producer.", examples=["running"])
    registered: str = Field(
        description="`ok`: every broker of the topic knows this producer, so check-backs reach it.",
        examples=["ok"],
    )
    broker: str = Field(description="`ok`, or why not.", examples=["ok"])
    database: str = Field(description="`ok`, or why not.", examples=["ok"])
    problems: list[str] = Field(
        description="What somebody has to look at, as of some seconds ago: an outbox row that is too old, "
        "a stranger in the producer group.",
        examples=[[]],
    )


class ErrorDetail(Answer):
    """What happened."""

    code: str = Field(json_schema_extra={"enum": [*CODES]})
    message: str = Field(description="For people.", examples=["there is no account of user 'carl'"])
    problems: list[Problem] | None = Field(default=None, description="With `bad_input`.")
    transfer_id: str | None = Field(default=None, description="With `in_doubt`.")
    txn_id: str | None = Field(default=None, description="With errors of a transaction.")


class ErrorAnswer(Answer):
    """Every answer that is no success, but that of /health."""

    error: ErrorDetail


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route that may answer these error codes, beside those of every route."""
    return answers.documented(ERRORS, ErrorAnswer, *codes)
