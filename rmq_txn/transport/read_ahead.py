"""How many messages a consumer keeps of each queue that are not yet handled: two seconds of work."""

from __future__ import annotations

import threading

_SECONDS = 2.0  # the library looks at a full queue again after one
_LEAST = 100
_BYTES = 32 * 1024 * 1024
_DELIVERIES = 10  # so many in a row decide


class ReadAhead:
    """
    Finds the size of the native client's cache from what deliveries are like. Thread-safe.

    Kept too few, handlers wait: a queue of which more are kept is not asked for a second, so no more than
    these are handled of it in one. Kept too many, a consumer that closes has to give all of them back, and
    each comes again ten seconds later. So as many as all threads handle in two seconds, within 32 MiB a
    queue, and a hundred in any case.

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
        self._deliveries, self._seconds, self._bytes = 0, 0.0, 0

    def note(self, seconds: float, body_bytes: int) -> bool:
        """Count a delivery that took so long and was so large; return whether `size` is another one now."""
        with self._lock:
            self._deliveries += 1
            self._seconds += seconds
            self._bytes += body_bytes
            if self._deliveries < _DELIVERIES:
                return False
            # None of both is zero: a clock may stand still, a body may be empty.
            each, bytes_each = max(self._seconds, 1e-6) / _DELIVERIES, max(self._bytes, 1) / _DELIVERIES
            self._deliveries, self._seconds, self._bytes = 0, 0.0, 0
            wanted = min(int(_SECONDS * self._threads / each), int(_BYTES / bytes_each))
            before, self.size = self.size, min(max(wanted, _LEAST), self._most)
            return self.size != before
