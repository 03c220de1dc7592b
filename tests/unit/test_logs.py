"""Log lines: fields for plain and structured handlers, one line each, silent without handlers."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from rmq_txn.logs import bind, get_logger, unbind
from tests.kit.calls import Calls

CHECKOUT = Path(__file__).resolve().parents[2]


class Records(logging.Handler):
    """A structured handler: keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[Records]:
    """Attach a structured handler to the package's logger for one test."""
    logger, handler = logging.getLogger("rmq_txn"), Records()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def text(records: Records) -> Iterator[io.StringIO]:
    """Attach a plain handler besides, as an application with `basicConfig` has it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logging.getLogger("rmq_txn").addHandler(handler)
    yield stream
    logging.getLogger("rmq_txn").removeHandler(handler)


def fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a record."""
    found: dict[str, object] = vars(record)["rmq_txn_fields"]
    return found


def test_fields_reach_plain_handlers_as_text(text: io.StringIO) -> None:
    """Event first, then `name=value`, quoted where needed."""
    get_logger("producer").info("transaction committed", messages=2, cause="a b", none=None, ok=True)
    assert text.getvalue() == (
        'INFO rmq_txn.producer transaction committed messages=2 cause="a b" none= ok=true\n'
    ), text.getvalue()


def test_fields_reach_structured_handlers_as_values(records: Records) -> None:
    """With their types, beside the event."""
    get_logger("producer").warning("half message stored", position=3, ids=["a"])
    (record,) = records.records
    assert vars(record)["rmq_txn_event"] == "half message stored"
    assert fields(record) == {"position": 3, "ids": ["a"]}
    assert (record.levelname, record.name) == ("WARNING", "rmq_txn.producer")


def test_bound_context_reaches_both(records: Records, text: io.StringIO) -> None:
    """That is how txn_id gets onto every line; a field of the line itself wins."""
    with structlog.contextvars.bound_contextvars(txn_id="abc", position=1):
        get_logger("checkback").info("answered", position=2)
    get_logger("checkback").info("outside")
    answered, outside = text.getvalue().splitlines()
    assert answered.startswith("INFO rmq_txn.checkback answered ")
    assert set(answered.split()[3:]) == {"txn_id=abc", "position=2"}  # context has no order
    assert outside == "INFO rmq_txn.checkback outside"
    assert fields(records.records[0]) == {"txn_id": "abc", "position": 2}
    assert fields(records.records[1]) == {}


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_a_record_is_one_line_whatever_is_in_its_fields(text: io.StringIO, line_break: str) -> None:
    """A database error with a newline must not look like a second, forged record."""
    get_logger("pool").error("refused", error=f"one{line_break}ERROR rmq_txn forged", n=1)
    assert text.getvalue().splitlines() == ['ERROR rmq_txn.pool refused error="one ERROR rmq_txn forged" n=1']


def test_a_terminal_is_shown_control_characters_and_does_not_obey_them(text: io.StringIO) -> None:
    """Nor marks that turn the direction of text; other languages stay as they are."""
    get_logger("test").warning("handled", key="转账\x1b]0;owned\x07\u202e\x9b2J\udcff é")
    said = text.getvalue().replace("\\\\", "\\")  # newer versions of structlog write a backslash twice
    assert said == 'WARNING rmq_txn.test handled key="转账\\x1b]0;owned\\x07\\u202e\\x9b2J\\udcff é"\n'


