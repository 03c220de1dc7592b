"""A container engine of our own: its images never meet those of an engine that people use."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devstack.containers import MYSQL_IMAGE
from devstack.jars import rocketmq_jars
from devstack.settings import CHECKOUT, StackSettings
from tests.kit.wait import until

FOLDER = CHECKOUT / ".devstack" / "containers"
STANDINS = Path(__file__).with_name("standins")
BASE = "standin/debian:12"
# The names that docker-compose.yml and Dockerfile use.
IMAGES = {
    "rocketmq": f"apache/rocketmq:{StackSettings().rocketmq_version}",
    "mysql": MYSQL_IMAGE,
    "python": "python:3.12-slim-bookworm",
}
SERVICES = "rmq-txn-demo:0.1.0"
_COMMAND_SECONDS = 1800  # the longest builds an image over a slow line
_STOP_SECONDS = 60
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def say(text: str) -> None:
    """Tell what was seen."""
    print(f"containers: {text}", flush=True)


def run(*command: str, **options: object) -> str:
    """Run a command and return what it printed; its error output goes to ours."""
    done = subprocess.run(  # type: ignore[call-overload]
        command, check=True, text=True, stdout=subprocess.PIPE, timeout=_COMMAND_SECONDS, **options
    )
    return str(done.stdout)


@contextmanager
def engine(short: Path, *options: str) -> Iterator[None]:
    """
    Start dockerd with a folder and a socket of its own; DOCKER_HOST leads there until the end.

    Args:
        short: folder of its socket, whose path may have at most 107 bytes.
        options: more options of dockerd.
    """
    socket = f"unix://{short}/docker.sock"
    command = ["dockerd", f"--host={socket}", f"--data-root={FOLDER / 'docker'}"]
    command += [f"--exec-root={short}/exec", f"--pidfile={short}/pid", *options]
    with (
        (FOLDER / "dockerd.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as dockerd,
    ):
        os.environ["DOCKER_HOST"] = socket
        try:
            until(lambda: dockerd.poll() is not None or _answers(), "an answer of dockerd", 60)
            if dockerd.poll() is not None:
                raise SystemExit(f"dockerd ended, its log: {FOLDER / 'dockerd.log'}")
            yield
        finally:
            del os.environ["DOCKER_HOST"]
            dockerd.terminate()
            try:
                dockerd.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                dockerd.kill()  # its namespaces end with us, and with them everything it leaves


def remove_leftovers() -> None:
    """Remove the containers, volumes and networks of a run that was killed."""
    if containers := run("docker", "ps", "--all", "--quiet").split():
        run("docker", "rm", "--force", "--volumes", *containers)
    if volumes := run("docker", "volume", "ls", "--quiet").split():
        run("docker", "volume", "rm", *volumes)
    run("docker", "network", "prune", "--force")


def _answers() -> bool:
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


def make_images() -> None:
    """Make the stand-ins, then the image of both services as the Dockerfile says; only what has changed."""
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
    # With the network of the host: mirrors may be known to the host only.
    index = ["--build-arg=PIP_INDEX_URL"] if "PIP_INDEX_URL" in os.environ and image == SERVICES else []
    run("docker", "build", "--quiet", "--network=host", f"--tag={image}", *index, str(context))
