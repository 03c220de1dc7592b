"""A SQLAlchemy session in our transactions, on real servers: the same promises, the same outcomes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from devstack import Stack
from rmq_txn import Database, Delivery, Reject, Transaction
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.errors import (
    LifecycleError,
    SettingsError,
)
from rmq_txn.join.sqlalchemy import joined, joins
from tests.conftest import prepared_url
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.sqlalchemy_site import Effect, engine_for
from tests.kit.wait import until

pytestmark = pytest.mark.servers


@pytest.fixture
def sessions(desk: Desk) -> sessionmaker[Session]:
    """Return what a service has: sessions of an engine of its own."""
    return sessionmaker(engine_for(desk.url))


def publish(desk: Desk, session: Session, id_: str) -> Effect:
    """Write with the ORM, publish what the database generated."""
    with desk.producer.transaction(join=joined(session)) as txn:
        effect = Effect(id=id_)
        session.add(effect)
        session.flush()
        txn.publish(desk.topic, {"id": f"{id_}-arrived", "n": effect.n}, key=id_)
    return effect


def block(desk: Desk, session: Session, work: Callable[[Any], None]) -> None:
    """Run `work` in a transaction that the session is joined to."""
    with desk.producer.transaction(join=joined(session)) as txn:
        work(txn)


def test_what_a_session_writes_commits_with_its_message(desk: Desk, sessions: sessionmaker[Session]) -> None:
    """ORM and Core; objects are expired as after any commit, and the session goes on by itself."""
    desk.consumer()
    with sessions() as session:
        bind = session.bind
        effect = publish(desk, session, "a")
        assert sqlalchemy.inspect(effect).expired
        assert session.bind is bind
        assert effect.id == "a"  # read again, by the session's own engine
        session.execute(sqlalchemy.update(Effect).values(note="by itself"))
        session.commit()
        with desk.producer.transaction(join=joined(session)) as txn:
            assert txn.session is session
            with session.begin_nested() as part:
                session.add(Effect(id="undone"))
                session.flush()
                part.rollback()
            session.execute(sqlalchemy.insert(Effect).values(id="core"))
            txn.publish(desk.topic, {"id": "core-arrived"})
            session.add(Effect(id="late"))  # flushed at the end of the block
    desk.wait_effects("a-arrived", "core-arrived")
    assert sorted(desk.effects()) == ["a", "a-arrived", "core", "core-arrived", "late"]
    assert rows(desk.url, "SELECT note FROM effect WHERE id = 'a'") == [("by itself",)]


def test_a_block_that_raises_takes_back_what_the_session_did(
    desk: Desk, sessions: sessionmaker[Session]
) -> None:
    session = sessions()

    def work(txn: Any) -> None:
        session.add(Effect(id="a"))
        session.flush()
        txn.publish(desk.topic, {"id": "never"})
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block(desk, session, work)
    assert not session.in_transaction()
    publish(desk, session, "b")
    assert desk.effects() == ["b"]


def test_an_update_counts_the_rows_that_it_matched(desk: Desk, sessions: sessionmaker[Session]) -> None:
    """Also if they were so already, in any language of the server; else SQLAlchemy raises StaleDataError."""
    publish(desk, Session(), "a")
    session = sessions()
    with desk.producer.transaction(join=joined(session)) as txn:
        effect = session.scalars(sqlalchemy.select(Effect)).one()
        assert txn.execute("UPDATE effect SET note = 'new'") == 1  # no ORM: the rows changed, as ever
        assert txn.execute("UPDATE effect SET note = 'new'") == 0
        effect.note = "new"
        session.flush()
        for sql in (
            "UPDATE effect SET note = 'new'",
            "/* traced */ -- by a tool\n update effect SET note = 'new'",
            "UPDATE effect SET note = 'new' WHERE id <> ''",
        ):
            for language in (
                "de_DE",
                "ja_JP",
                "en_US",
            ):  # also: an answer with news
                session.execute(sqlalchemy.text(f"SET lc_messages = '{language}'"))
                assert session.execute(sqlalchemy.text(sql)).rowcount == 1  # type: ignore[attr-defined]
        assert session.execute(sqlalchemy.text("UPDATE effect SET note = 1 WHERE 0")).rowcount == 0  # type: ignore[attr-defined]
        inserted = session.execute(sqlalchemy.text("INSERT INTO effect (id) VALUES ('b'), ('c')"))
        assert inserted.rowcount == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("call", ["commit", "rollback", "close", "invalidate"])
def test_a_session_does_not_end_the_transaction_that_it_was_joined_to(
    desk: Desk, sessions: sessionmaker[Session], call: str
) -> None:
    """Told before anything happens; the block can go on, and afterwards the session is as it was."""
    session = sessions()
    with desk.producer.transaction(join=joined(session)):
        session.add(Effect(id="a"))
        with pytest.raises(LifecycleError, match=rf"session\.{call}\(\) would end the transaction"):
            getattr(session, call)()
        assert desk.effects() == []
    assert desk.effects() == ["a"]
    session.add(Effect(id="b"))
    session.commit()
    assert desk.effects() == ["a", "b"]


def test_sessions_that_can_not_be_joined_are_refused_and_left_alone(
    desk: Desk, sessions: sessionmaker[Session], stack: Stack, unique: str
) -> None:
    """With a transaction of their own, another database, a connection, no session at all."""

    def refused(session: Any, error: type[Exception], said: str) -> None:
        with pytest.raises(error, match=said), desk.producer.transaction(join=joined(session)):
            raise AssertionError("the block began")

    session = sessions()
    session.add(Effect(id="own"))
    session.flush()
    refused(session, LifecycleError, "has a transaction already")
    session.commit()
    assert desk.effects() == ["own"]
    other = sessionmaker(engine_for(prepared_url(stack, f"{unique}_other")))()
    refused(other, SettingsError, "is not the database of the producer or consumer")
    empty = sessionmaker(engine_for(stack.database_url(f"{unique}_empty")))()
    refused(empty, SettingsError, "without our tables")
    with engine_for(desk.url).connect() as connection:
        refused(Session(connection), SettingsError, "bound to a connection")
    with pytest.raises(SettingsError, match="is a str"):
        joined("session")  # type: ignore[arg-type]


def test_a_session_without_an_engine_and_a_scoped_one_are_joined(
    desk: Desk, sessions: sessionmaker[Session]
) -> None:
    publish(desk, Session(), "unbound")
    scoped = scoped_session(sessions)
    with desk.producer.transaction(join=joined(scoped)):
        scoped.add(Effect(id="scoped"))
    assert desk.effects() == ["unbound", "scoped"]


def test_a_failed_flush_that_is_swallowed_commits_nothing(
    desk: Desk, sessions: sessionmaker[Session]
) -> None:
    """SQLAlchemy took the session's work back in its own mind; ours must not commit a part of it."""
    session = sessions()

    def work(txn: Any) -> None:
        session.add(Effect(id="a"))
        session.flush()
        session.add(Effect(id="x" * 65))  # too long for the column
        with suppress(sqlalchemy.exc.DBAPIError):
            session.flush()
        txn.publish(desk.topic, {"id": "never"})

    with pytest.raises(LifecycleError, match="rolled back inside the block"):
        block(desk, session, work)
    assert desk.effects() == []
    publish(desk, session, "b")
    assert desk.effects() == ["b"]


