"""Tests do not depend on the machine: not on the user's variables, on other programs' ports, or on other runs of the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from serving.isolation import remains_removed
from serving.server_record import state_folder
from tests.helpers.surroundings import FIRST_PORT, LAST_PORT, USUAL_PORTS, free_port, own_variables, usual_ports_taken


def test_the_users_variables_are_not_the_tests(tmp_path: Path) -> None:
    needed = {"PATH": "/bin", "TRITONIZE_TRITON_ENV": "/env", "PYTEST_XDIST_WORKER": "gw0"}
    given = {
        "TRITONIZE_API_KEY": "k",
        "https_proxy": "p",
        "no_proxy": "*",
        "HOME": "/h",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "tr_TR",
        "RANK": "1",
    }
    found = own_variables(given | needed, tmp_path)
    assert needed.items() <= found.items()
    assert not {"TRITONIZE_API_KEY", "https_proxy", "no_proxy", "TZ", "LC_ALL", "RANK"} & found.keys()
    assert found["HOME"] == str(tmp_path / "home")


def test_this_run_has_left_its_surroundings() -> None:
    assert not {"TRITONIZE_API_KEY", "HTTP_PROXY", "http_proxy", "TZ", "LC_ALL", "MAKEFLAGS"} & os.environ.keys()
    folder = Path(tempfile.gettempdir())
    assert folder.name.startswith("tritonize-tests-") and os.environ["TMPDIR"] == str(folder)
    assert state_folder().parent == folder, "servers of the user and of other runs have other records and logs"


def test_the_usual_ports_are_taken_while_tests_run() -> None:
    for port in USUAL_PORTS:
        with socket.socket() as probe, pytest.raises(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    with usual_ports_taken():
        pass  # other runs can take them, too


def test_no_two_runs_get_one_port() -> None:
    ports = {free_port() for _ in range(50)}
    script = "from tests.helpers.surroundings import free_port; print(*(free_port() for _ in range(50)))"
    others = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(ports) == 50 and not ports & set(map(int, others))
    assert all(FIRST_PORT <= port <= LAST_PORT for port in ports)
    taken = socket.socket(socket.AF_UNIX)
    with taken, pytest.raises(OSError):
        taken.bind(f"\0tritonize-tests-{next(iter(ports))}")


def test_the_folders_that_triton_leaves_in_tmp_are_removed_if_they_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton does not read TMPDIR, so a test of a real server would see those of other runs."""
    monkeypatch.setattr(psutil, "process_iter", lambda _names: iter(()))  # a real server of another test
    with remains_removed("tritonize_no_such_prefix_"):
        empty = Path(tempfile.mkdtemp(prefix="python_env_", dir="/tmp"))
        used = Path(tempfile.mkdtemp(prefix="python_env_", dir="/tmp"))
        (used / "file").touch()
    assert not empty.exists() and used.exists()
    (used / "file").unlink()
    used.rmdir()


def test_the_folder_of_a_server_that_runs_is_let_be(tmp_path: Path) -> None:
    """A server whose folder is missing aborts at its end."""
    other = tmp_path / "tritonserver"
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", other)
    with subprocess.Popen([other, "60"]) as process:
        with remains_removed("tritonize_no_such_prefix_"):
            folder = Path(tempfile.mkdtemp(prefix="python_env_", dir="/tmp"))
        process.kill()
    assert folder.exists()
    folder.rmdir()
