"""The development stack with real servers: data survives, faults are reported, nothing is left."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pymysql
import pytest

from devstack import LocalStack, Stack, StackError, StackSettings
from devstack.guard import boot_id, start_ticks
from devstack.machine import ports_open_to_others
from devstack.settings import CHECKOUT
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError
from tests.kit import wait

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

# Starts name server and database as their owner, prints their pids, then waits to be killed.
OWNER = """
import json, sys
from pathlib import Path
from devstack import LocalStack, StackSettings
stack = LocalStack(StackSettings.for_tests(Path(sys.argv[1])))
stack.namesrv.start(wait=False)
stack.database.start()
print(json.dumps([stack.namesrv.pid, stack.database.pid]), flush=True)
sys.stdin.read()
"""

# Starts a database that outlives its starter, prints its pid and ends.
STARTER = """
import sys
from pathlib import Path
from devstack import LocalStack, StackSettings
stack = LocalStack(StackSettings(folder=Path(sys.argv[1])), outlives_starter=True)
stack.database.start()
print(stack.database.pid)
"""


def start(settings: StackSettings, request: pytest.FixtureRequest) -> LocalStack:
    """Start a stack; skip where its programs are missing, unless servers are required."""
    stack = LocalStack(settings)
    try:
        stack.start()
    except StackError as exc:
        if request.config.getoption("--require-servers"):
            raise
        pytest.skip(f"the real servers can't be started here: {exc}")
    return stack


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Yield a stack of this module's own, because its servers are killed."""
    folder = tmp_path_factory.mktemp("devstack")
    stack = start(StackSettings.for_tests(folder), request)
    try:
        yield stack
    finally:
        stack.close()


def has_route(stack: LocalStack, topic: str) -> bool:
    """Tell whether the stack's name server knows the topic."""
    try:
        return bool(RemotingClient(stack.name_server).topic_route(topic).brokers)
    except RemotingError:
        return False


def run_sql(url: str, statement: str) -> object:
    """Run one statement with the account of a database URL and return its first value."""
    parts = urlsplit(url)
    connection = pymysql.connect(
        host=parts.hostname,
        port=parts.port or 0,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.removeprefix("/"),
        autocommit=True,
    )
    with closing(connection), connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    return None if row is None else row[0]


def test_a_local_stack_is_a_stack(running: LocalStack) -> None:
    """The seam that demo and tests use is what the local stack offers."""
    # Not isinstance: it would ask for the proxy, which this stack runs without.
    assert {name for name in dir(Stack) if not name.startswith("_")} <= set(dir(running))


