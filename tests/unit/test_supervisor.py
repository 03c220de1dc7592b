"""Restarts, pauses, crash loops and the end of the supervisor, with fake children and a fake clock."""

from __future__ import annotations

import errno
import logging
import os
import signal

import pytest

from rmq_txn.consumer.supervisor import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    LOOP_CRASHES,
    LOOP_SECONDS,
    WELL_SECONDS,
    Supervisor,
)

WRONG_SETTING = 2


class FakeChild:
    """A process that ends when a test says so."""

    def __init__(self, pid: int) -> None:
        self.pid, self.status, self.signals, self.ready = pid, None, list[int](), True

    def poll(self) -> int | None:
        return self.status

    def is_ready(self) -> bool:
        return self.ready

    def send_signal(self, number: int, /) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.status = -signal.SIGKILL

    status: int | None


class Scene:
    """A supervisor in a world of its own."""

    def __init__(
        self,
        processes: int = 1,
        chance: float = 1.0,
        *,
        ready: bool = True,
        failing: OSError | None = None,
    ) -> None:
        self.now, self.ready = 1000.0, ready
        self.children: list[FakeChild] = []
        self.explained = 0
        self.failing = failing
        self.supervisor = Supervisor(
            spawn=self.spawn,
            explain=self.explain,
            processes=processes,
            stop_seconds=20.0,
            final=frozenset({WRONG_SETTING}),
            clock=lambda: self.now,
            chance=lambda: chance,
        )
        self.step()

    def spawn(self) -> FakeChild:
        if self.failing is not None:
            raise self.failing
        self.children.append(FakeChild(len(self.children) + 1))
        self.children[-1].ready = self.ready
        return self.children[-1]

    def explain(self) -> None:
        self.explained += 1

    def step(self, seconds: float = 0.0) -> int | None:
        self.now += seconds
        return self.supervisor.step()

    def running(self) -> list[int]:
        return [child.pid for child in self.children if child.status is None]

    def end(self, status: int, *, after: float = 0.0) -> float:
        """End the newest child; return how long its place stays empty."""
        self.step(after)
        self.children[-1].status = status
        self.step()
        began, count = self.now, len(self.children)
        while len(self.children) == count:
            assert self.step(0.25) is None
            assert self.now - began <= LONGEST_PAUSE_SECONDS + 1
        return self.now - began


