"""The site in a real browser: Debian's chromium, or another of its family that is installed."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.unit.test_site import site  # noqa: F401 - the fixture

pytestmark = pytest.mark.browser

MILLISECONDS = 30_000
PAGES = ("", "concepts/", "concepts.zh-CN/", "api/", "cli/", "guarantees/", "decisions/")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:  # noqa: F811
    """Serve the site on a free port of loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def tab(chromium: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a tab; at its end nothing may have been asked of another host, and nothing have failed."""
    context = chromium.new_context(**getattr(request, "param", {}))
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    problems: list[str] = []

    def asked(sent: Any) -> None:
        if not sent.url.startswith((address, "data:", "blob:")):
            problems.append(f"asked for {sent.url}")

    context.on("request", asked)
    context.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    context.on("weberror", lambda error: problems.append(str(error.error)))
    yield context.new_page()
    context.close()
    assert problems == []


PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.mark.parametrize(
    "tab", [pytest.param({}, marks=pytest.mark.long), PHONE], indirect=True, ids=["desk", "phone"]
)
def test_pages_load_nothing_from_elsewhere_and_fit_the_screen(tab: Any, address: str) -> None:
    """Wide tables and diagrams scroll by themselves; the page does not."""
    for name in PAGES:
        tab.goto(address + name, wait_until="networkidle")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        expect(tab.locator("article h1")).to_be_visible()


@pytest.mark.parametrize("tab", [{"color_scheme": "dark"}], indirect=True)
def test_a_dark_screen_gets_dark_pages_and_the_button_makes_them_light(tab: Any, address: str) -> None:
    """The diagram has the colours of the page."""
    tab.goto(address)
    body, text = tab.locator("body"), tab.locator(".sequence text").first
    expect(body).to_have_attribute("data-md-color-scheme", "slate")
    dark = text.evaluate("element => getComputedStyle(element).fill")
    tab.locator("label[for=__palette_0]").click()
    expect(body).to_have_attribute("data-md-color-scheme", "default")
    assert text.evaluate("element => getComputedStyle(element).fill") != dark


@pytest.mark.parametrize(("words", "first"), [("半消息", "概念|半消息"), ("FencedError", "Python API")])
def test_the_search_finds_chinese_and_english(tab: Any, address: str, words: str, first: str) -> None:
    """The first hit is a page or a section that explains the word."""
    tab.goto(address)
    tab.locator("input[name=query]").click()
    tab.keyboard.type(words)
    tab.keyboard.press("End")  # the theme listens to keys; text that is put in has none
    expect(tab.locator(".md-search-result__item").first).to_contain_text(re.compile(first))
