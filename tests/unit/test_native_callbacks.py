"""The boundary to C: whatever a callback does, the library gets a plain int, and the safe one in doubt."""

from __future__ import annotations

import asyncio
import enum
from typing import Any

import pytest

from rmq_txn.transport.binding import COMMIT, RECONSUME_LATER, ROLLBACK, UNKNOWN, nothing_escapes
from rmq_txn.verdict import Answer, Verdict


class Number(int):
    """Looks like an int, and may behave in any way."""


class Code(enum.IntEnum):
    """An enumeration that is an int."""

    COMMIT = 0


@pytest.mark.parametrize("answer", [COMMIT, ROLLBACK, UNKNOWN])
def test_a_plain_number_passes(answer: int) -> None:
    """With the arguments of the call."""
    asked: list[tuple[object, ...]] = []

    def body(*arguments: object) -> int:
        asked.append(arguments)
        return answer

    assert nothing_escapes(UNKNOWN, "check-back")(body)(1, None) == answer
    assert asked == [(1, None)]


@pytest.mark.parametrize(
    "answer",
    [False, True, None, 0.0, "0", b"", Number(0), Code.COMMIT, Verdict.COMMIT, Answer.ACK],
    ids=repr,
)
@pytest.mark.parametrize("safe", [UNKNOWN, RECONSUME_LATER])
def test_whatever_is_no_plain_number_becomes_the_safe_answer(
    answer: Any, safe: int, caplog: pytest.LogCaptureFixture
) -> None:
    """`False` is 0 to C, which is COMMIT, and CONSUME_SUCCESS."""
    given = nothing_escapes(safe, "check-back")(lambda: answer)()
    assert (given, type(given)) == (safe, int)
    assert "gave no answer" in caplog.text
    assert "check-back" in caplog.text


@pytest.mark.parametrize(
    "error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, MemoryError]
)
def test_whatever_is_raised_becomes_the_safe_answer(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that leaves a callback makes the answer what happened to be in memory."""

    def body() -> int:
        raise error

    assert nothing_escapes(UNKNOWN, "check-back")(body)() == UNKNOWN
    assert error.__name__ in caplog.text
