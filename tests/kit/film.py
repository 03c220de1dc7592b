"""
Film the demo page: real servers, a real kill, a real browser. Writes the pictures of the README.

    .venv/bin/python -m tests.kit.film docs/images

Three files: `page-film.png`, an animation (APNG) of a kill after COMMIT until the points are there;
`page.png`, a still of the moment in which RocketMQ asks back; `page-phone.png`, the same page on a phone, in
Chinese and in the dark (a font such as fonts-wqy-zenhei must be installed).
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from playwright.sync_api import sync_playwright

from devstack import LocalStack, StackSettings
from devstack.demo_page import page_served
from devstack.keeper import kept_up
from devstack.services import start_together
from tests.conftest import BROWSERS
from tests.e2e.conftest import Demo

MAX_BYTES = 1_000_000
_FRAME_MILLISECONDS = 120
_LAST_MILLISECONDS = 3000
_COLOURS = 48
_BUTTON = "[data-fault=kill_after_commit]"
_SCREEN = {"width": 1000, "height": 620}
_LAPTOP = {"width": 1280, "height": 720}
_PHONE = {"width": 390, "height": 844}
_OVER = "#scene[data-message=acked]"


def main(folder: Path) -> int:
    """Write the pictures into a folder; 1 if the animation is too large."""
    with _demo() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_browser(), args=["--no-sandbox"])
        page = _opened(browser, url, viewport=_SCREEN)
        frames = _film(page)
        size = _save(frames, folder / "page-film.png")
        page = _opened(browser, url, viewport=_LAPTOP)
        _still(page, "#scene[data-word=ask]", folder / "page.png")
        page = _opened(
            browser, url, viewport=_PHONE, locale="zh-CN", color_scheme="dark", device_scale_factor=1.5
        )
        _still(page, _OVER, folder / "page-phone.png")
        browser.close()
    print(f"{len(frames)} frames, {size} bytes, at most {MAX_BYTES}")
    return int(size > MAX_BYTES)


@contextmanager
def _demo() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, LocalStack(StackSettings.for_tests(Path(folder))) as stack:
        demo = Demo(stack)
        try:
            start_together(*demo.services)
            with kept_up(*demo.services), page_served(stack, *demo.services, demo.first_port + 2) as url:
                yield url
        finally:
            demo.close()


def _browser() -> str:
    return next(filter(None, map(shutil.which, BROWSERS)))


def _opened(browser: Any, url: str, **options: Any) -> Any:
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.wait_for_selector("[data-fault]")
    page.wait_for_selector("#accounts tr", state="attached")
    return page


def _film(page: Any) -> list[tuple[Image.Image, int]]:
    """Return what is seen from the press of the button to the end, and for how long: milliseconds."""
    frames: list[tuple[Image.Image, int]] = []
    page.click(_BUTTON)
    over = None
    began = time.monotonic()
    while over is None or time.monotonic() - over < 1.0:
        if over is None and page.locator(_OVER).count():
            over = time.monotonic()
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        now = time.monotonic()
        if frames:  # the one before was seen until now
            frames[-1] = (frames[-1][0], frames[-1][1] + round((now - began) * 1000))
        began = now
        if not frames or ImageChops.difference(frames[-1][0], image).getbbox() is not None:
            frames.append((image, 0))
        page.wait_for_timeout(_FRAME_MILLISECONDS)
    return [*frames[:-1], (frames[-1][0], _LAST_MILLISECONDS)]


def _save(frames: list[tuple[Image.Image, int]], path: Path) -> int:
    """Write an APNG of few colours; return its size."""
    palette = frames[len(frames) // 2][0].quantize(_COLOURS)
    # Back to RGB: what Pillow 13 writes of changing parts of an image with a palette comes out black.
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB") for image, _ in frames]
    durations = [milliseconds for _, milliseconds in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    with Image.open(path) as written:
        for number, image in enumerate(images):
            written.seek(number)
            if ImageChops.difference(written.convert("RGB"), image).getbbox() is not None:
                raise RuntimeError(f"frame {number} of {path} is not what was filmed")
    return path.stat().st_size


def _still(page: Any, moment: str, path: Path) -> None:
    page.click(_BUTTON)
    page.wait_for_selector(moment, state="attached")
    page.click("#pause")
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    image.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
