"""
Messages as a broker stores them, read without the native client: what it dies on can be looked at.

The layout is that of MessageDecoder.java, the flags are those of MessageSysFlag.java (5.4.0).
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import OWN_PROPERTIES, PROPERTY_NAMES
from rmq_txn.message import Outbound
from rmq_txn.remoting.wire import MalformedAnswerError

COMPRESSED: Final = 1
BORN_HOST_V6: Final = 1 << 4
STORE_HOST_V6: Final = 1 << 5
_TYPE_SHIFT: Final = 8
_TYPE_MASK: Final = 7
# 0 is what producers before 5.0 write; they had zlib only.
COMPRESSIONS: Final[Mapping[int, str]] = {0: "zlib", 1: "LZ4", 2: "ZSTD", 3: "zlib"}

MAX_PLAIN_BYTES: Final = 64 * 1024 * 1024
"""A body that inflates to more is not read: 4 MiB of zlib can hold 4 GiB."""

_MAGIC_V1: Final = 0xDAA320A7
_MAGIC_V2: Final = 0xDAA320AB  # the length of the topic takes two bytes, not one


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a queue. The body is as stored, compressed or not."""

    topic: str
    queue: int
    offset: int
    commit_log_offset: int
    sys_flag: int
    born_milliseconds: int
    born_host: str
    stored_milliseconds: int
    redeliveries: int
    body: bytes = field(repr=False)
    properties: Mapping[str, str] = field(repr=False)

    @property
    def message_id(self) -> str:
        """The id that its producer was told."""
        return self.properties.get("UNIQ_KEY", "")

    def publisher_properties(self, *more: str) -> dict[str, str]:
        """Return what an rmq_txn producer gave it, the user's properties and ours, and `more` by name."""
        names = (*OWN_PROPERTIES, *self.properties.get(PROPERTY_NAMES, "").split(","), *more)
        return {name: self.properties[name] for name in names if self.properties.get(name)}

    @property
    def compression(self) -> str:
        """What the body is compressed with, by its flags; empty if it is not."""
        if not self.sys_flag & COMPRESSED:
            return ""
        kind = self.sys_flag >> _TYPE_SHIFT & _TYPE_MASK
        return COMPRESSIONS.get(kind, f"type {kind}")

    @property
    def plain_body(self) -> bytes:
        """
        The body as its producer sent it.

        Raises:
            InvalidMessageError: it is compressed with something else than zlib, or too large.
        """
        if not self.sys_flag & COMPRESSED:
            return self.body
        body = _inflated(self.body)
        if body is None:
            raise InvalidMessageError(f"message {self.message_id!r} can't be read: {self.undecodable}")
        return body

    @property
    def undecodable(self) -> str:
        """
        Why the native client dies on this message, empty if it does not (docs/hazards.md, B2).

        It calls zlib for every compressed body, whatever its type says, and so does this.
        """
        if not self.sys_flag & COMPRESSED:
            return ""
        try:
            if _inflated(self.body) is not None:
                return ""
        except InvalidMessageError:
            return ""  # too large for us; the client reads it if it has the memory
        if self.compression == "zlib":
            return "its body is flagged as compressed with zlib and is not"
        return f"its body is compressed with {self.compression}, the client knows only zlib"

    def is_copy_of(self, message: Outbound) -> bool:
        """
        Whether consumers get the same of both; a broker adds properties of its own.

        An id proves nothing: who may send to a topic can repeat one that he read.
        """
        properties = {**message.properties, "KEYS": message.key or "", "TAGS": message.tag or ""}
        if any(self.properties.get(name, "") != value for name, value in properties.items()):
            return False
        try:
            return self.plain_body == message.body
        except InvalidMessageError:  # compressed with what our producers don't use
            return False

    def is_same_as(self, half: StoredMessage) -> bool:
        """Whether it is what a broker made of a half message, by the bytes, if a body can't be read."""
        names = (PROPERTY_NAMES, "KEYS", "TAGS")
        return (self.body, self.compression, self.publisher_properties(*names)) == (
            half.body,
            half.compression,
            half.publisher_properties(*names),
        )

    def __str__(self) -> str:
        shown = {
            "id": self.message_id,
            "keys": self.properties.get("KEYS", ""),
            "tags": self.properties.get("TAGS", ""),
            "from": self.born_host,
            "body": f"{len(self.body)} bytes",
            "compression": self.compression or "none",
        }
        return ", ".join(f"{name} {value}" for name, value in shown.items() if value)


def _inflated(body: bytes) -> bytes | None:
    """
    Return what a body becomes, None if it is not zlib.

    Raises:
        InvalidMessageError: more than `MAX_PLAIN_BYTES`, of which no more were made.
    """
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(body, MAX_PLAIN_BYTES + 1)
    except zlib.error:
        return None
    if len(plain) > MAX_PLAIN_BYTES:
        raise InvalidMessageError(
            f"its body of {len(body)} bytes inflates to more than {MAX_PLAIN_BYTES} bytes, that is the limit"
        )
    return plain if inflater.eof else None


def read_messages(data: bytes) -> list[StoredMessage]:
    """
    Read the body of the answer to a pull.

    Raises:
        MalformedAnswerError: it is not what a broker of 4.x or 5.x sends.
    """
    found, start = [], 0
    try:
        while start < len(data):
            (size,) = struct.unpack_from(">i", data, start)
            if size <= 0 or start + size > len(data):
                raise MalformedAnswerError(f"a message of {size} bytes, {len(data) - start} are there")
            found.append(_read(data[start : start + size]))
            start += size
    except (struct.error, UnicodeDecodeError) as error:
        raise MalformedAnswerError(f"a message that can't be read: {error}") from error
    return found


def _read(data: bytes) -> StoredMessage:
    magic, _crc, queue, _flag, offset, commit_log_offset, sys_flag, born = struct.unpack_from(
        ">IIiiqqiq", data, 4
    )
    if magic not in (_MAGIC_V1, _MAGIC_V2):
        raise MalformedAnswerError(f"a message with the magic number {magic:#x}")
    at = 48
    host = 16 if sys_flag & BORN_HOST_V6 else 4
    (port,) = struct.unpack_from(">i", data, at + host)
    address = ipaddress.ip_address(data[at : at + host])
    born_host = f"[{address}]:{port}" if host == 16 else f"{address}:{port}"
    at += host + 4
    (stored,) = struct.unpack_from(">q", data, at)
    at += 8
    at += (16 if sys_flag & STORE_HOST_V6 else 4) + 4
    (redeliveries,) = struct.unpack_from(">i", data, at)
    at += 4 + 8  # and the offset of its half message
    body, at = _take(data, at, ">i")
    topic, at = _take(data, at, ">B" if magic == _MAGIC_V1 else ">H")
    properties, at = _take(data, at, ">H")
    pairs = (item.partition("\x01") for item in properties.decode(errors="backslashreplace").split("\x02"))
    return StoredMessage(
        topic=topic.decode(),
        queue=queue,
        offset=offset,
        commit_log_offset=commit_log_offset,
        sys_flag=sys_flag,
        born_milliseconds=born,
        born_host=born_host,
        stored_milliseconds=stored,
        redeliveries=redeliveries,
        body=body,
        properties={name: value for name, mark, value in pairs if mark},
    )


def _take(data: bytes, at: int, form: str) -> tuple[bytes, int]:
    (size,) = struct.unpack_from(form, data, at)
    at += struct.calcsize(form)
    if not 0 <= size <= len(data) - at:
        raise MalformedAnswerError(f"a part of {size} bytes in a message with {len(data) - at} left")
    return data[at : at + size], at + size
