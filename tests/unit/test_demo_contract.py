"""What the demo services say of themselves: README.md and /openapi.json agree."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
import structlog

from demo_chassis import logs
from tests.test_architecture import ROOT

SERVICES = ("account", "points")
# "Each request may also be answered ..."
EVERYWHERE = {408, 413, 500}


def openapi(service: str) -> dict[str, Any]:
    """Return what the service would answer at /openapi.json; nothing is started."""
    module = f"demo_{service}_service"
    settings = importlib.import_module(f"{module}.settings").Settings(database_url="mysql://u:p@h/d")
    nothing = cast(Any, None)
    app = importlib.import_module(f"{module}.app").create_app(nothing, nothing, settings)
    return cast(dict[str, Any], app.openapi())


def readme(service: str) -> str:
    """Return the contract for people."""
    return (ROOT / f"demo_{service}_service" / "README.md").read_text(encoding="utf-8")


def operations(service: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each operation, as "GET /path"."""
    for path, methods in openapi(service)["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


@pytest.mark.parametrize("service", SERVICES)
def test_the_readme_and_openapi_name_the_same_routes_and_statuses(service: str) -> None:
    """Row by row; a row without a route of its own belongs to the one above."""
    told: dict[str, set[int]] = {}
    route = ""
    for first, statuses in re.findall(r"^\| ([^|]+) \| ([0-9, ]+) \| \S", readme(service), re.MULTILINE):
        named = re.fullmatch(r"`([A-Z]+ /\S*)`", first.strip())
        route = named[1] if named else route
        told.setdefault(route, set(EVERYWHERE)).update(map(int, statuses.split(", ")))
    assert told == {name: {*map(int, operation["responses"])} for name, operation in operations(service)}


@pytest.mark.parametrize("service", SERVICES)
def test_the_readme_and_openapi_name_the_same_codes(service: str) -> None:
    """Each with its status; and each but those of no route is documented somewhere."""
    models = importlib.import_module(f"demo_{service}_service.models")
    told = [
        (int(status), code)
        for status, codes in re.findall(
            r"^\| (\d{3}) \| ((?:`[a-z_0-9]+`(?:, )?)+) \|", readme(service), re.MULTILINE
        )
        for code in re.findall(r"`([a-z_0-9]+)`", codes)
    ]
    assert sorted(told) == sorted((status, code) for status, codes in models.ERRORS.items() for code in codes)
    text = json.dumps(openapi(service)["paths"])
    assert {code for _, code in told if f"`{code}`: " not in text} == {"http_404", "http_405"}


def test_the_page_has_a_sentence_for_every_error_of_a_transfer() -> None:
    """In both languages; the text of the service itself is English."""
    texts = (ROOT / "demo_account_service" / "page" / "texts.js").read_text(encoding="utf-8")
    told = set(
        re.findall(r'^  (\w+): \["[^"]+", "[^"]+"\],$', texts.split("export const errors")[1], re.MULTILINE)
    )
    responses = openapi("account")["paths"]["/transfers"]["post"]["responses"]
    codes = set(re.findall(r"`([a-z_]+)`: ", json.dumps(responses)))
    assert codes
    assert codes <= told


@pytest.mark.parametrize("service", SERVICES)
def test_the_readme_names_every_setting_and_its_default(service: str) -> None:
    """As the code has them."""
    settings = importlib.import_module(f"demo_{service}_service.settings")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `?([^|`]*)`? \|", readme(service), re.MULTILINE))
    known = {
        settings.Settings.variable(item.name): getattr(settings.Settings(database_url="-"), item.name)
        for item in dataclasses.fields(settings.Settings)
    }
    told = {name: default for name, default in rows.items() if name.startswith(settings.Settings.prefix)}
    known |= {name: "must be set" for name in known if name.endswith("DATABASE_URL")}
    assert told == {name: str(default) or "none" for name, default in known.items()}


@pytest.mark.parametrize("service", SERVICES)
def test_every_operation_is_described(service: str) -> None:
    """A summary, a sentence, a model and an example for each good answer, a model for each error."""
    document = openapi(service)
    for name, operation in operations(service):
        assert operation["summary"], name
        assert operation["description"], name
        for status, answer in operation["responses"].items():
            assert answer["description"], (name, status)
            assert "$ref" in answer["content"]["application/json"]["schema"], (name, status)
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    assert '"examples"' in text


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_values(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable may hold a body or a password."""
    root = logging.getLogger()
    before = root.handlers, root.level
    try:
        logs.configure(log_format)
        secret = "hunter" + "2"
        try:
            raise ValueError(f"{len(secret)} letters")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("it failed")
    finally:
        root.handlers, root.level = before
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "7 letters" in said
    assert "hunter2" not in said
