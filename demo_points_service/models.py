"""What goes over HTTP, as types: answers and errors. /openapi.json is made of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query
from pydantic import Field, StringConstraints

from demo_chassis import answers
from demo_chassis.answers import Answer, Problem
from demo_points_service.awards import IDENTIFIER, MAX_LISTED

ERRORS: Final[dict[int, dict[str, str]]] = {
    404: {"http_404": "There is no such route."},
    405: {"http_405": "The route does not know this method; the header Allow names those it knows."},
    408: {"too_slow": "The request did not arrive in time."},
    413: {"body_too_large": "The body is larger than this service reads."},
    422: {"bad_input": "The request is not valid, `problems` lists the fields."},
    500: {"internal": "A bug; the log says more."},
    503: {
        "database_unavailable": "The database does not answer. Repeat.",
        "overloaded": "Too many requests at once. Repeat.",
    },
}
"""Each code, under its status, and what it means to a client."""
CODES: Final = tuple(code for codes in ERRORS.values() for code in codes)

Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER, min_length=1, max_length=64)]
TxnId = Annotated[
    str, StringConstraints(pattern="^[0-9a-f]{32}$"), Field(examples=["019f3c8a5e0b" + "4d" * 10])
]
PathUser = Annotated[str, Path(pattern=IDENTIFIER, max_length=64, examples=["alice"])]
Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="How many, the newest.", examples=[10])]


class PointsAnswer(Answer):
    """The points of one user."""

    user: Identifier = Field(examples=["alice"])
    points: int = Field(description="0 for a user who never paid.", examples=[25])


class AllPointsAnswer(Answer):
    """The points, by user."""

    points: list[PointsAnswer] = Field(max_length=MAX_LISTED)


class EntryAnswer(Answer):
    """One line of the ledger: a transfer and what it earned."""

    transfer_id: str = Field(examples=["t-1"])
    points: int = Field(description="0 below one yuan.", examples=[25])
    txn_id: TxnId
    created_at: datetime = Field(examples=["2026-11-25T09:30:00.123000Z"])


class EntriesAnswer(Answer):
    """The ledger of one user, newest first."""

    user: Identifier = Field(examples=["alice"])
    entries: list[EntryAnswer] = Field(max_length=MAX_LISTED)


class HealthAnswer(Answer):
    """Whether a transfer would earn its points now."""

    status: Literal["ok", "degraded", "unavailable"] = Field(
        description="`degraded`: it would, and there are problems.", examples=["ok"]
    )
    consumer: str = Field(description="The state of the consumer.", examples=["running"])
    registered: str = Field(
        description="`ok`: every broker of the topic knows this consumer, so it delivers.",
        examples=["ok"],
    )
    broker: str = Field(description="`ok`, or why not.", examples=["ok"])
    database: str = Field(description="`ok`, or why not.", examples=["ok"])
    lag: int | None = Field(description="Messages that wait for the group; null: not known.", examples=[0])
    failing: int = Field(description="Messages that failed and are delivered again.", examples=[0])
    parked: int = Field(description="Messages that failed for good.", examples=[0])
    problems: list[str] = Field(
        description="What somebody has to look at, as of some seconds ago: a parked message, deliveries "
        "that are held, a group that stands still.",
        examples=[[]],
    )


class ErrorDetail(Answer):
    """What happened."""

    code: str = Field(json_schema_extra={"enum": [*CODES]})
    message: str = Field(description="For people.", examples=["the request is not valid"])
    problems: list[Problem] | None = Field(default=None, description="With `bad_input`.")


class ErrorAnswer(Answer):
    """Every answer that is no success, but that of /health."""

    error: ErrorDetail


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route that may answer these error codes, beside those of every route."""
    return answers.documented(ERRORS, ErrorAnswer, *codes)
