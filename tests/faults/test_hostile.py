"""Requests that no client of good will sends, among good ones: the server stays up, and no good request is lost."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from serving.options import ServeOptions
from tests.faults.hostile_grpc import HOSTILE_CALLS, HOSTILE_FRAMES, HostileCall, HostileFrames
from tests.faults.hostile_http import HOSTILE_HTTP, HostileHttp
from tests.helpers.good_traffic import Answer, GoodTraffic
from tests.helpers.raw_wire import exchange, http2_exchange, outcome
from tests.helpers.served_processes import identities, log_path, resident_bytes, restarts

pytestmark = pytest.mark.server
HostileRequest = HostileHttp | HostileCall | HostileFrames
ALL: list[HostileRequest] = [*HOSTILE_HTTP, *HOSTILE_CALLS, *HOSTILE_FRAMES]
KINDS = ("grpc", "http", "pipeline grpc", "pipeline http")
HOSTILE_CLIENTS = 4
LOG_BYTES = 2**20


@pytest.fixture
def send(options: ServeOptions) -> Iterator[Callable[[HostileRequest], str]]:
    """Send one of the requests and return what became of it."""
    channels = threading.local()
    ports = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    opened: list[grpc.Channel] = []

    def one(request: HostileRequest) -> str:
        if isinstance(request, HostileHttp):
            return outcome(exchange(ports[request.port], request.make(), timeout=request.timeout, wait=request.wait))
        if isinstance(request, HostileFrames):
            return http2_exchange(ports[request.port], request.make(), timeout=request.timeout)
        if not hasattr(channels, "own"):
            channels.own = grpc.insecure_channel(options.grpc_url, options=[("grpc.use_local_subchannel_pool", 1)])
            opened.append(channels.own)
        return request.send(channels.own)

    yield one
    for channel in opened:
        channel.close()


def attack(
    options: ServeOptions,
    answers: dict[str, Answer],
    send: Callable[[HostileRequest], str],
    requests: Sequence[HostileRequest],
    good: int = 0,
) -> None:
    """Send the requests from several clients at once among good traffic, until they and that many good ones have been sent."""
    before, memory, log = identities(options), resident_bytes(options), log_path(options).stat().st_size
    accepted, slowest = [], (0.0, "")
    with GoodTraffic(options, "one", answers, KINDS) as traffic, ThreadPoolExecutor(HOSTILE_CLIENTS) as clients:
        traffic.wait_for_all(time.monotonic())
        begun = time.monotonic()
        for request, (result, seconds) in zip(requests, clients.map(lambda one: _timed(send, one), requests), strict=True):
            if request.refused and result.startswith(("200", "answered")):
                accepted.append((request.name, result))
            slowest = max(slowest, (seconds, request.name))
        ended = time.monotonic()
        while len(traffic.answered(begun)) < good:
            assert time.monotonic() < ended + 600
            time.sleep(0.05)
        traffic.wait_for_all(time.monotonic())
    took = sorted(attempt.ended - attempt.sent for attempt in traffic.answered(begun))
    sys.stdout.write(
        f"\n{len(requests)} hostile requests in {ended - begun:.0f} s (slowest {slowest[0]:.1f} s: {slowest[1]}) "
        f"among {len(took)} good ones: {sum(traffic.failures().values())} lost, {len(traffic.wrong)} wrong; "
        f"p50 {1000 * statistics.median(took):.0f} ms, p99 {1000 * took[len(took) * 99 // 100]:.0f} ms, longest "
        f"{1000 * took[-1]:.0f} ms; memory {memory >> 20} → "
        f"{resident_bytes(options) >> 20} MiB; log +{log_path(options).stat().st_size - log} bytes\n"
    )
    assert identities(options) == before, restarts(options)
    assert not restarts(options)
    assert not traffic.wrong, traffic.wrong[:5]
    assert not traffic.failures()
    assert not accepted
    assert log_path(options).stat().st_size - log < LOG_BYTES


def _timed(send: Callable[[HostileRequest], str], request: HostileRequest) -> tuple[str, float]:
    begun = time.monotonic()
    return send(request), time.monotonic() - begun


@pytest.mark.long
def test_each_twice(options: ServeOptions, answers: dict[str, Answer], send: Callable[[HostileRequest], str]) -> None:
    attack(options, answers, send, ALL * 2)


@pytest.mark.long
def test_mixed(options: ServeOptions, answers: dict[str, Answer], send: Callable[[HostileRequest], str]) -> None:
    attack(options, answers, send, mixed(len(ALL)), good=400)


@pytest.mark.endurance
@pytest.mark.timeout(7200)
def test_each_a_hundred_times(options: ServeOptions, answers: dict[str, Answer], send: Callable[[HostileRequest], str]) -> None:
    attack(options, answers, send, ALL * 100)


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_mixed_10_000(options: ServeOptions, answers: dict[str, Answer], send: Callable[[HostileRequest], str]) -> None:
    attack(options, answers, send, mixed(5_000), good=5_000)


def mixed(count: int) -> list[HostileRequest]:
    """Return requests in random order, each kind nearly as often as any other."""
    found = list(itertools.islice(itertools.cycle(ALL), count))
    random.Random(3).shuffle(found)
    return found
