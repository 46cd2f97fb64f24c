"""Processes of a server in the foreground end or are killed: the server comes back, and what has ended leaves nothing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from serving.errors import RequestError
from serving.layout import current_folder
from serving.options import PackageOptions, ServeOptions
from serving.probe import ask, find_probes
from serving.repository import package
from serving.triton_address import fetch
from tests.helpers.foreground import end, is_alive, name_of, serve, server_processes, stubs, wait_ended, wait_ready
from tests.helpers.servers import left_behind, serve_options

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("one") / "model_repository"
    package(PackageOptions(bundle=bundle, repository=folder, name="one", precision="fp32", device="cpu"))
    return folder


@dataclass(frozen=True)
class Served:
    """A server in the foreground that tests break one after another: it comes back each time."""

    options: ServeOptions
    process: subprocess.Popen[str]
    log: Path

    def child(self, name: str) -> psutil.Process:
        """Its tritonserver or its proxy."""
        (found,) = [child for child in server_processes(self.process.pid) if name_of(child) == name]
        return found

    def log_after(self, start: int) -> str:
        return self.log.read_text(encoding="utf-8")[start:]


@pytest.fixture(scope="module")
def broken(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("broken") / "log"
    options = serve_options(repository)
    with log.open("w", encoding="utf-8") as file:
        process = serve(options, stderr=file)
    try:
        wait_ready(options, process)
        yield Served(options, process, log)
    finally:
        code, _, _ = end(process)
    assert not left_behind()
    assert code == 0
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.fixture
def served(broken: Served) -> Served:
    """It is ready, and the same program as ever."""
    wait_ready(broken.options, broken.process)
    return broken


def test_it_is_restarted_again_and_again(served: Served, repository: Path) -> None:
    gaps, start = [], len(served.log_after(0))
    for _ in range(2):
        wait_ready(served.options, served.process)
        old = stubs(served.process.pid)
        killed = time.monotonic()
        old[0].kill()
        wait_ended(old)
        gaps.append(answers_again(served.options, repository) - killed)
    assert served.log_after(start).count("which was ended by SIGKILL; restarting") == 2
    assert max(gaps) < 30, "about 2 s on an idle machine"


def answers_again(options: ServeOptions, repository: Path) -> float:
    """Ask until the server answers, and return when it did. Until then it says that it is not available."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ask(options.base_url, find_probes(repository)[0], timeout=10)
            return time.monotonic()
        except RequestError as error:
            assert error.status == "UNAVAILABLE", error
        except ConnectionError:
            pass  # the proxy itself is being started
        time.sleep(0.02)
    raise AssertionError("it does not answer again")


def test_a_restart_changes_nothing_that_is_served(served: Served, repository: Path, bundle: Path) -> None:
    """A package of another precision and another ensemble wait for the restart that somebody asks for."""
    probe = find_probes(repository)[0]
    before = ask(served.options.base_url, probe, timeout=10)
    first = current_folder(repository, "one")
    for name in ("one", "two"):
        package(PackageOptions(bundle=bundle, repository=repository, name=name, precision="int8", device="cpu"))
    start, triton = len(served.log_after(0)), served.child("tritonserver")
    triton.kill()
    wait_ended([triton])
    answers_again(served.options, repository)
    wait_ready(served.options, served.process)
    assert ask(served.options.base_url, probe, timeout=10)["outputs"] == before["outputs"]
    assert fetch(served.options.base_url, "/v2/models/two/ready", timeout=5)[0] >= 400
    deadline = time.monotonic() + 10  # the log compares the repository when the server is ready again
    while "two was packaged" not in (log := served.log_after(start)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert f"({first.name}); a newer one is packaged: promote it with: tritonize promote one" in log
    assert "two was packaged since the start: load it with: tritonize load two" in log


@pytest.mark.endurance
def test_a_proxy_that_hangs_is_started_again(served: Served, repository: Path) -> None:
    start, proxy = len(served.log_after(0)), served.child("envoy")
    proxy.suspend()
    wait_ended([proxy], seconds=90)
    answers_again(served.options, repository)
    assert "the proxy in front of Triton was ended by SIGKILL; starting it again" in served.log_after(start)


def test_a_triton_that_somebody_else_stops_is_restarted_at_once(served: Served, repository: Path) -> None:
    start, triton = len(served.log_after(0)), served.child("tritonserver")
    triton.terminate()
    wait_ended([triton])
    answers_again(served.options, repository)
    assert "was asked by somebody else to stop; restarting" in served.log_after(start)


def test_a_dead_proxy_is_started_again(served: Served, repository: Path) -> None:
    triton, proxy = served.child("tritonserver"), served.child("envoy")
    proxy.kill()
    wait_ended([proxy])
    answers_again(served.options, repository)
    assert is_alive(triton)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.endurance), signal.SIGKILL])
def test_a_server_and_its_proxy_that_end_together_are_started_again(
    served: Served, repository: Path, number: signal.Signals
) -> None:
    triton, proxy = served.child("tritonserver"), served.child("envoy")
    triton.send_signal(number)
    wait_ended([triton])
    proxy.kill()
    wait_ended([proxy])
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError, RequestError):
            ask(served.options.base_url, find_probes(repository)[0], timeout=10)
            break
        assert served.process.poll() is None and time.monotonic() < deadline
