"""The remoting protocol against a small TCP server that says whatever a test wants."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from rmq_txn import RocketMQ
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting import wire
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError
from rmq_txn.verdict import Answer, Verdict

Talk = Callable[[socket.socket], None]

ROUTE = (
    b'{"brokerDatas":[{"brokerAddrs":{0:"127.0.0.1:10911",1:"127.0.0.1:20911"},'
    b'"brokerName":"a, {7:b","cluster":"c"}],"filterServerTable":{},'
    b'"queueDatas":[{"brokerName":"a, {7:b","perm":6,"readQueueNums":4,"writeQueueNums":8}]}'
)


def frame(header: object, body: bytes = b"") -> bytes:
    """Return a frame with a JSON header."""
    data = json.dumps(header).encode()
    return struct.pack(">II", 4 + len(data) + len(body), len(data)) + data + body


def answer(body: bytes = b"", **header: object) -> bytes:
    """Return the frame of an answer to the one request of a connection."""
    return frame({"code": 0, "flag": 1, "opaque": 1, **header}, body)


def receive_request(connection: socket.socket) -> dict[str, object]:
    """Read one request and return its header."""
    with connection.makefile("rb") as stream:
        (length,) = struct.unpack(">I", stream.read(4))
        data = stream.read(length)
    header_length = struct.unpack(">I", data[:4])[0] & 0xFFFFFF
    header: dict[str, object] = json.loads(data[4 : 4 + header_length])
    return header


@contextmanager
def server(talk: Talk) -> Iterator[str]:
    """Listen, hand the first connection to `talk`, close it after; yield the address."""
    with many_connections(talk) as address:
        yield address


@contextmanager
def many_connections(*talks: Talk) -> Iterator[str]:
    """As `server`, a talk for each connection, in turn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            for talk in talks:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(10)
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(20)
            assert not thread.is_alive(), "a connection that was expected did not come"


def says(data: bytes) -> Talk:
    """Return a talk that reads the request and answers with these bytes."""

    def talk(connection: socket.socket) -> None:
        receive_request(connection)
        connection.sendall(data)

    return talk


def hangs(connection: socket.socket) -> None:
    """Read until the client gives up, and never answer."""
    while connection.recv(4096):
        pass


def client(address: str, timeout_seconds: float = 5.0) -> RemotingClient:
    """Return a client with a timeout that only a hanging test reaches."""
    return RemotingClient(address, timeout_seconds=timeout_seconds)


