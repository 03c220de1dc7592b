"""
The producing half: one transaction with one message, its database, the broker, its group's other processes.

Everything that happens is a function below, in the order of the protocol, and names the code it stands
for. What may happen in a state is the union of them, in any order: processes are slow, packets wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.explorer import Found, Step, explore
from tests.model.naming import Names

names = Names()

IDS = 2
"""Attempts of the native client to store the half message, each under a new id. It makes up to five."""
IN_TIME = 1
"""A verdict after more questions than this is late: so few are left that lost ENDs may use them up."""


@dataclass(frozen=True)
class Protections:
    """What the code does against faults; a test switches off one at a time."""

    fence: bool = True
    fence_committed_before_rollback: bool = True
    lock_wait_is_unknown: bool = True
    owner_stamp: bool = True
    winning_id: bool = True
    log_row_first: bool = True
    log_row_open_until_the_end: bool = True
    open_row_counted: bool = True
    tripwire: bool = True
    resolve: bool = True
    kill_before_resolve: bool = True
    outbox: bool = True
    relay: bool = True
    relay_waits_for_the_disk: bool = True
    relay_compares_what_it_finds: bool = True
    removal_waits_for_the_last_question: bool = True
    removal_only_when_undisturbed: bool = True
    removal_not_after_late_verdict: bool = True
    lasting_lock_disturbs: bool = True
    witness_saw_the_beginning: bool = True
    witness_needs_short_transactions: bool = True
    unknown_from_an_error_disturbs: bool = True
    siblings_have_rows: bool = True
    siblings_tell_disturbances: bool = True
    removal_waits_for_old_rows: bool = True
    stamp: bool = True
    check_back_has_an_age_limit: bool = True


class Half(NamedTuple):
    """One id under which the client tried to store the half message."""

    place: str = ""
    """'' not sent, pending, committed, rolled back, dropped, or lost (never stored, or not on disk)."""
    asked: int = 0
    end: str = ""
    """commit or rollback: on its way to the broker. It is one-way, nobody hears if it is lost."""


class State(NamedTuple):
    """Everything that matters at one moment. Empty and False mean: not yet."""

    faults_left: int
    caller: str
    """What the thread in `transaction()` does next; over, or dead after a crash."""
    told: str = ""
    """What `transaction()` returned or raised."""
    verdict: str = ""
    session: str = ""
    """On the database server: open, locked (holds the log row), committing, committed, gone."""
    tripped: str = ""
    """What ended the transaction behind our back: ddl or deadlock. Then the tripwire is gone."""
    log: str = ""
    """The durable log row: open, committed, rolled back, or pruned."""
    outbox: bool = False
    halves: tuple[Half, ...] = (Half(),) * IDS
    winner: int = -1
    """The id whose storing was answered; it stands in the log row."""
    message: str = ""
    """The message consumers can see: '', stored (in memory), on disk, or delivered."""
    undisturbed: bool = True
    """No pause, no broker that went away, no answer UNKNOWN by error, since the half message was sent."""
    refuses: bool = False
    """The database can be read and takes no write: read only, locked, full, without a quorum."""
    sibling: str = "well"
    """Another producer of the group: well; cut off, with a row that looks fresh still; stale, with an old
    row or none; or well again, and its row tells that it was not."""
    forged: str = ""
    """fenced: a half message of a stranger that names our owner has a row in our log."""
    late: bool = False
    witness: str = "well"
    """Another producer, which may remove the row as well: well since before it was there, and before the
    broker asked more than `IN_TIME` times; or late: it runs, and is well, but began after that."""
    decoy: bool = False
    """A stranger's message has the id of ours, and another content."""
    relay_waits: bool = False
    """The relay has SEND_OK, or was shown the message, and waits 60 s before it deletes the row."""
    database_was_away: bool = False


ORDER = {
    "A": ("business", "half", "insert", "commit", "answer"),
    "B": ("half", "insert", "business", "commit", "answer"),
    "B, log row last": ("half", "business", "insert", "commit", "answer"),
}
Steps = Iterator[Step[State]]


