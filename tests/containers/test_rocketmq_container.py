"""`RocketMQContainer` on a real engine: the example of docs/testing.md, ports, faults."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from rmq_txn.errors import LifecycleError
from rmq_txn.testing import ContainerError, RocketMQContainer, engine

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "testing.md"


@pytest.fixture
def docker_client() -> Iterator[docker.DockerClient]:
    """Return a client of the engine."""
    client = docker.from_env()
    yield client
    client.close()


def names(client: docker.DockerClient) -> set[str]:
    """Return the ids of all containers of this run, stopped ones too; the engine may have others."""
    ours = {"label": f"{LABEL_SESSION_ID}={SESSION_ID}"}
    return {container.id for container in client.containers.list(all=True, filters=ours)}


def test_the_example_of_the_document_passes(tmp_path: Path) -> None:
    """Both files as a reader would save them, run by pytest in a folder of their own."""
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)
    files = {name: text for name, text in blocks if name in ("conftest.py", "test_transfer.py")}
    assert len(files) == 2
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:randomly", "-q", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_nothing_is_published_beyond_loopback(rocketmq: RocketMQContainer) -> None:
    """Both ports on 127.0.0.1, the broker's with the same number inside and outside."""
    container = rocketmq._required().get_wrapped_container()
    container.reload()
    bindings = {inside: outside for inside, outside in container.ports.items() if outside}
    assert {one["HostIp"] for outside in bindings.values() for one in outside} == {"127.0.0.1"}
    name_server = bindings.pop("9876/tcp")[0]["HostPort"]
    assert rocketmq.name_server == f"127.0.0.1:{name_server}"
    ((inside, (outside,)),) = bindings.items()
    assert inside == f"{outside['HostPort']}/tcp"


def test_a_port_that_somebody_else_took_meanwhile_is_left_to_him(
    monkeypatch: pytest.MonkeyPatch, docker_client: docker.DockerClient
) -> None:
    """The second attempt has other ports, and of the first no container is left."""
    before = names(docker_client)
    choose = engine.free_ports
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        tries: list[list[int]] = []

        def first_a_taken_one(count: int) -> list[int]:
            ports = choose(count)
            tries.append(ports if tries else [ports[0], taken])
            return tries[-1]

        monkeypatch.setattr(engine, "free_ports", first_a_taken_one)
        with RocketMQContainer() as rocketmq:
            assert len(tries) == 2
            assert rocketmq.name_server == f"127.0.0.1:{tries[1][0]}"
            assert len(names(docker_client) - before) == 1
    assert names(docker_client) == before


def test_a_broker_that_does_not_come_up_says_why_and_is_removed(docker_client: docker.DockerClient) -> None:
    """The error has what the broker wrote, and comes when it ended, not at the deadline."""
    before = names(docker_client)
    broken = RocketMQContainer(broker_properties={"storePathRootDir": "/proc/nowhere"})
    with pytest.raises(ContainerError, match=r"ended before it was ready\n(.|\n)*/proc/nowhere"):
        broken.start()
    assert names(docker_client) == before
    with pytest.raises(LifecycleError, match="does not run"):
        _ = broken.name_server


def test_a_topic_that_is_refused_is_an_error_with_the_answer(rocketmq: RocketMQContainer) -> None:
    """The name is the broker's to judge."""
    with pytest.raises(ContainerError, match="cannot create topic 'not a name'"):
        rocketmq.create_topic("not a name")


def test_an_image_that_is_not_there_is_named(docker_client: docker.DockerClient) -> None:
    """It can't be pulled either."""
    before = names(docker_client)
    with pytest.raises(ContainerError, match=r"cannot start apache/rocketmq:none"):
        RocketMQContainer("apache/rocketmq:none").start()
    assert names(docker_client) == before
