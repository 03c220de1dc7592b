"""How many messages a consumer keeps of a queue: what it handles in two seconds, within bounds."""

from __future__ import annotations

import threading

import pytest

from rmq_txn.transport.read_ahead import ReadAhead


def after(read_ahead: ReadAhead, deliveries: int, seconds: float, body_bytes: int = 100) -> int:
    """Return the size after so many deliveries of a kind."""
    for _ in range(deliveries):
        read_ahead.note(seconds, body_bytes)
    return read_ahead.size


@pytest.mark.parametrize(("most", "size"), [(1_000, 100), (100, 100), (7, 7)])
def test_it_begins_with_a_hundred_or_as_many_as_are_allowed(most: int, size: int) -> None:
    """Nothing is known of the handlers yet."""
    assert ReadAhead(most, threads=4).size == size


@pytest.mark.parametrize(
    ("threads", "seconds", "size"),
    [
        (4, 0.02, 400),
        (8, 0.02, 800),
        (4, 0.001, 1_000),
        (4, 0.0, 1_000),
        (4, 0.1, 100),
        (1, 60.0, 100),
    ],
)
def test_it_keeps_what_all_threads_handle_in_two_seconds(threads: int, seconds: float, size: int) -> None:
    """Up to what is allowed, and never less than a hundred."""
    assert after(ReadAhead(1_000, threads), 10, seconds) == size


@pytest.mark.parametrize(
    ("body_bytes", "size"), [(0, 1_000), (32 * 1024, 1_000), (64 * 1024, 512), (4 * 1024 * 1024, 100)]
)
def test_it_keeps_no_more_of_large_messages_than_32_mib_a_queue_hold(body_bytes: int, size: int) -> None:
    """A thousand messages of four megabytes would be four gigabytes a queue."""
    assert after(ReadAhead(1_000, 4), 10, 0.001, body_bytes) == size


def test_a_large_message_counts_at_once_and_for_the_next_hundreds() -> None:
    """One of thirty-two is enough: another queue may have nothing else."""
    read_ahead = ReadAhead(1_000, threads=4)
    assert after(read_ahead, 10, 0.001) == 1_000
    assert after(read_ahead, 1, 0.001, 4 * 1024 * 1024) == 100
    sizes = set()
    for _ in range(20):
        sizes.add(after(read_ahead, 31, 0.001))
        sizes.add(after(read_ahead, 1, 0.001, 4 * 1024 * 1024))
    assert sizes == {100}
    assert after(read_ahead, 1_000, 0.001) == 1_000


def test_a_delivery_of_two_seconds_counts_at_once() -> None:
    """Nine more of a minute each would keep the old number for minutes."""
    read_ahead = ReadAhead(1_000, threads=4)
    assert after(read_ahead, 10, 0.001) == 1_000
    assert after(read_ahead, 1, 60.0) == 100


def test_what_is_allowed_is_never_passed() -> None:
    """Who asked for seven gets seven, however fast they are handled."""
    assert after(ReadAhead(7, 4), 50, 0.0001) == 7


def test_ten_deliveries_decide_and_only_a_change_is_told() -> None:
    """The one that takes long among them counts for a tenth."""
    read_ahead = ReadAhead(1_000, threads=4)
    told = [read_ahead.note(0.02, 100) for _ in range(20)]
    assert told == [False] * 9 + [True] + [False] * 10
    assert after(read_ahead, 9, 0.0) == 400
    assert after(read_ahead, 1, 0.4) == 200


def test_many_threads_count_each_delivery_once() -> None:
    """The size is that of ten deliveries, whoever notes them."""
    read_ahead, changes = ReadAhead(10_000, threads=4), list[bool]()

    def note() -> None:
        changes.extend(read_ahead.note(0.01, 100) for _ in range(2_500))

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_ahead.size == 800
    assert changes.count(True) == 1
