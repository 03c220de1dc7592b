"""
Frames of the RocketMQ remoting protocol: one request and one answer at a time on a TCP connection.

    length (4 bytes) | header length (3 bytes) after its type (1 byte) | header | body

`length` counts everything after itself. Headers are asked for as JSON (type 0); bodies are what
fastjson writes, which is JSON with unquoted integer keys now and then.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

_RESPONSE_FLAG: Final = 1
_JSON_HEADER: Final = 0
# V3_4_9 of MQVersion.java, the first for which a broker heeds how many redeliveries `send_back` asks for;
# below it the group's own retryMaxTimes holds (seen on 5.4.0). Nothing newer is promised to us.
_VERSION: Final = 121
# What servers accept by default; a longer "frame" is somebody else's protocol.
_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
# A connection carries one request at a time, so the number only tells the answer from requests of a server.
_OPAQUE: Final = 1

# A string (kept as it is, also one that never ends: else each quote in it is tried anew), or an
# integer that stands where a key must stand.
_STRING_OR_BARE_KEY = re.compile(r'"(?:[^"\\]|\\.)*"?|(?<=[{,])\s*(-?\d+)(?=\s*:)')
_OFFSET = re.compile(r"-?[0-9]{1,19}")


class MalformedAnswerError(ValueError):
    """The peer sent something that is not an answer in this protocol."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user of a broker that enforces access control."""

    access_key: str
    secret_key: str = field(repr=False)

    def sign(self, fields: Mapping[str, str], body: bytes) -> dict[str, str]:
        """Add who asks and the signature: HMAC-SHA1 over the values, by name, and the body."""
        signed = {**fields, "AccessKey": self.access_key}
        content = "".join(signed[name] for name in sorted(signed)).encode() + body
        digest = hmac.new(self.secret_key.encode(), content, hashlib.sha1).digest()
        return {**signed, "Signature": base64.b64encode(digest).decode()}


def encode(
    code: int,
    fields: Mapping[str, str],
    content: bytes = b"",
    credentials: Credentials | None = None,
) -> bytes:
    """Make the frame of one request."""
    if credentials is not None:
        fields = credentials.sign(fields, content)
    header = {
        "code": code,
        "language": "PYTHON",
        "version": _VERSION,
        "opaque": _OPAQUE,
        "flag": 0,
        "extFields": dict(fields),
        "serializeTypeCurrentRPC": "JSON",
    }
    data = json.dumps(header).encode()
    return struct.pack(">II", 4 + len(data) + len(content), len(data)) + data + content


def exchange(host: str, port: int, seconds: float, frame: bytes) -> tuple[dict[str, object], bytes]:
    """Send a frame and return header and body of its answer, all within `seconds`."""
    deadline = time.monotonic() + seconds
    with _connect(host, port, seconds) as connection:
        return _exchange(connection, deadline, frame)