@dataclass(frozen=True)
class Producing:
    """The model of form A or B, with some protections on."""

    form: str
    on: Protections
    faults: int = 2
    questions: int = 3
    """How often the broker asks before it drops a half message, 15 by default; more than `faults`."""
    long_transactions: bool = False
    """`local_timeout_seconds` is beyond a quarter of the check budget: a lock may last for many questions."""

    # Helpers of the actions.

    def after(self, step: str) -> str:
        order = ORDER["B, log row last" if self.form == "B" and not self.on.log_row_first else self.form]
        return order[order.index(step) + 1]

    def fault(self, s: State, text: str, **changes: Any) -> Steps:
        if s.faults_left:
            yield Step(f"FAULT {text}", s._replace(faults_left=s.faults_left - 1, **changes), is_fault=True)

    def give_up(self, s: State, told: str, verdict: str = "rollback", session: str = "gone") -> State:
        """`Commitment._fail`: roll back, remember what to raise, find the verdict."""
        return s._replace(caller="verdict", told=told, verdict=verdict, session=session if s.session else "")

    # The calling thread, in the order of form B. Form A begins with its business SQL.

    @names("rmq_txn.producer.commitment.Commitment.run", "rmq_txn.transport.ProducerTransport.send_half")
    def store_half_message(self, s: State) -> Steps:
        if s.caller != "half":
            return
        attempt = [half.place for half in s.halves].index("")
        stored = put(s, attempt, Half("pending"))
        yield Step(
            f"caller: half message stored as id {attempt}",
            stored._replace(winner=attempt, caller=self.after("half")),
        )
        for text, then in (
            (f"the broker stores id {attempt}, its answer is lost", stored),
            (f"id {attempt} never arrives at the broker", put(s, attempt, Half("lost"))),
        ):
            if attempt + 1 < IDS:
                yield from self.fault(then, f"{text}; the client tries again with a new id")
            else:
                failed = self.give_up(then, "not committed")  # HalfMessageError
                yield from self.fault(failed, f"{text}; the client gives up: HalfMessageError")

    @names("rmq_txn.producer.txlog.insert", "rmq_txn.producer.txlog.insert_committed")
    def insert_log_row(self, s: State) -> Steps:
        if s.caller != "insert":
            return
        session = s.session or "open"  # form B begins here
        if s.log:
            worked = self.form == "B" and not self.on.log_row_first
            told = "refused late" if worked else "not committed"
            yield Step("caller: a log row is there: FencedError", self.give_up(s, told))
        elif session == "open":
            yield Step(
                "caller: inserts its log row",
                s._replace(session="locked", caller=self.after("insert")),
            )

    @names(
        "rmq_txn.producer.TransactionProducer.transaction",
        "rmq_txn.producer.TransactionProducer.send_in_transaction",
    )
    def business_code(self, s: State) -> Steps:
        if s.caller != "business":
            return
        session = s.session or "open"
        done = s._replace(session=session, caller=self.after("business"))
        yield Step("caller: business SQL", done)
        yield Step("caller: business code raises: rollback", self.give_up(s, "not committed"))
        if not s.tripped:
            row = "open" if self.on.log_row_open_until_the_end else "committed"
            yield from self.fault(
                s,
                "business code runs DDL: what was written so far is durable",
                session="open",
                log=row if session == "locked" else s.log,
                tripped="ddl",
            )
            yield from self.fault(
                s,
                "business code swallows a deadlock: what was written so far is gone",
                session="open",
                tripped="deadlock",
            )

    @names("rmq_txn.database.session.Session.commit", "rmq_txn.producer.txlog.mark_committed")
    def send_commit(self, s: State) -> Steps:
        if s.caller != "commit":
            return
        own_row = s.session == "locked" or s.log == "open"
        if (s.tripped and self.on.tripwire) or (not own_row and self.on.open_row_counted):
            verdict, then = self.decide(s._replace(session="gone"), s.winner)
            yield Step(
                f"caller: the transaction is not what it was: TransactionLostError, the row says {verdict}",
                self.give_up(then, "lost", verdict),
            )
        else:
            yield Step("caller: sends COMMIT", s._replace(session="committing", caller="answer"))

    @names("rmq_txn.database.session.Session.execute")
    def lose_connection(self, s: State) -> Steps:
        """Before COMMIT was sent: never committed, but the server may not know yet."""
        if s.session in ("open", "locked") and s.caller in ("insert", "business", "commit"):
            failed = self.give_up(s, "not committed", "unknown", s.session)
            yield from self.fault(failed, "the connection breaks before COMMIT is sent")

    @names("rmq_txn.database.session.SessionState")
    def read_answer(self, s: State) -> Steps:
        if s.caller != "answer":
            return
        if s.session == "committed":
            yield Step(
                "caller: COMMIT is answered: Receipt",
                s._replace(told="committed", verdict="commit", caller="verdict"),
            )
        yield from self.fault(
            s, "the answer to COMMIT is lost", caller="kill" if self.on.resolve else "blind"
        )

    @names("rmq_txn.producer.checkback.Oracle.resolve")
    def look_up_lost_commit(self, s: State) -> Steps:
        if s.caller == "blind":
            yield Step(
                "caller: takes a lost answer for a failure",
                s._replace(told="not committed", verdict="rollback", caller="verdict"),
            )
        elif s.caller == "kill":
            alive = s.session in ("locked", "committing")
            then = s._replace(session="gone") if alive and self.on.kill_before_resolve else s
            yield Step("caller: ends its old connection on the server", then._replace(caller="ask"))
            yield from self.fault(
                s,
                "the database can't be asked: InDoubtError",
                told="in doubt",
                verdict="unknown",
                database_was_away=True,
                caller="verdict",
            )
        elif s.caller == "ask" and not s.refuses:
            verdict, then = self.decide(s, s.winner)
            told = {"commit": "committed", "rollback": "not committed", "unknown": "in doubt"}[verdict]
            yield Step(
                f"caller: asks the oracle, which says {verdict}: told {told}",
                then._replace(told=told, verdict=verdict, caller="verdict"),
            )

    @names("rmq_txn.verdict.Verdict")
    def give_verdict(self, s: State) -> Steps:
        if s.caller != "verdict":
            return
        then = s._replace(caller="over")
        if s.winner >= 0:
            half = s.halves[s.winner]
            if half.end:
                return  # one at a time: the answer of a check-back arrives first, or is lost
            then = then._replace(late=half.asked > IN_TIME or half.place == "dropped")
            then = self.send_end(then, s.winner, s.verdict)
        yield Step(f"caller: tells the broker {s.verdict}", then)

    def crash(self, s: State) -> Steps:
        if s.caller != "dead":
            yield from self.fault(s, "the caller's process is killed", caller="dead")

    # The database server.

    def execute_commit(self, s: State) -> Steps:
        if s.session == "committing":
            yield Step(
                "database: executes COMMIT",
                s._replace(session="committed", log="committed", outbox=self.on.outbox),
            )
            if s.caller != "answer":
                yield Step("database: COMMIT never arrives", s._replace(session="locked"))

    def end_abandoned_session(self, s: State) -> Steps:
        if s.session in ("open", "locked") and s.caller in ("verdict", "over", "dead"):
            yield Step("database: ends the abandoned transaction", s._replace(session="gone"))

    def prune_log(self, s: State) -> Steps:
        """Not written yet: never a log row that still has its outbox row, never an undecided one."""
        settled = s.caller in ("over", "dead") and s.session in ("", "committed", "gone")
        pending = any(half.place == "pending" or half.end for half in s.halves)
        if s.log not in ("", "pruned") and settled and not pending and not s.outbox:
            yield Step("a week later the log row is pruned", s._replace(log="pruned"))

    @names("rmq_txn.producer.txlog.probe")
    def database_refuses(self, s: State) -> Steps:
        """After COMMIT; before it, refusing a transaction is a connection that breaks, which is above."""
        if not s.refuses and at_stake(s):
            yield from self.fault(s, "the database takes no more writes", refuses=True)
        if s.refuses:
            yield Step("the database takes writes again", s._replace(refuses=False))

    # The rest of the group.

    @names("rmq_txn.producer.siblings.Siblings.look", "rmq_txn.producer.presence.Presence.look")
    def sibling_falls_ill(self, s: State) -> Steps:
        """Cut off from the database, or left open, or of another language, which has no row at all."""
        if s.sibling == "well" and at_stake(s):
            yield from self.fault(s, "a sibling loses the database", sibling="cut off")
        if s.sibling == "cut off":
            yield Step("the row of the sibling grows old", s._replace(sibling="stale"))
        if s.sibling in ("cut off", "stale"):
            yield Step("the sibling is well again", s._replace(sibling="well again"))

    def trusts_siblings(self, s: State) -> bool:
        """Whether the rows of the group allow the owner to believe in its answers."""
        if s.sibling == "cut off":
            # Copies are kept so much longer than the broker asks that the row is old by then.
            return not self.on.removal_waits_for_old_rows
        if s.sibling == "stale":
            return not self.on.siblings_have_rows
        if s.sibling == "well again":
            return not self.on.siblings_tell_disturbances
        return True

    # Check-back.

    @names("rmq_txn.identity.Owner.stamp", "rmq_txn.producer.checkback.Oracle.check")
    def stranger_sends_a_half_message(self, s: State) -> Steps:
        """Whoever may write to the topic can write our owner on it."""
        if s.caller == ORDER[self.form][0]:
            fenced = "" if self.on.stamp else "fenced"
            yield from self.fault(
                s, "a stranger's half message that names our owner is asked about", forged=fenced
            )

    def decide(self, s: State, message_id: int) -> tuple[str, State]:
        """`checkback.Oracle.decide` with `txlog.fence`: the one oracle, also for the caller itself."""
        if s.session in ("locked", "committing") and self.on.fence:
            return ("unknown" if self.on.lock_wait_is_unknown else "rollback"), s
        if s.log == "committed" and (s.winner == message_id or not self.on.winning_id):
            return "commit", s
        if s.log == "pruned" and self.on.check_back_has_an_age_limit:
            return "unknown", s  # `Oracle.check`: older than the log's retention
        if s.log in ("", "pruned") and self.on.fence:
            return "rollback", s._replace(log="rolled back")
        return "rollback", s

    @names(
        "rmq_txn.producer.checkback.Oracle.check",
        "rmq_txn.producer.checkback.Oracle.decide",
        "rmq_txn.producer.txlog.fence",
    )
    def check_back(self, s: State) -> Steps:
        """By any process of the group: also one that never saw this transaction."""
        for k, half in enumerate(s.halves):
            if half.place != "pending" or half.end:
                continue
            if half.asked >= self.questions:
                yield Step(f"broker: asked in vain, drops id {k}", put(s, k, Half("dropped")))
                continue
            asked = put(s, k, half._replace(asked=half.asked + 1))
            if s.sibling in ("cut off", "stale"):
                yield Step(f"check-back for id {k} reaches the sibling that is cut off: unknown", asked)
            if s.refuses:
                doubts = self.on.unknown_from_an_error_disturbs
                yield Step(
                    f"check-back for id {k}: the database refuses the fence, unknown",
                    asked._replace(undisturbed=s.undisturbed and not doubts),
                )
                continue
            verdict, then = self.decide(asked, k)
            yield Step(f"check-back for id {k}: {verdict}", self.send_end(self.noticed(then, k), k, verdict))
            yield from self.fault(asked, f"check-back for id {k}: the database is away, unknown")
            if then.log != s.log:
                yield from self.fault(
                    then, f"check-back for id {k}: fence stands, COMMIT's answer lost, unknown"
                )
                failed = "unknown" if self.on.fence_committed_before_rollback else "rollback"
                yield from self.fault(
                    self.send_end(asked, k, failed),
                    f"check-back for id {k}: COMMIT of the fence fails, {failed}",
                )
            stranger = "unknown" if self.on.owner_stamp else "rollback"
            yield from self.fault(
                self.send_end(asked, k, stranger),
                f"check-back for id {k} reaches a service that shares the group by mistake: {stranger}",
            )

    def noticed(self, s: State, k: int) -> State:
        """A lock for longer than a transaction may take disturbs who is asked about it."""
        locked = s.session in ("locked", "committing") and s.halves[k].asked > IN_TIME
        if locked and self.on.lasting_lock_disturbs and not self.long_transactions:
            return s._replace(undisturbed=False)
        return s

    def send_end(self, s: State, k: int, verdict: str) -> State:
        half = s.halves[k]
        if verdict == "commit" or (verdict == "rollback" and half.place == "pending"):
            return put(s, k, half._replace(end=verdict))
        return s

    # The broker.

    def end_arrives(self, s: State) -> Steps:
        for k, half in enumerate(s.halves):
            if not half.end:
                continue
            if half.place == "lost":
                yield Step(f"broker: does not have id {k}, which is to be ended", put(s, k, Half("lost")))
            elif half.end == "commit":
                yield Step(f"broker: commits id {k}", show(put(s, k, Half("committed"))))
            else:
                yield Step(f"broker: rolls id {k} back", put(s, k, Half("rolled back")))
            lost = put(s, k, half._replace(end=""))
            yield from self.fault(lost, f"the {half.end} of id {k} is lost on its way to the broker")

    def broker_forgets_an_end(self, s: State) -> Steps:
        """Seen on the real one: its record of ended half messages is written in batches (A6)."""
        for k, half in enumerate(s.halves):
            if half.place in ("committed", "rolled back"):
                yield from self.fault(
                    put(s, k, Half("pending")), f"the broker forgets the end of id {k} and will ask again"
                )

    def stranger_repeats_an_id(self, s: State) -> Steps:
        """Who may send to the topic, and read it or a half message."""
        if at_stake(s) and not s.message and not s.decoy:
            yield from self.fault(s, "a stranger publishes another message under its id", decoy=True)

    def broker_restarts(self, s: State) -> Steps:
        halves = tuple(
            Half("lost") if h.place == "committed" and s.message == "stored" else h._replace(end="")
            for h in s.halves
        )
        lost = s.message == "stored"
        yield from self.fault(
            s,
            "the broker's machine loses power" + (", the message was not on disk yet" if lost else ""),
            halves=halves,
            message="" if lost else s.message,
            undisturbed=False,
            relay_waits=False,
        )

    def producers_away(self, s: State) -> Steps:
        """Stopped, paused or cut off; and then they go on where they were."""
        if any(half.place == "pending" and half.asked < self.questions for half in s.halves):
            halves = tuple(h._replace(asked=self.questions) if h.place == "pending" else h for h in s.halves)
            yield from self.fault(
                s,
                "every producer is paused until the broker asks no more",
                halves=halves,
                undisturbed=False,
            )

    @names("rmq_txn.producer.TransactionProducer.start")
    def group_begins_anew(self, s: State) -> Steps:
        """All of it is killed; the broker asks in vain, so or so often, until one producer runs again."""
        asked = max(self.questions if half.place == "dropped" else half.asked for half in s.halves)
        for vain in range(self.questions - asked + 1):
            halves = tuple(h._replace(asked=h.asked + vain) if h.place == "pending" else h for h in s.halves)
            yield from self.fault(
                s,
                f"all producers are killed, the broker asks {vain} times in vain, one producer begins",
                halves=halves,
                caller="dead",
                undisturbed=True,  # what the new one knows
                # What lies there already when it begins is not its: it knows nothing of before.
                witness="late" if s.outbox or asked + vain > IN_TIME else "well",
                relay_waits=False,
            )

    def flush_and_deliver(self, s: State) -> Steps:
        if s.message == "stored":
            yield Step("broker: writes the message to disk", s._replace(message="on disk"))
        if s.message in ("stored", "on disk"):
            yield Step("broker: delivers the message", s._replace(message="delivered"))

    # The outbox.

    def owner_removes_row(self, s: State) -> Steps:
        """After the broker's last question: what nobody disturbed has been decided by then."""
        if not s.outbox or s.caller != "over" or s.told != "committed":
            return
        half = s.halves[s.winner]
        on_its_way = half.end or half.place == "pending" or s.message == "stored"
        if self.on.removal_waits_for_the_last_question and on_its_way:
            return
        if self.on.removal_only_when_undisturbed and not s.undisturbed:
            return
        if s.refuses or not self.trusts_siblings(s):
            return
        if self.on.removal_not_after_late_verdict and s.late:
            return
        yield Step("producer: removes its outbox row", s._replace(outbox=False))

    @names("rmq_txn.producer.witness.Witness.saw")
    def witness_removes_row(self, s: State) -> Steps:
        """The relay, of what it would publish: whoever committed it, and whatever became of its verdict."""
        if not s.outbox or s.refuses or not s.undisturbed or not self.trusts_siblings(s):
            return
        half = s.halves[s.winner]
        if half.end or half.place == "pending" or s.message == "stored":
            return
        if self.on.witness_saw_the_beginning and s.witness == "late":
            return
        if self.on.witness_needs_short_transactions and self.long_transactions:
            return
        yield Step("another producer, which saw it all: removes the outbox row", s._replace(outbox=False))

    def relay(self, s: State) -> Steps:
        """Any process, at any time, several at once: the election is not in the model."""
        if not self.on.relay or not s.outbox or s.refuses:
            return
        if s.message or (s.decoy and not self.on.relay_compares_what_it_finds):
            yield Step(
                "relay: the brokers show the message, it publishes nothing", s._replace(relay_waits=True)
            )
        # With the message there, too: brokers can't be asked, or keep no index.
        yield Step("relay: publishes the outbox row again, SEND_OK", show(s)._replace(relay_waits=True))
        if s.relay_waits and (s.message != "stored" or not self.on.relay_waits_for_the_disk):
            yield Step("relay: deletes the outbox row", s._replace(outbox=False, relay_waits=False))

    # All of it.

    def steps(self, s: State) -> Steps:
        for action in (
            self.store_half_message,
            self.insert_log_row,
            self.business_code,
            self.send_commit,
            self.lose_connection,
            self.read_answer,
            self.look_up_lost_commit,
            self.give_verdict,
            self.crash,
            self.execute_commit,
            self.end_abandoned_session,
            self.prune_log,
            self.database_refuses,
            self.sibling_falls_ill,
            self.stranger_sends_a_half_message,
            self.stranger_repeats_an_id,
            self.check_back,
            self.end_arrives,
            self.broker_forgets_an_end,
            self.broker_restarts,
            self.producers_away,
            self.group_begins_anew,
            self.flush_and_deliver,
            self.owner_removes_row,
            self.witness_removes_row,
            self.relay,
        ):
            yield from action(s)

    def explore(self) -> Found:
        first = State(self.faults, ORDER[self.form][0])
        return explore(first, self.steps, wrong, finished, LOST)


