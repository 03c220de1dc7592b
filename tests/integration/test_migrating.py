"""docs/migrating.md as a reader follows it: the old sender still sends while both new halves run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from devstack import LocalStack
from tests.integration.test_docs import Reader, points_of_alice
from tests.kit import foreign
from tests.kit.documents import blocks, shell_commands, text_of
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

PAGE = "docs/migrating.md"


def test_what_the_old_sender_sends_twice_and_the_new_one_once_has_one_effect_each(
    stack: LocalStack, unique: str, tmp_path: Path
) -> None:
    """An outbox poller sends again after each doubt, and each time it is another message."""
    reader = Reader(PAGE, stack, unique, tmp_path)
    Reader("docs/quickstart.md", stack, unique, tmp_path).make_tables()
    reader.write_programs()
    (apply,) = shell_commands(reader.text)
    for command in (apply, apply.replace("account", "points")):
        reader.run(command)
    stack.create_topic(reader.topic)
    old = json.dumps({"transfer_id": "t-0", "user_id": "alice", "amount": 4200}).encode()
    with reader.start("rmq-txn consume points_service:consumer") as consumer:
        try:
            for queue in (0, 1):
                foreign.send(stack.broker_address, reader.topic, queue, old)
            reader.run("python account_service.py")
            inbox = "SELECT dedup_key FROM rmq_txn_inbox ORDER BY 1"
            until(lambda: len(rows(reader.url("points"), inbox)) == 2, "both transfers are handled", 60)
            assert [key.decode() for (key,) in rows(reader.url("points"), inbox)] == [
                "transfer/t-0",
                "transfer/t-1",
            ]
            consumer.send_signal(signal.SIGTERM)  # its handlers finish first
            assert consumer.wait(timeout=30) == 0
        finally:
            consumer.kill()
    assert points_of_alice(reader) == 42 + 25


def test_both_languages_show_the_same_programs() -> None:
    translation = text_of(PAGE.replace(".md", ".zh-CN.md"))
    assert blocks(text_of(PAGE), "python") == blocks(translation, "python")
