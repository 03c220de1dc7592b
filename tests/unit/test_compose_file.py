"""docker-compose.yml, read: what a person who starts it relies on. tests/containers runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack import StackSettings
from tests.containers.demo import SERVERS
from tests.containers.engine import IMAGES
from tests.containers.engine import SERVICES as SERVICES_IMAGE

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = (CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
ONE_SHOT = {"store-owner", "topics"}
EXAMPLE = dict(
    line.split("=", 1)
    for line in (CHECKOUT / ".env.example").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)


def test_the_container_test_looks_at_every_server() -> None:
    """A service is one that stays, or runs once."""
    assert SERVICES.keys() == {*SERVERS, *ONE_SHOT}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_a_health_check_and_comes_back(name: str) -> None:
    """It is restarted when it ends, and may take 10 s to stop; the broker, which takes 14, has 30."""
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"] == ("30s" if name == "broker" else "10s")


def test_everybody_waits_for_health() -> None:
    """Servers are waited for until healthy, what runs once until it succeeded."""
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            condition = "service_completed_successfully" if name in ONE_SHOT else "service_healthy"
            assert wanted == {"condition": condition}


def test_nothing_is_published_beyond_loopback() -> None:
    """Only both services are published, on 127.0.0.1."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"account-service", "points-service"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert not any(service.get("network_mode") == "host" for service in SERVICES.values())


def test_versions_are_pinned_and_those_of_the_stack() -> None:
    """The images are those that the container test stands in for; RocketMQ is the version of devstack."""
    assert {service["image"] for service in SERVICES.values()} == {
        IMAGES["rocketmq"],
        IMAGES["mysql"],
        SERVICES_IMAGE,
    }
    assert set(re.findall(r"rocketmq[:-](\d[\d.]*\d)", TEXT)) == {StackSettings().rocketmq_version}
    dockerfile = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {IMAGES["python"]}


def test_the_only_passwords_are_the_defaults_of_the_example() -> None:
    """Every value that can be set has the default that .env.example names, and no other literal is secret."""
    defaults = set(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT))
    assert dict(defaults) == EXAMPLE
    assert len(defaults) == len(EXAMPLE)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN", name) or "://" in str(value):
                assert re.sub(r"\$\{\w+:-[^}]*\}", "", str(value)) in (
                    "",
                    "mysql://account:@mysql:3306/account",
                    "mysql://points:@mysql:3306/points",
                    "http://points-service:8002",
                )


def test_processes_are_not_root() -> None:
    """The one-shot that gives the store to the broker is root's, with no network."""
    assert [name for name, service in SERVICES.items() if service.get("user") == "root"] == ["store-owner"]
    assert SERVICES["store-owner"]["network_mode"] == "none"
    assert SERVICES["mysql"]["user"] == "mysql"
    assert re.search(r"^USER 10001:10001$", (CHECKOUT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
