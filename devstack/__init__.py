"""
Real servers for the demo, tests, benchmarks and fault runs. Not part of the wheel.

    with LocalStack(StackSettings(folder=Path("somewhere"))) as stack:
        stack.create_topic("transfer")
        Database.mysql(stack.database_url("account"))

On the command line: `python -m devstack up`, `status`, `logs`, `down`.
"""

from devstack.errors import StackError
from devstack.local import LocalStack
from devstack.settings import StackPorts, StackSettings
from devstack.stack import ServerHandle, Stack

__all__ = ["LocalStack", "ServerHandle", "Stack", "StackError", "StackPorts", "StackSettings"]
