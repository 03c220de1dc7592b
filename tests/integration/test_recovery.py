"""What `recover` says of each half message that a broker dropped: a real database, a made-up broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from rmq_txn import Database, schema
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.identity import Owner, new_txn_id
from rmq_txn.message import Outbound
from rmq_txn.operating import recovery
from rmq_txn.operating.recovery import Found, Recovery
from rmq_txn.producer.txlog import LogState
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.half_messages import GIVEN_UP_TOPIC
from rmq_txn.remoting.stored_message import StoredMessage
from tests.kit.rows import rows

pytestmark = pytest.mark.servers

HALF = StoredMessage(
    topic=GIVEN_UP_TOPIC,
    queue=0,
    offset=1,
    commit_log_offset=1,
    sys_flag=0,
    born_milliseconds=0,
    born_host="127.0.0.1:1",
    stored_milliseconds=0,
    redeliveries=0,
    body=b"paid",
    properties={},
)


@dataclass
class Shelf:
    """The brokers: what they dropped, and what consumers were given."""

    halves: list[StoredMessage] = field(default_factory=list)
    shown: list[StoredMessage] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    sent: list[tuple[Outbound, str]] = field(default_factory=list)

    def given_up(self, _since: float) -> Iterator[StoredMessage]:
        yield from self.halves

    def copies(self, message_id: str) -> list[StoredMessage]:
        return [half for half in self.halves if half.message_id == message_id]

    def published(self, topic: str, message_id: str) -> list[StoredMessage]:
        return [each for each in self.shown if (each.topic, each.message_id) == (topic, message_id)]

    def send(self, message: Outbound, message_id: str) -> None:
        self.sent.append((message, message_id))

    def close(self) -> None:
        """See PlainSender."""


class Scene:
    """A database, brokers, and the command between them."""

    def __init__(self, database: Database, shelf: Shelf) -> None:
        self.database, self.shelf = database, shelf
        self.identity = schema.check(database)
        self.txn_id = new_txn_id()

    def half(self, message_id: str = "ID-0", *, body: bytes = b"paid", position: int = 0) -> StoredMessage:
        """Make a half message as a producer of this database signs it."""
        owner = Owner(f"g@{self.identity.database_id}", self.identity.secret)
        properties = {
            "UNIQ_KEY": message_id,
            "REAL_TOPIC": "transfer",
            "KEYS": "k-1",
            "rmq_txn_id": self.txn_id,
            "rmq_txn_n": str(position),
            "rmq_txn_owner": owner.name,
            "rmq_txn_stamp": owner.stamp(self.txn_id, position),
        }
        return replace(HALF, body=body, properties=properties)

    def row(self, state: LogState, message_ids: str = "ID-0") -> None:
        """Write the log row."""
        with self.database.check_session(self.txn_id) as session:
            session.execute(STATEMENTS["insert_log_row"], (self.txn_id, int(state), message_ids))
            session.commit()

    def found(self, *, publish: bool = True) -> list[Found]:
        """Run the command."""
        recovery = Recovery(
            self.database,
            self.identity,
            ClusterSettings("127.0.0.1:1"),
            retention_seconds=7 * 86_400.0,
            publish=publish,
            by="me",
        )
        with closing(recovery):
            return [case.found for case in recovery.of_all(3600.0)]


@pytest.fixture
def scene(database: Database, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Put the made-up brokers in the place of real ones."""
    shelf = Shelf()
    monkeypatch.setattr(recovery, "HalfMessageStore", lambda _cluster: shelf)
    monkeypatch.setattr(recovery, "PlainSender", lambda _cluster, _group: shelf)
    return Scene(database, shelf)


def test_what_was_committed_and_is_nowhere_is_published_once(scene: Scene, database_url: str) -> None:
    """However many copies of it were given up; with its entry; and nothing without being told to."""
    scene.row(LogState.COMMITTED)
    scene.shelf.halves = [scene.half(), scene.half()]
    assert scene.found(publish=False) == [Found.LOST]
    assert (scene.shelf.sent, rows(database_url, "SELECT * FROM rmq_txn_audit")) == ([], [])
    assert scene.found() == [Found.RECOVERED]
    ((message, message_id),) = scene.shelf.sent
    assert (message.topic, message.body, message.key, message_id) == ("transfer", b"paid", "k-1", "ID-0")
    assert message.properties["rmq_txn_id"] == scene.txn_id
    assert rows(database_url, "SELECT action, subject, done_by FROM rmq_txn_audit") == [
        (b"recovered", f"{scene.txn_id}.0".encode(), b"me")
    ]


@pytest.mark.parametrize(
    ("state", "message_ids", "found"),
    [
        (LogState.ROLLED_BACK, "", Found.NOT_COMMITTED),
        (LogState.OPEN, "ID-0", Found.OPEN),
        (LogState.COMMITTED, "ID-9", Found.REPEATED),
        (None, "", Found.NOT_COMMITTED),
    ],
)
def test_what_no_row_proves_is_never_published(
    scene: Scene, state: LogState | None, message_ids: str, found: Found
) -> None:
    """Fenced, torn, another half message of a repeated send, or without a row."""
    if state is not None:
        scene.row(state, message_ids)
    scene.shelf.halves = [scene.half()]
    assert scene.found() == [found]
    assert scene.shelf.sent == []


