"""What the demo page is fed from: the files of events, and of faults, of both services."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo_chassis.events import EventFile, Events
from demo_chassis.faults import AccountFaults, BrokenHandlerError, Faults, PointsFaults
from rmq_txn import Delivery
from rmq_txn.errors import SettingsError


def test_events_survive_and_ids_go_on(tmp_path: Path) -> None:
    """A process that was killed left its events; the next one counts on from there."""
    path = tmp_path / "deep" / "events.jsonl"
    first = Events("account", path)
    first.tell("half_stored", "x1", "t-1", message_id="m")
    second = Events("account", path)
    second.tell("committed", "x1")
    assert [(event["id"], event["step"]) for event in second.after(0)] == [
        (1, "half_stored"),
        (2, "committed"),
    ]
    assert [event["id"] for event in second.after(1)] == [2]
    assert second.after(2) == []
    event = second.after(0)[0]
    assert (event["service"], event["txn_id"], event["transfer_id"], event["detail"]) == (
        *("account", "x1", "t-1"),
        {"message_id": "m"},
    )


def test_the_file_stays_small(tmp_path: Path) -> None:
    """The newest are kept, in memory and on disk, with their ids."""
    path = tmp_path / "events.jsonl"
    events = Events("account", path, kept=5)
    for _ in range(23):
        events.tell("step")
    assert len(path.read_bytes().splitlines()) <= 10
    assert Events("account", path, kept=5).after(0)[-1]["id"] == 23


def test_the_story_of_a_parked_transaction_is_kept(tmp_path: Path) -> None:
    """However much happens after it: it can still be mended. Once it is, it goes as others do."""
    path = tmp_path / "events.jsonl"
    events = Events("points", path, kept=5)
    for step in ("delivered", "failed", "parked"):
        events.tell(step, "x1", "t-1")
    for _ in range(2):  # lives
        for number in range(40):
            events.tell("acked", f"y{number}")
        events = Events("points", path, kept=5)
        assert [event["step"] for event in events.after(0)][:3] == ["delivered", "failed", "parked"]
    assert len(path.read_bytes().splitlines()) <= 13
    events.tell("replayed", "x1", "t-1")
    for number in range(40):
        events.tell("acked", f"z{number}")
    assert not [event for event in events.after(0) if event["txn_id"] == "x1"]


def test_a_file_of_events_is_read_while_another_process_writes_it(tmp_path: Path) -> None:
    """Before it is there, line by line, after it was written anew, and in another life."""
    path = tmp_path / "events.jsonl"
    file = EventFile(path)
    assert file.after(0) == []
    events = Events("account", path, kept=5)
    events.tell("one")
    assert [event["id"] for event in file.after(0)] == [1]
    with path.open("ab") as half:
        half.write(b'{"id": 2, "step"')
    assert file.after(1) == []
    with path.open("ab") as half:
        half.write(b': "two"}\n')
    assert [event["step"] for event in file.after(1)] == ["two"]
    events = Events("account", path, kept=5)
    for _ in range(23):
        events.tell("more")
        assert [event["id"] for event in file.after(0)] == [event["id"] for event in events.after(0)]
    path.unlink()
    Events("account", path).tell("another life")
    assert [event["step"] for event in file.after(25)] == ["another life"]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    """After a power cut the service starts, and the next event is a line of its own."""
    path = tmp_path / "events.jsonl"
    Events("account", path).tell("whole")
    with path.open("ab") as file:
        file.write(b'{"id": 2, "ste')
    events = Events("account", path)
    events.tell("next")
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == ["whole", "next"]


def test_a_reader_of_another_life_gets_everything() -> None:
    """Its place lies behind the newest event: the file was removed meanwhile."""
    events = Events("account", None)
    events.tell("only")
    assert [event["step"] for event in events.after(99)] == ["only"]


@pytest.mark.parametrize("faults", [AccountFaults, PointsFaults])
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DEMO_FAULTS": "yes"}, "allowed is 0 or 1"),
        ({"DEMO_FAULTS": "1"}, "DEMO_FOLDER is not set"),
        ({"DEMO_CRASH": "at_lunch:t-1"}, "DEMO_CRASH is 'at_lunch:t-1', allowed is after_"),
        ({"DEMO_CRASH": "after_commit"}, "DEMO_CRASH is 'after_commit', allowed is after_"),
        ({"DEMO_CRASH": "after_commit_before_ack:"}, "DEMO_CRASH is 'after_commit_before_ack:', allowed is"),
    ],
)
def test_a_switch_that_makes_no_sense_is_refused(
    faults: type[Faults], environment: dict[str, str], words: str
) -> None:
    """A service with faults that forgets them would kill itself again and again."""
    events = Events("account", None)
    with pytest.raises(SettingsError, match=words):
        faults.from_environment(environment, events)
    assert not faults.from_environment({}, events).enabled


@pytest.mark.parametrize(
    ("faults", "point"),
    [
        (AccountFaults, "after_half_message"),
        (AccountFaults, "after_commit"),
        (PointsFaults, "after_commit_before_ack"),
    ],
)
def test_a_crash_point_needs_no_page(faults: type[Faults], point: str) -> None:
    """It is armed from the start, and nothing else can be armed."""
    events = Events("account", None)
    made = faults.from_environment({"DEMO_CRASH": f"{point}:t-1"}, events)
    assert not made.enabled
    assert set(made._armed) == {"t-1"}


def test_a_fault_strikes_once_however_often_it_is_armed(tmp_path: Path) -> None:
    """Also in the next process, which reads the file."""
    events = Events("account", None)

    def faults() -> AccountFaults:
        return AccountFaults(tmp_path / "faults.json", events)

    for _ in range(2):
        faults().arm("slow_check_back", "t-1")
    assert not faults().loses_verdict("x0", "t-2")
    assert faults().loses_verdict("x1", "t-1")
    faults().arm("slow_check_back", "t-1")
    assert not faults().loses_verdict("x1", "t-1")


def test_a_handler_fails_as_often_as_it_was_told(tmp_path: Path) -> None:
    """Counted across processes; poison ends only with `mend`, which names the message once it failed."""
    events = Events("points", None)

    def faults() -> PointsFaults:
        return PointsFaults(tmp_path / "faults.json", events)

    def delivery(key: str) -> Delivery:
        return Delivery(topic="transfer", body=b"{}", message_id="M", key=key)

    faults().arm("fail", "t-1", times=2)
    faults().arm("poison", "t-2")
    for _ in range(2):
        with pytest.raises(BrokenHandlerError):
            faults().fail_if_armed(delivery("t-1"))
    faults().fail_if_armed(delivery("t-1"))
    faults().fail_if_armed(delivery("t-3"))
    assert faults().mend("t-3") is None
    for _ in range(5):
        with pytest.raises(BrokenHandlerError):
            faults().fail_if_armed(delivery("t-2"))
    assert faults().mend("t-2") == ("", "transfer/M")
    faults().fail_if_armed(delivery("t-2"))
