"""What both services answer alike: the form of an error, and how OpenAPI tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

RETRY_AFTER_SECONDS: Final = 1

READ: Final = ("database_unavailable", "overloaded")
"""What every route that reads the database may answer."""
_EVERYWHERE: Final = ("too_slow", "body_too_large", "internal")


class Answer(BaseModel):
    """A part of an answer; it has no fields but those it names."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """What is wrong with one field."""

    field: str = Field(examples=["body.amount"])
    problem: str = Field(examples=["Input should be greater than 0"])


def error_answer(status: int, code: str, message: str, **more: Any) -> JSONResponse:
    """Make the answer for an error; `more` are other fields of the service's `ErrorDetail`."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return JSONResponse({"error": {"code": code, "message": message, **more}}, status, headers)


def documented(
    errors: Mapping[int, Mapping[str, str]], model: type[BaseModel], *codes: str
) -> dict[int | str, dict[str, Any]]:
    """
    Return the `responses=` of a route.

    Args:
        errors: what the service may answer: status, then code, and what it means to a client.
        model: the form of these answers.
        codes: what this route may answer, beside what every route may.
    """
    found: dict[int | str, dict[str, Any]] = {}
    for status, meanings in errors.items():
        lines = [f"`{code}`: {text}" for code, text in meanings.items() if code in (*codes, *_EVERYWHERE)]
        if lines:
            found[status] = {"model": model, "description": "\n\n".join(lines)}
            if status == 503:
                retry = {"description": "Seconds.", "schema": {"type": "integer"}}
                found[status]["headers"] = {"Retry-After": retry}
    return found
