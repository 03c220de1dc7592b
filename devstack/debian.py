"""
Programs of Debian's unstable suite, run beside the system without touching it.

apt downloads a package with all it needs into a folder of our own and checks the archive's
signature as it always does; the packages are unpacked there, never installed, and the program is
started by the C library that came with it. So a database can be newer than the machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

from devstack.cache import kept, say
from devstack.errors import StackError
from rmq_txn.testing.server_software import run_to_its_end

SUITE = "sid"
_SECONDS = 900.0
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)


def unpacked(package: str, cache_folder: Path) -> Path:
    """
    Return the root of a package and all it depends on, fetching it when it is not there.

    Raises:
        StackError: this machine can't get it; the text says why.
    """
    folder = cache_folder / f"debian-{SUITE}-{package}"
    return kept(folder, f"{package} of Debian {SUITE}", partial(_fetch, package))


def downloaded(package: str, cache_folder: Path) -> Path:
    """
    Return the root of one package of this machine's own suite, without what it depends on.

    For programs that need no more than the machine has. Its maintainer scripts are never run, so no
    service is started and no user is made.

    Raises:
        StackError: this machine can't get it; the text says why.
    """
    return kept(cache_folder / f"debian-{package}", package, partial(_download, package))


def _download(package: str, work: Path) -> Path:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise StackError(f"{package} comes as a Debian package, and {program} is not on PATH")
    say(f"downloading {package} with apt (once, it is not installed) ...")
    # It downloads to where it runs, and as root would change its user to one who can't write there.
    options = ["--quiet", "--option=APT::Sandbox::User=root"]
    _run(["env", f"--chdir={work}", "apt-get", *options, "download", package], package)
    root = work / "root"
    for archive in work.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(archive), str(root)], package)
    return root


def started_by_its_loader(root: Path, server: str) -> tuple[str, ...]:
    """Return the command that runs a server of an unpacked root with the libraries of that root."""
    program = root / "usr/sbin" / server
    loaders = sorted(root.glob("usr/lib/*-linux-gnu/ld-linux*.so.*"))
    if not loaders or not program.exists():
        raise StackError(f"{root} lacks the C library or {server}, remove it, then repeat")
    return str(loaders[0]), "--library-path", str(loaders[0].parent), str(program)


def _fetch(package: str, work: Path) -> Path:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise StackError(f"{package} comes from Debian packages, and {program} is not on PATH")
    mirror = _mirror(package)
    say(f"fetching {package} of Debian {SUITE} with apt (under 100 MB, once) ...")
    apt = work / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed: all libraries come along, the C library included
    keyring = next((f"Signed-By: {path}\n" for path in _KEYRINGS if path.exists()), "")
    (apt / "suite.sources").write_text(
        f"Types: deb\nURIs: {mirror}\nSuites: {SUITE}\nComponents: main\n{keyring}"
    )
    options = [
        f"--option=Dir::Etc::sourcelist={apt / 'suite.sources'}",
        "--option=Dir::Etc::sourceparts=/dev/null",
        "--option=Dir::Etc::preferences=/dev/null",
        "--option=Dir::Etc::preferencesparts=/dev/null",
        f"--option=Dir::State::lists={apt / 'lists'}",
        f"--option=Dir::State::status={apt / 'status'}",
        f"--option=Dir::State::extended_states={apt / 'extended_states'}",
        f"--option=Dir::Cache={apt / 'cache'}",
        "--option=Acquire::Languages=none",
        "--option=Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        "--option=Acquire::Retries=3",
        "--option=APT::Update::Error-Mode=any",  # else what could not be had is a warning
    ]
    _run(["apt-get", *options, "--quiet", "update"], package)
    only_download = ["--yes", "--no-install-recommends", "--download-only"]
    _run(["apt-get", *options, "--quiet", *only_download, "install", package], package)
    root = work / "root"
    root.mkdir()
    for archive in sorted((apt / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(archive), str(root)], package)
    return root


def _mirror(package: str) -> str:
    """Return the address from which this machine gets Debian itself."""
    # A source that was never updated has no label yet; then its address must say it.
    for options, is_debian in (
        ([], lambda origin, label, _site: (origin, label) == ("Debian", "Debian")),
        (["--no-release-info"], lambda _origin, _label, site: re.search(r"/debian/?$", site)),
    ):
        listed = run_to_its_end(
            ["apt-get", "indextargets", *options, "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"], 60.0
        )
        for line in listed.stdout.splitlines():
            fields = line.split("|")
            if len(fields) == 3 and is_debian(*fields):
                return fields[2]
    raise StackError(
        f"{package} comes from Debian's suite {SUITE}, and no apt source of this machine is a mirror "
        f"of Debian; install it from the distribution instead"
    )


def _run(command: list[str], package: str) -> None:
    try:
        done = run_to_its_end(command, _SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise StackError(
            f"{package} of Debian {SUITE} was not fetched within {_SECONDS:g} s, check the network, "
            f"then repeat"
        ) from exc
    if done.returncode != 0:
        raise StackError(
            f"can't fetch {package} of Debian {SUITE} (exit code {done.returncode})\n"
            f"command: {' '.join(command)}\n{done.stdout[-3000:]}"
        )