def test_a_traceback_on_stderr_is_shown_line_by_line() -> None:
    """What a handler raised may hold what was in a message."""
    program = (
        "from rmq_txn.logs import get_logger, log_to_stderr\n"
        "log_to_stderr()\n"
        "try:\n    raise ValueError('bad \\x1b[2J\\r key\\nsecond line')\n"
        "except ValueError:\n    get_logger('test').exception('failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stderr
    assert done.stderr.splitlines()[-2:] == [r"ValueError: bad \x1b[2J  key", "second line"]


def test_a_percent_sign_is_not_a_placeholder(text: io.StringIO) -> None:
    """Neither in a value nor in the event."""
    get_logger("pool").info("100%s done", topic="%d%s%%")
    assert text.getvalue() == "INFO rmq_txn.pool 100%s done topic=%d%s%%\n"


def test_names_that_log_records_reserve_are_safe(records: Records, text: io.StringIO) -> None:
    """`extra={"name": ...}` would raise KeyError in the middle of a protocol."""
    reserved = [name for name in vars(logging.makeLogRecord({})) if name not in ("exc_info",)]
    reserved += ["message", "asctime"]
    get_logger("consumer").info("handled", **dict.fromkeys(reserved, "mine"))
    (record,) = records.records
    assert fields(record) == dict.fromkeys(reserved, "mine")
    assert record.name == "rmq_txn.consumer"
    assert text.getvalue().startswith("INFO rmq_txn.consumer handled ")


def test_any_name_an_application_binds_is_safe(records: Records, text: io.StringIO) -> None:
    """A log call never raises at a name; it is shown without what would break the line."""
    with structlog.contextvars.bound_contextvars(**{"user id": 1, "a\tb\n": 2, 'c="d': 3}):
        get_logger("consumer").info("handled")
    (line,) = text.getvalue().splitlines()
    assert set(line.split()[3:]) == {"user_id=1", "a_b_=2", "c__d=3"}
    assert fields(records.records[0]) == {"user id": 1, "a\tb\n": 2, 'c="d': 3}


def test_an_exception_keeps_its_traceback(records: Records, text: io.StringIO) -> None:
    """Inside an except block, and given as a value outside of one."""
    log = get_logger("transport.native")
    problem = ValueError("first")
    try:
        raise problem
    except ValueError:
        log.exception("a native callback failed", answer=2)
    log.error("handler failed", exc_info=problem)
    for record in records.records:
        assert record.exc_info is not None
        assert record.exc_info[1] is problem
    assert fields(records.records[0]) == {"answer": 2}
    assert text.getvalue().count("ValueError: first") == 2


def test_a_level_that_is_off_costs_no_rendering(records: Records) -> None:
    """The application's level decides."""

    class Costly:
        def __str__(self) -> str:
            raise AssertionError("rendered")

    logging.getLogger("rmq_txn").setLevel(logging.INFO)
    get_logger("producer").debug("half message stored", what=Costly())
    assert records.records == []


def test_nothing_is_printed_without_handlers_below_warning() -> None:
    """A library that prints by itself spoils its users' output; structlog's default would."""
    program = (
        "from rmq_txn.logs import get_logger\n"
        "log = get_logger('producer')\n"
        "log.debug('d'); log.info('i', a=1)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_an_applications_own_structlog_settings_do_not_change_our_lines() -> None:
    """It may render its own lines as JSON to stdout; ours go to its logging handlers."""
    program = (
        "import logging, sys, structlog\n"
        "structlog.configure(processors=[structlog.processors.JSONRenderer()])\n"
        "logging.basicConfig(stream=sys.stdout, level='INFO', format='%(name)s|%(message)s')\n"
        "from rmq_txn.logs import get_logger\n"
        "structlog.get_logger().info('theirs')\n"
        "get_logger('producer').info('ours', a=1)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False
    )
    theirs, ours = ran.stdout.splitlines()
    assert json.loads(theirs) == {"event": "theirs"}
    assert ours == "rmq_txn.producer|ours a=1"


@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_line_that_is_off_costs_one_check(level: str) -> None:
    """The method of ours, and the library's question; nothing is assembled."""
    logging.getLogger("rmq_txn.test_off").setLevel(logging.WARNING)
    log = get_logger("test_off")
    write = getattr(log, level)
    write("warm")
    assert Calls(__file__).of(lambda: write("off", field=1)).ours.total() == 2


def test_what_was_bound_before_is_bound_again_also_in_another_context() -> None:
    """A framework may end a block in a copy of its context, where a token can't be given back."""
    context = structlog.contextvars.get_contextvars
    outer = bind(txn_id="outer")
    inner = bind(txn_id="inner", topic="t")
    contextvars.copy_context().run(unbind, inner)
    assert context() == {"txn_id": "inner", "topic": "t"}
    unbind(inner)
    assert context() == {"txn_id": "outer"}
    unbind(outer)
    assert context() == {}
