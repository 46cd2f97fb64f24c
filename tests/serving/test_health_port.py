"""What the health port tells, and that slow or many clients keep nobody else out. No server runs."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from serving.errors import ServerError
from serving.health_port import CONNECTION_SECONDS, MAX_CONNECTIONS, HealthPort
from serving.options import ServeOptions
from serving.readiness import LATELY_SECONDS, STUCK_SECONDS, WATCHED_SECONDS, Readiness
from tests.helpers.front_requests import ask
from tests.helpers.surroundings import free_port

PATHS = "health is at /livez, /startupz, /readyz; metrics are at /metrics"


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readiness(clock: Clock) -> Readiness:
    return Readiness(clock=clock)


def test_ready_once_all_have_answered_and_not_while_it_restarts(readiness: Readiness) -> None:
    assert not readiness.ready().is_ok and not readiness.started().is_ok
    readiness.begin(["one", "two"], ["damaged"])
    assert readiness.started().is_ok
    assert readiness.ready().content == {
        "ready": True,
        "state": "ready",
        "ensembles": ["one", "two"],
        "not_answering": [],
        "left_out": ["damaged"],
    }
    readiness.lose()
    assert (readiness.ready().is_ok, readiness.ready().content["state"]) == (False, "restarting")
    assert readiness.started().is_ok, "it was ready once"
    readiness.begin(["one"], [])
    assert readiness.ready().is_ok


def test_a_start_that_fails_is_no_restart(readiness: Readiness) -> None:
    readiness.lose()
    assert readiness.ready().content["state"] == readiness.started().content["state"] == "starting"


def test_an_ensemble_that_has_not_answered_lately_is_named(readiness: Readiness, clock: Clock) -> None:
    readiness.begin(["one", "two"], [])
    clock.now += LATELY_SECONDS
    readiness.answered("one")
    readiness.answered("of another server")
    assert readiness.ready().is_ok
    clock.now += 1
    assert not readiness.ready().is_ok
    assert readiness.ready().content["not_answering"] == ["two"]
    assert readiness.ready().content["ensembles"] == ["one", "two"]


def test_not_ready_from_the_request_to_stop_on(readiness: Readiness) -> None:
    assert not readiness.stop(), "it was not ready"
    readiness = Readiness()
    readiness.begin(["one"], [])
    assert readiness.stop()
    assert (readiness.ready().is_ok, readiness.ready().content["state"]) == (False, "stopping")
    readiness.lose()
    assert readiness.ready().content["state"] == "stopping"


def test_alive_unless_nobody_looks_at_a_server_that_is_watched(readiness: Readiness, clock: Clock) -> None:
    clock.now += 10 * STUCK_SECONDS
    assert readiness.live().is_ok, "a start may take long"
    readiness.look()
    clock.now += STUCK_SECONDS
    assert readiness.live().is_ok
    clock.now += 1
    assert not readiness.live().is_ok
    readiness.lose()
    assert readiness.live().is_ok


def test_it_is_watched_while_somebody_asks(readiness: Readiness, clock: Clock) -> None:
    assert not readiness.is_watched()
    readiness.was_asked()
    clock.now += WATCHED_SECONDS - 1
    assert readiness.is_watched()
    clock.now += 1
    assert not readiness.is_watched()


# -- over HTTP ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def options() -> ServeOptions:
    return ServeOptions(http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())


@pytest.fixture
def port(options: ServeOptions, readiness: Readiness) -> Iterator[str]:
    with HealthPort(options, readiness):
        yield options.health_url


def content(url: str) -> tuple[int, Any]:
    status, text, headers = ask(url)
    assert (headers["Content-Type"], headers["Cache-Control"]) == ("application/json", "no-store")
    return status, json.loads(text)


def test_the_checks_over_http(port: str, readiness: Readiness) -> None:
    assert content(f"{port}/livez") == (200, {"live": True})
    assert content(f"{port}/startupz") == (503, {"started": False, "state": "starting"})
    assert content(f"{port}/readyz")[0] == 503
    readiness.begin(["one"], [])
    assert content(f"{port}/startupz") == (200, {"started": True, "state": "ready"})
    status, found = content(f"{port}/readyz?verbose")
    assert (status, found["ready"]) == (200, True)


def test_other_paths_and_methods_are_refused_and_are_no_sign_of_a_watcher(port: str, readiness: Readiness) -> None:
    status, found = content(f"{port}/v2/health/ready")
    assert (status, found["error"]) == (404, f"there is nothing at this path: {PATHS}")
    assert ask(f"{port}/readyz", b"body")[0] == 501
    assert not readiness.is_watched()
    content(f"{port}/readyz")
    assert readiness.is_watched()


@pytest.mark.long
def test_slow_clients_keep_nobody_out(port: str, options: ServeOptions) -> None:
    slow = [socket.create_connection(("127.0.0.1", options.own_health_port)) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        for client in slow[::2]:
            client.sendall(b"GET /li")
        begun = time.monotonic()
        assert content(f"{port}/livez")[0] == 200
        assert time.monotonic() - begun < CONNECTION_SECONDS / 2
    finally:
        for client in slow:
            client.close()


def test_what_is_no_http_and_who_leaves_early_do_no_harm(port: str, options: ServeOptions) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET " + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b""):
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", options.own_health_port)) as client:
            client.sendall(sent)
    assert content(f"{port}/livez")[0] == 200


def test_a_port_that_is_taken_or_given_twice(options: ServeOptions, readiness: Readiness) -> None:
    with (
        socket.create_server(("127.0.0.1", options.own_health_port)),
        pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{options.own_health_port}") as caught,
    ):
        HealthPort(options, readiness).__enter__()
    assert "--health-port" in caught.value.hint
    for wrong in (replace(options, health_port=options.grpc_port), replace(options, metrics_port=65535)):
        with pytest.raises(ServerError, match="cannot be the port of the health checks"):
            HealthPort(wrong, readiness)
    assert replace(options, health_port=9).health_url == "http://127.0.0.1:9"


def test_prometheus_reads_packages_and_restarts(readiness: Readiness, clock: Clock) -> None:
    options = replace(ServeOptions(), health_port=free_port())
    with HealthPort(options, readiness):
        assert metrics(options) == {"tritonize_ready": 0, "tritonize_restarts_total": 0}, "it starts"
        readiness.begin(["one", "two"], ["damaged"])
        clock.now += LATELY_SECONDS / 2
        readiness.answered("one")
        packages = {package("damaged"): 0, package("one"): 1, package("two"): 1}
        assert metrics(options) == {"tritonize_ready": 1, "tritonize_restarts_total": 0} | packages
        clock.now += LATELY_SECONDS * 0.6
        packages[package("two")] = 0
        assert metrics(options) == {"tritonize_ready": 0, "tritonize_restarts_total": 0} | packages
        readiness.lose()
        readiness.lose()
        packages[package("one")] = 0
        assert metrics(options) == {"tritonize_ready": 0, "tritonize_restarts_total": 1} | packages, "one restart"
        assert not readiness.is_watched(), "who reads metrics does not watch the health"


def metrics(options: ServeOptions) -> dict[str, int]:
    status, text, headers = ask(f"{options.health_url}/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = text.splitlines()
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} >= {"tritonize_ready", "tritonize_package_ready"}
    return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def package(name: str) -> str:
    return f'tritonize_package_ready{{package="{name}"}}'
