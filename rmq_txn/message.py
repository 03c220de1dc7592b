"""Messages as values: what a user publishes, what goes to a broker, what a handler receives."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import (
    PROPERTY_NAMES,
    PROPERTY_OWNER,
    PROPERTY_POSITION,
    PROPERTY_STAMP,
    PROPERTY_TXN_ID,
    dedup_key,
    foreign_dedup_key,
    former_dedup_key,
    is_owner,
    is_position,
    is_txn_id,
)

JSON: TypeAlias = "Mapping[str, JSON] | list[JSON] | tuple[JSON, ...] | str | int | float | bool | None"

MAX_BODY_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""The broker's default `maxMessageSize` is 4 MiB for body, properties and frame together."""
MAX_PROPERTIES_BYTES = 24_000
"""
As stored: each name twice, since a list of the names goes with them, the values, and the marks between.
The broker stores at most 32,767, some of them its own, and refuses the message otherwise.
"""
_PROPERTY_MARKS = 3
MAX_TOPIC_CHARACTERS = 127
"""The native decoder reads the length as a signed byte (docs/hazards.md, D)."""
MAX_GROUP_CHARACTERS = 120
"""`%RETRY%` and the group name together must fit a topic."""
MAX_KEY_CHARACTERS = 255
SCOUT_GROUP = "rmq_txn_scout"
"""The producer group of what meets the brokers before each producer does; docs/decisions/0043."""

# Of RocketMQ's servers, tools and clients (MixAll, TopicValidator), or of this package.
_RESERVED_GROUPS = frozenset(
    [
        "DEFAULT_PRODUCER",
        "DEFAULT_CONSUMER",
        "CLIENT_INNER_PRODUCER",
        "TOOLS_CONSUMER",
        "SCHEDULE_CONSUMER",
        "FILTERSRV_CONSUMER",
        "__MONITOR_CONSUMER",
        "SELF_TEST_P_GROUP",
        "SELF_TEST_C_GROUP",
        "CID_ONS-HTTP-PROXY",
        "CID_ONSAPI_OWNER",
        "CID_ONSAPI_PULL",
        "CID_ONSAPI_PERMISSION",
        "CID_SYS_RMQ_TRANS",
    ]
) | {SCOUT_GROUP}
_RESERVED_GROUP_PREFIXES = ("CID_RMQ_SYS_", "_INNER_TRACE_PRODUCER")
_RESERVED_TOPICS = frozenset(
    [
        "TBW102",
        "SCHEDULE_TOPIC_XXXX",
        "BenchmarkTest",
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
        "RMQ_SYS_TRACE_TOPIC",
        "TRANS_CHECK_MAX_TIME_TOPIC",
        "SELF_TEST_TOPIC",
        "OFFSET_MOVED_EVENT",
        "CHECKPOINT_TOPIC",
    ]
)
_RESERVED_TOPIC_PREFIXES = ("rmq_sys_", "RMQ_SYS_")

_NAME = re.compile(r"[A-Za-z0-9_-]+")
# The client writes properties as name \x01 value \x02, ends strings at \x00 (docs/hazards.md, D).
_BREAKS_PROPERTIES = re.compile(r"[\x00-\x02]")
_RESERVED_PREFIXES = ("__", "TIMER_", "TRAN", "POP_", "INNER_", "rmq_txn_")
# MessageConst of RocketMQ 5.4, and what other clients of it use.
_RESERVED_NAMES = """
    KEYS TAGS WAIT DELAY RETRY_TOPIC REAL_TOPIC REAL_QID PGROUP MIN_OFFSET MAX_OFFSET BUYER_ID TTL CRC32
    ORIGIN_MESSAGE_ID TRANSFER_FLAG CORRECTION_FLAG MQ2_FLAG RECONSUME_TIME MSG_REGION TRACE_ON DUP_INFO
    UNIQ_KEY EXTEND_UNIQ_INFO MAX_RECONSUME_TIMES CONSUME_START_TIME CLUSTER BROKER BNAME 1ST_POP_TIME
    CHECK_IMMUNITY_TIME_IN_SECONDS INSTANCE_ID CORRELATION_ID REPLY_TO_CLIENT MSG_TYPE ARRIVE_TIME
    PUSH_REPLY_TIME EXPIRE_TIME IS_TRANS LMQ_DISPATCH
"""
_RESERVED = frozenset(_RESERVED_NAMES.split())


