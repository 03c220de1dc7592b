"""The demo page in a real browser: Debian's chromium, or another of its family that is installed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from devstack.demo_page import page_served
from devstack.keeper import kept_up
from devstack.services import events_path
from tests.e2e.conftest import DELIVERY_SECONDS, Demo
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.browser]

MILLISECONDS = 1000 * DELIVERY_SECONDS
Picture = Callable[..., None]
LAPTOP = {"width": 1280, "height": 720}
PHONE = {"width": 390, "height": 844}
# What the picture shows at the end of each button: rows of both databases, and the message.
ENDS_OF_PICTURE = {
    "kill_after_commit": {"account": "durable", "message": "acked", "points": "durable"},
    "kill_before_commit": {"account": "undone", "message": "vanished", "points": "none"},
    "slow_check_back": {"account": "durable", "message": "acked", "points": "durable"},
    "fail": {"account": "durable", "message": "acked", "points": "durable"},
    "deliver_twice": {"account": "durable", "message": "acked", "points": "durable", "duplicate": "bounced"},
    "stop": {"account": "durable", "message": "acked", "points": "durable"},
    "poison": {"account": "durable", "at": "shelf", "points": "undone"},
}
# What each button makes of the lanes meanwhile; the others nothing.
MARKS = {
    "kill_after_commit": {"away,here,here"},
    "kill_before_commit": {"away,here,here"},
    "stop": {"here,here,away"},
}
# States of a transfer about which nothing more will happen.
ENDS = ("done", "refused", "repeated", "rolled_back", "undone", "no_transfer")


@pytest.fixture(scope="module")
def url(demo_processes: Demo) -> Iterator[str]:
    """Serve the page as the supervisor does, from a process that no button kills: this one."""
    demo = demo_processes
    with page_served(demo.stack, demo.account, demo.points, demo.first_port + 2) as url:
        yield url


@pytest.fixture
def kept(demo: Demo) -> Iterator[Demo]:
    """Return both services under a supervisor; they serve again when it ends."""
    with kept_up(*demo.services):
        yield demo
    demo.start_those_down()
    for service in demo.services:
        service.wait_ready(timeout_seconds=DELIVERY_SECONDS)


@pytest.fixture
def page(chromium: Any, kept: Demo, url: str) -> Iterator[Any]:
    """Return an English tab; at its end no script may have failed and no policy been broken."""
    context = chromium.new_context(locale="en-US", viewport=LAPTOP)
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    problems: list[str] = []

    def watch(tab: Any) -> None:
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda line: problems.append(line.text) if "Security Policy" in line.text else None)

    context.on("page", watch)
    tab = context.new_page()
    tab.goto(url)
    expect(tab.locator("#accounts tr")).not_to_have_count(0)
    tab.select_option("#speed", "0.4")  # the captions of a test need no reader; all tabs remember it
    yield tab
    context.close()
    assert problems == []


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Picture:
    """Return a function that keeps a picture of a state, when --screenshots says where."""
    folder: Path | None = request.config.getoption("--screenshots")

    def keep(page: Any, name: str, **options: Any) -> None:
        if folder is not None:
            page.screenshot(path=folder / f"{name}.png", animations="disabled", **options)

    return keep


def card(page: Any, prefix: str) -> Any:
    """Return the newest card of the timeline whose transfer id begins so."""
    return page.locator(".card", has=page.locator("summary strong", has_text=re.compile(f"^{prefix}"))).first


def books_hold(page: Any) -> None:
    """Wait until the line of the books holds, by its word."""
    expect(page.locator("#books-line")).to_have_attribute("data-check", "holds")
    expect(page.locator("#books-line")).to_contain_text("✓ holds")
    expect(page.locator("#checks li[data-check=holds]")).to_have_count(3)


def picture_ends(page: Any, fault: str) -> None:
    """Wait until the picture shows what the button promises, of the transfer that it follows."""
    for part, value in ENDS_OF_PICTURE[fault].items():
        expect(page.locator("#scene")).to_have_attribute(f"data-{part}", value)


def all_in_view(page: Any, *selectors: str) -> None:
    """Each of these is wholly in the viewport, without scrolling."""
    assert page.evaluate("scrollY") == 0
    for selector in selectors:
        box = page.locator(selector).bounding_box()
        assert box is not None, selector
        assert box["y"] >= 0, selector
        assert box["y"] + box["height"] <= page.viewport_size["height"], selector


# Notes after each change of the document what the picture, its caption, its badge and its card say.
WATCH_MOMENTS = """() => {
    window.moments = [];
    const text = (selector) => document.querySelector(selector)?.textContent ?? "";
    new MutationObserver(() => {
        const id = text("#followed").split(" ").at(-1);
        const cards = [...document.querySelectorAll(".card")];
        const card = cards.find((one) => one.querySelector("summary strong").textContent === id);
        const steps = [...(card?.querySelectorAll("ol li") ?? [])];
        window.moments.push({
            id,
            caption: document.querySelector("#now").dataset.step,
            steps: steps.map((one) => `${one.className}.${one.dataset.step}`),
            badge: text("#badge"),
            card: card?.querySelector(".badge").textContent ?? "",
        });
    }).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
}"""


def own_card(page: Any, answer: str = "#form-answer") -> Any:
    """Return the card of the transfer that the answer names; the newest one may be of a test before."""
    expect(page.locator(answer)).to_contain_text("Committed")
    return card(page, str(page.locator(answer).text_content()).split()[-1])


def test_a_transfer_is_seen_from_form_to_points(page: Any, picture: Picture) -> None:
    """Every step on its card, the picture on the last one, never apart; the invariant held."""
    page.evaluate(WATCH_MOMENTS)
    page.fill("input[name=amount]", "12.34")
    page.click("form button")
    done = own_card(page)
    expect(done).to_have_attribute("data-state", "done")
    transfer_id = done.locator("summary strong").text_content()
    moments = [one for one in page.evaluate("window.moments") if one["id"] == transfer_id and one["caption"]]
    assert len({one["caption"] for one in moments}) >= 7
    for one in moments:
        assert one["steps"][-1:] == [one["caption"]], one
        assert one["card"] == one["badge"], one
    steps = done.locator("ol li").evaluate_all("items => items.map((item) => item.dataset.step)")
    for step in (
        "local_running",
        "half_stored",
        "message_committed",
        "delivered",
        "inbox_row",
        "handler",
        "acked",
    ):
        assert step in steps
    expect(page.locator("#now")).to_have_attribute("data-step", "points.acked")
    expect(page.locator("#badge")).to_have_text("✓ done")
    picture_ends(page, "stop")
    books_hold(page)
    picture(page, "transfer")
    page.emulate_media(color_scheme="dark")
    picture(page, "transfer-dark", full_page=True)


BAD_AMOUNTS = {
    "0": "above 0",
    "-5": "above 0",
    "1.234": "two decimals",
    "": "above 0",
    "1e3": "above 0",
    "ten": "above 0",
    "99999999999": "at most 10,000,000,000.00 yuan",
    "9" * 30: "at most 10,000,000,000.00 yuan",
}


def test_bad_input_is_named_and_changes_nothing(kept: Demo, page: Any, picture: Picture) -> None:
    """By the form itself: nothing is sent. Too large an amount has a sentence of its own."""
    before = kept.ledger.read().transfers
    for amount, words in BAD_AMOUNTS.items():
        page.evaluate("document.querySelector('#form-answer').textContent = ''")
        page.fill("input[name=amount]", amount)
        page.press("input[name=amount]", "Enter")
        expect(page.locator("#form-answer")).to_contain_text(words)
        expect(page.locator("#form-answer")).to_contain_text("Nothing was sent")
        expect(page.locator("input[name=amount]")).to_have_attribute("aria-invalid", "true")
    assert kept.ledger.read().transfers == before
    picture(page, "bad-input")


def test_the_same_user_twice_is_named_and_changes_nothing(kept: Demo, page: Any) -> None:
    """By the form itself, and the field is marked."""
    before = kept.ledger.read().transfers
    page.select_option("select[name=to]", "alice")
    page.click("form button")
    expect(page.locator("#form-answer")).to_contain_text("the same user. Nothing was sent")
    expect(page.locator("select[name=to]")).to_have_attribute("aria-invalid", "true")
    assert kept.ledger.read().transfers == before


def test_too_little_money_is_told_by_the_service(page: Any, picture: Picture) -> None:
    """An error of the API is a sentence on the page."""
    page.select_option("select[name=from]", "carol")
    page.fill("input[name=amount]", "5000000")
    page.click("form button")
    expect(page.locator("#form-answer")).to_contain_text("too little money. Nothing was changed")
    expect(card(page, "transfer-")).to_have_attribute("data-state", "refused")
    picture(page, "refused")


# Notes at each caption which parts are not wholly in the viewport, and at each mark of a lane all marks.
WATCH_VIEW = """() => {
    window.views = [];
    window.marks = [];
    const now = document.querySelector("#now");
    const isHidden = (selector) => {
        const box = document.querySelector(selector).getBoundingClientRect();
        const isBeside = box.left < 0 || box.right > innerWidth;
        return box.height === 0 || box.top < 0 || box.bottom > innerHeight || isBeside;
    };
    const view = () => window.views.push({
        id: document.querySelector("#followed").textContent.split(" ").at(-1),
        step: now.dataset.step,
        hidden: ["#scene", "#now", "#badge"].filter(isHidden),
        jumped: scrollY,
        words: now.textContent.split(" ").length,
    });
    // Killed is what the picture tells of a step; the others are how the servers are now.
    const all = [...document.querySelectorAll(".lane")];
    const states = () => all.map((one) => one.dataset.state.replace("killed", "here"));
    const mark = () => window.marks.push(states().join());
    for (const one of window.watchers ?? []) one.disconnect();
    window.watchers = [new MutationObserver(view), new MutationObserver(mark)];
    window.watchers[0].observe(now, { attributeFilter: ["data-step"] });
    for (const one of all) window.watchers[1].observe(one, { attributeFilter: ["data-state"] });
}"""
HERE = "here,here,here"


def marks(page: Any) -> set[str]:
    """Return what was marked since `WATCH_VIEW`: states of account service, RocketMQ and points service."""
    return set(page.evaluate("window.marks")) - {HERE}


def written_down(demo: Demo) -> list[dict[str, Any]]:
    """Return the events of both services."""
    return [
        json.loads(line)
        for service in ("account", "points")
        for line in events_path(demo.folder, service).read_text(encoding="utf-8").splitlines()
    ]


def happened(demo: Demo, transfer_id: str) -> list[str]:
    """Return the steps of a transfer that the services have written down, in the order of their time."""
    events = written_down(demo)
    txn_ids = {event["txn_id"] for event in events if event["transfer_id"] == transfer_id}
    own = [event for event in events if event["txn_id"] in txn_ids]
    return [f"{event['service']}.{event['step']}" for event in sorted(own, key=lambda one: one["time"])]


def shown_in_view(page: Any, transfer_id: str) -> list[str]:
    """Return the steps of a transfer shown since `WATCH_VIEW`; each was in view, unscrolled and short."""
    views = [view for view in page.evaluate("window.views") if view["step"] and view["id"] == transfer_id]
    for view in views:
        assert view["hidden"] == [], view
        assert view["jumped"] == 0, view
        assert view["words"] <= 15, view
    return [view["step"] for view in views]


def pressed_twice(page: Any, demo: Demo, button: str, fault: str) -> tuple[Any, str]:
    """Press a button twice quickly; return the card of the one transfer that this began, and its id."""
    prefix = fault.replace("_", "-")
    rows = page.locator("summary strong", has_text=re.compile(f"^{prefix}"))
    # From what is written down: a page that was just loaded may not show all of it yet.
    before = {event["transfer_id"] for event in written_down(demo)}
    page.evaluate(WATCH_VIEW)
    page.dblclick(button)

    def begun() -> list[str]:
        return [id_ for id_ in rows.all_text_contents() if id_ not in before]

    (transfer_id,) = until(begun, f"the transfer of {button}", DELIVERY_SECONDS)
    return card(page, transfer_id), transfer_id


def story_is_told(page: Any, demo: Demo, transfer_id: str, steps: list[str]) -> list[str]:
    """Wait until these happened, and each step that happened was shown, and only those; return them."""

    def whole_story() -> list[str] | None:
        told = happened(demo, transfer_id)
        return (
            told
            if set(steps) <= set(told) and sorted(shown_in_view(page, transfer_id)) == sorted(told)
            else None
        )

    return until(whole_story, f"all steps of {transfer_id} in the picture", DELIVERY_SECONDS) or []


@pytest.mark.parametrize(
    ("number", "fault", "state", "steps"),
    [
        (1, "kill_before_commit", "rolled_back", ["account.killed", "account.check_answered"]),
        pytest.param(
            *(2, "kill_after_commit", "done", ["account.killed", "account.check_answered", "points.acked"]),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(3, "slow_check_back", "done", ["account.half_stored", "account.check_slow", "points.acked"]),
            marks=pytest.mark.long,
        ),
        (4, "kill_after_commit", "done", ["account.check_asked", "account.check_answered"]),
        (5, "kill_before_commit", "rolled_back", ["account.check_asked", "account.check_answered"]),
        (6, "deliver_twice", "done", ["points.committed", "points.delivered", "points.skipped"]),
        pytest.param(*(7, "poison", "parked", ["points.failed", "points.parked"]), marks=pytest.mark.long),
        pytest.param(
            *(8, "stop", "done", ["account.message_committed", "points.delivered", "points.acked"]),
            marks=pytest.mark.long,
        ),
    ],
)
def test_each_step_of_the_tour_breaks_what_it_tells_in_view(
    page: Any, kept: Demo, picture: Picture, number: int, fault: str, state: str, steps: list[str]
) -> None:
    """Every step that happened is shown, no other, unscrolled: live on one screen, again on the other."""
    sizes = (LAPTOP, PHONE) if number % 2 else (PHONE, LAPTOP)
    page.set_viewport_size(sizes[0])
    page.click("#tour-start")
    for _ in range(number - 1):
        page.click("#tour-next")
    expect(page.locator("#tour-title")).to_contain_text(f"{number}/8")
    expect(page.locator("#tour-more a")).to_have_count(2)
    assert page.locator("#tour").get_attribute("data-fault") == fault
    all_in_view(page, "#tour-title", "#tour-break", "#scene", "#now")
    broken, transfer_id = pressed_twice(page, kept, "#tour-break", fault)
    told = story_is_told(page, kept, transfer_id, steps)
    assert marks(page) == MARKS.get(fault, set())
    expect(broken).to_have_attribute("data-state", state)
    picture_ends(page, fault)
    picture(page, f"tour-{number}-{sizes[0]['width']}")
    if number not in (4, 5):  # the same buttons as those of 2 and 1
        page.set_viewport_size(sizes[1])
        page.evaluate(WATCH_VIEW)
        page.click("#replay")
        assert story_is_told(page, kept, transfer_id, steps) == told
        picture_ends(page, fault)
        picture(page, f"tour-{number}-{sizes[1]['width']}")
    if fault == "poison":
        expect(page.locator("#books-line")).to_contain_text("still on the way or parked")
        page.locator(f"[data-mend={transfer_id}]").dblclick()
        expect(broken).to_have_attribute("data-state", "done")
        picture_ends(page, "stop")
        expect(page.locator("#mends [data-mend]")).to_have_count(0)
        expect(page.locator("#mends")).to_contain_text(f"{transfer_id} mended")
    books_hold(page)
    page.click("#tour-next")
    expect(page.locator("#tour-start" if number == 8 else "#tour-title")).to_be_focused()


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_a_button_breaks_what_it_says_in_view(
    page: Any, kept: Demo, picture: Picture, size: dict[str, int]
) -> None:
    """Without the tour; the one button that it leaves out. Button and picture are in view together."""
    page.set_viewport_size(size)
    all_in_view(page, "#scene", "#now", "#buttons", "#parked")
    broken, transfer_id = pressed_twice(page, kept, "[data-fault=fail]", "fail")
    told = story_is_told(page, kept, transfer_id, ["points.acked"])
    assert told.count("points.failed") == 2
    expect(broken).to_have_attribute("data-state", "done")
    picture_ends(page, "fail")
    books_hold(page)
    picture(page, f"fail-{size['width']}")


@pytest.mark.parametrize(
    ("lane", "state"),
    [
        ("broker", "frozen"),
        ("points_service", "frozen"),
        ("points_service", "away"),
        ("account_service", "away"),
    ],
)
def test_what_is_away_or_frozen_is_marked_and_only_that(
    page: Any, kept: Demo, picture: Picture, lane: str, state: str
) -> None:
    """A real process, stopped or killed; the mark goes when it serves again."""
    servers = {"account_service": kept.account, "broker": kept.stack.broker, "points_service": kept.points}
    server = servers[lane]
    strike, heal = (server.pause, server.resume) if state == "frozen" else (server.kill, lambda: None)
    marked = ",".join({**dict.fromkeys(servers, "here"), lane: state}.values())
    expect(page.locator("[data-lane][data-state=here]")).to_have_count(3)
    page.evaluate(WATCH_VIEW)
    strike()
    try:
        if state == "frozen":
            expect(page.locator(f"[data-lane={lane}] [data-away]")).to_have_text("❄ frozen")
        else:  # for moments only: the supervisor starts it again
            until(lambda: marked in marks(page), f"{lane} marked as {state}", DELIVERY_SECONDS)
        picture(page, f"{lane}-{state}")
    finally:
        heal()
    expect(page.locator("[data-lane][data-state=here]")).to_have_count(3)
    assert marks(page) == {marked}


@pytest.mark.long
def test_without_a_supervisor_the_account_service_serves_the_page(page: Any, kept: Demo) -> None:
    """As in containers: it goes away with its page, which says so, and goes on where it was."""
    page.goto(kept.account.url)
    expect(page.locator("#accounts tr")).not_to_have_count(0)
    expect(page.locator("[data-lane][data-state=here]")).to_have_count(3)
    page.evaluate(WATCH_VIEW)
    kept.points.kill()
    until(lambda: marks(page) == {"here,here,away"}, "the points service marked", DELIVERY_SECONDS)
    expect(page.locator("[data-lane][data-state=here]")).to_have_count(3)
    broken, _ = pressed_twice(page, kept, "[data-fault=kill_after_commit]", "kill_after_commit")
    until(lambda: marks(page) == {"away,here,here"}, "the account service marked", DELIVERY_SECONDS)
    expect(broken).to_have_attribute("data-state", "done")
    expect(page.locator("[data-lane][data-state=here]")).to_have_count(3)
    books_hold(page)


def test_time_can_be_stopped_stepped_and_replayed(page: Any) -> None:
    """Paused, each press shows one event that happened; the badge and the timeline are never ahead."""
    page.click("#pause")
    page.click("form button")
    expect(page.locator("#form-answer")).to_contain_text("Committed")
    expect(page.locator("#scene")).to_have_attribute("data-account", "none")
    seen = []
    for wanted in ("account.local_running", "account.half_stored", "account.committed"):
        page.click("#step")
        seen.append(page.locator("#now").get_attribute("data-step"))
        assert seen[-1] == wanted
    expect(page.locator("#scene")).to_have_attribute("data-account", "durable")
    expect(page.locator("#scene")).to_have_attribute("data-message", "half")
    expect(page.locator("#badge")).to_have_text("● money moved")
    expect(card(page, "transfer-")).to_have_attribute("data-state", "committed")
    expect(card(page, "transfer-").locator("ol li")).to_have_count(3)
    page.click("#replay")
    expect(card(page, "transfer-")).to_have_attribute("data-state", "done")
    picture_ends(page, "stop")


def test_the_speed_is_remembered(page: Any) -> None:
    """By a reload and by another tab."""
    page.reload()
    expect(page.locator("#speed")).to_have_value("0.4")


def test_a_delivery_of_points_is_not_drawn_before_it_happened(page: Any) -> None:
    """The picture is a function of the events: each prefix of a story shows only what is in it."""
    scenes = page.evaluate(
        """async () => {
            const { sceneOf } = await import("/page/scene.js");
            const story = ["account.local_running", "account.half_stored", "account.killed",
                "account.check_asked", "account.check_answered", "points.delivered",
                "points.inbox_row", "points.failed", "points.delivered", "points.inbox_row",
                "points.committed", "points.ack_withheld", "points.delivered", "points.skipped"];
            const events = story.map((one, number) => {
                const [service, step] = one.split(".");
                const detail = { fault: "kill_after_commit", verdict: "commit" };
                return { service, step, time: `2999-01-01T00:00:${number}`, detail };
            });
            return events.map((_, number) => {
                const { account, message, at, points, duplicate } = sceneOf(events.slice(0, number + 1));
                return [account, message, at, points, duplicate].join(" ");
            });
        }"""
    )
    assert scenes == [
        "open none account none none",
        "open half broker none none",
        "durable half broker none none",
        "durable half broker none none",
        "durable solid broker none none",
        "durable solid points none none",
        "durable solid points open none",
        "durable solid broker undone none",
        "durable solid points none none",
        "durable solid points open none",
        "durable solid points durable none",
        "durable solid points durable none",
        "durable solid points durable arrived",
        "durable solid points durable bounced",
    ]


@pytest.mark.parametrize("size", [LAPTOP, PHONE, {"width": 1920, "height": 1080}])
def test_the_first_screen_is_a_picture_and_few_words(
    page: Any, picture: Picture, size: dict[str, int]
) -> None:
    """Fewer than 120 words; picture, buttons, form and books in view; captions of at most 15 words."""
    page.set_viewport_size(size)
    page.reload()
    expect(page.locator("#accounts tr")).not_to_have_count(0)
    expect(page.locator("#buttons button")).to_have_count(7)
    all_in_view(page, "#scene", "#now", "#buttons", "#transfer", "#books-line")
    assert len(page.locator("body").inner_text().split()) < 120
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    longest = page.evaluate(
        """async () => {
            const { steps } = await import("/page/texts.js");
            return Math.max(...Object.values(steps).map(({ caption }) => caption[0].split(" ").length));
        }"""
    )
    assert longest <= 15
    picture(page, f"start-{size['width']}")


@pytest.mark.parametrize(("scheme", "size"), [("light", LAPTOP), ("dark", PHONE)])
def test_axe_finds_nothing_in_any_state(page: Any, scheme: str, size: dict[str, int]) -> None:
    """Names, roles, contrast, order: at the start, in the tour, with all unfolded, with marks, at the end."""
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.click("form button")
    expect(own_card(page)).to_have_attribute("data-state", "done")

    def violations() -> list[str]:
        found = Axe().run(page).response["violations"]
        return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]

    assert violations() == []
    page.click("#tour-start")
    for summary in ("#why", "#invariant", "#steps", ".card >> nth=0", "#glossary"):
        page.click(f"{summary} >> summary >> nth=0")
    page.evaluate(
        """async () => {
            const { drawLanes } = await import("/page/scene.js");
            const states = { account_service: "away", broker: "frozen", points_service: "away" };
            drawLanes(states, { killed: false });
        }"""
    )
    for lane, words in (("account_service", "✗ away"), ("broker", "❄ frozen"), ("points_service", "✗ away")):
        expect(page.locator(f"[data-lane={lane}] [data-away]")).to_have_text(words)
    assert violations() == []


def test_nothing_moves_by_itself_for_those_who_asked_for_that(page: Any) -> None:
    """Reduced motion: the same places and captions, without a transition or an animation."""
    page.emulate_media(reduced_motion="reduce")
    page.click("form button")
    expect(own_card(page)).to_have_attribute("data-state", "done")
    picture_ends(page, "stop")
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].map((one) => getComputedStyle(one)).filter((style) =>
            style.animationName !== "none" || !/^0s(, 0s)*$/.test(style.transitionDuration)).length"""
    )
    assert moving == 0
    assert page.evaluate("document.getAnimations().length") == 0


