"""What the native clients have in common: one life, in one process, ended before the process is."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from rmq_txn.errors import BrokerUnavailableError, LifecycleError, SettingsError
from rmq_txn.inflight import InFlight
from rmq_txn.logs import get_logger
from rmq_txn.remoting.answers import ClientConnection
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.server import RemotingError
from rmq_txn.transport import binding
from rmq_txn.transport.binding import WORLD, ffi

log = get_logger("transport.native")

QUIET_SECONDS = 0.5
"""A check may be queued natively, or still answer, after our callback returned (docs/hazards.md, B0)."""
STOP_PATIENCE_SECONDS = 1.0
_EXIT_TIMEOUT_SECONDS = 5.0
_EXIT_CODE_STUCK = 1

_open_clients: set[NativeClient] = set()
"""Strongly held: the library calls into them until they are stopped, whoever forgot them."""


class NativeClient:
    """Start once, close once, in one process; what producer and consumer have in common."""

    kind = ""

    def __init__(self, broker: ClusterSettings, group: str, instance: str | None = None) -> None:
        self._broker = broker
        self._group = group
        self._handle: int | None = None
        self._instance = instance or f"rmq_txn-{os.getpid()}-{uuid.uuid4().hex}"
        self._closing = threading.Event()
        self._stop_once = threading.Lock()
        self._in_flight = InFlight()
        self._keep_alive: list[object] = []  # callbacks the library calls; freed, it would crash

    def _start(self, create: Callable[[], int], start: Callable[[int], int]) -> None:
        self._broker.require_name_server()
        table = ffi()
        with WORLD.one_at_a_time():
            if self._handle is not None or self._closing.is_set():
                raise LifecycleError(f"this {self.kind} client was started before; make a new one")
            # What fails from here on leaves a handle that nobody destroys. Destroying a consumer that did
            # not start waited for ever in 8 of 9 tries, and would hold up every other client; a few
            # kilobytes a failed start do not. Started again, it would say that it runs, and not run.
            handle = create()
            self._set(table, handle, "NameServerAddress", self._broker.name_servers.encode())
            # Clients of the same instance name share connections, name servers and credentials.
            self._set(table, handle, "InstanceName", self._instance.encode())
            self._set(table, handle, "LogLevel", binding.LOG_LEVEL_WARN)
            if self._broker.access_key is not None and self._broker.secret_key is not None:
                keys = self._broker.access_key.encode(), self._broker.secret_key.encode()
                self._set(table, handle, "SessionCredentials", *keys, b"")
            problem = binding.check_status(start(handle))
            if problem is not None:
                raise BrokerUnavailableError(f"the native {self.kind} did not start: {problem}")
            self._handle = handle
        _open_clients.add(self)

    def _set(self, table: Any, handle: int, what: str, *values: object) -> None:
        problem = binding.check_status(getattr(table.dll, f"Set{self.kind}{what}")(handle, *values))
        if problem is not None:
            raise SettingsError(f"the native {self.kind} refused {what}: {problem}")

    def _stop(self, patience_seconds: float) -> None:
        WORLD.refuse_fork()
        with self._stop_once:
            handle, self._handle = self._handle, None
        if handle is None:
            return

        def stop() -> None:
            self._before_shutdown(handle)
            getattr(ffi().dll, f"Shutdown{self.kind}")(handle)
            self._destroy(handle)
            _open_clients.discard(self)

        _stop_in_background(f"{self.kind} of group {self._group}", stop, patience_seconds)

    def _is_known(
        self, topic: str, registered: Callable[[RemotingClient], Sequence[ClientConnection]]
    ) -> bool:
        """Ask every master of a topic whether this very client is among those registered with it."""
        try:
            masters = self._broker.masters(topic)
        except RemotingError as error:
            raise BrokerUnavailableError(
                f"the name server does not say which brokers topic {topic!r} has: {error}"
            ) from error
        if not masters:
            raise BrokerUnavailableError(f"no broker of topic {topic!r} has a master now")
        for master in masters:
            try:
                clients = registered(self._broker.ask(master.address))
            except RemotingError as error:
                raise BrokerUnavailableError(
                    f"broker {master.address} does not say which clients it knows: {error}"
                ) from error
            if not any(client.client_id.endswith(self._instance) for client in clients):
                return False
        return True

    @property
    def instance(self) -> str:
        """How the id ends under which brokers know this client: the instance name."""
        return self._instance

    def _destroy(self, handle: int) -> None:
        getattr(ffi().dll, f"Destroy{self.kind}")(handle)

    @property
    def busy(self) -> bool:
        """Whether a call or a callback of this client runs now."""
        return not self._in_flight.wait_until_quiet(0.0, 0.0)

    def _before_shutdown(self, handle: int) -> None:
        """Do what the kind of client needs first."""

    def close_at_exit(self, timeout_seconds: float) -> None:
        """Close within a few seconds; what does not close stays among the open clients."""
        raise NotImplementedError


def _stop_in_background(what: str, stop: Callable[[], None], patience_seconds: float) -> None:
    """
    Run a native shutdown on a thread of its own; return when it ended, or after the patience.

    A consumer's waits for its long polls, up to 15 s, and shutdowns go one at a time. The client is
    quiet by then: what is left needs nobody's attention.
    """

    def one_by_one() -> None:
        with WORLD.lock:
            stop()

    helper = threading.Thread(target=one_by_one, name=f"rmq_txn stop {what}", daemon=True)
    helper.start()
    helper.join(patience_seconds)
    if helper.is_alive():
        log.info("the native client goes on stopping in the background", what=what)


def _keep_exit_status_and_skip_native_exit() -> None:
    """
    Let this process end with its status as it is, without the library's destructors.

    They wait for threads that may sit in a long poll, or crash. glibc calls what `on_exit` was given
    with the exit status, last registered first; `_exit` takes just that.
    """
    libc = ctypes.CDLL(None)
    libc.on_exit(getattr(libc, "_exit"), None)  # noqa: B009 - the name is libc's


@atexit.register
def _close_what_was_left_open() -> None:
    """
    End the clients nobody closed: a process that sent and does not shut down hangs (docs/hazards.md, B5).

    A handler that still runs would meet an interpreter that is gone; then the process ends here.
    """
    if WORLD.pid is None:
        return  # the library was never used
    if WORLD.pid != os.getpid():
        # A fork of a process that used it: its destructors would wait for threads that are not here.
        _keep_exit_status_and_skip_native_exit()
        return
    for client in list(_open_clients):
        client.close_at_exit(_EXIT_TIMEOUT_SECONDS)
    if any(client.busy for client in _open_clients):
        log.critical("a handler or a check-back still runs, the process ends at once")
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(_EXIT_CODE_STUCK)
    _keep_exit_status_and_skip_native_exit()
