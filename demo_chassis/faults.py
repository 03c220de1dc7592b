"""
What breaks a service on purpose: the buttons of the demo page, if DEMO_FAULTS is 1, and DEMO_CRASH.

A fault belongs to one transfer and is armed once, however often it is asked for. What is armed, and
how often it will still strike, is in a file: the process that strikes may die of it, with SIGKILL, as
of a power cut.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import structlog

from demo_chassis.events import FOLDER, Events
from rmq_txn import Delivery
from rmq_txn.errors import SettingsError

log = structlog.get_logger("demo.faults")
F = TypeVar("F", bound="Faults")

SWITCH: Final = "DEMO_FAULTS"
CRASH: Final = "DEMO_CRASH"

KILL_BEFORE_COMMIT: Final = "kill_before_commit"
"""The broker has the half message, the local transaction is not committed."""
KILL_AFTER_COMMIT: Final = "kill_after_commit"
"""The local transaction is committed, the broker does not know."""
SLOW_CHECK_BACK: Final = "slow_check_back"
"""The broker is not told of the COMMIT; when it asks, the answer takes a while."""
FAIL: Final = "fail"
"""The handler raises a number of times, then works."""
POISON: Final = "poison"
"""The handler raises until it is mended."""
DELIVER_TWICE: Final = "deliver_twice"
"""The broker gets "again" instead of the ack, after the COMMIT."""
KILL_BEFORE_ACK: Final = "after_commit_before_ack"
"""The handler's transaction is committed, the broker has no ack; for the tutorial and the tests."""

SLOW_SECONDS: Final = 8.0
MAX_STOP_SECONDS: Final = 60
_KEPT = 200
_STOP = ".stop"  # no transfer id begins with a dot


class BrokenHandlerError(Exception):
    """The handler was told to fail."""


class Faults:
    """
    What shall break, by transfer. Thread-safe.

    Args:
        path: the file; None: the page can arm nothing, and what DEMO_CRASH arms is kept in memory, so
            that the next process with the same environment is killed by the same transfer again.
        events: where a strike is told.
    """

    service: ClassVar[str]
    crash_points: ClassVar[Mapping[str, str]]
    """For the tutorial and the tests: faults that DEMO_CRASH arms from the start, without a page."""

    def __init__(self, path: Path | None, events: Events) -> None:
        self._path = path
        self._events = events
        self._lock = threading.Lock()
        self._armed: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._armed = json.loads(path.read_bytes())

    @classmethod
    def from_environment(cls: type[F], environment: Mapping[str, str], events: Events) -> F:
        """
        Read DEMO_FAULTS and DEMO_FOLDER, and arm what DEMO_CRASH says: `point:transfer id`.

        Raises:
            SettingsError: DEMO_FAULTS is not 0 or 1, there is no folder to remember faults in, or
                DEMO_CRASH names no crash point or no transfer.
        """
        switch = environment.get(SWITCH, "0")
        if switch not in ("0", "1"):
            raise SettingsError(f"{SWITCH} is {switch!r}, allowed is 0 or 1")
        folder = environment.get(FOLDER, "")
        if switch == "1" and not folder:
            raise SettingsError(f"{SWITCH} is 1 and {FOLDER} is not set: faults must outlive the process")
        faults = cls(Path(folder) / f"{cls.service}-faults.json" if switch == "1" else None, events)
        if text := environment.get(CRASH, ""):
            point, _, transfer_id = text.partition(":")
            if point not in cls.crash_points or not transfer_id:
                points = " or ".join(cls.crash_points)
                raise SettingsError(f"{CRASH} is {text!r}, allowed is {points}, then :transfer-id")
            faults.arm(cls.crash_points[point], transfer_id)
        return faults

    @property
    def enabled(self) -> bool:
        """Whether the page can arm faults."""
        return self._path is not None

    def arm(self, fault: str, transfer_id: str, times: int = 1) -> None:
        """Let a transfer meet a fault; nothing if it was asked for before."""
        with self._lock:
            if transfer_id not in self._armed:
                self._armed[transfer_id] = {"fault": fault, "left": times}
                self._save()
                log.warning("fault armed", fault=fault, transfer_id=transfer_id)

    def _strikes(self, fault: str, transfer_id: str, **noted: object) -> bool:
        """Tell whether a fault strikes now, and note it before it does."""
        with self._lock:
            armed = self._armed.get(transfer_id)
            if armed is None or armed["fault"] != fault or armed.get("left", 0) == 0:
                return False
            armed.update(noted)
            armed["left"] -= fault != POISON
            self._save()
            return True

    def _save(self) -> None:
        if self._path is None:
            return
        for transfer_id in list(self._armed)[:-_KEPT]:
            del self._armed[transfer_id]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._armed), encoding="utf-8")
        new.replace(self._path)

    def _die(self, **told: object) -> None:
        log.warning("killing this process now", **told)
        os.kill(os.getpid(), signal.SIGKILL)


