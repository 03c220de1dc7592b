"""How many messages a consumer keeps of each queue that are not yet handled: two seconds of work."""

from __future__ import annotations

import threading

_SECONDS = 2.0  # the library looks at a full queue again after one
_LEAST = 100
_BYTES = 32 * 1024 * 1024
_DELIVERIES = 10  # so many decide, or one that takes long or is large
_FORGETS = 0.9


class ReadAhead:
    """
    Finds the size of the native client's cache from what deliveries are like. Thread-safe.

    Kept too few, handlers wait: a queue of which more are kept is not asked for a second, so no more than
    these are handled of it in one. Kept too many, a consumer that closes has to give all of them back, and
    each comes again ten seconds later. So as many as all threads handle in two seconds, and as 32 MiB a queue
    hold if all are as large as the largest of late; and a hundred in any case.

    Not promised: the bytes of what was pulled before the first large message was handled.

    Args:
        most: messages a queue.
        threads: how many deliveries run at once.

    Attributes:
        size: messages a queue; a hundred at the beginning, or `most`.
    """

    def __init__(self, most: int, threads: int) -> None:
        self.size = min(_LEAST, most)
        self._most = most
        self._threads = threads
        self._lock = threading.Lock()
        self._deliveries, self._seconds, self._largest = 0, 0.0, 1.0

    def note(self, seconds: float, body_bytes: int) -> bool:
        """Count a delivery that took so long and was so large; return whether `size` is another one now."""
        with self._lock:
            self._deliveries += 1
            self._seconds += seconds
            self._largest = max(self._largest, body_bytes)
            if self._deliveries < _DELIVERIES and seconds < _SECONDS and body_bytes * self.size <= _BYTES:
                return False
            each = max(self._seconds, 1e-6) / self._deliveries  # a clock may stand still
            wanted = int(min(_SECONDS * self._threads / each, _BYTES / self._largest))
            self._deliveries, self._seconds = 0, 0.0
            self._largest = max(self._largest * _FORGETS, 1.0)
            before, self.size = self.size, min(max(wanted, _LEAST), self._most)
            return self.size != before
