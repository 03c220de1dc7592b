"""Messages: what is refused, how it is said, what is sent, and what a delivery is known by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from rmq_txn import Delivery, Message
from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import (
    PROPERTY_NAMES,
    PROPERTY_OWNER,
    PROPERTY_POSITION,
    PROPERTY_TXN_ID,
    new_txn_id,
    owner_of,
)
from rmq_txn.message import (
    MAX_BODY_BYTES,
    MAX_KEY_CHARACTERS,
    MAX_PROPERTIES_BYTES,
    MAX_TOPIC_CHARACTERS,
    check_group,
    check_tag,
)

CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR
LONE_SURROGATE = "\ud800"


def refusal(**arguments: Any) -> str:
    """Return the text with which a message is refused; the rest of it is sound."""
    with pytest.raises(InvalidMessageError) as caught:
        Message(**{"topic": "transfer", "body": b"x", **arguments})
    return str(caught.value)


@pytest.mark.parametrize(
    "topic", ["", "a b", "a%s", "%RETRY%g", "a.b", "a/b", "主题", "a\n", "a" * 128, None, b"transfer", 7]
)
def test_a_topic_a_broker_or_client_can_not_carry_is_refused(topic: Any) -> None:
    """The text repeats the topic and says what is allowed."""
    text = refusal(topic=topic)
    assert f"topic is {topic!r}" in text
    assert "1 to 127 characters of a-z, A-Z, 0-9, _ and -" in text


def test_the_longest_topic_is_taken() -> None:
    """127 characters: the native decoder reads the length as a signed byte."""
    assert Message("t" * MAX_TOPIC_CHARACTERS, b"x").topic == "t" * 127


def test_a_group_leaves_room_for_the_prefix_of_its_retry_topic() -> None:
    """`%RETRY%` and the group together are a topic."""
    assert check_group("g" * 120) == "g" * 120
    with pytest.raises(InvalidMessageError, match=r"group is 'g+', allowed are 1 to 120 characters"):
        check_group("g" * 121)


@pytest.mark.parametrize("character", ["\x00", "\x01", "\x02"])
@pytest.mark.parametrize("where", ["key", "tag", "value", "name"])
def test_a_separator_of_the_wire_format_is_refused_everywhere(character: str, where: str) -> None:
    """The client would cut the text there, or lose the property, and say nothing."""
    text = f"a{character}b"
    arguments: dict[str, Any] = {
        "key": {"key": text},
        "tag": {"tag": text},
        "value": {"properties": {"name": text}},
        "name": {"properties": {text: "value"}},
    }[where]
    assert r"one of the characters \x00 \x01 \x02" in refusal(**arguments)


@pytest.mark.parametrize("where", ["key", "tag", "value", "name", "body"])
def test_a_lone_surrogate_is_refused_everywhere(where: str) -> None:
    """It has no form in UTF-8; found here, not as an encoding error inside a transaction."""
    arguments: dict[str, Any] = {
        "key": {"key": LONE_SURROGATE},
        "tag": {"tag": LONE_SURROGATE},
        "value": {"properties": {"name": LONE_SURROGATE}},
        "name": {"properties": {LONE_SURROGATE: "value"}},
        "body": {"body": {"name": LONE_SURROGATE}},
    }[where]
    assert "surrogates not allowed" in refusal(**arguments)


@pytest.mark.parametrize("what", ["key", "tag"])
@pytest.mark.parametrize("text", ["", "x" * 256, b"bytes", 5, True])
def test_a_key_or_tag_that_is_no_text_of_1_to_255_characters_is_refused(what: str, text: Any) -> None:
    """An empty one would vanish on the way; another type would abort the native client."""
    assert f"{what} is {text!r}, allowed is text of 1 to {MAX_KEY_CHARACTERS} characters" in refusal(
        **{what: text}
    )


@pytest.mark.parametrize("key", ["a b", " a", "a\tb", "a\u3000b", "a\n"])
def test_a_key_with_a_space_is_refused(key: str) -> None:
    """The broker splits KEYS at spaces."""
    assert f"key is {key!r}; the broker splits keys at spaces" in refusal(key=key)


@pytest.mark.parametrize("tag", ["*", "a|b", "a || b", " a", "a ", "\t"])
def test_a_tag_that_is_subscription_syntax_is_refused(tag: str) -> None:
    """It could be sent and never subscribed to."""
    assert f"tag is {tag!r}" in refusal(tag=tag)
    with pytest.raises(InvalidMessageError, match="subscription syntax"):
        check_tag(tag)


@pytest.mark.parametrize(
    "name",
    [
        *("DELAY", "__STARTDELIVERTIME", "TIMER_DELAY_SEC", "TIMER_DELIVER_MS", "TIMER_ANYTHING"),
        *("UNIQ_KEY", "KEYS", "TAGS", "WAIT", "PGROUP", "TRAN_MSG", "TRANSACTION_CHECK_TIMES"),
        *("__transactionId__", "CHECK_IMMUNITY_TIME_IN_SECONDS", "POP_CK", "INNER_NUM", "1ST_POP_TIME"),
        *(PROPERTY_TXN_ID, PROPERTY_OWNER, PROPERTY_POSITION, PROPERTY_NAMES, "rmq_txn_later"),
    ],
)
def test_a_reserved_property_is_refused(name: str) -> None:
    """A delay level or a timer makes a transactional message vanish; ours would be forged."""
    text = refusal(properties={name: "1"})
    assert f"property {name!r} is reserved" in text
    assert "choose another name" in text


@pytest.mark.parametrize("name", ["delay", "DELAYED", "Timer", "transfer", "uniq_key", "x-rmq_txn_id"])
def test_a_name_that_only_resembles_a_reserved_one_is_taken(name: str) -> None:
    """Names are compared exactly."""
    assert Message("transfer", b"x", properties={name: "1"}).properties == {name: "1"}


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        (["a"], "properties are list, allowed is a mapping of text to text"),
        (None, "properties are NoneType"),
        ({"a": ""}, "property 'a' is '', allowed is text of 1 to"),
        ({"a": 1}, "property 'a' is 1, allowed is text"),
        ({"a": b"1"}, "property 'a' is b'1', allowed is text"),
        ({"": "1"}, "property name is '', allowed is text of 1 to 255"),
        ({5: "1"}, "property name is 5, allowed is text"),
        ({"n" * 256: "1"}, "allowed is text of 1 to 255 characters"),
        ({"a,b": "1"}, "property name 'a,b' contains a comma"),
    ],
)
def test_a_property_that_would_be_lost_is_refused(properties: Any, said: str) -> None:
    """Empty values vanish, other types abort the client, a comma would split our list of names."""
    assert said in refusal(properties=properties)


def test_properties_are_limited_together_in_bytes_as_they_are_stored() -> None:
    """Names twice, since a list of them goes along, and the marks between; bytes, not characters."""
    limit = MAX_PROPERTIES_BYTES
    fits = Message("transfer", b"x", properties={"n": "x" * (limit - 5)})
    assert len(fits.properties["n"]) == limit - 5
    assert (
        f"properties are {limit + 1} bytes together (names count twice, and 3 more for each), "
        f"the limit is {limit}" in refusal(properties={"n": "x" * (limit - 4)})
    )
    assert f"properties are {limit * 3 // 2 + 5} bytes" in refusal(properties={"n": "积" * (limit // 2)})


@pytest.mark.parametrize(
    "properties",
    [{f"{n:05}" + "n" * 250: "v" for n in range(60)}, {f"{n:04}": "v" for n in range(3_000)}],
    ids=["long-names", "many-names"],
)
def test_names_that_the_broker_would_refuse_are_refused_when_the_message_is_made(
    properties: dict[str, str],
) -> None:
    """Their list doubles them: they passed, and each send failed with "safe to retry"."""
    assert sum(len(name) + len(value) for name, value in properties.items()) < MAX_PROPERTIES_BYTES
    assert "names count twice" in refusal(properties=properties)


def test_the_largest_properties_fit_what_the_broker_stores() -> None:
    """With our own and with its own: 32,767 bytes, each as name, mark, value, mark."""
    properties = {f"{n:05}": "v" for n in range(MAX_PROPERTIES_BYTES // 14)}
    message = Message("t" * 127, b"x", key="k" * 255, tag="g" * 255, properties=properties)
    owner = owner_of("g" * 120, "6f1c9a3e-0000-4000-8000-000000000000")
    sent = message.outbound(txn_id=new_txn_id(), position=31, owner=owner)
    size = sum(len(name) + len(value) + 2 for name, value in sent.properties.items())
    assert size + 2 * 1020 + 1000 + 3 * 127 + 120 < 32_767


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", f"body is 0 bytes, allowed are 1 to {MAX_BODY_BYTES} bytes"),
        (b"x" * (MAX_BODY_BYTES + 1), f"body is {MAX_BODY_BYTES + 1} bytes"),
        ({"a": "x" * MAX_BODY_BYTES}, f"body is {MAX_BODY_BYTES + 8} bytes"),
        ("text", "body is str, allowed are a mapping (sent as JSON) or bytes"),
        (bytearray(b"x"), "body is bytearray"),
        ([1], "body is list"),
        (None, "body is NoneType"),
        ({"a": float("nan")}, "body can't be written as JSON"),
        ({"a": float("inf")}, "body can't be written as JSON"),
        ({"a": {1, 2}}, "a value of type set has no form in JSON"),
        ({"a": b"x"}, "a value of type bytes has no form in JSON"),
        ({(1, 2): "a"}, "body can't be written as JSON"),
        (CIRCULAR, "Circular reference detected"),
    ],
    ids=range(13),
)
def test_a_body_that_can_not_be_sent_is_refused(body: Any, said: str) -> None:
    """What it is and what is allowed; never the body itself."""
    text = refusal(body=body)
    assert said in text
    assert len(text) < 200


def test_a_body_too_deep_for_json_is_refused() -> None:
    """The recursion limit is an answer about the body, not a crash of the caller."""
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert "body can't be written as JSON" in refusal(body=deep)
    while deep:  # freed level by level: the interpreter would recurse
        deep = deep["a"]


def test_the_largest_body_is_taken() -> None:
    """Exactly the limit."""
    assert len(Message("transfer", b"x" * MAX_BODY_BYTES).encoded) == MAX_BODY_BYTES


def test_a_mapping_is_sent_as_compact_utf8_json() -> None:
    """Java and Go services read it without this package."""
    assert Message("transfer", {"用户": "alice", "n": [1, None]}).encoded == (
        '{"用户":"alice","n":[1,null]}'.encode()
    )


def test_any_mapping_is_sent_as_an_object_nested_ones_too() -> None:
    """The type of `body` says Mapping, and `dict` is not the only one."""
    inner: Mapping[str, Any] = MappingProxyType({"b": 1})
    message = Message("transfer", MappingProxyType({"a": inner}))
    assert json.loads(message.encoded) == {"a": {"b": 1}}


def test_bytes_are_sent_as_they_are() -> None:
    """NUL bytes and invalid UTF-8 included."""
    assert Message("transfer", b"\x00\xff\x00").encoded == b"\x00\xff\x00"


def test_later_changes_of_body_and_properties_are_not_sent() -> None:
    """A message is encoded once, when it is made."""
    body, properties = {"amount": 1}, {"source": "web"}
    message = Message("transfer", body, properties=properties)
    body["amount"] = 2
    properties["source"] = "forged"
    properties["DELAY"] = "3"
    sent = message.outbound(txn_id=new_txn_id(), position=0, owner="o")
    assert json.loads(sent.body) == {"amount": 1}
    assert sent.properties["source"] == "web"
    assert "DELAY" not in sent.properties


def test_a_message_is_encoded_once() -> None:
    """Every outbound form carries the same bytes object, so a retry can't send something else."""
    message = Message("transfer", {"amount": 1})
    sent = [message.outbound(txn_id=new_txn_id(), position=n, owner="o") for n in range(2)]
    assert sent[0].body is message.encoded
    assert sent[1].body is message.encoded


