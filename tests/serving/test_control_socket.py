"""The socket of the release commands: nobody who connects keeps others waiting, neither a request nor the end of the server."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving import control_socket, releases
from serving.control_socket import MAX_REQUEST_BYTES, ControlSocket, ReleaseRequest, ReleaseResult, ask_supervisor
from serving.readiness import Readiness
from serving.releases import Releases
from serving.served_view import open_view
from tests.helpers.packages import write_package

PROMOTE, STATES = ReleaseRequest(action="promote", name="one"), ReleaseRequest(action="states")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def silent(path: Path) -> Iterator[Callable[[], socket.socket]]:
    """Makes connections that send nothing."""
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].connect(str(path))
        made[-1].settimeout(20)
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


def answer(connection: socket.socket) -> dict[str, str]:
    found: dict[str, str] = json.loads(connection.makefile("rb").readline())
    return found


def at_once(_: ReleaseRequest, __: Callable[[str], None]) -> ReleaseResult:
    return {"loaded": {}}


def test_a_silent_connection_keeps_nobody_waiting(path: Path, silent: Callable[[], socket.socket]) -> None:
    begun = time.monotonic()
    with ControlSocket(path, at_once):
        for _ in range(20):
            silent()
        assert ask_supervisor(path, STATES, print) == {"loaded": {}}
    assert time.monotonic() - begun < 4, "neither a request nor the end waits for them"
    assert not path.exists()


@pytest.mark.parametrize("sent", [b"", b'{"action": '])
def test_a_request_that_does_not_come_is_given_up(
    path: Path, silent: Callable[[], socket.socket], sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "READ_SECONDS", 0.3)
    with ControlSocket(path, at_once):
        connection = silent()
        connection.sendall(sent)
        assert "it has not come within 0.3 s" in answer(connection)["error"]


def test_a_request_that_drips_is_given_up(path: Path, silent: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "READ_SECONDS", 0.5)
    begun = time.monotonic()
    with ControlSocket(path, at_once):
        connection = silent()
        connection.settimeout(0.1)
        found = b""
        while not found and time.monotonic() - begun < 20:
            with contextlib.suppress(BrokenPipeError):  # it has been given up since the last read
                connection.sendall(b" ")
            try:
                found = connection.recv(1000)
            except TimeoutError:
                continue
    assert b"it has not come" in found and time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b" " * (MAX_REQUEST_BYTES + 1), f"it is longer than {MAX_REQUEST_BYTES} bytes"),
        (b"[" * (MAX_REQUEST_BYTES - 1) + b"\n", "recursion"),
        (b'{"action": "delete"}\n', "no action is called 'delete'"),
        (b"[1]\n", "the request is not understood"),
        (b"\xff\n", "the request is not understood"),
    ],
)
def test_what_is_no_request_is_refused(path: Path, silent: Callable[[], socket.socket], sent: bytes, reason: str) -> None:
    with ControlSocket(path, at_once):
        connection = silent()
        connection.sendall(sent)
        assert reason in answer(connection)["error"]


def test_a_release_that_is_handled_is_finished_before_the_end(path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def handle(_: ReleaseRequest, tell: Callable[[str], None]) -> ReleaseResult:
        begun.set()
        time.sleep(0.5)
        tell("done")
        ended.set()
        return {}

    with ControlSocket(path, handle):
        asking = threading.Thread(target=ask_supervisor, args=[path, PROMOTE, print])
        asking.start()
        assert begun.wait(10)
    assert ended.is_set()
    asking.join(10)
    assert not asking.is_alive()


def test_a_release_that_does_not_end_does_not_keep_the_server(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, silent: Callable[[], socket.socket]
) -> None:
    monkeypatch.setattr(control_socket, "CLOSE_SECONDS", 0.3)
    begun, end = threading.Event(), threading.Event()

    def handle(_: ReleaseRequest, __: Callable[[str], None]) -> ReleaseResult:
        begun.set()
        end.wait(20)
        return {}

    try:
        with ControlSocket(path, handle):
            silent().sendall(b'{"action": "promote"}\n')
            assert begun.wait(10)
            closing = time.monotonic()
        assert time.monotonic() - closing < 5 and "a release is still under way" in caplog.text
    finally:
        end.set()


def test_releases_follow_one_another_and_states_wait_for_none(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for the states also leaves alone what a release is doing."""
    write_package(tmp_path / "models", "one")
    begun, end, under_way = threading.Semaphore(0), threading.Semaphore(0), list[int]()
    on_trial: set[str] = set()

    def promote(*_: object) -> None:
        under_way.append(1)
        on_trial.add("one.1")
        begun.release()
        assert end.acquire(timeout=20)
        under_way.pop()

    control = type("Control", (), {"__enter__": lambda self: self, "__exit__": lambda *_: None, "loaded": lambda _: {"one": "1"}})()
    monkeypatch.setattr(releases, "ModelControl", lambda _: control)
    monkeypatch.setattr(releases, "promote", promote)
    with open_view(tmp_path / "models") as view:
        served = Releases(view, Readiness(), SimpleNamespace(update=lambda **_: None))  # type: ignore[arg-type]
        served.server = SimpleNamespace(  # type: ignore[assignment]
            address=SimpleNamespace(grpc=""), on_trial=on_trial, watch_stubs=lambda: None, remove_weights=lambda: None, probes=[]
        )
        with ControlSocket(path, served.handle):
            asking = [threading.Thread(target=ask_supervisor, args=[path, PROMOTE, print]) for _ in range(2)]
            for thread in asking:
                thread.start()
            for _ in asking:
                assert begun.acquire(timeout=10)
                assert ask_supervisor(path, STATES, print) == {"loaded": {"one": "1"}}
                assert on_trial == {"one.1"}
                assert len(under_way) == 1 and not begun.acquire(timeout=0.3), "the second release waits"
                end.release()
            for thread in asking:
                thread.join(10)
                assert not thread.is_alive()


def test_an_interrupted_command_says_that_the_server_goes_on(path: Path) -> None:
    def step(_: ReleaseRequest, tell: Callable[[str], None]) -> ReleaseResult:
        tell("a step")
        return {"loaded": {}}

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with ControlSocket(path, step), pytest.raises(KeyboardInterrupt, match="the server goes on with it"):
        ask_supervisor(path, PROMOTE, interrupt)