class Line:
    """A connection that is kept from one exchange to the next. For one thread at a time, but `close`."""

    def __init__(self) -> None:
        self._kept: tuple[str, int, socket.socket] | None = None

    def exchange(self, host: str, port: int, seconds: float, frame: bytes) -> tuple[dict[str, object], bytes]:
        """
        As `exchange` of this module, over the connection that is kept, or a new one.

        A server closes what was idle for minutes, or ended meanwhile: then the frame goes over a new one,
        and the server may get it twice.
        """
        deadline = time.monotonic() + seconds
        kept, self._kept = self._kept, None
        if kept is not None:
            *peer, connection = kept
            if peer == [host, port]:
                with suppress(ConnectionError):
                    return self._over(host, port, connection, deadline, frame)
            connection.close()
        return self._over(host, port, _connect(host, port, _left(deadline)), deadline, frame)

    def _over(
        self, host: str, port: int, connection: socket.socket, deadline: float, frame: bytes
    ) -> tuple[dict[str, object], bytes]:
        try:
            answer = _exchange(connection, deadline, frame)
        except BaseException:
            connection.close()  # else a late answer would be taken for that of the next request
            raise
        self._kept = host, port, connection
        return answer

    def close(self) -> None:
        """End the connection, unless an exchange runs over it now. Idempotent, from any thread."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[2].close()


def _exchange(connection: socket.socket, deadline: float, frame: bytes) -> tuple[dict[str, object], bytes]:
    connection.settimeout(_left(deadline))
    connection.sendall(frame)
    while True:
        header, body = _receive_frame(connection, deadline)
        flag = header.get("flag")
        is_answer = isinstance(flag, int) and flag & _RESPONSE_FLAG
        if is_answer and header.get("opaque") == _OPAQUE:
            return header, body
        # Servers send requests of their own (a changed group, a check) on any connection.


def _connect(host: str, port: int, seconds: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=max(seconds, 0.001))
    except ValueError as exc:  # a label longer than 63 characters, say: no name that could be looked up
        raise OSError(f"{host!r} is no host name: {exc}") from exc


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _receive_frame(connection: socket.socket, deadline: float) -> tuple[dict[str, object], bytes]:
    (length,) = struct.unpack(">I", _receive(connection, 4, deadline))
    if not 4 <= length <= _MAX_FRAME_BYTES:
        raise MalformedAnswerError(f"a frame of {length} bytes, allowed is 4 to {_MAX_FRAME_BYTES}")
    frame = _receive(connection, length, deadline)
    (mark,) = struct.unpack_from(">I", frame)
    header_type, header_length = mark >> 24, mark & 0xFFFFFF
    if header_type != _JSON_HEADER:
        raise MalformedAnswerError(f"a header of type {header_type}, asked was JSON (0)")
    if header_length > length - 4:
        raise MalformedAnswerError(f"a header of {header_length} bytes in a frame of {length}")
    header = as_object(loads(frame[4 : 4 + header_length]), "header")
    return header, frame[4 + header_length :]


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        connection.settimeout(_left(deadline))
        chunk = connection.recv(size - len(received))
        if not chunk:
            raise ConnectionError(f"connection closed after {len(received)} of {size} bytes")
        received += chunk
    return bytes(received)


def loads(data: bytes) -> object:
    """Decode what fastjson wrote: JSON, but integer keys of Java maps may be unquoted."""
    try:
        text = data.decode()
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return json.loads(_STRING_OR_BARE_KEY.sub(_quoted_key, text))
    except (ValueError, RecursionError) as exc:
        raise MalformedAnswerError(f"not JSON: {data[:80]!r}") from exc


def _quoted_key(match: re.Match[str]) -> str:
    key = match.group(1)
    return match.group(0) if key is None else f'"{key}"'


def as_object(value: object, what: str) -> dict[str, object]:
    """Return `value` if it is a JSON object; `what` names it in the error."""
    if not isinstance(value, dict):
        raise MalformedAnswerError(f"{what} is {value!r:.80}, expected an object")
    return value


def as_list(fields: Mapping[str, object], key: str) -> list[object]:
    """Return the list under `key`, an empty one if it is absent."""
    value = fields.get(key)
    if value is None:  # fastjson leaves null fields out
        return []
    if not isinstance(value, list):
        raise MalformedAnswerError(f"{key} is {value!r:.80}, expected a list")
    return value


def as_text(fields: Mapping[str, object], key: str) -> str:
    """Return what stands under `key` as text, empty if it is absent."""
    value = fields.get(key)
    return "" if value is None else str(value)


def as_number(fields: Mapping[str, object], key: str) -> int:
    """Return the integer under `key`, 0 if it is absent."""
    value = fields.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedAnswerError(f"{key} is {value!r:.80}, expected an integer")
    return value


def as_offset(header: Mapping[str, object], key: str = "offset") -> int:
    """Return the offset that a header carries: a number of 64 bits, as text."""
    text = as_text(as_object(header.get("extFields") or {}, "extFields"), key)
    if not _OFFSET.fullmatch(text):
        raise MalformedAnswerError(f"the answer's {key} is {text!r:.80}")
    return int(text)


def as_endpoint(text: str) -> tuple[str, int]:
    """
    Split "host:port"; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is none.
    """
    host, separator, port = text.strip().rpartition(":")
    if not separator or not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"address is {text!r:.200}, allowed is 'host:port' with a port of 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)
