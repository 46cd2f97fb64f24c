"""What traces cost: servers of one repository without them, with one request in 100 and with all of them, asked by turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.collector import Collector
from tests.helpers.good_traffic import known_answers
from tests.helpers.load_generator import ANSWERED, LoadPlan, generate
from tests.helpers.served_processes import processes
from tests.helpers.servers import running, serve_options

pytestmark = [pytest.mark.server, pytest.mark.endurance, pytest.mark.timeout(1200)]
NAME, CLIENTS, TURNS, SECONDS = "tiny", 8, 20, 3.0
RATES = (None, 0.01, 1.0)
"""Shares of requests that are traced; None: there are no traces."""
MOST = 1.03
"""Largest factor of the processor time of a request, with one in 100 traced."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[dict[float | None, ServeOptions]]:
    repository = tmp_path_factory.mktemp("compared") / "model_repository"
    package(PackageOptions(bundle=bundle, repository=repository, name=NAME, precision="fp32", device="cpu", instances=1))
    with Collector() as collector:
        served = {rate: serve_options(repository) for rate in RATES}
        for rate in RATES[1:]:
            served[rate] = replace(served[rate], trace=collector.url, trace_rate=rate)
        with running(served[None]), running(served[0.01]), running(served[1.0]):
            yield served
        assert collector.spans


def test_cost(servers: dict[float | None, ServeOptions], tmp_path: Path) -> None:
    answers = list(known_answers(servers[None].base_url.removeprefix("http://"), NAME, 20).items())
    seconds: dict[float | None, list[float]] = {rate: [] for rate in RATES}
    rates: dict[float | None, list[float]] = {rate: [] for rate in RATES}
    for turn in range(TURNS):
        for rate in RATES if turn % 2 else reversed(RATES):
            options = servers[rate]
            url = options.base_url.removeprefix("http://")
            plan = LoadPlan(protocol="http", url=url, name=NAME, texts=answers, seconds=SECONDS, clients=CLIENTS)
            before = _processor_seconds(options)
            sent = generate(plan, tmp_path)
            assert {one.result for one in sent} == {ANSWERED}
            seconds[rate].append((_processor_seconds(options) - before) / len(sent))
            rates[rate].append(len(sent) / SECONDS)
    lines = []
    ratios = {}
    for rate in RATES[1:]:
        ratios[rate] = statistics.median(one / other for one, other in zip(seconds[rate], seconds[None], strict=True))
        speed = statistics.median(one / other for one, other in zip(rates[rate], rates[None], strict=True))
        lines.append(f"traced {rate:.0%}: {ratios[rate]:.3f} x the processor time of a request, {speed:.3f} x the requests/s")
    own = statistics.median(seconds[None]) * 1e6
    sys.stdout.write(f"\n{own:.0f} µs of processor time a request without traces\n" + "\n".join(lines) + "\n")
    assert ratios[0.01] < MOST


def _processor_seconds(options: ServeOptions) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes(options))
