"""Which server ``tritonize stop`` stops."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export import cli
from serving.server_record import Running


def test_only_the_server_of_a_repository_is_stopped(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Running(pid=os.getpid(), started=0, http_port=8000, repository=str(in_folder / "copy"), ready=False)
    stopped: list[int] = []

    def stop(http_port: int) -> Running:
        stopped.append(http_port)
        return running

    monkeypatch.setattr("serving.server_record.find_running", lambda port: running if port == 8000 else None)
    monkeypatch.setattr("serving.background.stop", stop)
    for port, repository in (("8000", "model_repository"), ("8001", "copy")):
        assert cli.main(["stop", "--http-port", port, "--only-repository", repository]) == 0
        assert f"no server at HTTP port {port} was started with {repository}" in capsys.readouterr().out
    assert not stopped
    assert cli.main(["stop", "--only-repository", "copy"]) == 0
    assert stopped == [8000] and f"stopped the server at HTTP port 8000 (process {os.getpid()})" in capsys.readouterr().out