class AccountFaults(Faults):
    """Between the steps of a producer."""

    service = "account"
    crash_points: ClassVar[Mapping[str, str]] = {
        "after_half_message": KILL_BEFORE_COMMIT,
        "after_commit": KILL_AFTER_COMMIT,
    }

    def die_if_armed(self, fault: str, txn_id: str, transfer_id: str) -> None:
        """Kill this process, as a power cut would, if that is what this transfer shall meet."""
        if self._strikes(fault, transfer_id):
            self._events.tell("killed", txn_id, transfer_id, fault=fault)
            self._die(fault=fault, transfer_id=transfer_id)

    def loses_verdict(self, txn_id: str, transfer_id: str) -> bool:
        """Tell whether the broker shall not hear of this COMMIT, and slow the answer to its question."""
        return self._strikes(SLOW_CHECK_BACK, transfer_id, txn_id=txn_id)

    def slow_down(self, txn_id: str) -> None:
        """Wait before a check-back of this transaction is answered, if that is its fault."""
        with self._lock:
            for fault in self._armed.values():
                if fault.get("txn_id") == txn_id:
                    # From the first question on; the broker may ask again while it waits.
                    until = fault.setdefault("until", time.time() + SLOW_SECONDS)
                    self._save()
                    break
            else:
                return
        pause = until - time.time()
        if pause > 0:
            self._events.tell("check_slow", txn_id, seconds=round(pause))
            time.sleep(min(pause, SLOW_SECONDS))


class PointsFaults(Faults):
    """Between the steps of a consumer."""

    service = "points"
    crash_points: ClassVar[Mapping[str, str]] = {KILL_BEFORE_ACK: KILL_BEFORE_ACK}

    def fail_if_armed(self, delivery: Delivery) -> None:
        """
        Fail as a broken handler would, if that is what this transfer shall meet.

        Raises:
            BrokenHandlerError: it is.
        """
        noted = {"txn_id": delivery.txn_id or "", "key": delivery.dedup_key}
        for fault in (FAIL, POISON):
            if self._strikes(fault, delivery.key or "", **noted):
                raise BrokenHandlerError(f"the handler of {delivery.key} was told to fail ({fault})")

    def mend(self, transfer_id: str) -> tuple[str, str] | None:
        """Let the handler work again; return transaction and dedup key if it failed before."""
        with self._lock:
            armed = self._armed.get(transfer_id)
            if armed is None:
                return None
            armed["left"] = 0
            self._save()
            return (armed["txn_id"], armed["key"]) if "key" in armed else None

    def withholds_ack(self, delivery: Delivery) -> bool:
        """Tell whether the broker shall deliver this handled message again."""
        return self._strikes(DELIVER_TWICE, delivery.key or "")

    def die_if_armed(self, delivery: Delivery) -> None:
        """Kill this process before it acknowledges, as a power cut would, if it shall."""
        if self._strikes(KILL_BEFORE_ACK, delivery.key or ""):
            self._die(fault=KILL_BEFORE_ACK, transfer_id=delivery.key)

    def stop(self, seconds: int) -> None:
        """Kill this process; the next ones wait until the time is over. Once it is, not again at once."""
        with self._lock:
            self._armed[_STOP] = {"until": time.time() + seconds}
            self._save()
        self._events.tell("stopped", seconds=seconds)
        self._die(away_seconds=seconds)

    def wait_while_stopped(self) -> None:
        """Return when this service may run: at once, unless it was stopped a moment ago."""
        until = self._armed.get(_STOP, {}).get("until", 0.0)
        while (pause := until - time.time()) > 0:
            time.sleep(min(pause, MAX_STOP_SECONDS))
            if pause > MAX_STOP_SECONDS:
                return  # the clock was set back
