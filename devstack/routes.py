"""Topics that clients can find, on any stack."""

from __future__ import annotations

from devstack.errors import StackError
from devstack.rocketmq import Broker
from devstack.server import poll_until
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.server import RemotingError

_ROUTE_SECONDS = 20.0


def create_topic(broker: Broker, name: str, queues: int) -> None:
    """Create a topic, or change its number of queues; return when the name server knows it."""
    try:
        broker.create_topic(name, queues)
        known = poll_until(lambda: broker.has_route(name), _ROUTE_SECONDS)
    except (BrokerUnavailableError, RemotingError) as exc:
        raise StackError(f"cannot create topic {name!r}: {exc}") from exc
    if not known:
        raise StackError(
            f"the name server has no route of topic {name!r} after {_ROUTE_SECONDS:g} s, is "
            f"the broker registered with it?"
        )