def test_an_outbound_message_carries_transaction_position_owner_and_the_names_of_properties() -> None:
    """The native client can read a property only by its name."""
    txn_id = new_txn_id()
    sent = Message("transfer", b"x", key="k", tag="t", properties={"a": "1", "b": "2"}).outbound(
        txn_id=txn_id, position=3, owner="group@db"
    )
    assert (sent.topic, sent.body, sent.key, sent.tag) == ("transfer", b"x", "k", "t")
    assert sent.properties == {
        "a": "1",
        "b": "2",
        PROPERTY_TXN_ID: txn_id,
        PROPERTY_POSITION: "3",
        PROPERTY_OWNER: "group@db",
        PROPERTY_NAMES: "a,b",
    }


def test_without_user_properties_no_list_of_names_is_sent() -> None:
    """An empty property would vanish, or be read as something."""
    sent = Message("transfer", b"x").outbound(txn_id=new_txn_id(), position=0, owner="o")
    assert PROPERTY_NAMES not in sent.properties


def test_neither_body_nor_properties_appear_in_a_repr() -> None:
    """A repr ends in logs."""
    secret = {"card": "4111"}
    for shown in (
        repr(Message("transfer", secret, properties={"card": "4111"})),
        repr(Message("transfer", secret).outbound(txn_id=new_txn_id(), position=0, owner="o")),
        repr(Delivery("transfer", b"4111", "id", properties={"card": "4111"})),
    ):
        assert "4111" not in shown