def closed_address() -> str:
    """Return an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_route_with_unquoted_integer_keys_is_understood() -> None:
    """Fastjson leaves the keys of a Map<Long, String> bare; text that looks alike stays."""
    with server(says(answer(ROUTE))) as address:
        route = client(address).topic_route("transfer")
    (broker,) = route.brokers
    assert broker.name == "a, {7:b"
    assert dict(broker.addresses) == {0: "127.0.0.1:10911", 1: "127.0.0.1:20911"}
    assert broker.master_address == "127.0.0.1:10911"
    assert [(q.broker_name, q.read_queues, q.write_queues) for q in route.queues] == [("a, {7:b", 4, 8)]


def test_a_request_carries_code_and_fields_as_the_broker_reads_them() -> None:
    """UPDATE_AND_CREATE_TOPIC is 17 and all its fields are strings."""
    seen: list[dict[str, object]] = []

    def talk(connection: socket.socket) -> None:
        seen.append(receive_request(connection))
        connection.sendall(answer())

    with server(talk) as address:
        client(address).create_topic("transfer", queues=3, message_type="TRANSACTION")
    (header,) = seen
    fields = header["extFields"]
    assert header["code"] == 17
    assert header["flag"] == 0
    assert isinstance(fields, dict)
    assert all(isinstance(value, str) for value in fields.values())
    assert fields["topic"] == "transfer"
    assert fields["writeQueueNums"] == "3"
    assert fields["attributes"] == "+message.type=TRANSACTION"


def test_an_error_answer_keeps_code_and_remark() -> None:
    """A caller decides on the code: 17 is TOPIC_NOT_EXIST."""
    with (
        server(says(answer(code=17, remark="no topic route"))) as address,
        pytest.raises(RemotingError, match="code 17: no topic route") as caught,
    ):
        client(address).topic_route("nowhere")
    assert (caught.value.code, caught.value.remark) == (17, "no topic route")


@pytest.mark.parametrize(("kind", "code"), [("producer", 1), ("consumer", 206)])
def test_a_group_that_the_broker_does_not_know_has_no_connections(kind: str, code: int) -> None:
    """The broker refuses to list an unknown group; that is an empty list, not a failure."""
    with server(says(answer(code=code, remark="not online"))) as address:
        ask = getattr(client(address), f"{kind}_connections")
        assert ask("points-service") == ()


def test_another_error_while_listing_connections_is_not_an_empty_group() -> None:
    """NO_PERMISSION (16) must not look like nobody being registered."""
    with (
        server(says(answer(code=16, remark="no"))) as address,
        pytest.raises(RemotingError) as caught,
    ):
        client(address).producer_connections("account-service")
    assert caught.value.code == 16


def test_registered_clients_are_listed() -> None:
    """Client id, address, language and version come from the connection set."""
    body = b'{"connectionSet":[{"clientAddr":"127.0.0.1:5","clientId":"x@1","language":"CPP","version":3}]}'
    with server(says(answer(body))) as address:
        (connection,) = client(address).producer_connections("account-service")
    assert (connection.client_id, connection.address) == ("x@1", "127.0.0.1:5")
    assert (connection.language, connection.version) == ("CPP", 3)


def test_cluster_info_lists_brokers_and_clusters() -> None:
    """A name server without brokers leaves the tables out."""
    body = (
        b'{"brokerAddrTable":{"a":{"brokerAddrs":{0:"h:1"},"brokerName":"a","cluster":"c"}},'
        b'"clusterAddrTable":{"c":["a"]}}'
    )
    with server(says(answer(body))) as address:
        info = client(address).cluster_info()
    assert info.brokers["a"].master_address == "h:1"
    assert info.clusters == {"c": ("a",)}
    with server(says(answer(b"{}"))) as address:
        assert client(address).cluster_info().brokers == {}


def test_requests_that_the_server_sends_meanwhile_are_skipped() -> None:
    """Only the answer to our own request counts."""
    noise = frame({"code": 40, "flag": 0, "opaque": 1}) + answer(opaque=7, code=99)
    with server(says(noise + answer(ROUTE))) as address:
        assert client(address).topic_route("transfer").brokers


def test_an_answer_in_many_small_pieces_is_put_together() -> None:
    """TCP may cut anywhere."""

    def talk(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        receive_request(connection)
        for byte in answer(ROUTE):
            connection.sendall(bytes((byte,)))

    with server(talk) as address:
        assert client(address).topic_route("transfer").queues


@pytest.mark.parametrize("cut_bytes", [0, 3, 4, 20, len(answer(ROUTE)) - 1])
def test_a_truncated_answer_is_an_unavailable_broker(cut_bytes: int) -> None:
    """A server that dies in the middle of its answer has not answered."""
    with (
        server(says(answer(ROUTE)[:cut_bytes])) as address,
        pytest.raises(BrokerUnavailableError, match="the route of topic 'transfer'") as caught,
    ):
        client(address).topic_route("transfer")
    assert address in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">II", 4, 0x01000000),
        struct.pack(">II", 8, 400) + b"xxxx",
        struct.pack(">I", 0),
        frame([]),
        frame({"flag": 1, "opaque": 1}),
        answer(b"{0:"),
        answer(b"\xff\xfe"),
        answer(b"[]"),
        answer(b'{"brokerDatas":[{"brokerAddrs":{"x":"h:1"}}]}'),
        answer(b'{"brokerDatas":{}}'),
    ],
    ids=[
        "http",
        "binary header",
        "header longer than frame",
        "empty frame",
        "header not an object",
        "no code",
        "broken json",
        "not utf-8",
        "body not an object",
        "broker id not a number",
        "brokers not a list",
    ],
)
def test_an_answer_that_makes_no_sense_names_the_address(data: bytes) -> None:
    """Usually a port of something else; the error says whom we asked and for what."""
    with (
        server(says(data)) as address,
        pytest.raises(BrokerUnavailableError, match="remoting protocol") as caught,
    ):
        client(address).topic_route("transfer")
    assert address in str(caught.value)


def test_a_server_that_hangs_costs_no_more_than_the_timeout() -> None:
    """Every call is bounded, however the server behaves."""
    with server(hangs) as address:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailableError, match=r"did not answer within 0\.3 s"):
            client(address, 0.3).cluster_info()
        assert time.monotonic() - began < 3


def test_a_server_that_drips_bytes_costs_no_more_than_the_timeout() -> None:
    """The timeout bounds the call, not each read."""

    def talk(connection: socket.socket) -> None:
        receive_request(connection)
        connection.settimeout(0.05)
        connection.sendall(struct.pack(">I", 1000))
        try:
            while True:
                connection.sendall(b"x")
                try:
                    connection.recv(1)
                    return  # the client has closed
                except TimeoutError:
                    continue
        except ConnectionError:
            return

    with server(talk) as address:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailableError):
            client(address, 0.5).cluster_info()
        assert time.monotonic() - began < 3


def test_the_second_name_server_is_asked_when_the_first_is_down() -> None:
    """An address may list several, as the native client's does."""
    with server(says(answer(ROUTE))) as address:
        assert client(f"{closed_address()};{address}").topic_route("transfer").brokers


def test_a_closed_port_names_address_and_question() -> None:
    """The on-call engineer sees whom we asked and for what."""
    address = closed_address()
    with pytest.raises(BrokerUnavailableError) as caught:
        client(address).cluster_info()
    assert address in str(caught.value)
    assert "the brokers of the cluster" in str(caught.value)


