"""
The native client, one function at a time: the only module that imports the vendor's package.

It goes below the vendor's classes, to the ctypes table they stand on: those leak a producer each
(docs/hazards.md, D), read past the end of messages (B1) and let exceptions escape into C (A4).
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rmq_txn.errors import LifecycleError, NativeLibraryError
from rmq_txn.identity import OWN_PROPERTIES, PROPERTY_NAMES
from rmq_txn.library import installer
from rmq_txn.lifecycle import AFTER_FORK
from rmq_txn.logs import get_logger
from rmq_txn.message import Delivery, Outbound
from rmq_txn.transport import native_log

log = get_logger("transport.native")

COMMIT, ROLLBACK, UNKNOWN = 0, 1, 2
CONSUME_SUCCESS, RECONSUME_LATER = 0, 1
TRACE_OPEN, TRACE_CLOSE = 0, 1  # in this order: docs/hazards.md, F5
LOG_LEVEL_WARN = 3
# std::string MQMessage::getBody() const: exact bytes, where the C function stops at the first NUL.
_GET_BODY = "_ZNK8rocketmq9MQMessage7getBodyB5cxx11Ev"
# DefaultMQPushConsumer::setAsyncPull(bool) and setPullMsgThreadPoolCount(int): not in the C header.
_SET_ASYNC_PULL = "_ZN8rocketmq21DefaultMQPushConsumer12setAsyncPullEb"
_SET_PULL_THREADS = "_ZN8rocketmq21DefaultMQPushConsumer25setPullMsgThreadPoolCountEi"
# PullSysFlag::FLAG_SUSPEND and FLAG_SUBSCRIPTION, two static ints.
_FLAG_SUSPEND = "_ZN8rocketmq11PullSysFlag12FLAG_SUSPENDE"
_FLAG_SUBSCRIPTION = "_ZN8rocketmq11PullSysFlag17FLAG_SUBSCRIPTIONE"
# const std::string& MQMessageExt::getOffsetMsgId() const
_GET_OFFSET_ID = "_ZNK8rocketmq12MQMessageExt14getOffsetMsgIdB5cxx11Ev"
_SELF_CHECK_BODY = b"a\x00b\xff\x00" * 20

# The vendor makes a member of an enumeration of what they return, two function calls each, 12 a half message;
# `check_status` reads numbers as well.
_STATUS_ALONE = (
    "SetByteMessageBody",
    "SetMessageKeys",
    "SetMessageTags",
    "SetMessageProperty",
    "DestroyMessage",
    "SendMessageTransaction",
)

# They only read or write the memory of one message. A call by ctypes gives the GIL away and waits for it
# again, which takes longer than these do once threads compete for it (docs/decisions/0076).
_KEEPING_THE_GIL = (
    "CreateMessage",
    "SetByteMessageBody",
    "SetMessageKeys",
    "SetMessageTags",
    "SetMessageProperty",
    "DestroyMessage",
    "GetMessageProperty",
    "GetMessageTopic",
    "GetMessageId",
    "GetMessageTags",
    "GetMessageKeys",
    "GetMessageReconsumeTimes",
    "GetMessageBornTimestamp",
    "GetMessageStoreTimestamp",
    _GET_BODY,
)

_F = TypeVar("_F", bound=Callable[..., Any])


class _CxxString(ctypes.Structure):
    """The first two words of a libstdc++ string."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _World:
    """
    What all native clients of a process share.

    The library keeps unlocked global tables, so creating, starting, stopping and destroying happen
    one at a time (docs/hazards.md, C4). Its threads do not survive a fork, so the process that first used
    it is remembered (C2).
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pid: int | None = None

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Hold the lifecycle lock in the right process."""
        self.refuse_fork()
        if not self.lock.acquire(timeout=60):
            raise LifecycleError(
                "another native client has been starting or stopping for 60 s; restart the process"
            )
        try:
            self.pid = os.getpid()
            yield
        finally:
            self.lock.release()

    def refuse_fork(self) -> None:
        """Raise if the library was used in the parent of this process."""
        if self.pid not in (None, os.getpid()):
            raise LifecycleError(
                f"the native client was used in process {self.pid} before the fork that made process "
                f"{os.getpid()}, where its threads are missing: it would hang; {AFTER_FORK}"
            )


WORLD = _World()