def delivery(**properties: str) -> Delivery:
    """Return a delivery with the given properties of ours."""
    return Delivery("transfer", b"x", "AC10", properties={f"rmq_txn_{k}": v for k, v in properties.items()})


OWNER = owner_of("account-service", "6f1c9a3e-0000-4000-8000-000000000000")


def test_a_delivery_of_ours_is_known_by_transaction_position_topic_and_owner() -> None:
    """Not by the broker's id, which a retried send or a relay changes; the id stands first."""
    txn_id = new_txn_id()
    found = delivery(id=txn_id, n="2", owner=OWNER)
    assert found.txn_id == txn_id
    assert re.fullmatch(rf"{txn_id}\.2/transfer/[0-9a-f]{{16}}", found.dedup_key)
    assert found.dedup_key == replace(found, message_id="AC11", redeliveries=3).dedup_key


@pytest.mark.parametrize(
    "other",
    [
        {"topic": "audit"},
        {"properties": {"rmq_txn_id": "a" * 32, "rmq_txn_n": "1", "rmq_txn_owner": OWNER}},
        {"properties": {"rmq_txn_id": "b" * 32, "rmq_txn_n": "0", "rmq_txn_owner": OWNER}},
        {"properties": {"rmq_txn_id": "a" * 32, "rmq_txn_n": "0", "rmq_txn_owner": "audit@6f1c"}},
        {"properties": {"rmq_txn_id": "a" * 32, "rmq_txn_n": "0", "rmq_txn_owner": "nobody"}},
        {"properties": {"rmq_txn_id": "a" * 32, "rmq_txn_n": "0"}},
    ],
    ids=["topic", "position", "transaction", "owner", "no-owner", "without-owner"],
)
def test_a_message_that_differs_in_one_part_is_no_duplicate(other: dict[str, Any]) -> None:
    """Acknowledged as one, its handler was never called."""
    found = delivery(id="a" * 32, n="0", owner=OWNER)
    assert replace(found, **other).dedup_key != found.dedup_key