@pytest.mark.long
def test_the_example_of_the_document_runs(tmp_path: Path) -> None:
    """docs/testing.md, in a folder of one's own with the checkout on the path."""
    text = (CHECKOUT / "docs" / "testing.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n# local\.py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"127\.0\.0\.1:\d+ mysql://account:\w+@127\.0\.0\.1:\d+/account\n", ran.stdout)


def test_only_the_port_that_rocketmq_cannot_bind_is_open_to_other_machines(running: LocalStack) -> None:
    """The kernel's word; what the stack says of itself is the same."""
    found = {server.name: ports_open_to_others(server.pid) for server in running.servers}
    assert found == {"namesrv": set(), "broker": {running.ports.broker + 1}, "database": set()}
    assert set(running.open_ports) == found["broker"]
    said = devstack("status", running.settings.folder).stdout
    assert f"open      {running.ports.broker + 1} of the broker on every address" in said
    with pytest.raises(StackError, match="runs without RocketMQ's proxy"):
        running.proxy_address  # noqa: B018


@pytest.mark.long
def test_a_stack_has_a_proxy_when_it_is_asked_for(
    request: pytest.FixtureRequest, tmp_path: Path, running: LocalStack
) -> None:
    """It serves routes and gRPC, and says that its ports are open to other machines."""
    stack = LocalStack(StackSettings.for_tests(tmp_path, proxy=True))
    try:
        stack.namesrv.start()
        stack.broker.start()  # ready when the proxy answers
        host, port = stack.proxy_address.split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        ports = {stack.ports.broker + 1, stack.ports.proxy_grpc, stack.ports.proxy_remoting}
        assert ports_open_to_others(stack.broker.pid) == set(stack.open_ports) == ports
    finally:
        stack.close()


@pytest.mark.long
def test_two_stacks_run_side_by_side(
    running: LocalStack, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Ports, topics and databases of one are not those of the other."""
    other = start(StackSettings.for_tests(tmp_path), request)
    try:
        other.create_topic("only-in-the-other")
        assert has_route(other, "only-in-the-other")
        assert not has_route(running, "only-in-the-other")
        run_sql(other.database_url("shared"), "CREATE TABLE t (n INT)")
        run_sql(running.database_url("shared"), "CREATE TABLE t (n INT)")
        pids = {server.pid for server in (*other.servers, *running.servers)}
        assert len(pids) == 6
    finally:
        other.close()
    assert not any(server.alive for server in other.servers)
    assert all(server.alive for server in running.servers)


def test_a_broker_killed_and_started_again_still_has_its_topics(running: LocalStack) -> None:
    """Kill -9 is a fault we inject, so it must leave data and ports alone."""
    running.create_topic("kept", queues=3)
    address, pid = running.broker_address, running.broker.pid
    running.broker.kill()
    assert not running.broker.alive
    running.broker.start()
    assert running.broker_address == address
    assert running.broker.pid != pid
    route = wait.until(lambda: RemotingClient(running.name_server).topic_route("kept"), "the route")
    assert [queues.write_queues for queues in route.queues] == [3]


def test_a_database_killed_and_started_again_still_has_its_rows(running: LocalStack) -> None:
    """A commit that was answered survives kill -9 of the server."""
    url = running.database_url("kept")
    run_sql(url, "CREATE TABLE t (n INT)")
    run_sql(url, "INSERT INTO t VALUES (42)")
    running.database.kill()
    running.database.start()
    assert run_sql(running.database_url("kept"), "SELECT n FROM t") == 42


def test_an_account_reaches_its_own_database_only(running: LocalStack) -> None:
    """`a_b` must not match `axb`: an underscore in GRANT stands for any character."""
    run_sql(running.database_url("axb"), "CREATE TABLE t (n INT)")
    url = running.database_url("a_b")
    run_sql(url, "CREATE TABLE t (n INT)")
    with pytest.raises(pymysql.err.OperationalError, match="denied") as caught:
        run_sql(url, "SELECT n FROM axb.t")
    assert caught.value.args[0] == 1142


def test_a_paused_name_server_does_not_answer_until_it_is_resumed(running: LocalStack) -> None:
    """A frozen server keeps its connections and says nothing."""
    client = RemotingClient(running.name_server, timeout_seconds=0.5)
    running.namesrv.pause()
    try:
        with pytest.raises(BrokerUnavailableError, match=r"within 0\.5 s"):
            client.cluster_info()
        assert running.namesrv.alive
    finally:
        running.namesrv.resume()
    running.namesrv.wait_ready(timeout_seconds=10)


def test_a_second_stack_in_the_same_folder_is_refused(running: LocalStack) -> None:
    """One folder is one stack; the running one is left alone."""
    with pytest.raises(StackError, match=f"runs already .*process {os.getpid()}"):
        LocalStack(running.settings).start()
    assert all(server.alive for server in running.servers)


def test_a_broker_that_refuses_its_configuration_reports_its_log(tmp_path: Path) -> None:
    """The error alone must suffice to see why: command, exit code, what the server printed."""
    settings = StackSettings.for_tests(tmp_path, broker_properties={"brokerRole": "SLAVE"})
    with pytest.raises(StackError, match="broker ended before it was ready") as caught:
        LocalStack(settings).broker.start()
    text = str(caught.value)
    assert "org.apache.rocketmq.broker.BrokerStartup" in text
    assert "exit code: 253" in text
    assert "Slave's brokerId must be > 0" in text


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    """Somebody else's server on our port is an error, never our server."""
    stack = LocalStack(StackSettings.for_tests(tmp_path))
    with (
        socket.create_server(("127.0.0.1", stack.ports.database)),
        pytest.raises(StackError, match=f"database needs port {stack.ports.database}"),
    ):
        stack.database.start()


def test_nothing_is_left_when_the_owner_is_killed(tmp_path: Path) -> None:
    """Kill -9 of a test run or a demo must not leave servers behind."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pids = json.loads(owner.stdout.readline())
        assert all(start_ticks(pid) is not None for pid in pids)
        owner.kill()
    wait.until(lambda: not any(start_ticks(pid) for pid in pids), "the servers end", 10)
    stack = LocalStack(StackSettings.for_tests(tmp_path))
    assert not any(server.alive for server in stack.servers)


def test_a_server_that_outlives_its_starter_is_stopped_from_another_process(tmp_path: Path) -> None:
    """That is `devstack up`, then `devstack down`."""
    done = subprocess.run(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    database = LocalStack(StackSettings(folder=tmp_path)).database
    try:
        assert database.pid == int(done.stdout)
        assert database.owner_pid is None
    finally:
        database.stop()
    assert not database.alive


@pytest.mark.parametrize("case", ["another start time", "another boot", "another working folder"])
def test_a_pid_file_that_names_a_foreign_process_is_not_believed(case: str, tmp_path: Path) -> None:
    """A pid is reused sooner or later: what we did not start is never counted nor signalled."""
    stack = LocalStack(StackSettings.for_tests(tmp_path))
    with subprocess.Popen(["sleep", "60"], cwd="/") as foreign:
        try:
            ticks = start_ticks(foreign.pid)
            assert ticks is not None
            record = {
                "name": "database",
                "pid": foreign.pid,
                "ticks": ticks - 1 if case == "another start time" else ticks,
                "boot_id": "0" if case == "another boot" else boot_id(),
                "owner": None,
                "exit_code": None,
            }
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "database.json").write_text(json.dumps(record))
            assert not stack.database.alive
            with pytest.raises(StackError, match="not running"):
                stack.database.kill()
            stack.database.stop()
            assert foreign.poll() is None
        finally:
            foreign.kill()


def test_a_pid_file_that_is_not_ours_is_an_error(tmp_path: Path) -> None:
    """Guessing could signal somebody else's process or start a second server on the same data."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "database.json").write_text("4711\n")
    with pytest.raises(StackError, match="was not written by devstack"):
        LocalStack(StackSettings.for_tests(tmp_path)).database.start()


def devstack(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of `python -m devstack` on the stack of a folder."""
    return subprocess.run(
        [sys.executable, "-m", "devstack", *command.split(), "--folder", str(folder)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_env_prints_the_addresses_as_a_shell_takes_them(running: LocalStack) -> None:
    """That is `eval "$(./dev stack env account points)"`; the databases are made on the way."""
    done = devstack("env account points", running.settings.folder)
    assert (done.returncode, done.stderr) == (0, "")
    script = f"{done.stdout}echo $NAME_SERVER $ACCOUNT_URL $POINTS_URL; echo $ROCKETMQ_CLIENT_LOG_DIR"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    addresses, log_folder = said.splitlines()
    name_server, account, points = addresses.split()
    assert name_server == running.name_server
    assert account == running.database_url("account")
    assert run_sql(points, "SELECT DATABASE()") == "points"
    assert Path(log_folder).is_relative_to(running.settings.folder)


@pytest.mark.parametrize("command", ["env account", "topic made-by-hand", "pause broker", "resume broker"])
def test_commands_for_running_servers_say_so_when_they_are_down(command: str, tmp_path: Path) -> None:
    """Nothing on stdout: a shell would run it."""
    done = devstack(command, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not running, start it" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_env_refuses_what_is_no_name_of_a_database(running: LocalStack) -> None:
    """In one line, and nothing for the shell."""
    done = devstack("env account Points", running.settings.folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("devstack: database name is 'Points', allowed are")


def test_a_topic_made_by_hand_has_a_route(running: LocalStack) -> None:
    """A consumer may start as soon as the command has ended."""
    assert not has_route(running, "made-by-hand")
    done = devstack("topic made-by-hand", running.settings.folder)
    assert (done.returncode, done.stdout) == (0, "devstack: topic made-by-hand is there\n")
    assert has_route(running, "made-by-hand")


def test_a_server_paused_by_hand_does_not_answer_until_it_is_resumed(running: LocalStack) -> None:
    """From another process than the one that started it."""
    client = RemotingClient(running.name_server, timeout_seconds=0.5)
    try:
        assert devstack("pause namesrv", running.settings.folder).returncode == 0
        with pytest.raises(BrokerUnavailableError, match=r"within 0\.5 s"):
            client.cluster_info()
    finally:
        assert devstack("resume namesrv", running.settings.folder).returncode == 0
    running.namesrv.wait_ready(timeout_seconds=10)


def test_status_of_a_stack_that_is_down_says_so(tmp_path: Path) -> None:
    """Scripts decide on the exit code: 3 is "not running"."""
    done = subprocess.run(
        [sys.executable, "-m", "devstack", "status", "--folder", str(tmp_path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert [line.split()[:2] for line in done.stdout.splitlines()[:3]] == [
        ["namesrv", "down"],
        ["broker", "down"],
        ["database", "down"],
    ]
