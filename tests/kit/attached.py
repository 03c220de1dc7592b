"""
A pytest plugin: tests use the servers of another test run, instead of starting some.

    RMQ_TXN_TEST_STACK=folder python -m pytest -p tests.kit.attached ...
"""

from __future__ import annotations

import os
from pathlib import Path

import devstack
from devstack import LocalStack, StackSettings


class AttachedStack(LocalStack):
    """The running stack of a folder; never started, never stopped."""

    def __init__(self, _settings: StackSettings) -> None:
        super().__init__(StackSettings.for_tests(Path(os.environ["RMQ_TXN_TEST_STACK"])))

    def start(self) -> None:
        """Do nothing: it runs."""

    def close(self) -> None:
        """Do nothing: others use it."""


devstack.LocalStack = AttachedStack
