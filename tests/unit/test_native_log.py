"""Where the native library logs: looked at before it can end the process, and nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rmq_txn.errors import SettingsError
from rmq_txn.transport import native_log


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave the variable unset, and let the folder that all users share be this test's."""
    monkeypatch.delenv(native_log.VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))


def default(folder: Path) -> Path:
    return folder / f"rmq_txn-native-logs-{os.geteuid()}"


@pytest.mark.parametrize("chosen", [None, ""], ids=["unset", "empty"])
def test_left_alone_it_is_a_folder_of_this_user_among_the_temporary_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    """With an empty variable the library would use /logs; a second process finds the folder there."""
    if chosen is not None:
        monkeypatch.setenv(native_log.VARIABLE, chosen)
    native_log.prepare()
    assert os.environ[native_log.VARIABLE] == str(default(tmp_path))
    assert default(tmp_path).stat().st_mode & 0o777 == 0o700
    os.environ.pop(native_log.VARIABLE)
    native_log.prepare()


def test_a_folder_that_is_named_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would make the last part only."""
    monkeypatch.setenv(native_log.VARIABLE, str(tmp_path / "a" / "b"))
    native_log.prepare()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [f"{os.getpid()}_rocketmq-cpp.log.0"]


def test_one_that_can_not_be_written_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a folder of the kernel, and one in which the very file is a folder."""
    (tmp_path / "file").touch()
    (tmp_path / "taken" / f"{os.getpid()}_rocketmq-cpp.log.0").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self"), tmp_path / "taken"):
        monkeypatch.setenv(native_log.VARIABLE, str(folder))
        with pytest.raises(
            SettingsError, match=rf"can't write its log into '{folder}'.* set {native_log.VARIABLE}"
        ):
            native_log.prepare()


@pytest.mark.parametrize("how", ["link", "file", "writable", "another user"])
def test_a_default_folder_that_somebody_else_may_have_made_is_refused(tmp_path: Path, how: str) -> None:
    """All users may write beside it: a link in it would have this process write where it leads."""
    folder = default(tmp_path)
    if how == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif how == "file":
        folder.touch()
    else:
        folder.mkdir()
        if how == "writable":
            folder.chmod(0o777)
        elif os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        else:
            pytest.skip("only root can give a folder away")
    with pytest.raises(SettingsError, match=native_log.VARIABLE):
        native_log.prepare()
    assert not (tmp_path / "elsewhere").exists() or not list((tmp_path / "elsewhere").iterdir())
