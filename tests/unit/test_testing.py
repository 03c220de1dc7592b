"""`rmq_txn.testing` without an engine: arguments, and what it says when something is missing."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from devstack import ContainerStack, StackError, StackSettings
from devstack.containers import MYSQL_IMAGE, new_network
from rmq_txn.errors import LifecycleError, SettingsError
from rmq_txn.testing import ContainerError, RocketMQContainer, engine, image
from rmq_txn.testing.broker import as_text, broker_properties, delays_of


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transaction_timeout_seconds": 0}, "transaction_timeout_seconds is 0, allowed is 0.001 or more"),
        ({"transaction_check_interval_seconds": float("nan")}, "transaction_check_interval_seconds is nan"),
        ({"transaction_check_max": 0}, "transaction_check_max is 0, allowed is 1 or more"),
        ({"redelivery_seconds": 0}, "redelivery_seconds is 0, allowed is a whole number, 1 or more"),
        ({"redelivery_seconds": 1.5}, r"redelivery_seconds is 1\.5, allowed is a whole number"),
        ({"ready_timeout_seconds": -1}, "ready_timeout_seconds is -1"),
        ({"ready_timeout_seconds": float("inf")}, "ready_timeout_seconds is inf"),
        ({"broker_properties": {"a": "b\rlistenPort=1"}}, "a value of one line"),
        ({"broker_properties": {"a": 5}}, "broker_properties has 'a': 5"),
        ({"broker_properties": {"a b": "c"}}, "broker_properties has 'a b': 'c'"),
        ({"broker_properties": {"a": "b\nc"}}, r"broker_properties has 'a': 'b\\nc'"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings: dict[str, Any], said: str) -> None:
    """Before anything is started."""
    with pytest.raises(SettingsError, match=said):
        RocketMQContainer(**settings)


def test_before_the_start_there_is_no_address() -> None:
    """An address that leads nowhere would be found out much later."""
    container = RocketMQContainer()
    for use in (lambda: container.name_server, lambda: container.create_topic("t"), container.logs):
        with pytest.raises(LifecycleError, match="does not run, start it"):
            use()
    container.stop()


@pytest.mark.parametrize("missing", ["testcontainers", "docker"])
def test_without_testcontainers_the_error_is_the_command(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is not part of a plain installation."""
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for first in (RocketMQContainer().start, new_network, engine.mysql_container().__enter__):
        with pytest.raises(ContainerError, match=r"pip install 'rmq-txn\[testing\]'"):
            first()


def test_without_an_engine_the_error_says_what_to_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody listens there; and no socket is left open, whose warning would come in another test."""
    made: list[socket.socket] = []

    class Counted(socket.socket):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    monkeypatch.setattr(socket, "socket", Counted)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(ContainerError, match=r"no container engine answers .*start Docker"):
        RocketMQContainer().start()
    with pytest.raises(StackError, match=r"no container engine answers .*start Docker"):
        ContainerStack(StackSettings.for_tests(tmp_path)).start()
    assert made
    assert all(one.fileno() == -1 for one in made)


def test_an_engine_on_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its containers' ports are not on our loopback, where the broker sends its clients."""
    pytest.importorskip("testcontainers")
    from testcontainers.core import docker_client

    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.7:2375")
    monkeypatch.setattr(docker_client.docker, "from_env", lambda **_: FakeEngine())
    with pytest.raises(ContainerError, match=r"the container engine is on 192\.0\.2\.7, use one of this"):
        engine.new_container("image")


class FakeEngine:
    """An engine as far as testcontainers asks it for its address."""

    def __init__(self) -> None:
        self.api = self
        self.headers: dict[str, str] = {}
        self.base_url = "http://192.0.2.7:2375"


def test_the_lines_of_the_configuration_are_in_the_units_of_the_broker() -> None:
    """Seconds become milliseconds; each of the 18 delay levels is one that we were told."""
    properties = broker_properties(
        name="broker",
        cluster="c",
        name_server="namesrv:9876",
        advertised_host="127.0.0.1",
        port=20_001,
        store="/store",
        transaction_timeout_seconds=1.5,
        transaction_check_interval_seconds=2,
        transaction_check_max=3,
    )
    assert properties["transactionTimeOut"] == "1500"
    assert properties["transactionCheckInterval"] == "2000"
    assert (properties["listenPort"], properties["haListenPort"]) == ("20001", "20002")
    assert delays_of(2)["messageDelayLevel"].split() == ["2s"] * 18
    assert as_text({"a": r"b\c"}) == "a=b\\\\c\n"


def test_one_version_of_rocketmq_is_meant_everywhere() -> None:
    """The image for users' tests, the jars of our own, the compose file."""
    version = StackSettings().rocketmq_version
    compose = (Path(__file__).resolve().parents[2] / "docker-compose.yml").read_text(encoding="utf-8")
    assert f"apache/rocketmq:{version}" == image.IMAGE
    assert f"image: {image.IMAGE}\n" in compose
    assert f"image: {MYSQL_IMAGE}\n" in compose
