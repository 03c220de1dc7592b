"""The native client that sends: half messages in a transaction, and the answers to check-backs."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rmq_txn.errors import BrokerUnavailableError, LifecycleError
from rmq_txn.identity import CHECK_PROPERTIES
from rmq_txn.logs import get_logger
from rmq_txn.message import MAX_BODY_BYTES, SCOUT_GROUP, Outbound
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.diagnosis import explain
from rmq_txn.remoting.plain_messages import PlainSender
from rmq_txn.remoting.server import RemotingError
from rmq_txn.transport import Check, Checker, Execute, binding
from rmq_txn.transport.binding import WORLD, ffi
from rmq_txn.transport.native_client import QUIET_SECONDS, STOP_PATIENCE_SECONDS, NativeClient
from rmq_txn.transport.signals import HeldSignals
from rmq_txn.verdict import Verdict

log = get_logger("transport.native")

_CODES = (
    (Verdict.COMMIT, binding.COMMIT),
    (Verdict.ROLLBACK, binding.ROLLBACK),
    (Verdict.UNKNOWN, binding.UNKNOWN),
)
_SCOUT_CLOSE_SECONDS = 30.0
_QUICK_TRIES = 4
_QUICK_SECONDS = 2.0


def _code(verdict: object) -> int:
    """Translate a verdict; a boolean is none, `False` would be COMMIT."""
    for known, code in _CODES:
        if verdict is known:
            return code
    raise TypeError(f"verdict is {verdict!r}, allowed are {', '.join(map(str, Verdict))}")


class NativeProducer(NativeClient):
    """See `ProducerTransport`. Over the library's TransactionMQProducer."""

    kind = "Producer"

    def __init__(
        self, broker: ClusterSettings, group: str, check: Checker, *, instance: str | None = None
    ) -> None:
        super().__init__(broker, group, instance)
        self._check = check
        self._plain = PlainSender(broker, group)
        self._sends: dict[int, Callable[[int], int]] = {}
        self._tokens = itertools.count(1)
        self._warm: set[str] = set()
        self._first_send = threading.RLock()  # `execute` may send again, on this thread
        self._execute_callback: Any = None

    def start(self, topics: Sequence[str] = ()) -> None:
        """
        See `ProducerTransport.start`.

        The library reports a client to the brokers inside its start, to those that its instance name
        has met, and then each 30 s. So a scout of the same instance name meets them first
        (docs/decisions/0043).
        """
        scout = NativeProducer(self._broker, SCOUT_GROUP, _rolled_back, instance=self._instance)
        try:
            if topics:
                scout._start_alone()
            for topic in topics:
                scout.send_half(_warm_up(topic), _rolled_back)
            self._start_alone()
            self._warm.update(topics)
        finally:
            scout.close_later()

    def _start_alone(self) -> None:
        table = ffi()
        on_check = table.TRANSACTION_CHECK_CALLBACK(
            binding.nothing_escapes(binding.UNKNOWN, "check-back")(self._on_check)
        )
        # One callback for all sends: making one for each costs an executable page now and then.
        self._execute_callback = table.LOCAL_TRANSACTION_EXECUTE_CALLBACK(
            binding.nothing_escapes(binding.UNKNOWN, "local transaction")(self._on_execute)
        )
        self._keep_alive += [on_check, self._execute_callback]

        def create() -> int:
            handle: int = table.dll.CreateTransactionProducer(self._group.encode(), on_check, None)
            self._set(table, handle, "SendMsgTimeout", int(self._broker.send_timeout_seconds * 1000))
            self._set(table, handle, "MaxMessageSize", MAX_BODY_BYTES)
            return handle

        self._start(create, table.dll.StartProducer)

    def _on_check(self, _producer: int, message: int, _data: int | None) -> int:
        call = object()
        self._in_flight.add(call)
        try:
            if self._closing.is_set():
                return binding.UNKNOWN
            properties = binding.read_properties(message, CHECK_PROPERTIES)
            check = Check(binding.read_property(message, "UNIQ_KEY"), properties)
            return _code(self._check(check))
        finally:
            self._in_flight.remove(call)

    def _on_execute(self, _producer: int, message: int, token: int | None) -> int:
        return self._sends[token or 0](message)

    def send_half(self, message: Outbound, execute: Execute) -> None:
        """See `ProducerTransport.send_half`."""
        if message.topic in self._warm:
            self._send_half(message, execute)
            return
        # Threads that send while the first connection is being made fail at once (docs/hazards.md, C5).
        with self._first_send:
            self._send_half(message, execute)
            self._warm.add(message.topic)

    def _send_half(self, message: Outbound, execute: Execute) -> None:
        WORLD.refuse_fork()
        for tries_left in reversed(range(_QUICK_TRIES)):
            began = time.monotonic()
            said = self._attempt(message, execute)
            if said is None:
                return
            cause = explain(self._broker, message, said)
            # While a connection is being made the client fails at once, though all is well.
            quick = time.monotonic() - began < _QUICK_SECONDS
            if not (tries_left and cause.brokers_answer and quick):
                raise BrokerUnavailableError(
                    f"no half message was stored for topic {message.topic!r}: {cause.text}"
                )
            log.info("a send failed at once although the brokers answer, sending again", said=said)

    def _attempt(self, message: Outbound, execute: Execute) -> str | None:
        """Send once; return None if `execute` ran, else what the library says."""
        ran = False
        failure: BaseException | None = None
        signals = HeldSignals()

        def local_transaction(native: int) -> int:
            nonlocal ran, failure
            ran = True
            try:
                try:
                    signals.tell()
                    return _code(execute(binding.read_property(native, "UNIQ_KEY")))
                finally:
                    signals.hold()
            except BaseException as error:  # noqa: BLE001 - kept, and raised below
                failure = error
                return binding.UNKNOWN

        token = next(self._tokens)
        self._sends[token] = local_transaction
        try:
            try:
                self._in_flight.add(local_transaction)
                status = self._send(message, token, signals)
            finally:
                self._in_flight.remove(local_transaction)
        finally:
            if local_transaction in self._in_flight.running:  # Ctrl-C kept the line above from it
                self._in_flight.remove(local_transaction)
            del self._sends[token]
        if failure is not None:
            raise failure
        if ran:
            return None
        return binding.check_status(status) or "the broker's answer was not ok"

    def _send(self, message: Outbound, token: int, signals: HeldSignals) -> int:
        # Read while counted: close() frees the client once nothing is counted.
        self._refuse_unless_open()
        table = ffi()
        result = table._CSendResult()  # noqa: SLF001 - the vendor names it so
        native = binding.make_message(message)
        try:
            try:
                signals.hold()
                status: int = table.dll.SendMessageTransaction(
                    self._handle, native, self._execute_callback, token, ctypes.byref(result)
                )
            finally:
                signals.tell()
        finally:
            table.dll.DestroyMessage(native)
        return status

    def send_plain(self, message: Outbound, message_id: str) -> None:
        """See `ProducerTransport.send_plain`."""
        self._refuse_unless_open()
        self._plain.send(message, message_id)

    def is_published(self, message: Outbound, message_id: str) -> bool:
        """See `ProducerTransport.is_published`."""
        self._refuse_unless_open()
        return self._plain.is_published(message, message_id)

    def _refuse_unless_open(self) -> None:
        if self._handle is None or self._closing.is_set():
            raise LifecycleError("this producer client is not started, or closed")

    def is_registered(self, topic: str) -> bool:
        """See `ProducerTransport.is_registered`."""
        return self._is_known(topic, lambda broker: broker.producer_connections(self._group))

    def registered_clients(self, topic: str) -> dict[str, frozenset[str]]:
        """See `ProducerTransport.registered_clients`."""
        found: dict[str, frozenset[str]] = {}
        try:
            brokers = self._broker.route(topic).brokers
            for broker in brokers:
                if broker.master_address is None:
                    raise BrokerUnavailableError(f"broker {broker.name} of topic {topic!r} has no master now")
                clients = self._broker.ask(broker.master_address).producer_connections(self._group)
                name = f"{broker.name} at {broker.master_address}"
                found[name] = frozenset(client.client_id for client in clients)
        except RemotingError as error:
            raise BrokerUnavailableError(
                f"the brokers of topic {topic!r} do not say which clients they know: {error}"
            ) from error
        if not found:
            raise BrokerUnavailableError(f"topic {topic!r} has no broker now")
        return found

    def close(self, timeout_seconds: float, *, patience_seconds: float = STOP_PATIENCE_SECONDS) -> None:
        """See `ProducerTransport.close`; the patience is for the native shutdown."""
        deadline = time.monotonic() + timeout_seconds
        self._closing.set()
        self._plain.close()
        if self._handle is None:
            return
        if not self._in_flight.wait_until_quiet(QUIET_SECONDS, timeout_seconds):
            # Stopping it under a running call would crash the process; the calls are bounded.
            log.error("a send or a check-back still runs, the client is left open", group=self._group)
            return
        self._stop(min(patience_seconds, max(0.0, deadline - time.monotonic())))

    def close_later(self) -> None:
        """Close on a thread of its own: nobody waits for half a second of quiet."""
        if self._handle is not None:
            close = partial(self.close, _SCOUT_CLOSE_SECONDS, patience_seconds=_SCOUT_CLOSE_SECONDS)
            threading.Thread(target=close, name="rmq_txn close scout", daemon=True).start()

    def close_at_exit(self, timeout_seconds: float) -> None:
        """See NativeClient."""
        self.close(timeout_seconds)


def _rolled_back(_asked: object) -> Verdict:
    """Decide any half message of a scout, be it another's whose verdict was lost."""
    return Verdict.ROLLBACK


def _warm_up(topic: str) -> Outbound:
    """Make what a scout sends: without our properties, so that no log can hold it."""
    return Outbound(topic=topic, body=b"rmq_txn warm-up, rolled back", key=None, tag=None, properties={})