def test_the_language_is_switched_and_remembered(page: Any, picture: Picture) -> None:
    """The whole page, its language attribute too; a browser of that language needs no switch."""
    page.get_by_role("button", name="中文").click()
    expect(page.locator("h1")).to_have_text("rmq_txn：kill -9 也不丢的转账")
    page.reload()
    expect(page.locator("h1")).to_have_text("rmq_txn：kill -9 也不丢的转账")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    expect(page.locator("#words")).to_contain_text("半消息")
    picture(page, "chinese", full_page=True)
    page.get_by_role("button", name="English").click()
    expect(page.locator("h1")).to_have_text("rmq_txn: a transfer that survives kill -9")


def test_a_reload_in_the_middle_loses_nothing(page: Any, kept: Demo, picture: Picture) -> None:
    """The page comes back while the service is dead, with all steps so far and the mark."""
    broken, _ = pressed_twice(page, kept, "[data-fault=kill_after_commit]", "kill_after_commit")
    expect(broken.locator("[data-step=half_stored]")).to_have_count(1)
    page.reload()
    expect(broken.locator("[data-step=half_stored]")).to_have_count(1)
    picture(page, "reloaded")
    expect(broken).to_have_attribute("data-state", "done")
    books_hold(page)


def test_two_tabs_see_the_same(page: Any, url: str) -> None:
    """What one sends, both see; a third and a fourth do not starve them of connections."""
    others = [page.context.new_page() for _ in range(3)]
    for other in others:
        other.goto(url)
        expect(other.locator("#accounts tr")).not_to_have_count(0)
    page.click("form button")
    expect(page.locator("#form-answer")).to_contain_text("Committed")
    # From the answer: the newest card may still be of a transfer before.
    transfer_id = str(page.locator("#form-answer").text_content()).split()[-1]
    for other in others:
        expect(card(other, transfer_id)).to_have_attribute("data-state", "done")


