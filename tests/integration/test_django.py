"""Django's connection in our transactions, on real servers: the same promises, the same outcomes."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from django.db import DatabaseError, IntegrityError, ProgrammingError, connection, connections, transaction
from django.db.models import F
from django.db.utils import DatabaseErrorWrapper
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from devstack import Stack
from rmq_txn import Database, Delivery, Reject, Transaction
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.errors import DatabaseUnavailableError, LifecycleError, SettingsError, TransactionLostError
from rmq_txn.join import django as join
from rmq_txn.join.django import joined, joins
from tests.conftest import prepared_url
from tests.kit.desk import Desk
from tests.kit.django_site import Effect, Kinds, aliases, errors_of_a_service
from tests.kit.kills import killed_before
from tests.kit.rows import rows
from tests.kit.statements import COMMIT, hooked
from tests.kit.wait import until

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def _as_in_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymysql, "err", errors_of_a_service)


@pytest.fixture
def alias() -> Iterator[Callable[..., Any]]:
    """Return a function that gives Django a database under an alias, for this test."""
    with aliases() as give:
        yield give


@pytest.fixture
def database(
    database_url: str, open_database: Callable[..., Database], alias: Callable[..., Any]
) -> Database:
    """Return the service's database, with Django's isolation level, and make it Django's own as well."""
    alias("default", database_url)
    return open_database(database_url, isolation_level="read committed")


def publish(desk: Desk, id_: str) -> Effect:
    """Write with the ORM, publish what the database generated."""
    with desk.producer.transaction(join=joined()) as txn:
        effect = Effect.objects.create(id=id_)
        txn.publish(desk.topic, {"id": f"{id_}-arrived", "n": effect.n}, key=id_)
    return effect


def block(desk: Desk, work: Callable[[Any], object]) -> None:
    """Run `work` in a transaction that Django's connection is joined to."""
    with desk.producer.transaction(join=joined()) as txn:
        work(txn)


def state() -> dict[str, Any]:
    """Return all that Django keeps of the connection, but for what it may learn on the way."""
    learned = (
        "mysql_server_data",
        "mysql_version",
        "mysql_server_info",
        "savepoint_state",
        "isolation_level",
    )
    return {name: value for name, value in vars(connections["default"]).items() if name not in learned}


def test_what_the_orm_writes_commits_with_its_message(desk: Desk) -> None:
    """Nested atomic blocks, hooks, an unchanged save; afterwards Django goes on by itself."""
    desk.consumer()
    told: list[str] = []
    assert publish(desk, "a").n
    before = state()
    with desk.producer.transaction(join=joined()) as txn:
        assert txn.session is connections["default"]
        effect, made = Effect.objects.get_or_create(id="b")
        assert made
        effect.save()  # as it was: an UPDATE that changes nothing, and no second INSERT
        with suppress(ValueError), transaction.atomic():
            Effect.objects.create(id="undone")
            transaction.on_commit(lambda: told.append("never"))
            raise ValueError("mine")
        with transaction.atomic():
            Effect.objects.bulk_create([Effect(id="c"), Effect(id="d")])
            transaction.on_commit(
                lambda: told.append(f"inner, {Effect.objects.filter(id__in='abcd').count()} rows")
            )
        with connection.cursor() as cursor:
            cursor.execute("UPDATE effect SET note = %s WHERE id = %s", ["raw", "d"])
            assert cursor.rowcount == 1
        Effect.objects.filter(id="c").update(note=F("id"))
        transaction.on_commit(lambda: told.append("outer"))
        txn.publish(desk.topic, {"id": "b-arrived"})
        assert told == []
        assert "b" not in desk.effects()
    changed = {name for name in before if state()[name] != before[name]}
    assert changed == {"connection", "close_at"}  # its own, opened by the first hook
    assert told == ["inner, 4 rows", "outer"]
    desk.wait_effects("a-arrived", "b-arrived")
    assert sorted(Effect.objects.values_list("id", "note")) == [
        ("a", None),
        ("a-arrived", None),
        ("b", None),
        ("b-arrived", None),
        ("c", "c"),
        ("d", "raw"),
    ]


