"""What the services' own log lines say about a run: duplicates caught, check-backs, deliveries held."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CHECK_BACK: Final = "check-back answered"


class Evidence:
    """Counts of log lines, of any number of files. The files are those of processes with JSON logs."""

    def __init__(self, logs: Iterable[Path]) -> None:
        self.events: Counter[str] = Counter()
        self.check_backs: Counter[str] = Counter()
        """Check-backs by the verdict that they were answered with."""
        self.errors: Counter[str] = Counter()
        """Lines of rmq_txn of level error and above."""
        for log in logs:
            self._read(log)

    @property
    def duplicates(self) -> int:
        """Return how many deliveries the inbox has caught."""
        return self.events["duplicate skipped"]

    @property
    def relayed(self) -> int:
        """Return how many messages the relay published again."""
        return self.events["published again: the broker may have given this message up"]

    @property
    def held(self) -> int:
        """Return how often a delivery was held because its database connection was gone."""
        return self.events["connection lost, the delivery is held"]

    def _read(self, log: Path) -> None:
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.startswith("{"):
                    continue  # Python itself, or a traceback
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue  # the process was killed while it wrote
                event = str(fields.get("event"))
                self.events[event] += 1
                if event == _CHECK_BACK:
                    self.check_backs[fields["verdict"]] += 1
                ours = str(fields.get("logger")).startswith("rmq_txn")
                if ours and fields.get("level") in ("error", "critical"):
                    self.errors[event] += 1
