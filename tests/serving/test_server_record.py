"""The folder with the records of a user's servers, and a server in the background as Python code holds it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from serving import background, server_record
from serving.detached_server import DetachedServer
from serving.errors import ServerError
from serving.options import ServeOptions
from serving.server_record import Running, state_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder is to be; it does not exist yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = state_folder()
    place.rmdir()
    return place


def test_only_the_user_can_read_it(folder: Path) -> None:
    assert state_folder() == folder and folder.stat().st_mode & 0o777 == 0o700
    assert state_folder() == folder, "a folder that is there is taken"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_may_write_into_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ServerError, match="is not a folder that only you can write into"):
        state_folder()


def test_a_link_or_a_file_in_its_place_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to("elsewhere")
    with pytest.raises(ServerError, match="is not a folder that only you can write into"):
        state_folder()
    folder.unlink()
    folder.touch(mode=0o600)
    with pytest.raises(ServerError, match="is not a folder that only you can write into"):
        state_folder()


@pytest.mark.parametrize(("process", "stopped"), [(7, [18000]), (8, []), (None, [])])
def test_only_the_server_that_was_started_is_stopped(
    process: int | None, stopped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may have its port by then, or none."""
    found = None if process is None else replace(RUNNING, pid=process)
    ports: list[int] = []
    monkeypatch.setattr(server_record, "find_running", lambda _: found)
    monkeypatch.setattr(background, "stop", ports.append)
    DetachedServer(address=ServeOptions(http_port=18000), process=7, log=Path("log")).stop()
    assert ports == stopped


RUNNING = Running(pid=7, started=0.0, http_port=18000, repository="models", served="view", ready=True)
