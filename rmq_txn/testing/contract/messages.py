"""What a transport promises of the content of messages, half messages and plain ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError
from rmq_txn.identity import PROPERTY_OWNER
from rmq_txn.testing.contract.desk import Desk, Features
from rmq_txn.testing.contract.scripts import own_properties
from rmq_txn.verdict import Verdict


class MessageContract:
    """See `TransportContract`."""

    features = Features()

    # -- what is carried

    @pytest.mark.parametrize(
        "body",
        [
            b"\x00",
            b"a\x00b\x00",
            b"\x01\x02\xff\xfe",
            bytes(range(256)) * 64,
            "积分\U0001f600\u2028".encode(),
            b"x" * 4096,
            b"\x00" * 300_000,
        ],
        ids=["NUL", "with-NULs", "not-UTF-8", "16-KiB", "unicode", "compressible", "300-KB-of-NULs"],
    )
    def test_a_body_arrives_byte_for_byte(self, desk: Desk, body: bytes) -> None:
        """Whatever is in it, and whether a client compresses it or not."""
        message = desk.message(body)
        desk.send(message)
        desk.wait_delivered(message)
        assert desk.deliveries_of(message)[0].body == body

    def test_topic_id_key_tag_and_properties_arrive(self, desk: Desk) -> None:
        """The id is the one `execute` got."""
        properties = {"名字": "值 \U0001f600", "x-empty": " ", "Case": "a=b;c,d"}
        message = desk.message(key="键-1", tag="标签", properties=properties)
        message_id = desk.send(message)
        desk.wait_delivered(message)
        got = desk.deliveries_of(message)[0]
        assert (got.topic, got.message_id, got.key, got.tag) == (desk.topic, message_id, "键-1", "标签")
        assert got.redeliveries == 0
        assert own_properties(message.properties).items() <= got.properties.items()
        if self.features.user_properties:
            assert properties.items() <= got.properties.items()

    def test_what_was_not_set_is_none(self, desk: Desk) -> None:
        """Not an empty text."""
        message = desk.message()
        desk.send(message)
        desk.wait_delivered(message)
        got = desk.deliveries_of(message)[0]
        assert (got.key, got.tag) == (None, None)

    # -- plain messages

    def test_a_plain_message_arrives_as_its_half_message_did(self, desk: Desk) -> None:
        """Nobody can tell the two deliveries apart but by their time, so the inbox takes them for one."""
        properties = {"名字": "值 \U0001f600", "Case": "a=b;c,d"}
        message, message_id = desk.send_at_once(
            Verdict.COMMIT, body=bytes(range(256)) * 64, key="键-1", tag="标签", properties=properties
        )
        desk.wait_delivered(message)
        desk.producer.send_plain(message, message_id)
        desk.wait_delivered(message, times=2)
        first, second = (
            replace(found, born_milliseconds=0, stored_milliseconds=0)
            for found in desk.deliveries_of(message)[:2]
        )
        assert first == second
        assert not desk.checks_of(message)

    def test_a_plain_message_without_key_and_tag_arrives_too(self, desk: Desk) -> None:
        """Not as an empty text."""
        message = desk.message()
        desk.producer.send_plain(message, "PLAIN-ID")
        desk.wait_delivered(message)
        got = desk.deliveries_of(message)[0]
        assert (got.key, got.tag, got.message_id) == (None, None, "PLAIN-ID")

    def test_a_message_that_consumers_see_is_shown_whichever_way_it_came(self, desk: Desk) -> None:
        """By a verdict or as a plain one, with all that it carries; a half message is not."""
        properties = {"名字": "值 \U0001f600", "Case": "a=b;c,d"}
        body = bytes(range(256)) * 64
        committed, committed_id = desk.send_at_once(
            Verdict.COMMIT, body=body, key="键-1", tag="标签", properties=properties
        )
        open_, open_id = desk.send_at_once(Verdict.UNKNOWN)
        plain = desk.message()
        desk.producer.send_plain(plain, "SHOWN")
        desk.wait_delivered(committed)
        desk.wait_delivered(plain)
        desk.wait_shown(committed, committed_id)
        desk.wait_shown(plain, "SHOWN")
        assert not desk.producer.is_published(open_, open_id)
        assert not desk.producer.is_published(plain, "ANOTHER-ID")

    def test_what_only_has_the_id_of_a_message_is_not_it(self, desk: Desk) -> None:
        """Who may send to the topic can repeat an id; ours would never be published."""
        ours = replace(desk.message(), key="key", tag="tag")
        desk.producer.send_plain(replace(ours, body=b"theirs"), "REPEATED")
        desk.wait_shown(replace(ours, body=b"theirs"), "REPEATED")
        assert not desk.producer.is_published(ours, "REPEATED")
        desk.producer.send_plain(ours, "REPEATED")
        desk.wait_shown(ours, "REPEATED")
        for other in (
            replace(ours, key="other"),
            replace(ours, tag=None),
            replace(ours, properties={**ours.properties, PROPERTY_OWNER: "another"}),
        ):
            assert not desk.producer.is_published(other, "REPEATED")

    def test_a_plain_message_that_is_refused_is_told_from_a_broker_that_is_away(self, desk: Desk) -> None:
        """The one would be refused for ever, the other may pass later; others are not held up."""
        sound = desk.message()
        with pytest.raises(InvalidMessageError, match="refuses"):
            desk.producer.send_plain(replace(sound, body=b"x" * (5 << 20)), "TOO-LARGE")
        with pytest.raises(BrokerUnavailableError, match="missing"):
            desk.producer.send_plain(replace(sound, topic=f"{desk.topic}-missing"), "NO-TOPIC")
        desk.producer.send_plain(sound, "SOUND")
        desk.wait_delivered(sound)