@pytest.mark.parametrize("status", [0, 1, -signal.SIGKILL])
def test_a_child_that_ends_by_itself_is_replaced_after_growing_pauses(status: int) -> None:
    """Also one that ends with 0: nobody told it to."""
    scene = Scene()
    pauses = [scene.end(status) for _ in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert scene.explained == 0


def test_a_child_that_ran_well_begins_again_with_the_shortest_pause() -> None:
    """A failure each hour must not end in a pause of a minute."""
    scene = Scene()
    assert [scene.end(1) for _ in range(3)] == [1, 2, 4]
    assert scene.end(1, after=WELL_SECONDS) == FIRST_PAUSE_SECONDS
    assert scene.end(1) == 2 * FIRST_PAUSE_SECONDS


def test_pauses_are_shortened_by_chance() -> None:
    """By at most a half."""
    assert Scene(chance=0.0).end(1) == 0.5 * FIRST_PAUSE_SECONDS


def test_repeated_crashes_are_a_loop_that_is_explained_and_slowed_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on with the longest pause; each further crash says so."""
    scene = Scene()
    pauses = [scene.end(-signal.SIGABRT) for _ in range(LOOP_CRASHES + 1)]
    assert pauses == [1, 2, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    assert scene.explained == 2
    critical = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 2
    assert "crash loop" in critical[0]
    assert "SIGABRT" in critical[0]


def test_crashes_of_several_children_are_one_loop() -> None:
    """The queue with the message moves to the next child when one dies."""
    scene = Scene(processes=LOOP_CRASHES)
    scene.step(WELL_SECONDS)
    for child in scene.children:
        child.status = -signal.SIGSEGV
    scene.step()
    assert scene.explained == 1


def test_rare_crashes_are_no_loop() -> None:
    """One in a while is bad luck."""
    scene = Scene()
    for _ in range(LOOP_CRASHES + 2):
        assert scene.end(-signal.SIGABRT, after=LOOP_SECONDS) == FIRST_PAUSE_SECONDS
    assert scene.explained == 0


def test_stop_tells_children_once_and_waits_for_them() -> None:
    """The status is 0 only after the last one has ended."""
    scene = Scene(processes=2)
    scene.supervisor.stop()
    assert scene.step() is None
    scene.children[0].status = 0
    assert scene.step(5.0) is None
    scene.children[1].status = 0
    assert scene.step(5.0) == 0
    assert [child.signals for child in scene.children] == [[signal.SIGTERM], [signal.SIGTERM]]
    assert not scene.supervisor.killed


def test_a_child_that_does_not_end_in_time_is_killed() -> None:
    """Whoever asks for the exit status is told."""
    scene = Scene()
    scene.supervisor.stop()
    assert scene.step() is None
    assert scene.step(19.9) is None
    assert scene.children[0].signals == [signal.SIGTERM]
    assert scene.step(0.1) is None
    assert scene.step() == 0
    assert scene.children[0].signals == [signal.SIGTERM, signal.SIGKILL]
    assert scene.supervisor.killed


@pytest.mark.parametrize(("status", "expected"), [(-signal.SIGTERM, 0), (1, 1), (-signal.SIGSEGV, 1)])
def test_a_child_that_ends_badly_when_told_is_not_hidden(status: int, expected: int) -> None:
    """SIGTERM itself is fine: it was still importing."""
    scene = Scene()
    scene.supervisor.stop()
    scene.step()
    scene.children[0].status = status
    assert scene.step() == expected


def test_stop_while_a_child_waits_for_its_restart_ends_at_once() -> None:
    """Nothing runs, nothing to wait for."""
    scene = Scene()
    scene.children[0].status = 1
    scene.step()
    scene.supervisor.stop()
    assert scene.step() == 0
    assert len(scene.children) == 1


def test_a_wrong_setting_at_the_first_start_ends_everything() -> None:
    """A restart does not mend it; the other children are told."""
    scene = Scene(processes=2, ready=False)
    scene.children[0].status = WRONG_SETTING
    assert scene.step() is None
    assert scene.children[1].signals == [signal.SIGTERM]
    scene.children[1].status = -signal.SIGTERM
    assert scene.step() == WRONG_SETTING


def test_a_wrong_setting_later_takes_no_other_child_down() -> None:
    """After a bad deployment those that run go on."""
    scene = Scene(processes=2)
    scene.step()
    assert scene.end(WRONG_SETTING) == FIRST_PAUSE_SECONDS
    assert scene.children[0].signals == []


def test_a_rolling_restart_replaces_one_child_after_the_other() -> None:
    """The second is told only when the first one's successor is ready."""
    scene = Scene(processes=2)
    scene.step()
    scene.supervisor.restart()
    scene.step()
    scene.ready = False
    assert [child.signals for child in scene.children] == [[signal.SIGTERM], []]
    scene.children[0].status = 0
    scene.step()
    scene.step(5.0)
    assert scene.running() == [2, 3]
    assert scene.children[1].signals == []
    scene.children[2].ready = True
    scene.step()
    assert scene.children[1].signals == [signal.SIGTERM]
    scene.children[1].status = 0
    scene.step()
    assert scene.running() == [3, 4]


def test_a_rolling_restart_stops_at_a_successor_that_dies() -> None:
    """Bad code must not replace the last good child."""
    scene = Scene(processes=2)
    scene.step()
    scene.supervisor.restart()
    scene.step()
    scene.children[0].status = 0
    scene.ready = False
    scene.step()
    for _ in range(3):
        scene.end(WRONG_SETTING)
    assert scene.children[1].signals == []


def test_a_rolling_restart_starts_at_once_who_waits_for_a_restart() -> None:
    """After the message of a crash loop was skipped, nobody wants to wait for a minute."""
    scene = Scene()
    for _ in range(LOOP_CRASHES - 1):
        scene.end(-signal.SIGABRT)
    scene.children[-1].status = -signal.SIGABRT
    scene.step()
    assert scene.running() == []
    scene.supervisor.restart()
    scene.step()
    assert len(scene.running()) == 1


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE], ids=errno.errorcode.get)
def test_a_child_that_can_not_be_started_is_tried_again_and_the_others_go_on(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One failed fork ended the supervisor, and all its children with it."""
    scene = Scene(processes=2)
    scene.failing = OSError(number, os.strerror(number))
    scene.children[0].status = 1
    with caplog.at_level(logging.ERROR):
        for _ in range(20):
            assert scene.step(0.5) is None
    assert scene.running() == [2]
    tried = [record.message for record in caplog.records if "can't be started" in record.message]
    assert 1 < len(tried) < 5  # with growing pauses
    assert os.strerror(number) in tried[0]
    scene.failing = None
    for _ in range(200):
        scene.step(0.5)
    assert scene.running() == [2, 3]


def test_a_supervisor_whose_first_children_can_not_be_started_goes_on_and_can_be_stopped() -> None:
    """Nothing to wait for: it ends at once, with 0."""
    scene = Scene(failing=OSError(errno.EAGAIN, "no process left"))
    assert scene.children == []
    assert scene.step(5) is None
    scene.supervisor.stop()
    assert scene.step() == 0
