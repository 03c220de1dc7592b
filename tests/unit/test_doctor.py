"""What the doctor makes of settings and clocks; the real servers are in tests/integration/test_doctor.py."""

from __future__ import annotations

import pytest

from rmq_txn.operating.broker_checks import of_broker_settings
from rmq_txn.operating.database_checks import of_clock, of_settings
from rmq_txn.operating.finding import State

SOUND = {
    "version": "9.7.0",
    "binlog_format": "ROW",
    "innodb_flush_log_at_trx_commit": "1",
    "log_bin": "ON",
    "max_allowed_packet": str(64 * 1024 * 1024),
    "max_connections": "151",
    "read_only": "OFF",
    "sync_binlog": "1",
    "transaction_isolation": "REPEATABLE-READ",
}
BROKER = {
    "transactionTimeOut": "6000",
    "transactionCheckInterval": "30000",
    "transactionCheckMax": "15",
    "rejectTransactionMessage": "false",
    "brokerPermission": "6",
    "fileReservedTime": "72",
    "autoCreateTopicEnable": "false",
    "flushDiskType": "SYNC_FLUSH",
    "brokerRole": "ASYNC_MASTER",
}


def test_a_sound_database_server_gets_no_word_of_warning() -> None:
    (found,) = of_settings(SOUND, connections=151)
    assert (found.state, found.text) == (State.OK, "REPEATABLE-READ")


@pytest.mark.parametrize(
    ("settings", "check", "state", "said"),
    [
        ({"read_only": "ON"}, "writes", State.FAILED, "the server is read-only"),
        ({"super_read_only": "1"}, "writes", State.FAILED, "the server is read-only"),
        (
            {"transaction_isolation": "READ-COMMITTED", "binlog_format": "STATEMENT"},
            "isolation",
            State.FAILED,
            "error 1665",
        ),
        (
            {"transaction_isolation": "", "tx_isolation": "READ-UNCOMMITTED"},
            "isolation",
            State.WARNING,
            "may see what is rolled back later",
        ),
        ({"max_allowed_packet": "1048576"}, "packet", State.WARNING, "max_allowed_packet is 1048576 bytes"),
        ({"innodb_flush_log_at_trx_commit": "2"}, "durability", State.WARNING, "is 2"),
        ({"sync_binlog": "0"}, "replication", State.WARNING, "sync_binlog is 0"),
        ({"max_connections": "100"}, "connections", State.FAILED, "151 are wanted"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_server_setting_that_hurts_is_told_with_the_next_step(
    settings: dict[str, str], check: str, state: State, said: str
) -> None:
    """Each alone, in an otherwise sound server."""
    bad = [found for found in of_settings({**SOUND, **settings}, connections=151) if found.state != State.OK]
    assert [(found.check, found.state) for found in bad] == [(check, state)]
    assert said in bad[0].text
    assert bad[0].advice


def test_statements_in_the_log_and_connections_nobody_counted_are_no_matter() -> None:
    """STATEMENT without a binary log, or with REPEATABLE READ; and `--connections` not given."""
    for changed in (
        {"binlog_format": "STATEMENT"},
        {"binlog_format": "STATEMENT", "log_bin": "OFF", "transaction_isolation": "READ-COMMITTED"},
        {"max_connections": "1"},
        {"log_bin": "OFF", "sync_binlog": "0"},
    ):
        assert [found.state for found in of_settings({**SOUND, **changed})] == [State.OK]


@pytest.mark.parametrize(
    ("ahead", "state", "said"),
    [
        (1.9, State.OK, "within 2 s"),
        (-1.9, State.OK, "within 2 s"),
        (30.0, State.WARNING, "30.0 s ahead of this machine's"),
        (-30.0, State.WARNING, "30.0 s behind this machine's"),
        (86_400.0, State.FAILED, "86400.0 s ahead of"),
    ],
)
def test_a_clock_is_judged_by_how_far_it_is_off(ahead: float, state: State, said: str) -> None:
    found = of_clock("broker a", ahead)
    assert (found.check, found.state) == ("clock of broker a", state)
    assert said in found.text


def test_the_settings_of_check_back_become_a_sentence() -> None:
    (found,) = of_broker_settings("broker-a", BROKER)
    assert found.state is State.OK
    assert found.text.startswith(
        "a lost verdict is asked for 6 to 36 s after it was sent; without any producer"
    )
    assert "waits 7.6 min (15 questions)" in found.text


@pytest.mark.parametrize(
    ("config", "check", "state", "said"),
    [
        ({"transactionCheckMax": "60"}, "check-back of b", State.WARNING, "longer than check_budget_seconds"),
        ({"rejectTransactionMessage": "true"}, "settings of b", State.FAILED, "no half message is taken"),
        ({"brokerPermission": "4"}, "settings of b", State.FAILED, "brokerPermission=4"),
        ({"fileReservedTime": "200"}, "retention of b", State.WARNING, "fileReservedTime is 200 h"),
        ({"autoCreateTopicEnable": "true"}, "settings of b", State.WARNING, "a wrong name makes a topic"),
        ({"flushDiskType": "ASYNC_FLUSH"}, "durability of b", State.WARNING, "lost with its machine"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_broker_setting_that_hurts_is_told_with_the_next_step(
    config: dict[str, str], check: str, state: State, said: str
) -> None:
    bad = [found for found in of_broker_settings("b", {**BROKER, **config}) if found.state != State.OK]
    assert [(found.check, found.state) for found in bad] == [(check, state)]
    assert said in bad[0].text
    assert bad[0].advice


def test_a_broker_that_tells_nothing_has_the_defaults() -> None:
    assert [found.state for found in of_broker_settings("b", {})] == [State.OK]