@pytest.mark.parametrize("size", [1, 127, 128, 250, 30_000])
@pytest.mark.parametrize("character", ["x", "积", "\ufffd"])
def test_a_key_fits_its_column_whatever_a_stranger_sends(size: int, character: str) -> None:
    """One that did not fit was never counted, never parked, and blocked the dead letters behind it."""
    long = character * size
    strange = Delivery(long, b"x", long, properties={"rmq_txn_id": "a" * 32, "rmq_txn_n": "9999"})
    ours = replace(strange, properties={**strange.properties, "rmq_txn_owner": OWNER})
    for found in (strange, ours):
        assert 0 < len(found.dedup_key.encode()) <= 255
        assert found.dedup_key != replace(found, topic=f"{long}y", message_id=f"{long}y").dedup_key


def test_a_delivery_of_another_client_is_known_by_topic_and_unique_key() -> None:
    """Its business key is an index: `order-1` created and `order-1` paid are two messages."""
    found = Delivery("orders", b"x", "AC10", key="order-1")
    assert found.txn_id is None
    assert found.dedup_key == "orders/AC10"


@pytest.mark.parametrize(
    ("id_", "position"),
    [
        ("", "0"),
        ("a" * 31, "0"),
        ("A" * 32, "0"),
        ("a" * 32 + "\n", "0"),
        ("g" * 32, "0"),
        ("a" * 32, ""),
        ("a" * 32, "-1"),
        ("a" * 32, "+1"),
        ("a" * 32, "1.5"),
        ("a" * 32, "00"),
        ("a" * 32, " 1"),
        ("a" * 32, "1\n"),
        ("a" * 32, "٣"),
        ("a" * 32, "²"),
        ("a" * 32, "9" * 300),
        ("a" * 32, "9" * 5_000),
    ],
)
def test_a_delivery_with_forged_properties_is_taken_for_another_clients(id_: str, position: str) -> None:
    """Whoever may send to the topic chooses them: no error, no key that is too long, no second spelling."""
    found = delivery(id=id_, n=position)
    assert found.txn_id is None
    assert found.dedup_key == "transfer/AC10"


def test_a_delivery_reads_its_body_as_json() -> None:
    """And says ValueError when it is none."""
    assert Delivery("t", b'{"a":1}', "id").json() == {"a": 1}
    for body in (b"", b"\xff", b"{"):
        with pytest.raises(ValueError):
            Delivery("t", body, "id").json()