ROLLED_BACK: dict[str, Callable[[Session], object]] = {
    "block of a transaction left by an exception": lambda session: _left_by_an_exception(session),
    "transaction object": lambda session: (_flushed(session), session.get_transaction().rollback()),  # type: ignore[union-attr]
    "class": lambda session: (_flushed(session), Session.rollback(session)),
    "after a failed flush": lambda session: _failed_flush(session),
    "then more work": lambda session: (_left_by_an_exception(session), _flushed(session, "later")),
}


def _flushed(session: Session, id_: str = "taken back") -> None:
    session.add(Effect(id=id_))
    session.flush()


def _left_by_an_exception(session: Session) -> None:
    with suppress(ValueError), session.begin():
        _flushed(session)
        raise ValueError("mine")


def _failed_flush(session: Session) -> None:
    _flushed(session)
    with suppress(sqlalchemy.exc.DBAPIError):
        _flushed(session, "x" * 65)  # too long for the column
    transaction = session.get_transaction()
    assert transaction is not None
    transaction.rollback()


@pytest.mark.parametrize("way", ROLLED_BACK)
def test_what_a_session_took_back_past_us_is_not_committed_with_the_message(
    desk: Desk, sessions: sessionmaker[Session], way: str
) -> None:
    """SQLAlchemy forgets the work, and the server holds it still."""
    session = sessions()

    def work(txn: Any) -> None:
        ROLLED_BACK[way](session)
        txn.publish(desk.topic, {"id": "never"})

    with pytest.raises(LifecycleError, match="rolled back inside the block"):
        block(desk, session, work)
    assert desk.effects() == []
    publish(desk, session, "b")
    assert desk.effects() == ["b"]


