"""What `pyproject.toml` allows at least is enough: the lowest versions do a part of these tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import LocalStack

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

CHECKOUT = Path(__file__).resolve().parents[2]
# Pool, sessions, both forms, a consumer, escaping, logs, and what the extras are for.
PART = [
    "tests/unit/test_pool.py",
    "tests/unit/test_logs.py",
    "tests/unit/test_library.py",
    "tests/integration/test_sessions.py",
    "tests/integration/test_transactions.py::test_a_committed_transaction_delivers_all_of_its_messages",
    "tests/integration/test_transactions.py::test_ddl_in_business_code_is_caught_and_its_message_is_never_delivered",
    "tests/integration/test_consuming.py::test_a_redelivered_message_has_no_second_effect",
    "tests/integration/test_values.py",
    "tests/integration/test_django.py::test_what_the_orm_writes_commits_with_its_message",
]


def lowest() -> list[str]:
    """Return `name==version` for each dependency of the package and its extras."""
    text = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    project = text[text.index("\n[project]") : text.index("\n[dependency-groups]")]
    said = "\n".join(line.partition("#")[0] for line in project.splitlines())
    return [
        f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)(?:\[\w+\])?[>=]=([\d.]+)"', said)
    ]


def test_every_dependency_has_a_lowest_version() -> None:
    """So that none is left out of the next test."""
    names = {requirement.partition("==")[0] for requirement in lowest()}
    always = {"rocketmq-client-python", "pymysql", "dbutils", "structlog"}
    assert names == always | {
        "unearth",
        "testcontainers",
        "django",
        "sqlalchemy",
        "opentelemetry-api",
        "pytest",
        "shtab",
    }


def test_the_lowest_versions_that_are_allowed_do_the_work(
    stack: LocalStack, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Installed beside the others, found first, on the servers of this run."""
    wanted = [requirement for requirement in lowest() if not requirement.startswith("rocketmq")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    installed = subprocess.run(
        [*pip, "--target", tmp_path / "lowest", *wanted], capture_output=True, text=True, check=False
    )
    if installed.returncode and not request.config.getoption("--require-servers"):
        pytest.skip(f"the package index can't be asked: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "lowest"),
        "RMQ_TXN_TEST_STACK": str(stack.settings.folder),
    }
    which = "from importlib.metadata import version as v; print(v('pymysql'), v('dbutils'), v('structlog'))"
    found = subprocess.check_output([sys.executable, "-c", which], env=environment, cwd=CHECKOUT, text=True)
    versions = dict(requirement.split("==") for requirement in wanted)
    for name, version in zip(("pymysql", "dbutils", "structlog"), found.split(), strict=True):
        assert version.startswith(versions[name])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.kit.attached", "--require-servers", *PART],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
