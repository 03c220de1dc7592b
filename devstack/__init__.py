"""
Real servers for the demo, tests, benchmarks and fault runs. Not part of the wheel.

    with LocalStack(StackSettings(folder=Path("somewhere"))) as stack:
        stack.create_topic("transfer")
        Database.mysql(stack.database_url("account"))

`ContainerStack` is the same in containers; `Stack` is what both can do.
On the command line: `python -m devstack up`, `env`, `topic`, `pause`, `resume`, `status`, `logs`, `down`.
"""

from devstack.containers import ContainerStack
from devstack.errors import StackError
from devstack.local import LocalStack
from devstack.settings import StackPorts, StackSettings
from devstack.stack import ServerHandle, Stack

__all__ = [
    "ContainerStack",
    "LocalStack",
    "ServerHandle",
    "Stack",
    "StackError",
    "StackPorts",
    "StackSettings",
]