def test_what_consumers_were_given_or_a_relay_will_send_is_left_alone(
    scene: Scene, database: Database
) -> None:
    """Each by its own place."""
    scene.row(LogState.COMMITTED, "ID-0,ID-1")
    scene.shelf.halves = [scene.half(), scene.half("ID-1", position=1)]
    scene.shelf.shown = [replace(scene.half(), topic="transfer")]
    with database.transaction() as txn:
        row = (scene.txn_id, 1, "ID-1", "transfer", None, None, "{}", b"paid")
        txn.execute(STATEMENTS["insert_outbox_rows"], row)
    assert scene.found() == [Found.PUBLISHED, Found.COPIED]
    assert scene.shelf.sent == []


@pytest.mark.parametrize(
    "change",
    [
        lambda _half: {"body": b"paid to me"},
        lambda half: {"properties": {**half.properties, "rmq_txn_id": "another"}},
        lambda half: {"properties": {**half.properties, "KEYS": "k-2"}},
        lambda half: {"properties": {**half.properties, "TAGS": "unasked"}},
    ],
    ids=["body", "property", "key", "tag"],
)
def test_what_a_stranger_published_under_its_id_does_not_hide_a_lost_message(
    scene: Scene, change: Callable[[StoredMessage], dict[str, Any]]
) -> None:
    """Whoever may read and write the topic can repeat an id; consumers were not given ours."""
    scene.row(LogState.COMMITTED)
    half = scene.half()
    scene.shelf.halves = [half]
    theirs = replace(half, topic="transfer", **change(half))
    scene.shelf.shown = [theirs]
    assert scene.found() == [Found.RECOVERED]
    scene.shelf.shown = [theirs, replace(half, topic="transfer")]
    assert scene.found() == [Found.PUBLISHED]
    assert len(scene.shelf.sent) == 1


def test_a_body_that_can_not_be_read_is_compared_by_its_bytes(scene: Scene) -> None:
    """Published, it needs nobody; else a person: what to send is not known."""
    scene.row(LogState.COMMITTED)
    half = replace(scene.half(), sys_flag=1, body=b"no zlib")
    scene.shelf.halves = [half]
    scene.shelf.shown = [replace(half, topic="transfer", body=b"other")]
    assert scene.found() == [Found.UNKNOWN]
    scene.shelf.shown = [replace(half, topic="transfer")]
    assert scene.found() == [Found.PUBLISHED]
    assert scene.shelf.sent == []


def test_while_a_broker_can_not_be_asked_nothing_is_published(scene: Scene) -> None:
    """It may have the message."""
    scene.row(LogState.COMMITTED)
    scene.shelf.halves = [scene.half()]
    scene.shelf.gaps = ["broker b2 has no master now, and was not asked"]
    assert scene.found() == [Found.UNKNOWN]
    assert scene.shelf.sent == []


def test_two_bodies_under_one_id_are_a_forgery_and_none_is_published(scene: Scene) -> None:
    """Whoever may read and write the topic can repeat an id and its stamp."""
    scene.row(LogState.COMMITTED)
    scene.shelf.halves = [scene.half(), scene.half(body=b"paid to me")]
    assert scene.found() == [Found.UNKNOWN]
    assert scene.shelf.sent == []


def test_a_message_of_a_stranger_with_an_id_of_ours_does_not_hide_ours(scene: Scene) -> None:
    """It was given up before ours: both are told, and neither is published."""
    scene.row(LogState.COMMITTED)
    half = scene.half()
    theirs = replace(half, body=b"paid to me", properties={**half.properties, "rmq_txn_stamp": "0" * 32})
    scene.shelf.halves = [theirs, half]
    assert scene.found() == [Found.FOREIGN, Found.UNKNOWN]
    assert scene.shelf.sent == []


def test_what_this_database_did_not_sign_is_not_its_own(scene: Scene) -> None:
    """No stamp, one that does not fit, another database, another library, an id of any form."""
    scene.row(LogState.COMMITTED)
    half = scene.half()
    others: list[dict[str, str]] = [
        {"rmq_txn_stamp": ""},
        {"rmq_txn_n": "1"},
        {"rmq_txn_owner": "g@elsewhere"},
        {"rmq_txn_owner": ""},
        {"rmq_txn_id": "x"},
        {"rmq_txn_n": "-1"},
    ]
    scene.shelf.halves = [
        replace(half, properties={**half.properties, **more, "UNIQ_KEY": f"ID-{n}"})
        for n, more in enumerate(others)
    ]
    scene.shelf.halves.append(replace(HALF, properties={"UNIQ_KEY": "theirs"}))
    assert scene.found() == [Found.FOREIGN] * 7
    assert scene.shelf.sent == []


def test_a_row_that_may_have_been_pruned_proves_nothing(scene: Scene) -> None:
    """An id of long ago, given up now."""
    scene.txn_id = new_txn_id(1_600_000_000.0)
    scene.shelf.halves = [scene.half()]
    assert scene.found() == [Found.UNKNOWN]
