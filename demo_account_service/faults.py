"""
What breaks this service on purpose: the buttons of the demo page, if DEMO_FAULTS is 1, and DEMO_CRASH.

A fault belongs to one transfer and strikes once, however often it is asked for. What is armed, and
what has struck, is in a file: the process that strikes dies of it, with SIGKILL, as of a power cut.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from demo_chassis.events import Events
from rmq_txn.errors import SettingsError

log = structlog.get_logger("account_service.faults")

SWITCH: Final = "DEMO_FAULTS"
FOLDER: Final = "DEMO_FOLDER"

KILL_BEFORE_COMMIT: Final = "kill_before_commit"
"""The broker has the half message, the local transaction is not committed."""
KILL_AFTER_COMMIT: Final = "kill_after_commit"
"""The local transaction is committed, the broker does not know."""
SLOW_CHECK_BACK: Final = "slow_check_back"
"""The broker is not told of the COMMIT; when it asks, the answer takes a while."""
FAULTS: Final = (KILL_BEFORE_COMMIT, KILL_AFTER_COMMIT, SLOW_CHECK_BACK)

CRASH: Final = "DEMO_CRASH"
CRASH_POINTS: Final = {"after_half_message": KILL_BEFORE_COMMIT, "after_commit": KILL_AFTER_COMMIT}
"""For the tutorial and the tests: a fault that is armed from the start, without a page."""

SLOW_SECONDS: Final = 8.0
_KEPT = 200


class Faults:
    """
    What shall break, by transfer. Thread-safe.

    Args:
        path: the file; None: the page can arm nothing, and what DEMO_CRASH arms is kept in memory, so
            that the next process with the same environment is killed by the same transfer again.
        events: where a strike is told.
    """

    def __init__(self, path: Path | None, events: Events) -> None:
        self._path = path
        self._events = events
        self._lock = threading.Lock()
        self._armed: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._armed = json.loads(path.read_bytes())

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], events: Events) -> Faults:
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
        faults = cls(Path(folder) / "account-faults.json" if switch == "1" else None, events)
        if text := environment.get(CRASH, ""):
            point, _, transfer_id = text.partition(":")
            if point not in CRASH_POINTS or not transfer_id:
                raise SettingsError(
                    f"{CRASH} is {text!r}, allowed is {' or '.join(CRASH_POINTS)}, then :transfer-id"
                )
            faults.arm(CRASH_POINTS[point], transfer_id)
        return faults

    @property
    def enabled(self) -> bool:
        """Whether the page can arm faults."""
        return self._path is not None

    def arm(self, fault: str, transfer_id: str) -> None:
        """Let a transfer meet a fault; nothing if it was asked for before."""
        with self._lock:
            if transfer_id not in self._armed:
                self._armed[transfer_id] = {"fault": fault}
                self._save()
                log.warning("fault armed", fault=fault, transfer_id=transfer_id)

    def die_if_armed(self, fault: str, txn_id: str, transfer_id: str) -> None:
        """Kill this process, as a power cut would, if that is what this transfer shall meet."""
        if self._strikes(fault, transfer_id):
            self._events.tell("killed", txn_id, transfer_id, fault=fault)
            log.warning("killing this process now", fault=fault, transfer_id=transfer_id)
            os.kill(os.getpid(), signal.SIGKILL)

    def loses_verdict(self, txn_id: str, transfer_id: str) -> bool:
        """Tell whether the broker shall not hear of this COMMIT, and slow the answer to its question."""
        if not self._strikes(SLOW_CHECK_BACK, transfer_id):
            return False
        with self._lock:
            self._armed[transfer_id]["txn_id"] = txn_id
            self._save()
        return True

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

    def _strikes(self, fault: str, transfer_id: str) -> bool:
        with self._lock:
            armed = self._armed.get(transfer_id)
            if armed is None or armed["fault"] != fault or armed.get("struck"):
                return False
            armed["struck"] = True
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
