"""The question that /health asks a server: shared, bounded, and never stuck."""

from __future__ import annotations

import asyncio
import threading

import pytest

from demo_chassis import health


def test_a_thread_that_could_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short lack of threads must not turn into a service that is red for ever."""
    start, refused = threading.Thread.start, [RuntimeError("can't start new thread")]

    def start_later(thread: threading.Thread) -> None:
        if thread.name == "health" and refused:
            raise refused.pop()
        start(thread)

    async def ask_twice() -> str:
        question = health.Question(lambda: "ok", "silent")
        with pytest.raises(RuntimeError, match="can't start"):
            await question.answer()
        return str(await question.answer())

    monkeypatch.setattr(threading.Thread, "start", start_later)
    assert asyncio.run(ask_twice()) == "ok"


def test_a_question_without_an_answer_is_asked_once_and_told_as_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many want to know; the answer that comes at last is used by the next."""
    answered, asked = threading.Event(), []

    def ask() -> str:
        asked.append(1)
        answered.wait(10)
        return "late"

    async def ask_often() -> list[str]:
        question = health.Question(ask, "silent")
        silent = await asyncio.gather(*(question.answer() for _ in range(5)))
        joined = asyncio.ensure_future(question.answer())
        await asyncio.sleep(0)  # it has joined the question, which is still on its way
        answered.set()
        return [*silent, await joined]

    monkeypatch.setattr(health, "ANSWER_SECONDS", 0.05)
    said = asyncio.run(ask_often())
    assert said[:5] == ["silent"] * 5
    assert len(asked) == 1
