"""The jars of RocketMQ: copied once from Maven Central into a cache inside the checkout."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from devstack.errors import StackError
from devstack.machine import run_to_its_end

_POM = Path(__file__).with_name("pom.xml")
_MAVEN_SECONDS = 900.0
_TAIL_LINES = 30


def rocketmq_jars(version: str, cache_folder: Path) -> Path:
    """
    Return the folder with all jars of a RocketMQ version, fetching them when they are not there.

    Several processes may ask at once: one fetches, the others wait for it. A fetch that is
    interrupted leaves nothing that looks complete, because the folder gets its name last.
    """
    folder = cache_folder / f"rocketmq-{version}"
    if folder.is_dir():
        return folder
    cache_folder.mkdir(parents=True, exist_ok=True)
    with (cache_folder / f"rocketmq-{version}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that fetches RocketMQ {version} ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _fetch(version, folder)
    return folder


def _fetch(version: str, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError("mvn is not on PATH, install it: apt-get install maven")
    _say(f"fetching RocketMQ {version} with maven (about 100 MB, once) ...")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        work = Path(temporary)
        # Maven writes a `target` folder beside the pom; the checkout is not the place for it.
        shutil.copy(_POM, work / "pom.xml")
        jars = work / "jars"
        command = [
            maven,
            "--batch-mode",
            "--no-transfer-progress",
            f"--file={work / 'pom.xml'}",
            f"-Drocketmq.version={version}",
            f"-DoutputDirectory={jars}",
            "dependency:copy-dependencies",
        ]
        try:
            done = run_to_its_end(command, _MAVEN_SECONDS)
        except subprocess.TimeoutExpired as exc:
            raise StackError(
                f"maven did not fetch RocketMQ {version} within {_MAVEN_SECONDS:g} s, check the "
                f"network, then repeat: what it has is kept"
            ) from exc
        if done.returncode != 0 or not any(jars.glob(f"rocketmq-proxy-{version}.jar")):
            tail = "\n".join(done.stdout.splitlines()[-_TAIL_LINES:])
            raise StackError(
                f"maven could not fetch RocketMQ {version} (exit code {done.returncode}); check "
                f"the network and the mirror in ~/.m2/settings.xml, then repeat\n"
                f"command: {' '.join(command)}\n{tail}"
            )
        jars.rename(folder)
    _say(f"RocketMQ {version} is in {folder}")


def _say(text: str) -> None:
    print(f"devstack: {text}", file=sys.stderr, flush=True)
