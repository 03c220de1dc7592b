"""
Where the library writes its own log, looked at before its first client does.

It would use /logs of the file system, and a folder it can't write to aborts the process when the
first client is a consumer (docs/hazards.md, C7).
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from rmq_txn.errors import SettingsError

VARIABLE: Final = "ROCKETMQ_CLIENT_LOG_DIR"


def prepare() -> None:
    """
    Have the library write into the folder of `ROCKETMQ_CLIENT_LOG_DIR`, or into one of this user's.

    The variable is set if it is missing or empty: the library reads it, once.

    Raises:
        SettingsError: the file can't be written there, or the folder is not this user's alone.
    """
    chosen = os.environ.get(VARIABLE)
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"rmq_txn-native-logs-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not chosen:
            _require_own(folder)
        # The very file, not any: of the same process id, by another user, it may be there already.
        with (folder / f"{os.getpid()}_rocketmq-cpp.log.0").open("ab"):
            pass
    except OSError as error:
        source = f"the environment variable {VARIABLE}" if chosen else "the default"
        raise SettingsError(
            f"the native client can't write its log into {str(folder)!r} ({source}): "
            f"{error.strerror or error}; set {VARIABLE} to a folder that this user may write to"
        ) from error
    os.environ[VARIABLE] = str(folder)


def _require_own(folder: Path) -> None:
    """Refuse a folder that somebody else made first, or may put a link into: all users share its parent."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no folder"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, this process is user {os.geteuid()}"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"may be written by others (mode {stat.S_IMODE(found.st_mode):o}, allowed is 700)"
    else:
        return
    raise SettingsError(
        f"the folder for the log of the native client, {folder}, {problem}; remove it, or set {VARIABLE} "
        "to a folder of your own"
    )