def test_a_block_that_raises_takes_back_what_the_orm_did(desk: Desk) -> None:
    publish(desk, "first")
    before, told = state(), list[str]()

    def work(txn: Any) -> None:
        Effect.objects.create(id="a")
        transaction.on_commit(lambda: told.append("never"))
        txn.publish(desk.topic, {"id": "never"})
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block(desk, work)
    assert state() == before
    publish(desk, "b")
    assert (desk.effects(), told) == (["first", "b"], [])


ENDS: dict[str, Callable[[], object]] = {
    "commit": transaction.commit,
    "rollback": transaction.rollback,
    "set_autocommit": lambda: transaction.set_autocommit(True),
    "close": lambda: connection.close(),
    "connect": lambda: connection.connect(),
}


def test_django_does_not_end_the_transaction_that_it_was_joined_to(desk: Desk) -> None:
    """Told before anything is sent; the block can go on, and afterwards Django is as it was."""
    with desk.producer.transaction(join=joined()):
        Effect.objects.create(id="a")
        for name, end in ENDS.items():
            with pytest.raises(LifecycleError, match=rf"{name}\(\) of Django's connection would end"):
                end()
        with (
            pytest.raises(RuntimeError, match="durable atomic block cannot be nested"),
            transaction.atomic(durable=True),
        ):
            raise AssertionError("the block began")
        assert desk.effects() == []
    assert desk.effects() == ["a"]
    Effect.objects.create(id="b")
    with transaction.atomic(durable=True):
        Effect.objects.create(id="c")
    assert desk.effects() == ["a", "b", "c"]


def test_connections_that_can_not_be_joined_are_refused_and_left_alone(
    desk: Desk, alias: Callable[..., Any], stack: Stack, unique: str
) -> None:
    """In a block, autocommit off, another database, another isolation level, another kind."""

    def refused(error: type[Exception], said: str, using: str = "default") -> None:
        before = dict(vars(connections[using]))
        with pytest.raises(error, match=said), desk.producer.transaction(join=joined(using)):
            raise AssertionError("the block began")
        assert vars(connections[using])["in_atomic_block"] == before["in_atomic_block"]
        assert not {"commit", "Database"} & set(vars(connections[using]))

    with transaction.atomic():
        Effect.objects.create(id="own")
        refused(LifecycleError, "in an atomic block already.*non_atomic_requests.*TransactionTestCase")
    assert desk.effects() == ["own"]
    transaction.set_autocommit(False)
    refused(LifecycleError, "autocommit of the connection 'default' of Django is off")
    transaction.set_autocommit(True)
    alias("other", prepared_url(stack, f"{unique}_other"))
    refused(SettingsError, "not the database of the producer or consumer", "other")
    alias("empty", stack.database_url(f"{unique}_empty"))
    refused(SettingsError, "without our tables", "empty")
    alias("snapshot", desk.url, OPTIONS={"isolation_level": "repeatable read"})
    refused(SettingsError, r"isolation_level='repeatable read'", "snapshot")
    alias("lite", desk.url, ENGINE="django.db.backends.sqlite3")
    refused(SettingsError, r"is of django\.db\.backends\.sqlite3", "lite")


BLOCKS: dict[str, Callable[[], object]] = {
    "an error of the ORM was swallowed": lambda: _swallowed(),
    "marked for rollback": lambda: transaction.set_rollback(True),
    "an atomic block was not left": lambda: transaction.atomic().__enter__(),
    "an atomic block without savepoint was left by an exception": lambda: _left_by_an_exception(),
}


def _swallowed() -> None:
    with suppress(DatabaseError):
        Effect(n=1, id=None).save(force_insert=True)


def _left_by_an_exception() -> None:
    with suppress(ValueError), transaction.atomic(savepoint=False):
        raise ValueError("mine")


def test_what_django_would_roll_back_is_not_committed_with_the_message(desk: Desk) -> None:
    """Django's own outermost block rolls back without a word; who publishes must be told."""
    for way, spoil in BLOCKS.items():

        def work(txn: Any, way: str = way, spoil: Callable[[], object] = spoil) -> None:
            Effect.objects.create(id=way)
            spoil()
            txn.publish(desk.topic, {"id": "never"})

        with pytest.raises(LifecycleError, match="nothing is committed"):
            block(desk, work)
    assert desk.effects() == []
    publish(desk, "b")
    assert desk.effects() == ["b"]


