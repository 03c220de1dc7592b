"""
The wheel that users get: what is in it, and that it works away from the checkout.

The layout is flat, so a test that imports from the checkout would hide a file missing in the wheel.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from devstack import release
from tests.kit.documents import blocks, file_name, text_of

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_OTHERS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rocketmq", "testcontainers", "docker"):
            raise ImportError("rocketmq dynamic library not found")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Build both files with the backend that is installed; nothing is downloaded."""
    return release.build(tmp_path_factory.mktemp("built"), isolated=False)


@pytest.fixture(scope="module")
def wheel(built: list[Path]) -> Path:
    """Return the wheel, which was made of the source archive."""
    (found,) = (file for file in built if file.suffix == ".whl")
    return found


@pytest.fixture(scope="module")
def sources(built: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the source archive."""
    folder = tmp_path_factory.mktemp("sources")
    (archive,) = (file for file in built if file.name.endswith(".tar.gz"))
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-index", "--no-deps", "--target", target, wheel],
        cwd=target,
        check=True,
        capture_output=True,
    )
    return target


def project_version() -> str:
    """Return the version in pyproject.toml; Python 3.10 has no TOML reader."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)
    return str(version)


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder without the checkout, finding the wheel's files first."""
    elsewhere = installed.parent / f"{installed.name}-elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every source file of the package, the marker of its types and its SQL; no demo, no test."""
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for suffix in ("*.py", "*.sql", "py.typed")
        for path in (ROOT / "rmq_txn").rglob(suffix)
    }
    packed = {name for name in names if name.startswith("rmq_txn/")}
    assert packed == expected
    assert "rmq_txn/py.typed" in packed
    assert any(name.endswith(".sql") for name in packed)
    beside = {name.split("/")[0].split("-")[-1] for name in names - packed}
    assert beside == {"info", "pytest_rmq_txn.py"}


def test_the_metadata_is_what_pyproject_says(wheel: Path) -> None:
    """Version, run-time dependencies and the console script."""
    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = (name for name in opened.namelist() if name.endswith("/METADATA"))
        lines = opened.read(metadata).decode().splitlines()
        entry_points = opened.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert f"Version: {project_version()}" in lines
    assert "rmq-txn = rmq_txn.cli:run" in entry_points
    assert "[pytest11]\nrmq_txn = pytest_rmq_txn" in entry_points
    required = [line for line in lines if line.startswith("Requires-Dist") and "extra" not in line]
    names = {re.split(r"[<>=]", line.removeprefix("Requires-Dist: "))[0] for line in required}
    # rsa: without it PyMySQL can't log in to a MySQL 8 that has its defaults and no TLS.
    assert names == {"dbutils", "pymysql[rsa]", "rocketmq-client-python", "structlog"}
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra")}
    assert extras == {"completion", "django", "native-install", "opentelemetry", "sqlalchemy", "testing"}


def test_the_files_come_from_the_wheel(installed: Path) -> None:
    """Guard of the other tests here: neither the checkout nor an editable install is imported."""
    answer = run(installed, "-c", "import rmq_txn; print(rmq_txn.__file__)")
    assert answer.stderr == ""
    assert Path(answer.stdout.strip()) == installed / "rmq_txn" / "__init__.py"


def test_the_package_imports_without_the_native_library_and_the_extras(installed: Path) -> None:
    """Importing `rocketmq` raises without its library; it and the extras are imported when used."""
    program = (
        "import rmq_txn, rmq_txn.cli, rmq_txn.testing; [getattr(rmq_txn, name) for name in rmq_txn.__all__]"
    )
    answer = run(installed, "-c", WITHOUT_OTHERS + program)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_command_reads_its_sql_from_the_wheel(installed: Path) -> None:
    """A file of data that is missing shows only here."""
    answer = run(installed, "-m", "rmq_txn", "schema", "print")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "rmq_txn_log" in answer.stdout


def test_the_command_knows_its_version(installed: Path) -> None:
    """It is read from the metadata of the wheel."""
    assert run(installed, "-m", "rmq_txn", "--version").stdout == f"rmq-txn {project_version()}\n"


def test_the_readme_installs_from_a_git_address(sources: Path, tmp_path: Path) -> None:
    """The placeholder gives way to a repository; pip clones it and makes the wheel."""
    git = ["git", "-C", str(sources), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "A release"]):
        subprocess.run([*git, *command], check=True)
    install = blocks(text_of("README.md"), "sh")[0].splitlines()[0]
    _, _, requirement = shlex.split(install)
    address = "git+https://YOUR-GIT-HOST/rmq_txn.git"
    assert address in requirement
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*pip, *alone, requirement.replace(address, f"git+{sources.as_uri()}")], check=True)
    assert (tmp_path / "rmq_txn" / "database" / "sql" / "schema.sql").is_file()


def test_the_image_of_a_service_is_made_by_commands_that_are_run(wheel: Path) -> None:
    """No engine here: it installs what a release tries, and starts what the quickstart starts."""
    (dockerfile,) = blocks(text_of("docs/installation.md"), "dockerfile")
    steps = [line.split(maxsplit=1) for line in dockerfile.splitlines()]
    copied = [what.split()[0] for instruction, what in steps if instruction == "COPY"]
    _, _, consumer = blocks(text_of("docs/quickstart.md"), "python")
    assert copied == [wheel.name, file_name(consumer)]
    install, *prepare = dict(steps)["RUN"].split(" && ")
    assert shlex.split(install) == ["pip", "install", "--no-cache-dir", f"./{wheel.name}[native-install]"]
    assert {tuple(command.split()) for command in prepare} == {("rmq-txn", "native", "install")}
    assert ("rmq-txn", "native", "install") in release.TRIED
    assert shlex.join(json.loads(dict(steps)["CMD"])) in blocks(text_of("docs/quickstart.md"), "sh")[0]


def test_a_release_is_checked_and_tried_in_clean_environments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: both files are there, under the names that the documents say."""
    assert release.main(["--folder", str(tmp_path / "dist")]) == 0, capsys.readouterr().err
    names = {f"rmq_txn-{project_version()}-py3-none-any.whl", f"rmq_txn-{project_version()}.tar.gz"}
    assert {file.name for file in (tmp_path / "dist").iterdir()} == names
    assert f"dist/rmq_txn-{project_version()}-py3-none-any.whl[native-install]" in text_of(
        "docs/installation.md"
    )


def test_a_file_that_does_not_work_is_no_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, what the failing step printed, and nothing in the folder."""
    monkeypatch.setattr(release, "build", lambda folder: [shutil.copy(ROOT / "LICENSE", folder / "a-1.whl")])
    assert release.main(["--folder", str(tmp_path / "dist")]) == 1
    assert "no release: " in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()
