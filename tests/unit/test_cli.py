"""The command line: parser, exit codes, and the one line each error prints."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rmq_txn.producer.outbox
import rmq_txn.schema
from docsite.commands import leaves
from rmq_txn import cli
from rmq_txn.cli import exit_codes
from rmq_txn.cli.output import printed, say, say_block, say_heading, say_record
from rmq_txn.database import Database
from rmq_txn.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    LifecycleError,
    NativeLibraryError,
    RmqTxnError,
    SchemaError,
    SettingsError,
)
from rmq_txn.library import installer
from rmq_txn.message import Delivery
from rmq_txn.producer.outbox import OutboxCount
from rmq_txn.remoting import dead_letters
from rmq_txn.remoting.dead_letters import DeadLetter
from rmq_txn.remoting.stored_message import StoredMessage

URL = "mysql://account:s3cr3t@127.0.0.1:3306/account"


class StubDatabase:
    """Record what the command does with its database."""

    opened: list[str]
    closed: int

    def __init__(self) -> None:
        self.opened = []
        self.closed = 0

    def mysql(self, url: str) -> StubDatabase:
        """Stand in for the class method."""
        self.opened.append(url)
        return self

    def close(self) -> None:
        """Count."""
        self.closed += 1


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> StubDatabase:
    """Replace the real database."""
    stub = StubDatabase()
    monkeypatch.setattr(Database, "mysql", stub.mysql)
    monkeypatch.delenv("RMQ_TXN_DATABASE_URL", raising=False)
    return stub


def applied(*, created: bool, upgraded: bool = False) -> rmq_txn.schema.AppliedSchema:
    """Return what `schema.apply` would."""
    return rmq_txn.schema.AppliedSchema(3, "an-id", created, upgraded)


def failing_with(error: BaseException) -> Any:
    """Return a function that raises, whatever it is given."""

    def fail(*_args: Any, **_keywords: Any) -> None:
        raise error

    return fail


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rmq_txn", *arguments],
        cwd=Path(cli.__file__).parents[2],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_has_a_function_and_a_help() -> None:
    """The parser alone: no command runs."""
    parser = cli.build_parser()
    for arguments in (
        ["native", "install"],
        ["native", "status"],
        ["schema", "print"],
        ["schema", "apply"],
        ["consume", "points_service:consumer"],
        ["offsets", "show", "points_service:consumer"],
        ["parked", "list"],
        ["parked", "show", "--group", "g", "--key", "k"],
        ["parked", "replay", "points_service:consumer", "--all"],
        ["parked", "drop", "--group", "g", "--key", "k"],
        ["dlq", "list", "points_service:consumer"],
        ["dlq", "replay", "points_service:consumer"],
    ):
        assert callable(parser.parse_args(arguments).run)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "Exit codes: 0 done"),
        (["native", "install", "--help"], "--allow-unknown"),
        (["native", "install", "--help"], "official rocketmq-client-cpp 2.x .deb is not known"),
        (["native", "status", "--help"], "Exit 0 if it is usable, 3 if not"),
        (["schema", "apply", "--help"], "RMQ_TXN_DATABASE_URL"),
        (["parked", "list", "--help"], "RMQ_TXN_DATABASE_URL"),
        (["parked", "replay", "--help"], "needs --force: its effect may be in the database"),
        (["dlq", "replay", "--help"], "the rest is still in %DLQ%."),
        (["--version"], "rmq-txn"),
    ],
)
def test_help_says_what_a_user_needs(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Environment variables, exit codes and the need for --allow-unknown are in the help."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == exit_codes.OK
    assert expected in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "rmq-txn: the following arguments are required: COMMAND (see `rmq-txn --help`)\n"),
        (["native"], "rmq-txn: the following arguments are required: COMMAND (see `rmq-txn native"),
        (["schema", "apply", "--nonsense"], "rmq-txn: unrecognized arguments: --nonsense (see"),
        (["schema", "print", URL], "rmq-txn: unrecognized arguments: mysql://***@127.0.0.1:3306"),
        (["native", "install", "--from"], "rmq-txn: argument --from: expected one argument (see"),
        (["parked", "replay", "m:c"], "rmq-txn: one of the arguments --key --all is required (see"),
        (["parked", "replay", "m:c", "--all", "--key", "k"], "rmq-txn: argument --key: not allowed with"),
        (["parked", "replay", "m:c", "--all", "--rate", "0"], "rmq-txn: argument --rate: invalid positive"),
        (["parked", "list", "--limit", "-1"], "rmq-txn: argument --limit: invalid positive"),
        (["parked", "drop", "--key", "k"], "rmq-txn: the following arguments are required: --group (see"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A URL in the wrong place is shown without its password."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == exit_codes.USAGE
    printed = capsys.readouterr()
    assert printed.err.startswith(expected)
    assert printed.err.count("\n") == 1
    assert "s3cr3t" not in printed.err
    assert printed.out == ""


def test_allow_unknown_without_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """What comes from the index is pinned, so there is nothing to allow."""
    assert cli.main(["native", "install", "--allow-unknown"]) == exit_codes.USAGE
    assert capsys.readouterr().err == "rmq-txn: --allow-unknown needs --from FILE\n"


def test_an_installed_library_that_does_not_load_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the right place with the right hash may still miss libz or a newer glibc."""
    monkeypatch.setattr(installer, "install", lambda _source, allow_unknown: tmp_path / "lib.so")
    monkeypatch.setattr(installer, "load_problem", lambda _path: "version `GLIBC_2.30' not found")
    assert cli.main(["native", "install"]) == exit_codes.NOT_USABLE
    line = capsys.readouterr().err
    assert line.endswith("lib.so is in place but can't be used: version `GLIBC_2.30' not found\n")


