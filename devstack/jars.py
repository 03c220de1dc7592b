"""Jars: copied once from Maven Central into a cache inside the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from devstack.cache import kept, say
from devstack.errors import StackError

_POM = Path(__file__).with_name("pom.xml")
_MAVEN_SECONDS = 900.0
_TAIL_LINES = 30
# "Downloaded from central: https://... (1.2 MB at 3.4 MB/s)"
_DOWNLOADED = re.compile(r"Downloaded from .*\((\d+(?:\.\d+)?) (B|kB|MB) at ")
_MEGABYTES = {"B": 1e-6, "kB": 1e-3, "MB": 1.0}
_TOLD_EVERY_MB = 10


def rocketmq_jars(version: str, cache_folder: Path) -> Path:
    """Return the folder with all jars of a RocketMQ version, fetching them when they are not there."""
    return kept(cache_folder / f"rocketmq-{version}", f"RocketMQ {version}", partial(_fetch, version))


def _fetch(version: str, work: Path) -> Path:
    say(f"fetching RocketMQ {version} with maven (about 120 MB, once) ...")
    return copy_jars(work, _POM, f"RocketMQ {version}", (f"-Drocketmq.version={version}",))


def copy_jars(work: Path, pom: Path, what: str, options: Sequence[str] = ()) -> Path:
    """
    Let Maven copy what a project depends on; return the folder of the jars, inside `work`.

    Args:
        work: an empty folder; Maven writes beside the project, and the checkout is not the place for it.
        pom: names the jars.
        what: a few words for people.
        options: more of them for Maven.

    Raises:
        StackError: there is no Maven, or it did not succeed.
    """
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError("mvn is not on PATH, install it: apt-get install maven")
    shutil.copy(pom, work / "pom.xml")
    jars = work / "jars"
    command = [
        maven,
        "--batch-mode",
        f"--file={work / 'pom.xml'}",
        *options,
        f"-DoutputDirectory={jars}",
        "dependency:copy-dependencies",
    ]
    exit_code, tail = _run(command)
    if exit_code is None:
        raise StackError(
            f"maven did not fetch {what} within {_MAVEN_SECONDS:g} s, check the "
            f"network, then repeat: what it has is kept"
        )
    if exit_code != 0 or not any(jars.glob("*.jar")):
        raise StackError(
            f"maven could not fetch {what} (exit code {exit_code}); check "
            f"the network and the mirror in ~/.m2/settings.xml, then repeat\n"
            f"command: {' '.join(command)}\n{tail}"
        )
    return jars


def _run(command: list[str]) -> tuple[int | None, str]:
    """Run Maven and tell how far it is; return its exit code, None if it was too slow, and its last lines."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    too_slow = threading.Event()
    megabytes, told = 0.0, 0.0
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as maven:

        def give_up() -> None:
            too_slow.set()
            maven.kill()

        alarm = threading.Timer(_MAVEN_SECONDS, give_up)
        alarm.start()
        try:
            assert maven.stdout is not None
            for line in maven.stdout:
                tail.append(line.rstrip())
                if found := _DOWNLOADED.search(line):
                    megabytes += float(found[1]) * _MEGABYTES[found[2]]
                if megabytes - told >= _TOLD_EVERY_MB:
                    told = megabytes
                    say(f"{megabytes:.0f} MB so far ...")
        finally:
            alarm.cancel()
            maven.kill()  # nothing when it has ended; when we were interrupted, it must
    return None if too_slow.is_set() else maven.returncode, "\n".join(tail)
