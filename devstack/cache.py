"""What is fetched once for all stacks of a checkout: complete or not there, however a fetch ends."""

from __future__ import annotations

import fcntl
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def kept(folder: Path, what: str, fetch: Callable[[Path], Path]) -> Path:
    """
    Return a folder of the cache, fetching it when it is not there.

    Several processes may ask at once: one fetches, the others wait for it. A fetch that is
    interrupted leaves nothing that looks complete, because the folder gets its name last.

    Args:
        folder: where it is kept; its parent is made if it is missing.
        what: a few words for people, "RocketMQ 5.4.0".
        fetch: is given an empty folder on the same disk, and returns the folder inside it to keep.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that fetches {what} ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
                fetch(Path(temporary)).rename(folder)
            say(f"{what} is in {folder}")
    return folder


def say(text: str) -> None:
    """Tell who waits what is going on; stdout belongs to what was asked for."""
    print(f"devstack: {text}", file=sys.stderr, flush=True)
