"""mypy and pyright agree with `api.py`: what must be typed is, what must be an error is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
API = Path(__file__).with_name("api.py")


def mypy(*files: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy with the project's own settings."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            "pyproject.toml",
            "--no-error-summary",
            *map(str, files),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_public_api_has_the_types_it_promises() -> None:
    """Every `assert_type` holds and every `type: ignore` is needed."""
    pytest.importorskip("mypy", reason="mypy is in the dependency group lint")
    checked = mypy(API)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout + checked.stderr


def test_a_wrong_type_would_be_found(tmp_path: Path) -> None:
    """The same check on the same file with one promise changed."""
    pytest.importorskip("mypy", reason="mypy is in the dependency group lint")
    changed = tmp_path / "changed_api.py"
    source = API.read_text(encoding="utf-8")
    promise = "assert_type(producer.send_in_transaction(message, debit), Receipt[int])"
    assert promise in source
    changed.write_text(source.replace(promise, promise.replace("Receipt[int]", "Receipt[str]")))
    checked = mypy(changed)
    assert checked.returncode == 1
    assert 'Expression is of type "Receipt[int]", not "Receipt[str]"' in checked.stdout
    assert checked.stdout.count("error:") == 1


def test_pyright_agrees_and_accepts_the_examples(tmp_path: Path) -> None:
    """In the same run it refuses a copy with one promise changed and wrong uses that nothing excuses."""
    pytest.importorskip("basedpyright", reason="basedpyright is in the dependency group lint")
    changed = tmp_path / "changed_api.py"
    source = API.read_text(encoding="utf-8")
    excuse = "  # type: ignore[arg-type]"
    wrong = {
        "joined(AsyncSession())": "AsyncSession",  # a session of tasks where one of threads belongs
        "producer.send_in_transaction(message, adebit)": "adebit",  # an async function where none is allowed
    }
    for use in wrong:
        assert f"\n{use}{excuse}\n" in source
        source = source.replace(f"\n{use}{excuse}\n", f"\n{use}\n")
    changed.write_text(source, encoding="utf-8")
    examples = (path for path in (CHECKOUT / "examples").rglob("*.py"))
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable),
            *map(str, (API, *examples, changed)),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    report = json.loads(checked.stdout)
    assert report["summary"]["filesAnalyzed"] >= len(list((CHECKOUT / "examples").glob("*"))) - 2
    found = report["generalDiagnostics"]
    lines = source.splitlines()
    assert {Path(error["file"]) for error in found} == {changed}, checked.stdout
    assert {lines[error["range"]["start"]["line"]] for error in found} == set(wrong), checked.stdout
