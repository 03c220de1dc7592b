"""Prints what a demo does, for somebody who watches."""

from __future__ import annotations

import time


class Narrator:
    """Prints what happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line with the time."""
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", flush=True)

    def more(self, text: str) -> None:
        """Print a line that belongs to the one before."""
        print(f"          {text}", flush=True)

    def title(self, text: str) -> None:
        """Print the title of a step."""
        print(f"\n{text}\n{'-' * len(text)}", flush=True)
