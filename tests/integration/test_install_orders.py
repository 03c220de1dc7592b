"""The official gRPC client installs the same package `rocketmq`: the SDK works whichever came last."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import LocalStack
from rmq_txn import RocketMQ
from rmq_txn.library import installer
from rmq_txn.message import Message
from rmq_txn.verdict import Verdict
from tests.kit.processes import child, outcome

pytestmark = pytest.mark.servers

OTHER = "rocketmq-python-client==5.1.2"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the gRPC client and what it needs into a folder of its own."""
    folder = tmp_path_factory.mktemp("grpc-client")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--only-binary",
        ":all:",
    ]
    subprocess.run([*pip, "--target", str(folder), OTHER], check=True, timeout=300)
    return folder


@pytest.mark.parametrize("last", ["native", "grpc"])
def test_the_sdk_works_beside_the_grpc_client_whichever_was_installed_last(
    stack: LocalStack, topic: str, other: Path, tmp_path: Path, last: str
) -> None:
    """C8: both lie in one folder then, and the `__init__.py` is that of the last one."""
    binary = installer.status().path
    assert binary is not None
    for package in (
        (other / "rocketmq", binary.parent) if last == "native" else (binary.parent, other / "rocketmq")
    ):
        shutil.copytree(package, tmp_path / "rocketmq", dirs_exist_ok=True)
    folders = f"{tmp_path}:{other}"
    process = child(
        sends_one, environment={"PYTHONPATH": folders}, name_server=stack.name_server, topic=topic
    )
    assert outcome(process, 60) == (0, f"{tmp_path / 'rocketmq'} {last == 'grpc'}\n")


def sends_one(name_server: str, topic: str) -> None:
    """Send; tell which folder was used, and whether its package belongs to the gRPC client."""
    message = Message(topic, b"beside").outbound(txn_id="0" * 32, position=0, owner="nobody@nowhere")
    producer = RocketMQ(name_server).producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    producer.start()
    producer.send_half(message, lambda _id: Verdict.ROLLBACK)
    producer.close(10.0)
    path = installer.status().path
    assert path is not None
    print(path.parent, "grpc" in sys.modules, flush=True)