@functools.cache
def ffi() -> Any:
    """
    Load the library and check that it reads bodies exactly.

    Raises:
        NativeLibraryError: missing, not loadable, or another build than the accessor fits.
        SettingsError: its log can't be written.
    """
    installer.require()
    native_log.prepare()
    try:
        from rocketmq import ffi as table  # here: the package must import without the library
    except (ImportError, OSError) as error:
        raise NativeLibraryError(
            f"the native library can't be loaded: {error}; run: rmq-txn native status"
        ) from error
    dll = table.dll
    for name in ("SetPushConsumerMessageTrace", "SetPushConsumerMaxCacheMessageSize"):
        getattr(dll, name).argtypes = [ctypes.c_void_p, ctypes.c_int]
    for name in _STATUS_ALONE:
        getattr(dll, name).restype = ctypes.c_int
    _self_check(dll)
    _keep_the_gil(dll)
    return table


def _self_check(dll: Any) -> None:
    try:
        get_body = getattr(dll, _GET_BODY)
    except AttributeError as error:
        raise NativeLibraryError(
            "this build of the native library has no exact body accessor, bodies with NUL bytes would "
            "arrive cut; run: rmq-txn native install"
        ) from error
    get_body.argtypes = [ctypes.c_void_p]
    get_body.restype = ctypes.POINTER(_CxxString)
    handle = dll.CreateMessage(b"self-check")
    try:
        dll.SetByteMessageBody(handle, _SELF_CHECK_BODY, len(_SELF_CHECK_BODY))
        got = _body(dll, handle)
    finally:
        dll.DestroyMessage(handle)
    if got != _SELF_CHECK_BODY:
        raise NativeLibraryError(
            f"this build of the native library returns wrong bodies ({len(got)} bytes instead of "
            f"{len(_SELF_CHECK_BODY)}); run: rmq-txn native install"
        )


def _keep_the_gil(dll: Any) -> None:
    keeping = ctypes.PyDLL(None, handle=dll._handle)  # noqa: SLF001 - documented, underscore and all
    for name in _KEEPING_THE_GIL:
        function, known = getattr(keeping, name), getattr(dll, name)
        function.argtypes, function.restype = known.argtypes, known.restype
        setattr(dll, name, function)


def _body(dll: Any, handle: int) -> bytes:
    text = getattr(dll, _GET_BODY)(handle).contents
    return ctypes.string_at(text.data, text.size) if text.size else b""


def pull_synchronously(handle: int, threads: int) -> None:
    """
    Make a consumer pull with one thread a queue instead of asynchronously.

    The asynchronous pull keeps one callback a queue and, when the queue was lost in a rebalance and
    comes back, goes on using it for the request that was dropped: the queue stands still until the
    process ends (apache/rocketmq-client-cpp#293; docs/decisions/0004).

    The synchronous pull forgets to ask the broker to hold the question while there is nothing, and
    so asks without a pause. Every pull carries the subscription flag, and the flags are variables:
    we let the one bring the other along, for the whole process. Threads in a long poll then cost
    memory, not time.

    Raises:
        NativeLibraryError: this build has no such switches.
    """
    dll = ffi().dll
    try:
        set_async, set_threads = getattr(dll, _SET_ASYNC_PULL), getattr(dll, _SET_PULL_THREADS)
        subscription = ctypes.c_int.in_dll(dll, _FLAG_SUBSCRIPTION)
        suspend = ctypes.c_int.in_dll(dll, _FLAG_SUSPEND)
    except (AttributeError, ValueError) as error:
        raise NativeLibraryError(
            "this build of the native library can't pull synchronously, queues would stand still "
            "after a rebalance; run: rmq-txn native install"
        ) from error
    set_async.argtypes, set_async.restype = [ctypes.c_void_p, ctypes.c_bool], None
    set_threads.argtypes, set_threads.restype = [ctypes.c_void_p, ctypes.c_int], None
    subscription.value |= suspend.value
    set_async(handle, False)
    set_threads(handle, threads)


def check_status(status: int) -> str | None:
    """Return what the library says of a failed call, None for a successful one."""
    if int(status) == 0:
        return None
    text = ffi().dll.GetLatestErrorMessage() or b""
    return f"{text.decode('utf-8', 'replace').strip() or 'no text'} (status {int(status)})"


