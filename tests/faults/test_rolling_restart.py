"""Two servers behind a load balancer are restarted one after the other. Clients that retry nothing lose no request."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.background import start_detached, stop
from serving.options import ServeOptions
from tests.helpers.balancer import balancer, wait_healthy
from tests.helpers.good_traffic import Answer, GoodTraffic, known_answers
from tests.helpers.servers import running, serve_options

pytestmark = [pytest.mark.server, pytest.mark.long]
CLIENTS = ("http",) * 8 + ("grpc",) * 8
ENOUGH = 10_000
"""Requests of each protocol in the long test."""


@pytest.fixture(scope="module")
def servers(repository: Path) -> Iterator[list[ServeOptions]]:
    with ExitStack() as started:
        yield [started.enter_context(running(serve_options(repository))) for _ in range(2)]


@pytest.fixture(scope="module")
def balanced(servers: list[ServeOptions], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeOptions]:
    with balancer(servers, tmp_path_factory.mktemp("balancer")) as options:
        for server in servers:
            wait_healthy(options, server)
        yield options


@pytest.fixture(scope="module")
def answers(balanced: ServeOptions) -> dict[str, Answer]:
    return known_answers(f"127.0.0.1:{balanced.http_port}", "one", 40)


def restart_each(
    balanced: ServeOptions, servers: list[ServeOptions], answers: dict[str, Answer], *, least: int, pause: float = 0.0
) -> None:
    """Restart the servers in turn, at least once each, until there are enough answers by each protocol."""
    restarts = 0
    with GoodTraffic(balanced, "one", answers, CLIENTS, pause=pause) as traffic:
        traffic.wait_for_all(time.monotonic())
        begun = time.monotonic()
        while restarts < len(servers) or min(count(traffic).values()) < least:
            server = servers[restarts % len(servers)]
            stop(server.http_port)
            start_detached(server)
            wait_healthy(balanced, server)
            traffic.wait_for_all(time.monotonic())
            restarts += 1
        seconds = time.monotonic() - begun
    sys.stdout.write(
        f"\n{restarts} restarts in {seconds:.0f} s: {count(traffic)} answers, {len(traffic.wrong)} wrong, "
        f"lost: {dict(traffic.failures())}; longest gap {traffic.longest_gap():.2f} s\n"
    )
    assert not traffic.failures()
    assert not traffic.wrong, traffic.wrong[:5]


def count(traffic: GoodTraffic) -> dict[str, int]:
    """The number of answers by protocol."""
    found = Counter(CLIENTS[attempt.client] for attempt in traffic.answered())
    return {protocol: found[protocol] for protocol in ("http", "grpc")}


def test_a_rolling_restart_loses_no_request(
    balanced: ServeOptions, servers: list[ServeOptions], answers: dict[str, Answer]
) -> None:
    restart_each(balanced, servers, answers, least=100, pause=0.05)


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_rolling_restarts_lose_no_request(balanced: ServeOptions, servers: list[ServeOptions], answers: dict[str, Answer]) -> None:
    restart_each(balanced, servers, answers, least=ENOUGH)
