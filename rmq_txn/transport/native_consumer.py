"""The native client that receives: one push consumer, one callback for all topics."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from rmq_txn.errors import BrokerUnavailableError, RmqTxnError, SettingsError
from rmq_txn.logs import get_logger
from rmq_txn.message import Delivery
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.members import GroupMembers, TagFilter
from rmq_txn.remoting.new_group import pin_new_group
from rmq_txn.remoting.offsets import places
from rmq_txn.remoting.refusals import require_pulls
from rmq_txn.remoting.server import RemotingError
from rmq_txn.transport import Deliver, Lag, binding
from rmq_txn.transport.binding import ffi
from rmq_txn.transport.native_client import QUIET_SECONDS, STOP_PATIENCE_SECONDS, NativeClient
from rmq_txn.transport.read_ahead import ReadAhead
from rmq_txn.verdict import Answer

log = get_logger("transport.native")

_SPARE_PULL_THREADS = 4
"""For the queues of the retry topic, and a few that a topic gets later."""
_MOST_PULL_THREADS = 128
"""Beyond that queues take turns, up to 15 s each when they are empty."""


class NativeConsumer(NativeClient):
    """See `ConsumerTransport`. Over the library's PushConsumer, one callback for all topics."""

    kind = "PushConsumer"

    def __init__(
        self,
        broker: ClusterSettings,
        group: str,
        expressions: Mapping[str, str],
        threads: int,
        deliver: Deliver,
    ) -> None:
        super().__init__(broker, group)
        self._expressions = expressions
        self._threads = threads
        self._deliver = deliver
        self._read_ahead = ReadAhead(broker.cache_messages, threads)
        self._keeping = threading.Lock()
        self._keeps_least = False
        self._members = GroupMembers(broker, group, self._instance)

    def start(self) -> None:
        """See `ConsumerTransport.start`."""
        table = ffi()
        queues = sum(pin_new_group(self._broker, self._group, topic) for topic in self._expressions)
        for topic in self._expressions:
            require_pulls(self._broker, self._group, topic)
        on_message = table.MSG_CALLBACK_FUNC(
            binding.nothing_escapes(binding.RECONSUME_LATER, "delivery")(self._on_message)
        )
        self._keep_alive.append(on_message)

        def create() -> int:
            handle: int = table.dll.CreatePushConsumer(self._group.encode())
            table.dll.SetPushConsumerMessageTrace(handle, binding.TRACE_OPEN)
            self._set(table, handle, "MessageModel", table.MessageModel.CLUSTERING)
            self._set(table, handle, "ThreadCount", self._threads)
            self._set(table, handle, "MaxCacheMessageSize", self._read_ahead.size)
            binding.pull_synchronously(handle, min(queues + _SPARE_PULL_THREADS, _MOST_PULL_THREADS))
            for topic, expression in self._expressions.items():
                problem = binding.check_status(
                    table.dll.Subscribe(handle, topic.encode(), expression.encode())
                )
                if problem is not None:
                    raise SettingsError(f"subscription to {topic!r} {expression!r} refused: {problem}")
            table.dll.RegisterMessageCallback(handle, on_message)
            return handle

        def start(handle: int) -> int:
            status: int = table.dll.StartPushConsumer(handle)
            # Without tracing at start and stop the shutdown crashes; in between it only costs.
            table.dll.SetPushConsumerMessageTrace(handle, binding.TRACE_CLOSE)
            return status

        self._start(create, start)

    def _on_message(self, consumer: int, message: int) -> int:
        call, began = object(), time.monotonic()
        self._in_flight.add(call)
        try:
            delivery = binding.read_delivery(message, self._broker.extra_properties)
            if self._closing.is_set():
                return self._give_back(message, delivery)
            handled = self._handled(delivery)
            if self._read_ahead.note(time.monotonic() - began, len(delivery.body)):
                self._keep(consumer)
            return binding.CONSUME_SUCCESS if handled else self._give_back(message, delivery)
        finally:
            self._in_flight.remove(call)

    def _keep(self, handle: int, *, least: bool = False) -> None:
        """Tell the library of how many messages a queue is full; once of the least, always of the least."""
        binding.WORLD.refuse_fork()
        with self._keeping:
            self._keeps_least |= least
            size = 1 if self._keeps_least else self._read_ahead.size
            ffi().dll.SetPushConsumerMaxCacheMessageSize(handle, size)

    def _handled(self, delivery: Delivery) -> bool:
        try:
            return self._deliver(delivery) is Answer.ACK
        except BaseException:  # as in `nothing_escapes`, with an answer for this message alone
            log.exception("a delivery failed, the message will be delivered again", topic=delivery.topic)
            return False

    def _give_back(self, message: int, delivery: Delivery) -> int:
        """
        Give one message back to its broker ourselves, and tell the library that all is well.

        RECONSUME_LATER would give back everything that came with it in one pull, up to 32 messages,
        the acknowledged ones included, and use up their redeliveries.
        """
        place = binding.read_place(message)
        if place is None:
            return binding.RECONSUME_LATER
        broker, offset = place
        try:
            self._broker.ask(broker).send_back(self._group, delivery.topic, offset, delivery.message_id)
        except RmqTxnError as error:
            log.warning("giving back one message failed, its whole pull goes back", error=str(error))
            return binding.RECONSUME_LATER
        return binding.CONSUME_SUCCESS

    def is_registered(self, topic: str) -> bool:
        """See `ConsumerTransport.is_registered`."""
        return self._is_known(topic, lambda broker: broker.consumer_connections(self._group))

    def lag(self) -> Lag:
        """See `ConsumerTransport.lag`."""
        try:
            found = list(places(self._broker, self._group, tuple(self._expressions)))
        except RemotingError as error:
            raise BrokerUnavailableError(f"the lag of group {self._group!r} is not told: {error}") from error
        return Lag(sum(place.end - place.offset for place in found), sum(place.offset for place in found))

    def filters(self) -> tuple[TagFilter, ...]:
        """See `ConsumerTransport.filters`."""
        return self._members.filters(self._expressions)

    def close(self, drain_seconds: float, timeout_seconds: float) -> None:
        """See `ConsumerTransport.close`."""
        if (handle := self._handle) is not None:
            self._keep(handle, least=True)  # what comes later would have to be given back
            self._in_flight.wait_until_quiet(QUIET_SECONDS, drain_seconds)
        self._closing.set()
        if not self._in_flight.wait_until_quiet(0.0, timeout_seconds):
            # The native shutdown would wait for it without bound, holding up every other client.
            log.error("a handler still runs, the client is left open", group=self._group)
            return
        self._stop(STOP_PATIENCE_SECONDS)

    def _before_shutdown(self, handle: int) -> None:
        ffi().dll.SetPushConsumerMessageTrace(handle, binding.TRACE_OPEN)

    def close_at_exit(self, timeout_seconds: float) -> None:
        """See NativeClient."""
        self.close(0.0, timeout_seconds)
