"""Processes of the server stand still for a while, as on a machine that was suspended or is overloaded."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from serving.options import ServeOptions
from serving.server_record import find_running
from tests.helpers.good_traffic import Answer, GoodTraffic
from tests.helpers.served_processes import processes, restarts, send, wait_ready

pytestmark = pytest.mark.server
TARGETS = ("preprocess", "model", "postprocess", "server", "tree")
PAUSES = (1.0, 1.2, 2.0, 5.0, 20.0)
REPEATED = 10
BACK_SECONDS = 10
"""How long after a pause it may take until there are answers again, in seconds."""
STARTS = 3
"""On a machine where a start of the server takes longer than a third of that, because it is busy: as long as three of them."""


def pause(options: ServeOptions, answers: dict[str, Answer], target: str, seconds: float) -> None:
    """Stop the processes under load and let them go on. Nobody gets another's answer, then or later."""
    wait_ready(options)
    running = find_running(options.http_port)
    assert running is not None and running.ready_seconds is not None
    limit = max(BACK_SECONDS, STARTS * running.ready_seconds)
    before = len(restarts(options))
    with GoodTraffic(options, "one", answers) as traffic:
        traffic.wait_for_all(time.monotonic())
        paused = processes(options, target)
        assert paused
        send(paused, signal.SIGSTOP)
        time.sleep(seconds)
        send(paused, signal.SIGCONT)
        continued = time.monotonic()
        first, last = traffic.wait_for_all(continued)
        time.sleep(1)  # what waited in a stub comes out now
    again = restarts(options)[before:]
    sys.stdout.write(
        f"\n{target} paused for {seconds:g} s: {len(traffic.answered())} answers, {len(traffic.wrong)} wrong, "
        f"the first {first:.1f} s and for the last client {last:.1f} s after the pause, "
        f"{len(again)} restarts (the last start took {running.ready_seconds:.1f} s); failed: {dict(traffic.failures())}\n"
    )
    assert not traffic.wrong, traffic.wrong[:5]
    assert first < limit


@pytest.mark.parametrize("target", ["preprocess", "tree"])
@pytest.mark.long
def test_a_short_pause(options: ServeOptions, answers: dict[str, Answer], target: str) -> None:
    pause(options, answers, target, 1.2)


@pytest.mark.endurance
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seconds", PAUSES)
@pytest.mark.parametrize("target", TARGETS)
def test_pauses(options: ServeOptions, answers: dict[str, Answer], target: str, seconds: float) -> None:
    for _ in range(REPEATED):
        pause(options, answers, target, seconds)
