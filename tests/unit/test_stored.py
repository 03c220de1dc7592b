"""Stored messages, read byte by byte without the native client."""

from __future__ import annotations

import socket
import struct
import tracemalloc
import zlib

import pytest

from rmq_txn.errors import InvalidMessageError
from rmq_txn.remoting.dead_letters import DeadLetter
from rmq_txn.remoting.stored_message import (
    BORN_HOST_V6,
    COMPRESSED,
    MAX_PLAIN_BYTES,
    STORE_HOST_V6,
    read_messages,
)
from rmq_txn.remoting.wire import MalformedAnswerError

LZ4, ZSTD, ZLIB = 1 << 8, 2 << 8, 3 << 8


def stored(body: bytes = b"{}", flags: int = 0, *, offset: int = 7, magic: int = 0xDAA320A7) -> bytes:
    """Return a message as MessageDecoder.java lays it out."""

    def host(flag: int) -> bytes:
        address = socket.inet_pton(socket.AF_INET6, "::1") if flags & flag else bytes([127, 0, 0, 1])
        return address + struct.pack(">i", 5000)

    properties = b"UNIQ_KEY\x01AB12\x02KEYS\x01order-1\x02"
    rest = struct.pack(">IIiiqqiq", magic, 0, 2, 0, offset, 4096, flags, 1)
    rest += host(BORN_HOST_V6) + struct.pack(">q", 1) + host(STORE_HOST_V6) + struct.pack(">iq", 3, 0)
    rest += struct.pack(">i", len(body)) + body
    rest += struct.pack(">B" if magic == 0xDAA320A7 else ">H", 8) + b"transfer"
    rest += struct.pack(">H", len(properties)) + properties
    return struct.pack(">i", 4 + len(rest)) + rest


@pytest.mark.parametrize("magic", [0xDAA320A7, 0xDAA320AB])
@pytest.mark.parametrize("flags", [0, BORN_HOST_V6, STORE_HOST_V6, BORN_HOST_V6 | STORE_HOST_V6])
def test_every_field_is_found_in_every_layout(magic: int, flags: int) -> None:
    """Two versions of the layout, and hosts of two lengths."""
    first, second = read_messages(stored(b"one", flags, magic=magic) + stored(b"two", offset=8))
    assert (first.topic, first.queue, first.offset, first.commit_log_offset) == ("transfer", 2, 7, 4096)
    assert (first.body, first.message_id) == (b"one", "AB12")
    assert (first.born_milliseconds, first.redeliveries) == (1, 3)
    assert first.born_host == ("[::1]:5000" if flags & BORN_HOST_V6 else "127.0.0.1:5000")
    assert (second.offset, second.body) == (8, b"two")
    assert "id AB12, keys order-1" in str(first)


@pytest.mark.parametrize(
    ("flags", "body", "compression", "undecodable"),
    [
        (0, b"plain", "", ""),
        (ZSTD, b"plain", "", ""),  # not compressed, whatever the type says
        (COMPRESSED, zlib.compress(b"x"), "zlib", ""),  # before 5.0
        (COMPRESSED | ZLIB, zlib.compress(b"x" * 300_000), "zlib", ""),
        (COMPRESSED | ZLIB, b"not zlib", "zlib", "flagged as compressed with zlib and is not"),
        (COMPRESSED | ZLIB, zlib.compress(b"x" * 9000)[:-9], "zlib", "flagged as compressed with zlib"),
        (COMPRESSED | LZ4, b"\x04\x22\x4d\x18", "LZ4", "compressed with LZ4, the client knows only zlib"),
        (COMPRESSED | ZSTD, b"\x28\xb5\x2f\xfd", "ZSTD", "compressed with ZSTD, the client knows only"),
        (COMPRESSED | 5 << 8, b"?", "type 5", "compressed with type 5"),
    ],
)
def test_what_the_native_client_dies_on_is_told_from_what_it_reads(
    flags: int, body: bytes, compression: str, undecodable: str
) -> None:
    """By flags and body, as the client does."""
    (message,) = read_messages(stored(body, flags))
    assert message.compression == compression
    assert undecodable in message.undecodable
    assert bool(undecodable) == bool(message.undecodable)


def test_a_small_body_that_becomes_gigabytes_is_refused_and_not_made() -> None:
    """No list needs it; the client reads it if it has the memory, so it is no culprit."""
    packed = zlib.compressobj(9)
    bomb = b"".join(packed.compress(bytes(2**20)) for _ in range(65)) + packed.flush()
    (message,) = read_messages(stored(bomb, COMPRESSED | ZLIB))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessageError, match=f"inflates to more than {MAX_PLAIN_BYTES} bytes"):
            _ = message.plain_body
        assert message.undecodable == ""
        assert DeadLetter(message, "h:1", 0).topic == ""
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_PLAIN_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        stored()[:-1],
        stored() + b"\0\0",
        stored(magic=0xDAA320A0),
        struct.pack(">i", 0),
        struct.pack(">i", 20) + stored()[4:20],
        stored().replace(struct.pack(">i", 2) + b"{}", struct.pack(">i", 9999) + b"{}"),
    ],
)
def test_garbage_is_an_error_of_its_own_kind(data: bytes) -> None:
    """Never an IndexError, never a wrong message."""
    with pytest.raises(MalformedAnswerError):
        read_messages(data)