def test_values_are_what_they_are_without_a_block(desk: Desk) -> None:
    """For the block they pass through our PyMySQL; Django has converters of its own for its driver."""
    with connection.schema_editor() as editor:
        editor.create_model(Kinds)
    values = {
        "at": datetime.time(23, 59, 1, 500),
        "moment": datetime.datetime(2026, 3, 29, 1, 30, 0, 7, tzinfo=datetime.timezone.utc),
        "day": datetime.date(2026, 2, 28),
        "amount": decimal.Decimal("12345678.90"),
        "span": datetime.timedelta(days=3, microseconds=5),
        "flag": True,
        "body": b"\x00'\\\xff%s",
        "document": {"名": ["'", 1.5, None]},
        "reference": uuid.UUID("12345678123456781234567812345678"),
        "share": 0.1,
    }
    outside = Kinds.objects.create(**values)
    with desk.producer.transaction(join=joined()):
        inside = Kinds.objects.create(**values)
        read = {name: list(Kinds.objects.order_by("id").values_list(name, flat=True)) for name in values}
        assert Kinds.objects.filter(**{k: v for k, v in values.items() if k != "document"}).count() == 2
    assert {name: [bytes(x) if name == "body" else x for x in found] for name, found in read.items()} == {
        name: [value, value] for name, value in values.items()
    }
    for id_ in (outside.pk, inside.pk):
        again = Kinds.objects.get(pk=id_)
        assert {name: getattr(again, name) for name in values} == values
    assert rows(desk.url, "SELECT COUNT(DISTINCT at, moment, day, amount, span, body) FROM tests_kinds") == [
        (1,)
    ]


def test_errors_are_those_of_django_whatever_its_driver_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With mysqlclient the exceptions of PyMySQL mean nothing to Django's backend."""
    publish(desk, "first")

    def try_errors(id_: str) -> None:
        with desk.producer.transaction(join=joined()):
            for wrong in ({"n": 1, "id": "a"}, {"id": None}):  # 1062 and 1048
                with pytest.raises(IntegrityError), transaction.atomic():
                    Effect.objects.create(**wrong)
            with pytest.raises(ProgrammingError), connection.cursor() as cursor:
                cursor.execute("SELECT FROM nowhere")
            Effect.objects.create(id=id_)

    try_errors("by Django's own")
    names = [name for name in dir(pymysql) if name.endswith("Error")]
    stranger = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in names})
    monkeypatch.setattr(type(connections["default"]), "Database", stranger)
    monkeypatch.setattr("django.db.backends.mysql.base.Database", stranger)
    try_errors("by another")
    assert desk.effects() == ["first", "by Django's own", "by another"]


def test_hooks_run_on_djangos_own_connection_when_the_commit_is_known(desk: Desk) -> None:
    """They may publish; one that raises is heard, what was committed stays; a lost answer is looked up."""
    desk.consumer()

    def lost(_session: object, sql: str) -> None:
        if sql == COMMIT:
            raise pymysql.OperationalError(2013, "Lost connection to MySQL server during query")

    def raises() -> None:
        raise ValueError("of a hook")

    with hooked(after=lost), desk.producer.transaction(join=joined()) as txn:
        Effect.objects.create(id="a")
        transaction.on_commit(lambda: publish(desk, "hook"))  # its own COMMIT is lost as well
        txn.publish(desk.topic, {"id": "a-arrived"})

    def work(txn: Any) -> None:
        Effect.objects.create(id="b")
        transaction.on_commit(raises)
        txn.publish(desk.topic, {"id": "b-arrived"})

    with pytest.raises(ValueError, match="of a hook"):
        block(desk, work)
    desk.wait_effects("a", "hook", "b", "a-arrived", "b-arrived", "hook-arrived")
    told: list[str] = []
    with desk.database.transaction(join=joined()):
        transaction.on_commit(lambda: told.append("plain"))
    with desk.database.transaction(read_only=True, join=joined()):
        transaction.on_commit(lambda: told.append("never"))
    assert told == ["plain"]


