"""A producer of another language: sends what the native client would not, straight to the broker."""

from __future__ import annotations

import json
import socket
import struct
import time
import zlib

from rmq_txn.identity import new_txn_id
from rmq_txn.remoting import wire

_SEND_MESSAGE = 10
_HEART_BEAT = 34
COMPRESSED, LZ4, ZSTD, ZLIB = 1, 1 << 8, 2 << 8, 3 << 8


def zstd(content: bytes) -> bytes:
    """Return a ZSTD frame (RFC 8878) with one raw block: valid, and no compressor is needed."""
    assert len(content) < 256
    return (
        b"\x28\xb5\x2f\xfd\x20"
        + bytes([len(content)])
        + struct.pack("<I", len(content) << 3 | 1)[:3]
        + content
    )


def send(broker: str, topic: str, queue: int, content: bytes, flags: int = 0, *, key: str = "k") -> int:
    """Store a message in one queue of a topic, its body as the flags say; return its offset."""
    body = {0: lambda: content, COMPRESSED | ZLIB: lambda: zlib.compress(content)}.get(
        flags, lambda: zstd(content)
    )()
    properties = {"UNIQ_KEY": new_txn_id().upper(), "KEYS": key, "WAIT": "true"}
    header = {
        "code": _SEND_MESSAGE,
        "language": "JAVA",
        "version": 0,
        "opaque": 1,
        "flag": 0,
        "extFields": {
            "producerGroup": "foreign",
            "topic": topic,
            "defaultTopic": "TBW102",
            "defaultTopicQueueNums": "4",
            "queueId": str(queue),
            "sysFlag": str(flags),
            "bornTimestamp": str(int(time.time() * 1000)),
            "flag": "0",
            "properties": "".join(f"{name}\x01{value}\x02" for name, value in properties.items()),
            "reconsumeTimes": "0",
            "unitMode": "false",
            "batch": "false",
        },
        "serializeTypeCurrentRPC": "JSON",
    }
    data = json.dumps(header).encode()
    frame = struct.pack(">II", 4 + len(data) + len(body), len(data)) + data + body
    host, _, port = broker.rpartition(":")
    answer, _body = wire.exchange(host, int(port), 5.0, frame)
    assert answer["code"] == 0, answer
    fields = wire.as_object(answer["extFields"], "extFields")
    return int(wire.as_text(fields, "queueOffset"))


def vanish(broker: str, group: str, topic: str, client_id: str) -> None:
    """Tell a broker of a consumer and be gone before it can answer: a client that dies at its start."""
    consumer = {
        "groupName": group,
        "consumeType": "CONSUME_ACTIVELY",
        "messageModel": "CLUSTERING",
        "consumeFromWhere": "CONSUME_FROM_LAST_OFFSET",
        "subscriptionDataSet": [{"topic": topic, "subString": "*", "subVersion": 1}],
    }
    beat = {"clientID": client_id, "producerDataSet": [], "consumerDataSet": [consumer]}
    host, _, port = broker.rpartition(":")
    with socket.create_connection((host, int(port)), 5.0) as connection:
        connection.sendall(wire.encode(_HEART_BEAT, {}, json.dumps(beat).encode()))