def test_schema_print_prints_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte, so that it can be piped into a client."""
    monkeypatch.setattr(rmq_txn.schema, "script", lambda: "CREATE TABLE x (y INT);\n")
    assert cli.main(["schema", "print"]) == exit_codes.OK
    assert capsys.readouterr().out == "CREATE TABLE x (y INT);\n"


def test_the_real_script_names_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """The interface that the command relies on."""
    assert cli.main(["schema", "print"]) == exit_codes.OK
    printed = capsys.readouterr().out
    assert "rmq_txn_log" in printed
    assert "rmq_txn_inbox" in printed


def test_a_reader_that_stops_reading_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rmq-txn schema print | true`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        child = subprocess.run(
            [sys.executable, "-m", "rmq_txn", "schema", "print"],
            cwd=Path(cli.__file__).parents[2],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert child.returncode == exit_codes.FAILED
    assert child.stderr == b""


@pytest.mark.parametrize(
    ("created", "upgraded", "expected"),
    [(True, False, "created"), (False, True, "upgraded"), (False, False, "already there")],
)
def test_schema_apply_says_what_the_database_holds(
    created: bool,
    upgraded: bool,
    expected: str,
    database: StubDatabase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Version and identity; the database is closed; harmless when repeated."""
    result = applied(created=created, upgraded=upgraded)
    monkeypatch.setattr(rmq_txn.schema, "apply", lambda _database: result)
    assert cli.main(["schema", "apply", "--database-url", URL]) == exit_codes.OK
    assert capsys.readouterr().out == f"{expected}: schema version 3, database id an-id\n"
    assert (database.opened, database.closed) == ([URL], 1)


