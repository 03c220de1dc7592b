"""A container engine of our own: its images never meet those of an engine that people use."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devstack.jars import rocketmq_jars
from devstack.settings import CHECKOUT, StackSettings
from tests.kit.wait import until

FOLDER = CHECKOUT / ".devstack" / "containers"
STANDINS = Path(__file__).with_name("standins")
BASE = "standin/debian:12"
# The names that docker-compose.yml and Dockerfile use.
IMAGES = {
    "rocketmq": f"apache/rocketmq:{StackSettings().rocketmq_version}",
    "mysql": "mysql:8.4",
    "python": "python:3.12-slim-bookworm",
}
SERVICES = "rmq-txn-demo:0.1.0"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def run(*command: str, **options: object) -> str:
    """Run a command and return what it printed; its error output goes to ours."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout  # type: ignore[call-overload]


@contextmanager
def engine() -> Iterator[None]:
    """Start dockerd with a folder and a socket of its own; DOCKER_HOST leads there until the end."""
    if Path("/sys/class/net/docker0").exists():
        raise SystemExit("an engine runs here and this test starts one of its own: stop that one first")
    FOLDER.mkdir(parents=True, exist_ok=True)
    # A socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rmq-txn-") as short, (FOLDER / "dockerd.log").open("w") as log:
        socket = f"unix://{short}/docker.sock"
        command = [
            "dockerd",
            f"--host={socket}",
            f"--data-root={FOLDER / 'docker'}",
            f"--exec-root={short}/exec",
        ]
        command += [f"--pidfile={short}/pid", "--bridge=none"]
        with subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as dockerd:
            os.environ["DOCKER_HOST"] = socket
            try:
                until(lambda: dockerd.poll() is not None or _answers(), "an answer of dockerd", 60)
                if dockerd.poll() is not None:
                    raise SystemExit(f"dockerd ended, its log: {FOLDER / 'dockerd.log'}")
                yield
            finally:
                del os.environ["DOCKER_HOST"]
                dockerd.terminate()
                dockerd.wait()
                # It may leave this mounted (a namespace file, seen once in three runs).
                if (namespace := Path(short, "exec", "netns", "default")).is_mount():
                    run("umount", str(namespace))


def _answers() -> bool:
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


def make_images() -> None:
    """Make the stand-ins, then the image of both services as the Dockerfile says."""
    if not run("docker", "image", "ls", "--quiet", BASE):
        with tempfile.TemporaryDirectory(dir=FOLDER) as root:
            run("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", root)
            with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
                run("docker", "import", "-", BASE, stdin=tar.stdout)
            if tar.returncode != 0:
                raise SystemExit(f"tar failed with {tar.returncode}")
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        contexts = Path(temporary) / "standins"
        shutil.copytree(STANDINS, contexts)
        version = StackSettings().rocketmq_version
        shutil.copytree(rocketmq_jars(version, CHECKOUT / ".devstack"), contexts / "rocketmq" / "jars")
        shutil.copy(_CERTIFICATES, contexts / "python")
        for name, image in IMAGES.items():
            _build(image, contexts / name)
    _build(SERVICES, CHECKOUT)


def _build(image: str, context: Path) -> None:
    # With the network of the host: the engine has no bridge, and mirrors may be known to the host only.
    index = ["--build-arg=PIP_INDEX_URL"] if "PIP_INDEX_URL" in os.environ and image == SERVICES else []
    run("docker", "build", "--quiet", "--network=host", f"--tag={image}", *index, str(context))
