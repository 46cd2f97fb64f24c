"""Thousands of connections: idle ones, slow ones, and more than the server may open."""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.background import stop
from serving.options import ServeOptions
from serving.server_record import find_running
from tests.helpers.good_traffic import Answer, GoodTraffic
from tests.helpers.raw_wire import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, grpc_headers, http2_frame
from tests.helpers.served_processes import identities, log_path, restarts
from tests.helpers.servers import serve_options

pytestmark = [pytest.mark.server, pytest.mark.endurance]
KINDS = ("grpc", "http", "pipeline grpc", "pipeline http")
LIMIT = 1024
MANY = 2000
SLOW = 500
LOG_BYTES = 2**20
NEEDED_FILES = 6000
"""Open files that the clients of these tests need."""
LIMITED_START = """
import resource
from pathlib import PosixPath
from serving.options import ServeOptions
from serving.background import start_detached
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
start_detached({options!r})
"""
HTTP_HEAD = b"POST /v2/models/one/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module", autouse=True)
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NEEDED_FILES:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, NEEDED_FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def connected(ports: list[int], count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open that many connections to each port, and send something through each."""
    with contextlib.ExitStack() as stack:
        opened = []
        for port in ports:
            for _ in range(count):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                one.sendall(first)
                opened.append(one)
        yield opened


@contextlib.contextmanager
def drip(connections: list[socket.socket], piece: bytes) -> Iterator[None]:
    """Send a piece through each connection every second, as long as it is open."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(1):
            for one in connections:
                with contextlib.suppress(OSError):
                    one.sendall(piece)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def still_open(connections: list[socket.socket]) -> int:
    """Return how many connections the server has not closed."""
    count = 0
    for one in connections:
        one.setblocking(False)
        try:
            while one.recv(65536):
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
        one.settimeout(10)
    return count


def p99(traffic: GoodTraffic, begun: float, ended: float) -> float:
    took = sorted(one.ended - one.sent for one in traffic.answered(begun) if one.ended <= ended)
    return 1000 * took[len(took) * 99 // 100]


Crowd = contextlib.AbstractContextManager[list[socket.socket]]


def among(options: ServeOptions, answers: dict[str, Answer], crowd: Crowd, seconds: float, what: str) -> None:
    """Let good traffic run before and during a crowd: none of it fails."""
    before = identities(options)
    with GoodTraffic(options, "one", answers, KINDS, pause=0.01) as traffic:
        traffic.wait_for_all(time.monotonic())
        alone = time.monotonic()
        time.sleep(seconds)
        with crowd as connections:
            begun = time.monotonic()
            time.sleep(seconds)
            ended, left = time.monotonic(), still_open(connections)
    took = [one.ended - one.sent for one in traffic.answered(begun)]
    sys.stdout.write(
        f"\n{what}: {left} of {len(connections)} open after {seconds:g} s; good ones: {len(took)}, "
        f"p50 {1000 * statistics.median(took):.0f} ms, p99 {p99(traffic, alone, begun):.0f} → {p99(traffic, begun, ended):.0f} "
        f"ms, failed {dict(traffic.failures())}\n"
    )
    assert took and not traffic.failures() and not traffic.wrong
    assert identities(options) == before, restarts(options)


def test_idle_connections(options: ServeOptions, answers: dict[str, Answer]) -> None:
    ports = [options.http_port, options.grpc_port]
    among(options, answers, connected(ports, MANY), 3, f"{MANY} idle connections of each protocol")


@contextlib.contextmanager
def slow(options: ServeOptions, count: int) -> Iterator[list[socket.socket]]:
    """Clients of each protocol that send their headers, or their bodies, byte by byte."""
    start = PREFACE + http2_frame(SETTINGS, 0, 0)
    call = start + http2_frame(HEADERS, END_HEADERS, 1, grpc_headers("ModelInfer"))
    half = start + http2_frame(HEADERS, 0, 1, grpc_headers("ModelInfer"))
    body = HTTP_HEAD + b"Content-Length: 100000\r\n\r\n"
    with (
        connected([options.http_port], count, HTTP_HEAD + b"X: ") as headers,
        connected([options.http_port], count, body) as bodies,
        connected([options.grpc_port], count, half) as frames,
        connected([options.grpc_port], count, call) as calls,
        drip(headers + bodies, b"x"),
        drip(calls, http2_frame(DATA, 0, 1, b"x")),
    ):
        yield [*headers, *bodies, *frames, *calls]


def test_slow_clients(options: ServeOptions, answers: dict[str, Answer]) -> None:
    among(options, answers, slow(options, SLOW), 5, f"{SLOW} slow clients of each of four kinds")


def test_slow_clients_are_closed(options: ServeOptions, answers: dict[str, Answer]) -> None:
    """Those that send no complete headers for 10 s, and those that need more than a minute for a request."""
    before = identities(options)
    with GoodTraffic(options, "one", answers, KINDS, pause=0.01) as traffic, slow(options, SLOW) as connections:
        time.sleep(15)
        after_headers = still_open(connections)
        time.sleep(55)
        after_bodies = still_open(connections)
    sys.stdout.write(f"\n{len(connections)} slow clients: {after_headers} after 15 s, {after_bodies} after 70 s\n")
    assert not traffic.failures() and not traffic.wrong
    assert after_bodies == 0
    assert identities(options) == before, restarts(options)


def test_more_connections_than_files(repository: Path, answers: dict[str, Answer]) -> None:
    """A server that may open 1,024 files survives 2,000 connections of each protocol, and its log stays small."""
    options = serve_options(repository)
    subprocess.run([sys.executable, "-c", LIMITED_START.format(limit=LIMIT, options=options)], check=True)
    try:
        running = find_running(options.http_port)
        assert running is not None
        assert resource.prlimit(running.pid, resource.RLIMIT_NOFILE) == (LIMIT, LIMIT)
        before, log = identities(options), log_path(options).stat().st_size
        with GoodTraffic(options, "one", answers, KINDS, timeout=3) as traffic:
            traffic.wait_for_all(time.monotonic())
            crowded = time.monotonic()
            with connected([options.http_port, options.grpc_port], MANY) as connections:
                time.sleep(10)
                left = still_open(connections)
            closed = time.monotonic()
            first, last = traffic.wait_for_all(closed)
        added = log_path(options).stat().st_size - log
        during = [one for one in traffic.answered(crowded) if one.ended < closed]
        sys.stdout.write(
            f"\n{LIMIT} files, {len(connections)} connections, {left} of them open: {len(during)} good answers meanwhile, failed "
            f"{dict(traffic.failures())}; the first {first:.1f} s and for the last client {last:.1f} s after they were "
            f"closed; log +{added} bytes\n"
        )
        assert not traffic.wrong
        assert identities(options) == before, restarts(options)
        assert last < 10
        assert added < LOG_BYTES
    finally:
        stop(options.http_port)