COMMITTED: dict[str, Callable[[Session], object]] = {
    "block of a transaction left well": lambda session: _left_well(session),
    "transaction object": lambda session: (_flushed(session), session.get_transaction().commit()),  # type: ignore[union-attr]
    "class": lambda session: (_flushed(session), Session.commit(session)),
}


def _left_well(session: Session) -> None:
    with session.begin():
        _flushed(session)


@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
@pytest.mark.parametrize("way", COMMITTED)
def test_a_session_that_commits_past_us_is_told_to_leave_begin_out(
    desk: Desk, sessions: sessionmaker[Session], way: str, swallowed: bool
) -> None:
    """Also if the block swallows the refusal: SQLAlchemy rolled its own picture back by then."""
    session = sessions()

    def work(txn: Any) -> None:
        with suppress(LifecycleError) if swallowed else nullcontext():
            COMMITTED[way](session)
        txn.publish(desk.topic, {"id": "never"})

    with pytest.raises(LifecycleError, match=r"leave begin\(\) out"):
        block(desk, session, work)
    assert desk.effects() == []
    publish(desk, session, "b")
    assert desk.effects() == ["b"]


def test_a_handler_gets_a_session_whose_writes_commit_with_the_inbox_row(
    desk: Desk, sessions: sessionmaker[Session]
) -> None:
    """Failures are taken back and counted, a duplicate has no second effect, a session is for one call."""
    seen: list[Session] = []

    def handle(txn: Transaction, delivery: Delivery) -> None:
        seen.append(txn.session)
        txn.session.add(Effect(id=delivery.json()["id"]))
        if delivery.json()["id"] == "rejected":
            txn.session.flush()
            raise Reject("no")

    desk.consumer(handle, join=joins(sessions))
    desk.publish("a", "rejected", "b")
    desk.wait_effects("a", "b")
    until(lambda: rows(desk.url, "SELECT state FROM rmq_txn_parked"), "the rejected one is parked")
    assert rows(desk.url, "SELECT state FROM rmq_txn_parked") == [(int(ParkedState.REJECTED),)]
    assert sorted(desk.effects()) == ["a", "b"]
    assert len(set(map(id, seen))) == len(seen)
    assert not any(session.in_transaction() for session in seen)


def test_without_a_join_there_is_no_session(desk: Desk, open_database: Callable[..., Database]) -> None:
    with (
        open_database(desk.url).transaction() as txn,
        pytest.raises(LifecycleError, match="nothing was joined"),
    ):
        _ = txn.session
