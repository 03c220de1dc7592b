"""Which of the picture's lanes is here, away or frozen, as the account service sees the other two."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from demo_account_service.page.neighbour import Neighbour
from demo_chassis.health import Question
from rmq_txn import TransactionProducer
from rmq_txn.errors import BrokerUnavailableError, LifecycleError

HERE: Final = "here"
AWAY: Final = "away"
"""It does not run, or does not serve yet."""
FROZEN: Final = "frozen"
"""It runs, holds its connections, and does not answer."""

States = dict[str, str]

_LOOK_SECONDS = 0.4


class Lanes(Protocol):
    """Tells how the lanes are."""

    def look(self) -> States:
        """Return the states of account_service, broker and points_service; must not block."""


class OwnLanes:
    """
    As a service sees it that serves the page itself. For one event loop.

    Args:
        producer: it asks the brokers.
        neighbour: the points service; None: there is none.
    """

    def __init__(self, producer: TransactionProducer, neighbour: Neighbour | None) -> None:
        self._producer = producer
        self._neighbour = neighbour
        self._question = Question(self._ask, FROZEN)
        self._broker = HERE
        self._asking: asyncio.Task[None] | None = None
        self._asked = 0.0

    def look(self) -> States:
        """See Lanes. What it says of RocketMQ is the answer to the question before."""
        is_free = self._asking is None or self._asking.done()
        if is_free and time.monotonic() - self._asked > _LOOK_SECONDS:
            self._asked = time.monotonic()
            self._asking = asyncio.create_task(self._refresh())
        has_points = self._neighbour is None or self._neighbour.is_connected
        return lanes(account_service=HERE, broker=self._broker, points_service=HERE if has_points else AWAY)

    async def _refresh(self) -> None:
        self._broker = await self._question.answer()

    def _ask(self) -> str:
        try:
            self._producer.is_registered()
        except BrokerUnavailableError:
            return AWAY
        except LifecycleError:  # it starts or ends, which says nothing of the brokers
            return HERE
        return HERE


def lanes(*, account_service: str, broker: str, points_service: str) -> States:
    """Return the states by the names that the page has for its lanes."""
    return {"account_service": account_service, "broker": broker, "points_service": points_service}