@pytest.mark.long
def test_what_another_tab_does_moves_nothing_here(page: Any, url: str) -> None:
    """Picture, form and the rows of the timeline that are read stay where they are, its buttons too."""
    page.click("form button")
    own = own_card(page)
    expect(own).to_have_attribute("data-state", "done")
    page.click("#steps > summary")
    own.locator("summary").click()
    own.locator("ol li").last.scroll_into_view_if_needed()
    places = """() => ["#scene", "#transfer", "#parked", ".card[open] ol"].map(
        (one) => document.querySelector(one).getBoundingClientRect().top)"""
    before = page.evaluate(places)
    caption = page.locator("#now").text_content()
    rows = page.locator(".card").count()
    other = page.context.new_page()
    other.goto(url)
    other.click("form button")
    expect(own_card(other)).to_have_attribute("data-state", "done")
    expect(page.locator(".card")).to_have_count(rows + 1)
    after = page.evaluate(places)
    assert after[-1] == pytest.approx(before[-1], abs=1)
    assert [after[1] - after[0], after[2] - after[0]] == [before[1] - before[0], before[2] - before[0]]
    assert page.locator("#now").text_content() == caption


@pytest.mark.long
def test_two_tabs_break_at_the_same_time(page: Any, url: str) -> None:
    """Each kill may hit the other tab's transfer too, or come before its request; each one has an end."""
    other = page.context.new_page()
    other.goto(url)
    expect(other.locator("#accounts tr")).not_to_have_count(0)
    page.click("[data-fault=kill_after_commit]")
    other.click("[data-fault=kill_before_commit]")
    ends = "".join(f":not([data-state={state}])" for state in ENDS)
    for tab in (page, other):
        expect(tab.locator("#button-answer")).to_contain_text(re.compile("No answer|does not answer"))
        expect(tab.locator(f".card{ends}")).to_have_count(0)
        books_hold(tab)


