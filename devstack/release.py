"""
`./dev release`: a wheel and a source archive that were checked, and tried where nothing else is installed.

Nothing is uploaded. Files arrive in their folder only when everything passed, so what lies there is good.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# The plugin stands beside the package: pytest imports it in each run of an environment, and it must be light.
_TOP_LEVEL = "rmq_txn,pytest_rmq_txn.py"
TRIED = (
    ("python", "-c", "import rmq_txn; [getattr(rmq_txn, name) for name in rmq_txn.__all__]"),
    ("rmq-txn", "--help"),
    ("rmq-txn", "schema", "print"),
    ("rmq-txn", "native", "install"),
    ("rmq-txn", "native", "status"),
)
"""What has to work in an environment that has a file and its dependencies, and nothing else."""


class ReleaseError(Exception):
    """A step failed; its output is the text."""


def build(folder: Path, *, isolated: bool = True) -> list[Path]:
    """
    Make the source archive, and the wheel out of that: what the archive lacks would be missing in it.

    Args:
        folder: where to.
        isolated: with the newest backend from the package index, as people get it who install from git.
    """
    isolation = [] if isolated else ["--no-isolation"]
    run([sys.executable, "-m", "build", *isolation, "--outdir", str(folder), str(CHECKOUT)], folder)
    return sorted(folder.iterdir())


def check(files: list[Path]) -> None:
    """See that an index would take the metadata, and that the wheel has no wrong or double content."""
    folder = files[0].parent
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], folder)
    wheels = [str(file) for file in files if file.suffix == ".whl"]
    run([sys.executable, "-m", "check_wheel_contents", "--toplevel", _TOP_LEVEL, *wheels], folder)


def try_out(file: Path, folder: Path) -> None:
    """Install a file with its extra into an environment of its own below `folder`, and use it there."""
    programs = install(folder, f"{file}[native-install]")
    for program, *arguments in TRIED:
        run([str(programs / program), *arguments], folder)


def install(folder: Path, *requirements: str) -> Path:
    """
    Make an environment below `folder` with these requirements and nothing else; return its programs' folder.

    Raises:
        ReleaseError: that failed, or what was installed does not fit together.
    """
    environment = folder / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", str(environment)], folder)
    programs = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "--disable-pip-version-check"]
    run([*pip, "install", "--no-compile", *requirements], folder)
    run([*pip, "check"], folder)
    return programs


def run(command: list[str], folder: Path) -> None:
    """
    Run a command away from the checkout, whose files would be imported in the place of the installed ones.

    Raises:
        ReleaseError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="./dev release", description=__doc__)
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "dist", help="default: dist")
    folder = parser.parse_args(arguments).folder.resolve()
    with tempfile.TemporaryDirectory(prefix="rmq_txn-release-") as scratch:
        built = Path(scratch) / "built"
        built.mkdir()
        try:
            print("building ...", flush=True)
            files = build(built)
            check(files)
            for file in files:
                print(f"trying {file.name} in a clean environment ...", flush=True)
                place = Path(scratch) / file.name.partition("-")[2]
                place.mkdir()
                try_out(file, place)
        except ReleaseError as error:
            print(f"no release: {error}", file=sys.stderr)
            return 1
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.move(file, folder / file.name)
            digest = hashlib.sha256((folder / file.name).read_bytes()).hexdigest()
            print(f"{digest}  {folder / file.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
