"""Which database server a stack runs, and how one is fetched: signed, whole or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from devstack import StackError, StackSettings, debian, software
from rmq_txn.testing import server_software

UNPACKED = ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/sbin/mysqld", "usr/sbin/mariadbd")


def program(path: Path, script: str = "") -> Path:
    """Write a shell script as a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the only one in which database servers of the machine are looked for."""
    folder = tmp_path / "sbin"
    folder.mkdir()
    monkeypatch.setattr(server_software, "_SERVER_PATH", str(folder))
    return folder


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the packages that were asked of Debian; they come with files that only have the names."""
    asked: list[str] = []

    def unpacked(package: str, cache_folder: Path) -> Path:
        asked.append(package)
        root = cache_folder / package
        scripts = [f"usr/share/mariadb/{name}" for name in software._MARIADB_TABLES]
        for name in (*UNPACKED, *scripts):
            program(root / name, "SELECT 1;")
        return root

    monkeypatch.setattr(software, "unpacked", unpacked)
    return asked


def test_mariadb_that_also_answers_to_mysqld_is_not_mysql(
    machine: Path, tmp_path: Path, fetched: list[str]
) -> None:
    """Debian's mariadb-server has such a link: whoever asks for MySQL must not be given MariaDB."""
    program(machine / "mariadbd")
    program(machine / "mariadb-install-db")
    (machine / "mysqld").symlink_to("mariadbd")
    assert software.find("mysql", tmp_path).brand == "MySQL"
    assert fetched == ["mysql-server-core"]
    assert software.find("installed", tmp_path).command[0] == str(machine / "mariadbd")


def test_mysql_of_the_machine_is_not_fetched_again(machine: Path, tmp_path: Path, fetched: list[str]) -> None:
    """A distribution with a real MySQL needs no mirror of Debian; without MariaDB it is the default too."""
    program(machine / "mysqld")
    for name in ("mysql", "installed"):
        found = software.find(name, tmp_path)
        assert (found.brand, found.command[0]) == ("MySQL", str(machine / "mysqld"))
    assert fetched == []


def test_no_server_opens_the_data_of_another(machine: Path, tmp_path: Path, fetched: list[str]) -> None:
    """MySQL destroys what MariaDB wrote, and an older server can't read what a newer one did."""
    fetched_ones = {software.find(name, tmp_path).data_folder for name in ("mysql", "mariadb-11")}
    program(machine / "mysqld")
    mysql = software.find("mysql", tmp_path).data_folder
    program(machine / "mariadbd")
    program(machine / "mariadb-install-db")
    mariadb = software.find("installed", tmp_path).data_folder
    assert len({*fetched_ones, mysql, mariadb}) == 4


def test_a_machine_without_a_server_is_told_what_to_install(machine: Path, tmp_path: Path) -> None:
    """One command, in the error."""
    with pytest.raises(StackError, match="apt-get install mariadb-server"):
        software.find("installed", tmp_path)


def test_a_database_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the environment names it: no run must happen on another server than was meant."""
    monkeypatch.setenv("DEVSTACK_DATABASE", "mysq")
    with pytest.raises(ValueError, match=r"database is 'mysq' .*installed, mysql, mariadb-11"):
        StackSettings(folder=tmp_path)


def fake_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put programs named apt-get and dpkg-deb in front of PATH."""
    program(folder / "bin" / "apt-get", script)
    program(folder / "bin" / "dpkg-deb", 'mkdir -p "$3/usr" && touch "$3/usr/$(basename "$2")"')
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")


# The folders are taken from the options, as apt does.
APT = r"""
case "$*" in indextargets*)
    printf 'Debian|Debian Backports|https://one.example/\nDebian|Debian|https://two.example/\n'
    exit ;;
esac
for word in "$@"; do
    case $word in
        --option=Dir::Cache=*) cache=${word##*=} ;;
        --option=Dir::Etc::sourcelist=*) sources=${word##*=} ;;
    esac
done
case "$*" in *install*)
    cp "$sources" "$cache/archives/library_1.deb"
    touch "$cache/archives/wanted_2.deb" ;;
esac
"""


def test_a_package_is_unpacked_with_all_that_apt_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: the second who asks is given the same folder without apt."""
    fake_apt(tmp_path, monkeypatch, APT)
    root = debian.unpacked("wanted", tmp_path / "cache")
    assert sorted(path.name for path in (root / "usr").iterdir()) == ["library_1.deb", "wanted_2.deb"]
    fake_apt(tmp_path, monkeypatch, "exit 1")
    assert debian.unpacked("wanted", tmp_path / "cache") == root


@pytest.mark.parametrize(
    ("listed", "mirror"),
    [
        (("Ubuntu|Ubuntu|u:/ubuntu/", "Debian|Debian|d:/mirrored/"), "d:/mirrored/"),
        (("Debian|Debian-Security|d:/debian-security/", "Debian|Debian|d:/debian/"), "d:/debian/"),
        # as apt prints them before the first `apt-get update`
        (
            ("$(ORIGIN)|$(LABEL)|d:/debian-security/", "$(ORIGIN)|$(LABEL)|d:/debian/"),
            "d:/debian/",
        ),
    ],
    ids=["by its label", "not the one of security updates", "by its address when nothing was updated yet"],
)
def test_the_mirror_is_the_one_that_this_machine_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: tuple[str, str], mirror: str
) -> None:
    """No address of ours: a machine behind a firewall has one of its own."""
    fake_apt(tmp_path, monkeypatch, "\n".join(f"echo '{line}'" for line in listed))
    assert debian._mirror("wanted") == mirror


def test_a_machine_without_a_mirror_of_debian_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ubuntu: tests that need the package are skipped with this reason."""
    fake_apt(tmp_path, monkeypatch, "echo 'Ubuntu|Ubuntu|https://u.example/ubuntu/'")
    with pytest.raises(StackError, match="no apt source of this machine is a mirror of Debian"):
        debian.unpacked("wanted", tmp_path / "cache")


def test_a_failed_fetch_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apt's last words are in the error."""
    fake_apt(tmp_path, monkeypatch, f"{APT}\ncase \"$*\" in *update*) echo 'no route to it'; exit 100;; esac")
    with pytest.raises(StackError, match="no route to it"):
        debian.unpacked("wanted", tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="this machine has no apt")
def test_an_archive_that_debian_did_not_sign_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real apt: whoever stands between us and the mirror can't give us a server."""
    suite = tmp_path / "mirror" / "dists" / debian.SUITE
    packages = suite / "main" / "binary-amd64" / "Packages"
    packages.parent.mkdir(parents=True)
    packages.touch()
    digest = subprocess.run(["sha256sum", packages], capture_output=True, text=True, check=True).stdout[:64]
    (suite / "Release").write_text(
        f"Origin: Debian\nSuite: {debian.SUITE}\nCodename: {debian.SUITE}\nArchitectures: amd64\n"
        f"Components: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
        f"SHA256:\n {digest} 0 main/binary-amd64/Packages\n"
    )
    monkeypatch.setattr(debian, "_mirror", lambda _package: f"file:{tmp_path / 'mirror'}")
    with pytest.raises(StackError, match="is not signed"):
        debian.unpacked("mysql-server-core", tmp_path / "cache")