def test_a_transfer_cut_short_is_undone_once_the_service_is_back(page: Any) -> None:
    """Killed before the half message, so that no later step tells of it: the start after it does."""
    states = page.evaluate(
        """async () => {
            const parts = await import("/page/parts.js");
            const begun = { step: "local_running", time: "2999-01-01", transfer_id: "t" };
            const events = [{ service: "account", detail: {}, ...begun }];
            const before = parts.stateOf(events);
            parts.noteStart({ service: "account", time: "2999-01-02" });
            // The first step of a story that goes on is not its end, even if the service started since.
            return [before, parts.stateOf(events), parts.stateOf(events, false)];
        }"""
    )
    assert states == ["running", "undone", "running"]


def test_a_copy_that_is_rolled_back_leaves_the_transfer_what_it_is(page: Any) -> None:
    """A repeated send leaves a half message behind; the answer about it says nothing about the money."""
    state = page.evaluate(
        """async () => {
            const parts = await import("/page/parts.js");
            const steps = ["half_stored", "committed", "message_committed", "check_answered"];
            const about = { service: "account", time: "2999-01-01", transfer_id: "t" };
            return parts.stateOf(steps.map((step) => ({ ...about, step, detail: { verdict: "rollback" } })));
        }"""
    )
    assert state == "sent"


def test_it_fits_a_phone_and_the_keyboard(page: Any, picture: Picture) -> None:
    """No sideways scrolling at 360 pixels; a button is reached and pressed without a mouse."""
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("input[name=amount]").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#form-answer")).to_contain_text("Committed")
    expect(card(page, "transfer-")).to_have_attribute("data-state", "done")
    page.get_by_role("button", name="中文").click()
    page.emulate_media(color_scheme="dark")
    expect(page.locator("#scene")).to_have_attribute("data-row", "ack")
    picture(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
