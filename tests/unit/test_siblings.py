"""The rule about the rest of a producer group, with rows and clients that say what they are told."""

from __future__ import annotations

from rmq_txn.producer.siblings import Look, ProducerRow, Siblings

FRESH_SECONDS, BUDGET_SECONDS = 40.0, 600.0
HOST = "192.0.2.7@"


class Group:
    """A producer `me` that looks at its group each ten seconds."""

    def __init__(self, *before: ProducerRow) -> None:
        self.clock = 1000.0
        self.siblings = Siblings(FRESH_SECONDS, BUDGET_SECONDS, lambda: self.clock)
        self.rows = {row.instance: row for row in before}
        self.named: set[str] = set()
        self.siblings.look("me", [*self.rows.values()], ())

    def row(
        self,
        instance: str,
        age: float = 5.0,
        *,
        disturbances: int = 0,
        closing: bool = False,
        named: bool = True,
    ) -> None:
        """Let a producer say something about itself."""
        self.rows[instance] = ProducerRow(instance, age, closing, disturbances)
        (self.named.add if named else self.named.discard)(HOST + instance)

    def look(self) -> Look:
        """Look, ten seconds later."""
        self.clock += 10.0
        me = ProducerRow("me", 0.0, closing=False, disturbances=0)
        return self.siblings.look("me", [me, *self.rows.values()], [HOST + "me", *self.named])


CALM = Look()


def test_in_calm_nobody_is_disturbed() -> None:
    """Alone, and with others that are well."""
    group = Group()
    assert group.look() == CALM
    group.row("a")
    group.row("b", 39.0)
    assert [group.look() for _ in range(5)] == [CALM] * 5


def test_a_rolling_deployment_in_calm_disturbs_nobody() -> None:
    """Twenty old ones say good-bye, twenty new ones write before they register."""
    group = Group()
    for n in range(20):
        group.row(f"old-{n}")
    assert group.look() == CALM
    for n in range(20):
        group.row(f"new-{n}", 0.1, named=False)
        assert group.look() == CALM
        group.row(f"new-{n}")
        group.row(f"old-{n}", 0.5, closing=True)  # named for a moment more
        assert group.look() == CALM
        group.row(f"old-{n}", 100.0, closing=True, named=False)
        assert group.look() == CALM
        del group.rows[f"old-{n}"]


def test_a_client_without_a_row_disturbs_for_as_long_as_it_is_registered() -> None:
    """Another language, another service, an older version: nobody knows what it answers."""
    group = Group()
    group.named.add("10.0.0.1@4711#java")
    for _ in range(3):
        (problem,) = group.look().problems
        assert "client 10.0.0.1@4711#java is registered" in problem
    group.named.clear()
    assert group.look() == CALM


def test_a_sibling_that_does_not_write_any_more_disturbs_while_brokers_ask_it() -> None:
    """Cut off from the database, frozen, or on a machine that lost its power a minute ago."""
    group = Group()
    group.row("a")
    assert group.look() == CALM
    group.row("a", 41.0)
    (problem,) = group.look().problems
    assert "last wrote to the database 41 s ago, allowed is 40 s" in problem


def test_a_closed_client_that_was_left_open_disturbs() -> None:
    """It answers UNKNOWN for as long as its process lives."""
    group = Group()
    group.row("a", 41.0, closing=True)
    (problem,) = group.look().problems
    assert "said that it closes 41 s ago" in problem
    assert "left open" in problem


def test_a_sibling_that_was_disturbed_disturbs_once() -> None:
    """By its own word; also one that comes with such a word."""
    group = Group(ProducerRow("old", 5.0, closing=False, disturbances=7))
    group.row("old", disturbances=7)
    assert group.look() == CALM
    group.row("old", disturbances=8)
    assert group.look().events == ("producer old of this group was disturbed",)
    assert group.look() == CALM
    group.row("new", disturbances=1)
    assert group.look().events == ("producer new of this group was disturbed",)


def test_what_a_sibling_said_when_it_closed_is_heard() -> None:
    """Disturbed and closed between two looks."""
    group = Group()
    group.row("a")
    assert group.look() == CALM
    group.row("a", disturbances=1, closing=True, named=False)
    assert group.look().events == ("producer a of this group was disturbed",)


def test_a_kill_in_calm_disturbs_nobody_and_a_crash_loop_does() -> None:
    """What each answered in its last moments nobody knows; together at most a quarter of the budget."""
    group = Group()
    looks = []
    for n in range(5):
        group.row(f"crashed-{n}")
        assert group.look() == CALM
        group.row(f"crashed-{n}", 50.0, named=False)
        looks.append(group.look())
    assert looks[:3] == [CALM] * 3
    assert looks[3].events == ("4 producers of this group ended without good-bye",)
    assert looks[4] == CALM


def test_kills_that_lie_far_apart_do_not_add_up() -> None:
    """Each copy has seen few of them."""
    group = Group()
    for n in range(20):
        group.row(f"crashed-{n}")
        assert group.look() == CALM
        group.row(f"crashed-{n}", 50.0, named=False)
        assert group.look() == CALM
        group.clock += 300.0


def test_kills_add_up_for_as_long_as_a_copy_may_wait_that_saw_the_first() -> None:
    """The budget, and as much more as it takes to notice one that is gone."""
    for apart, adds_up in ((209.0, True), (214.0, False)):
        group = Group()
        for n in range(4):
            group.row(f"crashed-{n}")
            group.look()
            group.row(f"crashed-{n}", 50.0, named=False)
            last = group.look()
            group.clock += apart - 20.0
        assert bool(last.events) is adds_up


def test_who_stands_still_and_is_named_is_a_suspect_and_did_not_end() -> None:
    """It may be the one that answers: it is told as long as it is, and not as gone."""
    group = Group()
    for n in range(5):
        group.row(f"frozen-{n}")
    assert group.look() == CALM
    for n in range(5):
        group.row(f"frozen-{n}", 50.0)
    found = group.look()
    assert len(found.suspects) == 5
    assert found.events == ()


def test_a_row_that_somebody_deleted_counts_as_an_end_without_good_bye() -> None:
    """Nobody knows what its producer would have said."""
    group = Group()
    for n in range(4):
        group.row(f"gone-{n}")
    assert group.look() == CALM
    group.rows.clear()
    group.named.clear()
    assert group.look().events == ("4 producers of this group ended without good-bye",)