def test_a_connection_killed_between_any_two_statements_has_one_truth(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it and a receipt, or nothing and an error that says so. No hook of a lost block runs."""
    publish(desk, "first")  # Django meets the server here
    told: list[str] = []

    def outcome_of(id_: str, at: int) -> BaseException | None:
        def work(txn: Any) -> None:
            transaction.on_commit(lambda: told.append(id_))
            effect = Effect.objects.create(id=id_)
            with transaction.atomic():
                effect.save()
            txn.publish(desk.topic, {"id": f"{id_}-arrived"})

        try:
            with killed_before(desk.url, at):
                block(desk, work)
        except Exception as error:  # noqa: BLE001 - which one is the question
            return error
        return None

    queries = 9  # tripwire, INSERT, savepoint, UPDATE, its release; log row, copy, release, COMMIT
    for at in range(1, queries + 1):
        outcome = outcome_of(f"killed before {at}", at)
        assert outcome is None or isinstance(outcome, DatabaseUnavailableError), repr(outcome)
        assert (f"killed before {at}" in desk.effects()) == (outcome is None), (at, repr(outcome))
    publish(desk, "afterwards")
    assert desk.effects()[-1] == "afterwards"
    assert told == [id_ for id_ in desk.effects() if id_.startswith("killed")]
    # Broken on purpose, the errors of the driver not kept: then the same is told as a fault of the statement.
    monkeypatch.setattr(join, "_Errors", DatabaseErrorWrapper)
    assert not isinstance(outcome_of("broken", 2), DatabaseUnavailableError)


def test_ddl_is_refused_by_django_or_told(desk: Desk) -> None:
    with (
        pytest.raises(transaction.TransactionManagementError, match="DDL"),
        desk.producer.transaction(join=joined()),
        connection.schema_editor() as editor,
    ):
        editor.create_model(Kinds)

    def work(txn: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE made (id INT)")
        txn.publish(desk.topic, {"id": "never"})

    with pytest.raises(TransactionLostError):
        block(desk, work)


def test_a_handler_works_with_the_orm_and_its_writes_commit_with_the_inbox_row(desk: Desk) -> None:
    """Failures are taken back and counted, hooks run once; no connection of Django's is left open."""
    told: list[str] = []
    left: list[Any] = []

    def handle(txn: Transaction, delivery: Delivery) -> None:
        id_ = delivery.json()["id"]
        left.append(txn.session)
        Effect.objects.create(id=id_)
        transaction.on_commit(lambda: told.append(f"{id_}, {Effect.objects.filter(id=id_).count()} row"))
        if id_ == "rejected":
            raise Reject("no")

    desk.consumer(handle, join=joins())
    desk.publish("a", "rejected", "b")
    desk.wait_effects("a", "b")
    until(lambda: rows(desk.url, "SELECT state FROM rmq_txn_parked"), "the rejected one is parked")
    assert rows(desk.url, "SELECT state FROM rmq_txn_parked") == [(int(ParkedState.REJECTED),)]
    until(lambda: len(told) == 2, "the hooks ran")
    assert sorted(desk.effects()) == ["a", "b"]
    assert sorted(told) == ["a, 1 row", "b, 1 row"]
    until(lambda: all(wrapper.connection is None for wrapper in left), "Django's connections are closed")


_desks: list[Desk] = []


def transfer(request: HttpRequest) -> HttpResponse:
    return HttpResponse(publish(_desks[0], request.GET["id"]).n)


@transaction.non_atomic_requests
def transfer_by_itself(request: HttpRequest) -> HttpResponse:
    return transfer(request)


urlpatterns = [path("atomic", transfer), path("not-atomic", transfer_by_itself)]


def test_a_view_under_atomic_requests_is_told_the_way_out(desk: Desk) -> None:
    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    _desks[:] = [desk]
    with override_settings(ROOT_URLCONF=__name__):
        with pytest.raises(LifecycleError, match=r"put @transaction\.non_atomic_requests on the view"):
            Client().get("/atomic?id=a")
        assert Client().get("/not-atomic?id=b").status_code == 200
    assert desk.effects() == ["b"]
