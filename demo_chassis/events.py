"""
What happened to each transaction in this service, step by step, for the demo page.

The file is what survives `kill -9`: one line an event, one write a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

Event = dict[str, Any]

FOLDER: Final = "DEMO_FOLDER"

_KEPT = 1000
_KEPT_PARKED = 200  # transactions; as many faults are remembered, older ones can't be mended
_LOOK_SECONDS = 0.1
# A client that hears nothing for longer than this may take the line for dead.
_SIGN_OF_LIFE_SECONDS = 1.0


class Events:
    """
    The newest events of one service. Thread-safe; one process writes a file.

    Args:
        service: which service tells them.
        path: where they are kept; None: in memory only.
        kept: how many; those of a parked transaction beside.
    """

    def __init__(self, service: str, path: Path | None, kept: int = _KEPT) -> None:
        self._service = service
        self._path = path
        self._kept = kept
        self._lock = threading.Lock()
        self._events = _read(path) if path else []
        self._held = 0  # how many events are kept beyond `kept`
        self._trim()
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
                "id": newest_id(self._events) + 1,
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
            if len(self._events) >= 2 * self._kept + self._held:
                self._trim()
                self._compact()

    def after(self, seen: int) -> list[Event]:
        """See events_after."""
        with self._lock:
            return events_after(self._events, seen)

    def count(self, step: str, txn_id: str) -> int:
        """Return how many of the kept events are this step of a transaction."""
        with self._lock:
            return sum((event["step"], event["txn_id"]) == (step, txn_id) for event in self._events)

    def _trim(self) -> None:
        """Keep the newest, and the whole story of what is parked: it can still be mended."""
        old, new = self._events[: -self._kept], self._events[-self._kept :]
        parked = _parked(self._events)
        held = [event for event in old if event.get("txn_id") in parked]
        self._held = len(held)
        self._events = [*held, *new]

    def _compact(self) -> None:
        """Write the file anew with what is kept; a reader of the old one sees it whole."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_bytes(b"".join(map(_line, self._events)))
        new.replace(self._path)


class EventFile:
    """
    The events that another process writes, read while it lives and after it died. For one thread.

    Args:
        path: as `Events` of that process has it; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = -1
        self._read_bytes = 0
        self._events: list[Event] = []

    def after(self, seen: int) -> list[Event]:
        """See events_after."""
        self._refresh()
        return events_after(self._events, seen)

    def _refresh(self) -> None:
        try:
            with self._path.open("rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._read_bytes:
                    # Written anew: it holds what is kept now, and may belong to another life.
                    self._inode, self._read_bytes, self._events = now.st_ino, 0, []
                if now.st_size == self._read_bytes:
                    return
                file.seek(self._read_bytes)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half written
        self._read_bytes += len(whole)
        self._events += [event for event in map(_parsed, whole.splitlines()) if event is not None]


def newest_id(events: Sequence[Event]) -> int:
    """Return the id of the newest event, 0 if there is none."""
    return int(events[-1]["id"]) if events else 0


def events_after(events: Sequence[Event], seen: int) -> list[Event]:
    """Return the events after one, oldest first; all of them if it is from another life of the file."""
    begin = 0 if seen > newest_id(events) else seen
    return [event for event in events if event["id"] > begin]


async def stream(
    look: Callable[[], list[tuple[str, Event]]],
    is_stopping: Callable[[], bool],
    state: Callable[[], Mapping[str, str]] | None = None,
) -> AsyncIterator[str]:
    """
    Make server-sent events.

    Args:
        look: returns what is new since its last call: the id to resume after, and the event.
        is_stopping: ends the stream, so that it does not hold up the end of the service.
        state: sent as an event named "lanes" at the beginning and whenever it differs.
    """
    quiet = _SIGN_OF_LIFE_SECONDS
    said: Mapping[str, str] = {}
    while not is_stopping():
        quiet += _LOOK_SECONDS
        if state is not None and (now := state()) != said:
            said, quiet = now, 0.0
            yield f"event: lanes\ndata: {json.dumps(now)}\n\n"
        for resume_id, event in look():
            quiet = 0.0
            yield f"id: {resume_id}\ndata: {json.dumps(event)}\n\n"
        if quiet >= _SIGN_OF_LIFE_SECONDS:
            quiet = 0.0
            yield ": here\n\n"
        await asyncio.sleep(_LOOK_SECONDS)


def _parked(events: list[Event]) -> set[str]:
    """Return the newest transactions that are parked, by their last word about it."""
    last: dict[str, str] = {}
    for event in events:
        if event.get("txn_id") and event.get("step") in ("parked", "replayed"):
            last.pop(event["txn_id"], None)
            last[event["txn_id"]] = event["step"]
    return set([txn_id for txn_id, step in last.items() if step == "parked"][-_KEPT_PARKED:])


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