def put(s: State, k: int, half: Half) -> State:
    return s._replace(halves=(*s.halves[:k], half, *s.halves[k + 1 :]))


def at_stake(s: State) -> bool:
    """Whether all depends on the copy and on the broker's questions; keeps the model small."""
    undecided = any(half.place == "pending" or half.end for half in s.halves)
    return s.outbox and undecided and s.caller in ("verdict", "over", "dead")


def show(s: State) -> State:
    """Make the message visible to consumers; once it was delivered, another copy changes nothing here."""
    return s if s.message in ("delivered", "on disk") else s._replace(message="stored")


PHANTOM = "a message of a transaction that did not commit is visible to consumers"
LIE = "the caller was told something that is not true"
TORN = "half a transaction was committed"
VAGUE = "the caller is left in doubt although the database could be asked"
REFUSED = "work that had already been done was refused because the broker asked meanwhile"
LOST = "the transaction committed, and its message will never be delivered"


FORGED = "a stranger made us write into our log"


def wrong(s: State) -> str | None:
    if s.forged == "fenced":
        return FORGED
    committed = s.session == "committed"
    if s.message and not committed:
        return PHANTOM
    if (s.told == "committed" and not committed) or (s.told in ("not committed", "lost") and committed):
        return LIE
    if committed and s.tripped == "deadlock":
        return TORN
    if s.told == "in doubt" and not s.database_was_away:
        return VAGUE
    if s.told == "refused late":
        return REFUSED
    return None


def finished(s: State) -> bool:
    over = s.caller in ("over", "dead") and s.session in ("", "committed", "gone")
    return over and (s.session != "committed" or s.message == "delivered")