_MAPPING = (dict, Mapping)  # an abstract class decides in Python, so the usual one comes first


def check_topic(topic: object) -> str:
    """Return `topic` if a broker and every client can carry it."""
    name = _check_name("topic", topic, MAX_TOPIC_CHARACTERS)
    if name in _RESERVED_TOPICS or name.startswith(_RESERVED_TOPIC_PREFIXES):
        raise InvalidMessageError(f"topic {name!r} is one of RocketMQ's own, choose another name")
    return name


def check_group(group: object) -> str:
    """Return `group` if a broker and every client can carry it."""
    name = _check_name("group", group, MAX_GROUP_CHARACTERS)
    if name in _RESERVED_GROUPS or name.startswith(_RESERVED_GROUP_PREFIXES):
        raise InvalidMessageError(
            f"group {name!r} is used by RocketMQ or by this package itself, choose another name"
        )
    return name


def _check_name(what: str, name: object, limit: int) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > limit:
        raise InvalidMessageError(
            f"{what} is {name!r}, allowed are 1 to {limit} characters of a-z, A-Z, 0-9, _ and -"
        )
    return name


def _check_text(what: str, text: object, limit: int = MAX_KEY_CHARACTERS) -> str:
    """Refuse what the client loses silently: control characters, emptiness, lone surrogates."""
    if not isinstance(text, str) or not 0 < len(text) <= limit:
        raise InvalidMessageError(f"{what} is {text!r}, allowed is text of 1 to {limit} characters")
    if _BREAKS_PROPERTIES.search(text):
        raise InvalidMessageError(
            f"{what} {text!r} contains one of the characters \\x00 \\x01 \\x02, "
            "which the wire format uses as separators"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessageError(f"{what} {text!r} is not valid unicode: {error.reason}") from error
    return text


def check_tag(tag: object) -> str:
    """Return `tag` if it can be sent and subscribed to."""
    text = _check_text("tag", tag)
    if text == "*" or "|" in text or text != text.strip():
        raise InvalidMessageError(
            f"tag is {text!r}; '*', '|' and surrounding spaces are subscription syntax, not a tag"
        )
    return text


def _check_key(key: object) -> str:
    text = _check_text("key", key)
    if any(character.isspace() for character in text):
        raise InvalidMessageError(f"key is {text!r}; the broker splits keys at spaces, use - or _")
    return text


def _check_properties(properties: object) -> dict[str, str]:
    if not isinstance(properties, _MAPPING):
        raise InvalidMessageError(
            f"properties are {type(properties).__name__}, allowed is a mapping of text to text"
        )
    size = 0
    for name, value in properties.items():
        _check_text("property name", name)
        if "," in name:
            raise InvalidMessageError(f"property name {name!r} contains a comma, choose another name")
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise InvalidMessageError(
                f"property {name!r} is reserved by RocketMQ or by this package; choose another name"
                " (delay levels and timers make a transactional message vanish)"
            )
        _check_text(f"property {name!r}", value, MAX_PROPERTIES_BYTES)
        size += 2 * len(name.encode()) + len(value.encode()) + _PROPERTY_MARKS
    if size > MAX_PROPERTIES_BYTES:
        raise InvalidMessageError(
            f"properties are {size} bytes together (names count twice, and {_PROPERTY_MARKS} more for each), "
            f"the limit is {MAX_PROPERTIES_BYTES}"
        )
    return dict(properties)


def _plain_mapping(value: object) -> dict[Any, Any]:
    """Let JSON take any mapping, as the type of `body` promises; it knows only `dict`."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON")


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain_mapping)


def _encode(body: object) -> bytes:
    if isinstance(body, bytes):
        encoded = body
    elif isinstance(body, _MAPPING):
        try:
            encoded = _JSON.encode(body).encode()
        except (TypeError, ValueError, RecursionError) as error:
            # ValueError covers NaN, circular references and lone surrogates (UnicodeEncodeError)
            raise InvalidMessageError(f"body can't be written as JSON: {error}") from error
    else:
        raise InvalidMessageError(
            f"body is {type(body).__name__}, allowed are a mapping (sent as JSON) or bytes"
        )
    if not 0 < len(encoded) <= MAX_BODY_BYTES:
        raise InvalidMessageError(f"body is {len(encoded)} bytes, allowed are 1 to {MAX_BODY_BYTES} bytes")
    return encoded


@dataclass(frozen=True, slots=True)
class Message:
    """
    What a user publishes. Checked and encoded when it is made; later changes to `body` are not sent.

    Args:
        topic: 1 to 127 characters of a-z A-Z 0-9 _ -.
        body: a mapping, sent as JSON in UTF-8, or bytes, sent as they are. 1 byte to 4 MiB - 64 KiB.
        key: business key (`KEYS`), an index for people who search; never used to find duplicates.
        tag: what consumers can subscribe to inside a topic.
        properties: text to text, visible to consumers; 24,000 bytes together, names counted twice.

    Raises:
        InvalidMessageError: something a client or the broker would refuse, cut or lose silently.
    """

    topic: str
    body: Mapping[str, JSON] | bytes = field(repr=False)
    key: str | None = None
    tag: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    encoded: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if self.key is not None:
            _check_key(self.key)
        if self.tag is not None:
            check_tag(self.tag)
        object.__setattr__(self, "properties", _check_properties(self.properties))
        object.__setattr__(self, "encoded", _encode(self.body))

    def outbound(self, *, txn_id: str, position: int, owner: str, stamp: str = "") -> Outbound:
        """Add the properties of this package: transaction, position in it (from 0), owner, its stamp."""
        own = {PROPERTY_TXN_ID: txn_id, PROPERTY_POSITION: str(position), PROPERTY_OWNER: owner}
        if stamp:
            own[PROPERTY_STAMP] = stamp
        if self.properties:
            own[PROPERTY_NAMES] = ",".join(self.properties)
        return Outbound(
            topic=self.topic,
            body=self.encoded,
            key=self.key,
            tag=self.tag,
            properties={**self.properties, **own},
        )


@dataclass(frozen=True, slots=True)
class Outbound:
    """What a transport sends: checked, encoded, with every property it needs."""

    topic: str
    body: bytes = field(repr=False)
    key: str | None
    tag: str | None
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    One delivery of a message to a handler. A copy: it stays valid after the handler returned.

    The same message may be delivered again, before, while or after this delivery is handled.
    """

    topic: str
    body: bytes = field(repr=False)
    message_id: str
    """The producer's unique key (`UNIQ_KEY`); the same in each redelivery. Not unique for ever."""
    tag: str | None = None
    key: str | None = None
    redeliveries: int = 0
    """How often the broker gave this message back; closing consumers and rebalancing count too."""
    born_milliseconds: int = 0
    """Unix milliseconds by the producer's clock when the message was sent."""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The properties of this package, and whichever of the user's the transport can read."""
    stored_milliseconds: int = 0
    """Unix milliseconds by the broker's clock when this delivery was stored; 0: the transport can't say."""
    txn_id: str | None = field(init=False, repr=False, compare=False)
    """Id of the transaction that published this message; None if another client sent it."""

    def __post_init__(self) -> None:
        txn_id = self.properties.get(PROPERTY_TXN_ID, "")
        ours = is_txn_id(txn_id) and is_position(self.properties.get(PROPERTY_POSITION, ""))
        object.__setattr__(self, "txn_id", txn_id if ours else None)

    def json(self) -> Any:
        """
        Read the body as JSON.

        Raises:
            ValueError: the body is not JSON in UTF-8 (`json.JSONDecodeError`, `UnicodeDecodeError`).
        """
        return json.loads(self.body)

    @property
    def dedup_key(self) -> str:
        """
        What makes two deliveries the same message.

        Ours: transaction, position in it, topic and owner. Other clients': topic and unique key. Never
        `key`, which is a business index: `order-1` created and `order-1` paid are two messages. What an
        operator sends again to the same topic, properties and all, is the same message.
        """
        owner = self.properties.get(PROPERTY_OWNER, "")
        if self.txn_id is None or not is_owner(owner):
            return foreign_dedup_key(self.topic, self.message_id)
        return dedup_key(self.txn_id, int(self.properties[PROPERTY_POSITION]), self.topic, owner)

    @property
    def former_dedup_key(self) -> str | None:
        """What `dedup_key` was in version 2 of our tables; None where that has not changed."""
        if self.txn_id is None:
            return None
        return former_dedup_key(self.txn_id, int(self.properties[PROPERTY_POSITION]))
