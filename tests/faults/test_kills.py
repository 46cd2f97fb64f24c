"""Processes of the server are killed under load, and the whole server is stopped and started."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Sequence

import psutil
import pytest

from serving.background import start_detached, stop
from serving.options import ServeOptions
from tests.helpers.good_traffic import Answer, GoodTraffic
from tests.helpers.served_processes import processes, restarts, send, wait_ready

pytestmark = [pytest.mark.server, pytest.mark.long]
VICTIMS = ("preprocess", "model", "postprocess", "server")
SIGNALS = (signal.SIGKILL, signal.SIGSEGV)
PIPELINES = ("pipeline grpc", "pipeline http") * 4
REPEATED = 10


def wait_ended(victims: Sequence[psutil.Process], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while any(victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE for victim in victims):
        assert time.monotonic() < deadline, victims
        time.sleep(0.01)


def kill(options: ServeOptions, answers: dict[str, Answer], deaths: Sequence[tuple[str, signal.Signals]]) -> None:
    """Kill one process after another. The clients retry within their time limit: nobody loses a request."""
    with GoodTraffic(options, "one", answers, PIPELINES) as traffic:
        for number, (role, how) in enumerate(deaths):
            traffic.wait_for_all(time.monotonic())
            wait_ready(options)
            before = len(traffic.attempts)
            victims = processes(options, role)[:1]
            assert len(victims) == 1, role
            killed = time.monotonic()
            send(victims, how)
            wait_ended(victims)
            _, last = traffic.wait_for_all(time.monotonic() + 0.2)
            gap = traffic.longest_gap(since=killed - 0.5)
            sys.stdout.write(
                f"\n{number + 1}: {role} ended by {how.name}: longest gap {gap:.1f} s, "
                f"all clients served {last:.1f} s after its end, {len(traffic.attempts) - before} answers meanwhile, restarts "
                f"so far {len(restarts(options))}"
            )
    sys.stdout.write(
        f"\n{len(deaths)} deaths: {len(traffic.answered())} answers, {len(traffic.wrong)} wrong, "
        f"{sum(traffic.failures().values())} lost, longest gap {traffic.longest_gap():.1f} s\n"
    )
    assert not traffic.wrong, traffic.wrong[:5]
    assert not traffic.failures()


def test_no_request_is_lost_when_each_process_dies_once(options: ServeOptions, answers: dict[str, Answer]) -> None:
    kill(options, answers, list(zip(VICTIMS, itertools.cycle(reversed(SIGNALS)), strict=False)))


@pytest.mark.endurance
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.parametrize("role", VICTIMS)
def test_no_request_is_lost_when_processes_die(
    options: ServeOptions, answers: dict[str, Answer], role: str, how: signal.Signals
) -> None:
    kill(options, answers, [(role, how)] * REPEATED)


def test_no_request_is_lost_when_the_server_is_stopped_and_started(options: ServeOptions, answers: dict[str, Answer]) -> None:
    with GoodTraffic(options, "one", answers, PIPELINES) as traffic:
        traffic.wait_for_all(time.monotonic())
        stop(options.http_port)
        start_detached(options)
        _, last = traffic.wait_for_all(time.monotonic())
    sys.stdout.write(
        f"\nstopped and started: {len(traffic.answered())} answers, longest gap {traffic.longest_gap():.1f} s, all clients served "
        f"{last:.1f} s after the start\n"
    )
    assert not traffic.failures() and not traffic.wrong


def test_a_stop_answers_what_it_accepted_and_refuses_the_rest(options: ServeOptions, answers: dict[str, Answer]) -> None:
    """Plain clients: what was sent before is answered; afterwards they are told that the server stops, or find nobody."""
    with GoodTraffic(options, "one", answers, ("grpc", "http") * 4) as traffic:
        traffic.wait_for_all(time.monotonic())
        begun = time.monotonic()
        stop(options.http_port)
        ended = time.monotonic()
    start_detached(options)
    late = [attempt.sent - begun for attempt in traffic.answered(begun)]
    reasons = traffic.failures(begun)
    sys.stdout.write(
        f"\nstopped in {ended - begun:.1f} s; last request accepted {max(late, default=0):.2f} s after SIGTERM; {reasons}\n"
    )
    assert not [attempt for attempt in traffic.attempts if attempt.failure and attempt.sent < begun]
    assert not traffic.wrong
    assert max(late, default=0) < 1
    assert any("starting, restarting or stopping" in reason for reason in reasons)