@pytest.mark.parametrize("address", ["", "localhost", "h:", ":1", "h:0", "h:65536", "h:x", " ; "])
def test_an_address_that_cannot_be_one_is_refused(address: str) -> None:
    """A typo is found before anything is sent."""
    with pytest.raises(ValueError, match="allowed is 'host:port'"):
        RemotingClient(address)


def test_a_topic_without_a_master_has_nobody_who_could_know_a_client() -> None:
    """Slaves ask nobody and take no message: that is no registration with every broker, but none at all."""

    def talk(connection: socket.socket) -> None:
        receive_request(connection)
        connection.sendall(answer(ROUTE.replace(b'0:"127.0.0.1:10911",', b"")))

    for make in (
        lambda broker: broker.producer("g", lambda _check: Verdict.UNKNOWN),
        lambda broker: broker.consumer("g", {"t": ["*"]}, 1, lambda _delivery: Answer.RETRY),
    ):
        with (
            server(talk) as address,
            pytest.raises(BrokerUnavailableError, match="no broker of topic 't' has a master now"),
        ):
            make(RocketMQ(address)).is_registered("t")


def test_a_name_server_that_refuses_the_question_about_registration_is_a_broker_that_is_away() -> None:
    """The caller of a health check is promised one error; "system busy" is no other."""

    def talk(connection: socket.socket) -> None:
        receive_request(connection)
        connection.sendall(answer(code=2, remark="busy"))

    with (
        server(talk) as address,
        pytest.raises(BrokerUnavailableError, match="does not say which brokers topic 't' has"),
    ):
        RocketMQ(address).producer("g", lambda _check: Verdict.UNKNOWN).is_registered("t")


# -- a connection that is kept


@contextmanager
def kept(address: str) -> Iterator[RemotingClient]:
    """Yield a client that keeps its connection."""
    with closing(wire.Line()) as line:
        yield RemotingClient(address, timeout_seconds=5.0, line=line)


def answers(count: int) -> Talk:
    """Return a talk that answers so many requests, each with its number."""

    def talk(connection: socket.socket) -> None:
        for number in range(count):
            receive_request(connection)
            connection.sendall(answer(extFields={"offset": str(number)}))

    return talk


def test_a_line_carries_one_request_after_the_other() -> None:
    """One connection for all: the server accepts no second one."""
    with many_connections(answers(3)) as address, kept(address) as asked:
        assert [asked.consumer_offset("g", "t", 0) for _ in range(3)] == [0, 1, 2]


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure() -> None:
    """Idle ones are closed after two minutes, and a broker that was started again knows none."""
    with many_connections(answers(1), answers(1)) as address, kept(address) as asked:
        assert [asked.consumer_offset("g", "t", 0) for _ in range(2)] == [0, 0]


def test_a_new_connection_that_fails_is_tried_no_second_time() -> None:
    """Then the server is away."""

    def hangs_up(connection: socket.socket) -> None:
        receive_request(connection)

    with many_connections(answers(1), hangs_up) as address, kept(address) as asked:
        asked.consumer_offset("g", "t", 0)
        with pytest.raises(BrokerUnavailableError, match="closed after 0 of 4 bytes"):
            asked.consumer_offset("g", "t", 0)


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next() -> None:
    """What ran into its timeout takes the connection along."""
    given_up = threading.Event()

    def late(connection: socket.socket) -> None:
        receive_request(connection)
        given_up.wait(10)
        with suppress(OSError):
            connection.sendall(answer(extFields={"offset": "99"}))

    with many_connections(late, answers(1)) as address, closing(wire.Line()) as line:
        hurried = RemotingClient(address, timeout_seconds=0.2, line=line)
        with pytest.raises(BrokerUnavailableError, match="did not answer within"):
            hurried.consumer_offset("g", "t", 0)
        given_up.set()
        assert RemotingClient(address, timeout_seconds=5.0, line=line).consumer_offset("g", "t", 0) == 0


def test_an_error_answer_keeps_the_connection() -> None:
    """It is an answer like any other."""

    def refuses_first(connection: socket.socket) -> None:
        receive_request(connection)
        connection.sendall(answer(code=2, remark="busy"))
        answers(1)(connection)

    with many_connections(refuses_first) as address, kept(address) as asked:
        with pytest.raises(RemotingError, match="busy"):
            asked.consumer_offset("g", "t", 0)
        assert asked.consumer_offset("g", "t", 0) == 0


def test_a_line_that_is_closed_leaves_no_connection() -> None:
    """The server sees its end; the next request would make another."""
    ended = threading.Event()

    def until_the_end(connection: socket.socket) -> None:
        answers(1)(connection)
        assert connection.recv(1) == b""
        ended.set()

    with many_connections(until_the_end) as address:
        line = wire.Line()
        RemotingClient(address, line=line).consumer_offset("g", "t", 0)
        line.close()
        line.close()
        assert ended.wait(10)


def test_a_line_to_another_server_leaves_the_first() -> None:
    """A master that moved."""
    with many_connections(answers(1)) as first, many_connections(answers(1)) as second:
        line = wire.Line()
        for address in (first, second):
            assert RemotingClient(address, line=line).consumer_offset("g", "t", 0) == 0
        line.close()
