"""Whatever a server answers, a question ends with a value or an error of this package, and soon."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmq_txn import RocketMQ
from rmq_txn.errors import RmqTxnError
from rmq_txn.remoting import dead_letters, wire
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.half_messages import look_up
from rmq_txn.remoting.new_group import pin_new_group
from rmq_txn.remoting.offsets import standings
from tests.unit.test_remoting import ROUTE, answer, frame
from tests.unit.test_stored import COMPRESSED, stored

ADDRESS = "127.0.0.1:1"
BROKER = RemotingClient(ADDRESS)
CLUSTER = RocketMQ(ADDRESS)

QUESTIONS: dict[str, Callable[[], Any]] = {
    "route": lambda: BROKER.topic_route("t"),
    "brokers": BROKER.cluster_info,
    "producers": lambda: BROKER.producer_connections("g"),
    "consumers": lambda: BROKER.consumer_connections("g"),
    "subscriptions": lambda: BROKER.consumer_subscriptions("g", "c"),
    "offset": lambda: BROKER.consumer_offset("g", "t", 0),
    "end": lambda: BROKER.max_offset("t", 0),
    "beginning": lambda: BROKER.min_offset("t", 0),
    "pull": lambda: [(str(m), m.undecodable, m.compression) for m in BROKER.pull("g", "t", 0, 0)],
    "configuration": BROKER.broker_config,
    "give back": lambda: BROKER.send_back("g", "t", 0, "id"),
    "standings": lambda: [standing.culprit for standing in standings(CLUSTER, "g", ["t"])],
    "dead letters": lambda: [letter.delivery for letter in dead_letters.unread(CLUSTER, "g")],
    "masters": lambda: CLUSTER.masters("t"),
    "messages with an id": lambda: BROKER.messages_with_id("t", "AB12"),
    "offset at a time": lambda: BROKER.offset_at("t", 0, 1),
    "groups of a topic": lambda: BROKER.groups_of("t"),
    "transaction": lambda: look_up(CLUSTER, "0" * 32, ["AB12"], ["transfer"]),
    "transaction to be searched": lambda: look_up(CLUSTER, "0" * 32, [], []),
    "beginning of a group": lambda: pin_new_group(CLUSTER, "g", "t"),
}


class Line:
    """A connection to a server that says what a test wants, over and over."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""

    def settimeout(self, _seconds: float) -> None:
        """Wait for nothing: all is here, or the line is closed."""

    def sendall(self, _data: bytes) -> None:
        """Take the question."""

    def recv(self, size: int) -> bytes:
        """Give the next bytes."""
        given, self._said = self._said[:size], self._said[size:]
        return given


def ask(said: bytes) -> None:
    """Ask everything of a server that answers with these bytes; other errors than ours are raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.socket, "create_connection", lambda _address, timeout: Line(said))
        for question in QUESTIONS.values():
            try:
                question()
            except RmqTxnError:
                continue


TEXTS = st.sampled_from(
    ["", "0", "-1", "--1", "9" * 30, "127.0.0.1:1", "h:99999", "nonsense", "x" * 70 + ".y:1"]
)
NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 6, 70_000, 2**31, 2**64])
SCALARS = st.none() | st.booleans() | NUMBERS | st.floats() | TEXTS
KEYS = st.sampled_from(
    [
        "brokerDatas",
        "brokerAddrs",
        "brokerName",
        "cluster",
        "queueDatas",
        "readQueueNums",
        "writeQueueNums",
        "perm",
        "connectionSet",
        "groupList",
        "subscriptionSet",
        "subString",
        "topic",
        "clientId",
        "version",
        "brokerAddrTable",
        "clusterAddrTable",
        "offset",
        "extFields",
        "code",
        "flag",
        "remark",
        "0",
        "1",
        "x",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
ROUTES = st.fixed_dictionaries(
    {
        "brokerDatas": st.lists(
            st.fixed_dictionaries(
                {"brokerAddrs": st.dictionaries(TEXTS, SCALARS, max_size=2), "brokerName": SCALARS}
            ),
            max_size=2,
        ),
        "queueDatas": st.lists(
            st.fixed_dictionaries({"brokerName": SCALARS, "readQueueNums": SCALARS, "perm": SCALARS}),
            max_size=2,
        ),
    }
)
HEADERS = st.fixed_dictionaries(
    {"code": st.sampled_from([0, 0, 0, 0, 1, 3, 16, 17, 19, 22]) | SCALARS},
    optional={
        "flag": st.just(1) | SCALARS,
        "opaque": st.just(1) | SCALARS,
        "remark": SCALARS,
        "extFields": st.fixed_dictionaries({"offset": TEXTS | SCALARS}) | VALUES,
    },
)
MESSAGES = st.binary(max_size=60) | st.builds(
    lambda body, flags, offset, at, size: _cut_in(stored(body, flags, offset=offset), at, size),
    st.binary(max_size=20),
    st.sampled_from([0, COMPRESSED, COMPRESSED | 2 << 8, 0x30]),
    st.sampled_from([-5, 0, 1, 2**62]),
    st.integers(0, 150),
    st.binary(max_size=4),
)
BODIES = st.builds(lambda value: json.dumps(value).encode(), VALUES | ROUTES) | MESSAGES | st.just(ROUTE)


def _cut_in(data: bytes, at: int, patch: bytes) -> bytes:
    return data[:at] + patch + data[at + len(patch) :]


def _raw(header: dict[str, object], body: bytes) -> bytes:
    return frame({"flag": 1, "opaque": 1, **header}, body)


FRAMES = st.builds(_raw, HEADERS, BODIES)


@given(said=FRAMES | st.binary(max_size=40))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_answer_ends_in_a_value_or_in_our_error(said: bytes) -> None:
    """Wrong types, numbers, addresses and messages; 400 answers, each to every question."""
    ask(said)


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_answer_ends_in_a_value_or_in_our_error(data: st.DataObject) -> None:
    """A good one, cut short or with bytes overwritten, the lengths in it included."""
    good = data.draw(
        st.sampled_from([answer(ROUTE), answer(extFields={"offset": "7"}), answer(stored() * 2)])
    )
    at = data.draw(st.integers(0, len(good)))
    ask(_cut_in(good, at, data.draw(st.binary(min_size=1, max_size=6))))
    ask(good[:at])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"offset":' + b"9" * 6000 + b"}",
        b'"\\' + b'"\\' * 200_000,
        b'{"brokerDatas":[{"brokerAddrs":{0:"' + b"a" * 70 + b'.b:1"}}],"queueDatas":[]}',
        b'{"brokerDatas":[],"queueDatas":[{"readQueueNums":999999999}]}',
        b'{"mqTable":{{"queueId":0}:{}},"subscriptionSet":' + b"[" * 200_000,
    ],
    ids=[
        "deep list",
        "deep object",
        "long number",
        "quotes without end",
        "long label",
        "many queues",
        "subscriptions",
    ],
)
def test_an_answer_made_to_hurt_ends_soon(body: bytes) -> None:
    """In nesting, in length, in steps."""
    ask(answer(body))


def test_a_host_that_can_not_be_looked_up_is_a_server_that_is_away() -> None:
    """The resolver's own encoding refuses it before it asks anybody."""
    with pytest.raises(RmqTxnError, match="is no host name"):
        RemotingClient("a" * 70 + ".b:1").cluster_info()


def test_a_frame_of_any_length_is_read_no_further_than_the_limit() -> None:
    """Neither -1 nor 4 GiB is waited for."""
    for length in (0, 3, 0x7FFFFFFF, 0xFFFFFFFF):
        ask(struct.pack(">I", length) + b"x" * 100)
