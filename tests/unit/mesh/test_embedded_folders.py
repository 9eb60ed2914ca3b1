"""Who may pass where: the check that tells why PostgreSQL under another user could not reach its data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mesh.embedded import folders, logs
from mesh.errors import ConfigurationError
from mesh.process import User

STRANGER = User(os.geteuid() + 54321, os.getegid() + 54321)


def test_a_closed_parent_is_named(data_folder: Path) -> None:
    closed = data_folder / "closed"
    inner = closed / "inner"
    inner.mkdir(parents=True)
    closed.chmod(0o700)
    assert folders.first_closed(inner, STRANGER) == closed.resolve()
    with pytest.raises(ConfigurationError, match=rf"user {STRANGER.uid}, who may not enter .*/closed:"):
        folders.require_passage(inner, STRANGER, what="PostgreSQL")


def test_the_owner_s_bits_count_for_the_owner_and_the_group_s_for_the_group(data_folder: Path) -> None:
    folder = data_folder / "mine"
    folder.mkdir()
    folder.chmod(0o710)
    status = folder.stat()
    assert folders.first_closed(folder, User(status.st_uid, STRANGER.gid)) is None
    assert folders.first_closed(folder, User(STRANGER.uid, status.st_gid)) is None
    assert folders.first_closed(folder, STRANGER) == folder.resolve()


def test_nobody_else_means_no_check(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert folders.first_closed(tmp_path, None) is None


def test_a_data_folder_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with (
        folders.locked_data_folder(folder),
        pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()}"),
        folders.locked_data_folder(folder),
    ):
        pass
    with folders.locked_data_folder(folder):
        pass


def test_folders_that_are_made_are_closed_to_others_and_foreign_ones_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    foreign.chmod(0o750)
    with folders.locked_data_folder(foreign / "data"):
        assert (foreign / "data").stat().st_mode & 0o777 == 0o700
    with folders.locked_data_folder(foreign / "passage", others_may_pass=True):
        assert (foreign / "passage").stat().st_mode & 0o777 == 0o711
    assert foreign.stat().st_mode & 0o777 == 0o750


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match=r"cannot write to the data folder .*Not a directory"),
        folders.locked_data_folder(tmp_path / "file" / "data"),
    ):
        pass


def test_a_run_folder_whose_maker_is_gone_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(folders, "TEMPORARY_PATH_LENGTH_MAX", 1000)
    abandoned = tmp_path / f"{folders.PREFIX}abandoned"
    abandoned.mkdir()
    (abandoned / "in-use.lock").touch()
    unlocked_yet = tmp_path / f"{folders.PREFIX}unlocked"
    unlocked_yet.mkdir()
    with folders.run_folder() as first, folders.run_folder() as second:
        assert first.exists()
        assert second.exists()
        assert not abandoned.exists()
        assert unlocked_yet.exists()
    assert not first.exists()
    assert not second.exists()


def test_the_reason_is_the_last_marked_line_of_this_start(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("FATAL: an old reason\n")
    since = logs.size(log)
    assert logs.last_line(log, since=since, marks=("FATAL",)) == "it said nothing"
    with log.open("a") as file:
        file.write("LOG: starting\nFATAL: no space\nLOG: shut down\n")
    assert logs.last_line(log, since=since, marks=("FATAL",)) == "FATAL: no space"
    assert logs.last_line(log, since=since, marks=("PANIC",)) == "LOG: shut down"


def test_a_log_that_has_grown_too_far_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 10)
    log = tmp_path / "server.log"
    log.write_text("x" * 11)
    assert logs.rotated(log) == log
    assert not log.exists()
    assert (tmp_path / "server.log.1").read_text() == "x" * 11


@pytest.mark.parametrize("name", ["one,two", "é" * 30, "x" * 61, 'a"b', "a$b"])
def test_temporary_folders_are_where_a_socket_s_path_can_be(
    name: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = data_folder / name
    unfit.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(unfit))
    assert folders.temporary_parent(None) in (Path("/tmp"), Path("/var/tmp"))


def test_a_temporary_folder_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "TEMPORARY_PATH_LENGTH_MAX", 1_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", ".")  # what TMPDIR=. makes of it
    assert folders.temporary_parent(None) == tmp_path
