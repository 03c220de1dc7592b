"""
What happened to each transaction in this service, step by step, for the demo page.

The file is what survives `kill -9`: one line an event, one write a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

Event = dict[str, Any]

FOLDER: Final = "DEMO_FOLDER"

_KEPT = 1000
_LOOK_SECONDS = 0.1
# A client that hears nothing for longer than this may take the line for dead.
_SIGN_OF_LIFE_SECONDS = 1.0


class Events:
    """
    The newest events of one service. Thread-safe; one process writes a file.

    Args:
        service: which service tells them.
        path: where they are kept; None: in memory only.
        kept: how many.
    """

    def __init__(self, service: str, path: Path | None, kept: int = _KEPT) -> None:
        self._service = service
        self._path = path
        self._kept = kept
        self._lock = threading.Lock()
        self._events = _read(path)[-kept:] if path else []
        self._compact()

    @classmethod
    def from_environment(cls, service: str, environment: Mapping[str, str]) -> Events:
        """Keep them in DEMO_FOLDER, if it is set."""
        folder = environment.get(FOLDER, "")
        return cls(service, Path(folder) / f"{service}-events.jsonl" if folder else None)

    def tell(self, step: str, txn_id: str = "", transfer_id: str = "", **detail: object) -> None:
        """Add one event; when this returns it survives the end of the process."""
        with self._lock:
            event = {
                "id": self.newest + 1,
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "service": self._service,
                "step": step,
                "txn_id": txn_id,
                "transfer_id": transfer_id,
                "detail": detail,
            }
            self._events.append(event)
            if self._path is not None:
                _append(self._path, _line(event))
            if len(self._events) >= 2 * self._kept:
                del self._events[: -self._kept]
                self._compact()

    @property
    def newest(self) -> int:
        """Return the id of the newest event, 0 if there is none."""
        return int(self._events[-1]["id"]) if self._events else 0

    def after(self, seen: int) -> list[Event]:
        """Return the events after one, oldest first; all of them if it is from another life of the file."""
        with self._lock:
            begin = 0 if seen > self.newest else seen
            return [event for event in self._events if event["id"] > begin]

    def count(self, step: str, txn_id: str) -> int:
        """Return how many of the kept events are this step of a transaction."""
        with self._lock:
            return sum((event["step"], event["txn_id"]) == (step, txn_id) for event in self._events)

    def _compact(self) -> None:
        """Write the file anew with what is kept; a reader of the old one sees it whole."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_bytes(b"".join(map(_line, self._events)))
        new.replace(self._path)


async def stream(
    look: Callable[[], list[tuple[str, Event]]], is_stopping: Callable[[], bool]
) -> AsyncIterator[str]:
    """
    Make server-sent events.

    Args:
        look: returns what is new since its last call: the id to resume after, and the event.
        is_stopping: ends the stream, so that it does not hold up the end of the service.
    """
    quiet = _SIGN_OF_LIFE_SECONDS
    while not is_stopping():
        quiet += _LOOK_SECONDS
        for resume_id, event in look():
            quiet = 0.0
            yield f"id: {resume_id}\ndata: {json.dumps(event)}\n\n"
        if quiet >= _SIGN_OF_LIFE_SECONDS:
            quiet = 0.0
            yield ": here\n\n"
        await asyncio.sleep(_LOOK_SECONDS)


def _read(path: Path) -> list[Event]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [event for event in map(_parsed, lines) if event is not None]


def _parsed(line: bytes) -> Event | None:
    """Read a line; None for one that a full disk or a power cut has cut short."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and type(event.get("id")) is int else None


def _line(event: Event) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
