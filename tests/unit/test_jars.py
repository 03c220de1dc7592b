"""Fetching RocketMQ: progress is told, and what failed or was too slow leaves nothing that looks complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from devstack import StackError, jars

VERSION = "5.4.0"


def fake_maven(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program named mvn in front of PATH; `$jars` in its script is where the jars belong."""
    program = folder / "bin" / "mvn"
    program.parent.mkdir()
    find_folder = 'for word in "$@"; do case $word in -DoutputDirectory=*) jars=${word#*=};; esac; done'
    program.write_text(f"#!/bin/sh\n{find_folder}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def test_progress_is_told_while_jars_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each further ten megabytes, whatever unit Maven counts in."""
    script = f"""
    echo 'Downloaded from central: https://x/a.jar (9.5 MB at 3.0 MB/s)'
    echo 'Downloaded from central: https://x/b.jar (700 kB at 3.0 MB/s)'
    echo 'Downloaded from central: https://x/c.pom (12 B at 3.0 kB/s)'
    echo 'Downloaded from central: https://x/d.jar (12 MB at 3.0 MB/s)'
    mkdir "$jars" && touch "$jars/rocketmq-proxy-{VERSION}.jar"
    """
    fake_maven(tmp_path, monkeypatch, script)
    folder = jars.rocketmq_jars(VERSION, tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == [f"rocketmq-proxy-{VERSION}.jar"]
    told = [line for line in capsys.readouterr().err.splitlines() if "so far" in line]
    assert told == ["devstack: 10 MB so far ...", "devstack: 22 MB so far ..."]


@pytest.mark.parametrize("end", ["exit 1", "exit 0"])
def test_a_failed_fetch_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Maven's last words are in the error; a Maven that is content without the jar is not believed."""
    fake_maven(tmp_path, monkeypatch, f"echo 'no route to the mirror'; {end}")
    with pytest.raises(StackError, match="no route to the mirror"):
        jars.rocketmq_jars(VERSION, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_fetch_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the error says that a repetition goes on with what is there."""
    monkeypatch.setattr(jars, "_MAVEN_SECONDS", 0.2)
    fake_maven(tmp_path, monkeypatch, "exec sleep 600")
    with pytest.raises(StackError, match=r"within 0\.2 s.*what it has is kept"):
        jars.rocketmq_jars(VERSION, tmp_path / "cache")