def make_message(message: Outbound) -> int:
    """
    Make the native form of a message for one send; the caller destroys it.

    One a send: a send leaves its marks in the object, and a second one would vanish (docs/hazards.md, A3).
    Nothing is None here: the library aborts the process at None (B4).
    """
    dll = ffi().dll
    handle: int = dll.CreateMessage(message.topic.encode())
    try:
        dll.SetByteMessageBody(handle, message.body, len(message.body))
        if message.key is not None:
            dll.SetMessageKeys(handle, message.key.encode())
        if message.tag is not None:
            dll.SetMessageTags(handle, message.tag.encode())
        for name, value in message.properties.items():
            dll.SetMessageProperty(handle, name.encode(), value.encode())
    except BaseException:
        dll.DestroyMessage(handle)
        raise
    return handle


def read_property(handle: int, name: str) -> str:
    """Read one property; an absent one and an empty one are both empty (docs/hazards.md, D)."""
    value: bytes | None = ffi().dll.GetMessageProperty(handle, name.encode())
    return (value or b"").decode("utf-8", "replace")


def read_properties(handle: int, names: tuple[str, ...] = OWN_PROPERTIES) -> dict[str, str]:
    """Read those of these properties that are there; the ones of this package, if none are named."""
    found = {name: read_property(handle, name) for name in names}
    return {name: value for name, value in found.items() if value}


def read_delivery(handle: int, extra_properties: tuple[str, ...]) -> Delivery:
    """Copy a received message; the pointer is valid inside its callback only."""
    dll = ffi().dll
    properties = read_properties(handle)
    names = (*filter(None, read_property(handle, PROPERTY_NAMES).split(",")), *extra_properties)
    for name in names:
        if value := read_property(handle, name):
            properties[name] = value
    return Delivery(
        topic=dll.GetMessageTopic(handle).decode("utf-8", "backslashreplace"),
        body=_body(dll, handle),
        # Escaped, not replaced: ids that are no UTF-8 stay different from each other.
        message_id=(dll.GetMessageId(handle) or b"").decode("utf-8", "backslashreplace"),
        tag=(dll.GetMessageTags(handle) or b"").decode("utf-8", "replace") or None,
        key=(dll.GetMessageKeys(handle) or b"").decode("utf-8", "replace") or None,
        redeliveries=dll.GetMessageReconsumeTimes(handle),
        born_milliseconds=dll.GetMessageBornTimestamp(handle),
        stored_milliseconds=dll.GetMessageStoreTimestamp(handle),
        properties=properties,
    )


def read_place(handle: int) -> tuple[str, int] | None:
    """
    Return the broker that stores a received message, `host:port`, and the commit log offset there.

    None if the library does not say it in the form we know: four bytes of address, four of port and
    eight of offset, as hex characters.
    """
    dll = ffi().dll
    text = getattr(dll, _GET_OFFSET_ID)
    text.argtypes, text.restype = [ctypes.c_void_p], ctypes.POINTER(_CxxString)
    found = text(handle).contents
    place = ctypes.string_at(found.data, found.size)
    if len(place) != 32 or not set(place) <= set(b"0123456789ABCDEFabcdef"):
        return None
    *host, port, offset = struct.unpack(">4BIQ", bytes.fromhex(place.decode()))
    if offset != dll.GetMessageCommitLogOffset(handle):
        return None
    return f"{'.'.join(map(str, host))}:{port}", offset


def nothing_escapes(safe: int, what: str) -> Callable[[_F], _F]:
    """
    Wrap the body of a native callback: whatever it raises becomes a log line and the answer `safe`.

    An exception that leaves a ctypes callback makes the answer whatever was in memory, which can
    be 0: COMMIT, or CONSUME_SUCCESS (docs/hazards.md, A4). Only a plain int is let through.
    """

    def decorate(body: _F) -> _F:
        @functools.wraps(body)
        def guarded(*args: Any) -> int:
            try:
                answer = body(*args)
                if type(answer) is int:
                    return answer
                log.error(
                    "a native callback gave no answer, the safe one is used", what=what, got=repr(answer)
                )
            except BaseException:  # this is the boundary, nothing may pass
                log.exception("a native callback failed, the safe answer is used", what=what, answer=safe)
            return safe

        return guarded  # type: ignore[return-value]

    return decorate