def test_the_database_url_may_come_from_the_environment(
    database: StubDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The argument wins over the variable."""
    monkeypatch.setattr(rmq_txn.schema, "apply", lambda _database: applied(created=True))
    monkeypatch.setenv("RMQ_TXN_DATABASE_URL", "mysql://from@environment/x")
    assert cli.main(["schema", "apply"]) == exit_codes.OK
    assert cli.main(["schema", "apply", "--database-url", URL]) == exit_codes.OK
    assert database.opened == ["mysql://from@environment/x", URL]


def test_a_missing_database_url_is_exit_2(database: StubDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names both ways to give it."""
    assert cli.main(["schema", "apply"]) == exit_codes.USAGE
    line = capsys.readouterr().err
    assert line == "rmq-txn: which database? pass --database-url URL or set RMQ_TXN_DATABASE_URL\n"
    assert database.opened == []


@pytest.mark.parametrize(
    ("oldest", "budget", "code"),
    [
        (839.0, [], exit_codes.OK),
        (841.0, [], exit_codes.FAILED),
        (1139.0, ["--check-budget-seconds", "900"], exit_codes.OK),
        (1141.0, ["--check-budget-seconds", "900"], exit_codes.FAILED),
    ],
)
def test_outbox_status_counts_by_topic_and_fails_when_a_row_is_too_old(
    oldest: float,
    budget: list[str],
    code: int,
    database: StubDatabase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The budget and four minutes; the topics are named."""

    class StubOutbox:
        def __init__(self, _database: object) -> None:
            self.closed = False

        def count_by_topic(self) -> list[OutboxCount]:
            return [OutboxCount(3, 5.0, "fresh"), OutboxCount(1, oldest, "stuck")]

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(rmq_txn.schema, "check", lambda _database: "an-id")
    monkeypatch.setattr(rmq_txn.producer.outbox, "Outbox", StubOutbox)
    assert cli.main(["outbox", "status", "--database-url", URL, *budget]) == code
    out, err = capsys.readouterr()
    head, fresh, stuck = out.splitlines()
    assert (head.split(), fresh.split()) == (["topic", "rows", "oldest"], ["fresh", "3", "5", "s"])
    assert stuck.split() == ["stuck", "1", f"{oldest:.0f}", "s"]
    assert ("topics with rows older than" in err and "stuck" in err and "fresh" not in err) is bool(code)
    assert database.closed == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_a_check_budget_that_is_no_duration_is_exit_2(seconds: str, database: StubDatabase) -> None:
    """Nothing is asked then."""
    try:
        code = cli.main(["outbox", "status", "--database-url", URL, "--check-budget-seconds", seconds])
    except SystemExit as exit_:  # of argparse
        code = exit_.code  # type: ignore[assignment]
    assert code == exit_codes.USAGE
    assert database.opened == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("bad pool"), exit_codes.USAGE),
        (DatabaseUnavailableError("no answer"), exit_codes.UNAVAILABLE),
        (BrokerUnavailableError("no route"), exit_codes.UNAVAILABLE),
        (SchemaError("too new"), exit_codes.NO_SCHEMA),
        (LifecycleError("twice"), exit_codes.FAILED),
        (NativeLibraryError("missing"), exit_codes.NOT_USABLE),
        (KeyboardInterrupt(), exit_codes.INTERRUPTED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    error: BaseException,
    code: int,
    database: StubDatabase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line with the message; the database is closed all the same."""
    monkeypatch.setattr(rmq_txn.schema, "apply", failing_with(error))
    assert cli.main(["schema", "apply", "--database-url", URL]) == code
    assert capsys.readouterr().err == f"rmq-txn: {str(error) or 'interrupted'}\n"
    assert database.closed == 1


def test_a_message_of_several_lines_with_a_url_becomes_one_line_without_password(
    database: StubDatabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last net, whatever a message was made of."""
    monkeypatch.setattr(rmq_txn.schema, "apply", failing_with(SchemaError(f"no\n  way: {URL}")))
    assert cli.main(["schema", "apply", "--database-url", URL]) == exit_codes.NO_SCHEMA
    assert capsys.readouterr().err == "rmq-txn: no way: mysql://***@127.0.0.1:3306/account\n"


def test_a_bug_is_a_traceback_and_not_an_exit_code(
    database: StubDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody expected must be seen in full."""
    monkeypatch.setattr(rmq_txn.schema, "apply", failing_with(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["schema", "apply", "--database-url", URL])


def buried(message_id: str, queue: int, offset: int) -> StoredMessage:
    """Return a message of a queue of dead letters."""
    properties = {"UNIQ_KEY": message_id, "RETRY_TOPIC": "t"}
    return StoredMessage("%DLQ%points", queue, offset, 0, 0, 0, "", 0, 16, b"x", properties)


def test_a_dead_letter_that_can_not_be_parked_holds_up_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told and left; its queue is not marked as read past it, others are."""
    letters = [
        DeadLetter(buried(id_, queue, offset), "broker", queue)
        for id_, queue, offset in (("a", 0, 0), ("bad", 0, 1), ("b", 0, 2), ("c", 1, 0))
    ]
    marked: list[str] = []

    class Consumer:
        group = "points"
        broker = None

        def park(self, delivery: Delivery) -> str | None:
            if delivery.message_id == "bad":
                raise ValueError("Data too long")
            return delivery.message_id

        def replay(self, key: str, *, force: bool) -> bool:
            return not force and key != "bad"

    monkeypatch.setattr(cli.dlq, "loaded_consumer", lambda _target: contextlib.nullcontext(Consumer()))
    monkeypatch.setattr(cli.dlq, "_cluster", lambda _consumer: None)
    monkeypatch.setattr(dead_letters, "unread", lambda *_: iter(letters))
    monkeypatch.setattr(
        dead_letters, "mark_read", lambda _cluster, _group, letter: marked.append(letter.message.message_id)
    )
    assert cli.main(["dlq", "replay", "service:consumer", "--rate", "1000"]) == exit_codes.FAILED
    assert capsys.readouterr().out.splitlines() == [
        "left in %DLQ%: bad: ValueError: Data too long",
        *(f"replayed: {key}" for key in "abc"),
        "3 replayed, 0 left parked",
    ]
    assert marked == ["a", "c"]


def test_exit_codes_are_distinct() -> None:
    """A script can tell them apart."""
    codes = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert len(set(codes)) == len(codes) == 8


def test_the_module_runs_as_a_program() -> None:
    """`python -m rmq_txn` is the console script: exit code and stderr of a real process."""
    assert run("--help").returncode == exit_codes.OK
    wrong = run("schema", "apply", RMQ_TXN_DATABASE_URL="")
    assert wrong.returncode == exit_codes.USAGE
    assert wrong.stderr.startswith("rmq-txn: which database?")


def test_an_unreachable_database_is_exit_4() -> None:
    """The real driver against a port that nobody listens on; the password is not in the line."""
    answer = run("schema", "apply", "--database-url", "mysql://account:s3cr3t@127.0.0.1:1/account")
    assert answer.returncode == exit_codes.UNAVAILABLE
    assert answer.stderr.startswith("rmq-txn: ")
    assert answer.stderr.count("\n") == 1
    assert "s3cr3t" not in answer.stderr


def test_the_driver_is_loaded_only_by_the_command_that_needs_it() -> None:
    """No module of the command line imports the database side while it is itself imported."""
    for path in Path(cli.__file__).parent.glob("*.py"):
        imported = [
            ast.unparse(node)
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not [line for line in imported if "database" in line or "rmq_txn import" in line]


def test_parsers_are_one_kind() -> None:
    """Subcommands inherit the one-line errors of the main parser."""
    parser = cli.build_parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {type(choice) for choice in action.choices.values()} == {type(parser)}


def test_only_one_module_prints_and_it_escapes() -> None:
    """What comes from a message, a key or an error is anything; scripts are ours."""
    for path in sorted(Path(cli.__file__).parent.glob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        allowed = {"output.py": 5, "schema.py": 1, "completion.py": 1, "__init__.py": 1}
        assert len(calls) == allowed.get(path.name, 0), path.name


def test_what_is_printed_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """A line stays one line; a block keeps its lines, indented so that none looks like another field."""
    say("key \x1b[31m\nforged line\u2028x 积分")
    say_block("body: ", '{\n\t"a": "\x1b]0;x\x07"\r\n}')
    say_block("empty: ", "")
    assert capsys.readouterr().out == (
        'key \\x1b[31m forged line x 积分\nbody: {\n      \t"a": "\\x1b]0;x\\x07"\n      }\nempty:\n'
    )


def test_with_json_a_line_is_an_object_and_headings_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is in it: a line of its own, in ASCII."""
    with printed(as_json=True):
        say_heading("key")
        say("parked: k", "parked", key="k \x1b[31m\n\u2028 积分", attempts=3)
        say("nothing more")
        say_record("native", {"message id": "1", "tag": None}, width=10)
    say("for people", "parked", key="k")
    *objects, last = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in objects] == [
        {"kind": "parked", "key": "k \x1b[31m\n\u2028 积分", "attempts": 3, "text": "parked: k"},
        {"kind": "note", "text": "nothing more"},
        {"kind": "native", "message_id": "1", "tag": None},
    ]
    assert last == "for people"


def test_every_command_that_prints_has_json_and_the_page_names_each_kind() -> None:
    """But those that print a script, and the one that runs until it is stopped."""
    without = {"rmq-txn schema print", "rmq-txn completion", "rmq-txn consume"}
    found = {leaf.prog: "--json" in leaf.format_help() for leaf, _ in leaves(cli.build_parser())}
    assert {prog for prog, has in found.items() if not has} == without
    said = re.compile(r"\b(?:say|say_record)\(")
    kinds = {"note"}
    for path in Path(cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and said.match(f"{ast.unparse(node.func)}("):
                place = 0 if ast.unparse(node.func) == "say_record" else 1
                constant = node.args[place] if len(node.args) > place else None
                if isinstance(constant, ast.Constant):
                    kinds.add(constant.value)
            elif isinstance(node, ast.Dict):  # one that a command makes itself
                pairs = zip(node.keys, node.values, strict=True)
                kinds |= {
                    value.value
                    for key, value in pairs
                    if isinstance(key, ast.Constant)
                    and key.value == "kind"
                    and isinstance(value, ast.Constant)
                }
    page = (Path(cli.__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert kinds == set(re.findall(r"^\| `([a-z ]+)` \|", page, re.MULTILINE))


def test_a_command_prints_for_programs_what_it_prints_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = installer.LibraryStatus(Path("/there/librocketmq.so"), True, "ab12", "2.1.0", None, None)
    monkeypatch.setattr(installer, "status", lambda: library)
    monkeypatch.setattr(installer, "load_problem", lambda _path: None)
    assert cli.main(["native", "status", "--json"]) == exit_codes.OK
    told = json.loads(capsys.readouterr().out)
    assert cli.main(["native", "status"]) == exit_codes.OK
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert told == {"kind": "native", **{name: text.strip() for name, text in lines.items()}}
    assert told["sha256"] == "ab12"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_is_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == exit_codes.OK
    script = capsys.readouterr().out
    assert all(word in script for word in ("parked", "replay", "offsets", "rmq-txn"))


def test_bash_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    """The script is given to bash, and asked as TAB asks it; no Python is needed for that."""
    assert cli.main(["completion", "bash"]) == exit_codes.OK
    ask = (
        'source /dev/stdin <<< "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        "_shtab_rmq_txn rmq-txn; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    script = capsys.readouterr().out

    def completed(*words: str) -> set[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", ask, script, "rmq-txn", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"PATH": os.environ["PATH"]},
        )
        return set(done.stdout.split())

    assert completed("pa") == {"parked"}
    assert completed("parked", "re") == {"replay"}
    assert completed("parked", "replay", "--fo") == {"--force"}


def test_completion_without_shtab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == exit_codes.USAGE
    assert "pip install 'rmq-txn[completion]'" in capsys.readouterr().err


def test_an_error_is_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text may hold a key."""
    monkeypatch.setattr(rmq_txn.schema, "script", failing_with(RmqTxnError("no key \x1b[2J")))
    assert cli.main(["schema", "print"]) == exit_codes.FAILED
    assert capsys.readouterr().err == "rmq-txn: no key \\x1b[2J\n"


def test_consume_says_nothing_on_stderr_but_its_log() -> None:
    """No warning of runpy in each process, above all."""
    done = run("consume", "no_such_module:consumer")
    assert done.returncode == exit_codes.USAGE
    log, traceback = [], []
    for line in done.stderr.splitlines():
        (log if re.match(r"\d{4}-\d\d-\d\d \S+ [A-Z]+ \d+ rmq_txn\.\w", line) else traceback).append(line)
    assert len(log) == 3
    assert traceback[0] == "Traceback (most recent call last):"  # of the import, told on purpose
    assert traceback[-1] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert "Warning" not in done.stderr
    assert done.stdout == ""
