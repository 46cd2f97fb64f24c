"""More requests than the server can answer, clients that go away, and texts of megabytes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.supervisor import start_detached, stop
from tests.conftest import Once
from tests.helpers.good_traffic import Answer, GoodTraffic, known_answers
from tests.helpers.load_generator import ANSWERED, Generator, LoadPlan, Sent, by_window, generate, percentile
from tests.helpers.served_processes import identities, resident_bytes, restarts
from tests.helpers.servers import serve_options
from tests.helpers.sized_model import make_sized_bundle

pytestmark = [pytest.mark.server, pytest.mark.slow]
NAME = "sized"
WINDOW = 5.0
GOODPUT = 0.9
"""Smallest part of the peak that is answered in every window."""
REFUSED_MS = 100.0
MEMORY = 1.2
NORMAL = 1.5
"""Largest factor between the median time of one client before and after."""
NOWHERE = "/v2/nowhere"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, once: Once) -> Iterator[ServeOptions]:
    repository = tmp_path_factory.mktemp("overloaded") / "model_repository"
    bundle = once("sized", make_sized_bundle)
    package(PackageOptions(bundle=bundle, repository=repository, name=NAME, precision="fp32", device="cpu"))
    served = serve_options(repository)
    start_detached(served)
    yield served
    stop(served.http_port)


@pytest.fixture(scope="module")
def answers(options: ServeOptions) -> dict[str, Answer]:
    return known_answers(url_of(options, "http"), NAME, 40)


def url_of(options: ServeOptions, protocol: str) -> str:
    return options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")


def plan_of(options: ServeOptions, protocol: str, answers: dict[str, Answer], seconds: float, **more: object) -> LoadPlan:
    url = url_of(options, protocol)
    return LoadPlan(**({"protocol": protocol, "url": url, "name": NAME, "texts": list(answers.items()), "seconds": seconds} | more))


def rate_of(sent: Sequence[Sent], seconds: float) -> float:
    return sum(one.result == ANSWERED for one in sent) / seconds


def results(sent: Sequence[Sent]) -> dict[str, int]:
    return dict(Counter(one.result for one in sent))


def overload(options: ServeOptions, answers: dict[str, Answer], folder: Path, protocol: str, factor: float, seconds: float) -> None:
    """Send a multiple of what the server can answer, at a fixed rate.

    The generator runs on the server's machine. The peak to compare with is measured beside a generator that sends the surplus to a
    path that the proxy refuses, so that both runs give the same processor time to clients.
    """
    before, calm = identities(options), min(seconds, 10)
    capacity = rate_of(generate(plan_of(options, protocol, answers, calm, clients=64), folder), calm)
    surplus = plan_of(options, "http", answers, calm + 1, rate=(factor - 1) * capacity, path=NOWHERE)
    with Generator(surplus, folder):
        time.sleep(1)
        peak = rate_of(generate(plan_of(options, protocol, answers, calm, clients=64), folder), calm)
    alone = percentile(generate(plan_of(options, protocol, answers, 3), folder), 50)
    memory = resident_bytes(options)
    with Generator(plan_of(options, protocol, answers, seconds, rate=factor * capacity), folder) as generator:
        time.sleep(seconds / 2)
        highest = resident_bytes(options)
        sent = generator.results()
    time.sleep(max(0.0, max(one.ended for one in sent) + 5 - time.monotonic()))
    after = percentile(generate(plan_of(options, protocol, answers, 3), folder), 50)
    begun = min(one.due for one in sent)
    windows = by_window(sent, begun, seconds, WINDOW)
    refused = [one for one in sent if one.result in ("503", "RESOURCE_EXHAUSTED")]
    late = resident_bytes(options)
    sys.stdout.write(
        f"\n{protocol}, {factor:g} x {capacity:.0f}/s for {seconds:g} s: peak beside the surplus {peak:.0f}/s, goodput by {WINDOW:g} s "
        f"{[round(one) for one in windows]}, least {min(windows) / peak:.2f} of the peak; refused p50 {percentile(refused, 50):.0f} ms, p99 "
        f"{percentile(refused, 99):.0f} ms; answered p50 {percentile([one for one in sent if one.result == ANSWERED], 50):.0f} ms; "
        f"memory {memory >> 20} → {highest >> 20} → {late >> 20} MiB; one client's p50 {alone:.1f} → {after:.1f} ms; {results(sent)}\n"
    )
    assert set(results(sent)) <= {ANSWERED, "503", "RESOURCE_EXHAUSTED"}
    assert min(windows) >= GOODPUT * peak
    assert percentile(refused, 99) <= REFUSED_MS
    assert late <= MEMORY * memory
    assert after <= NORMAL * alone
    assert identities(options) == before, restarts(options)


def abandon(options: ServeOptions, answers: dict[str, Answer], folder: Path, protocol: str, seconds: float) -> None:
    """Clients send three times what the server can answer, and go away after 75 ms. Others are served beside them."""
    before = identities(options)
    capacity = rate_of(generate(plan_of(options, protocol, answers, 5, clients=64), folder), 5)
    alone = percentile(generate(plan_of(options, protocol, answers, 3), folder), 50)
    impatient = plan_of(options, protocol, answers, seconds, rate=3 * capacity, give_up=0.075)
    with Generator(impatient, folder) as generator:
        time.sleep(1)
        with GoodTraffic(options, NAME, answers, ("pipeline grpc", "pipeline http") * 2) as traffic:
            time.sleep(seconds - 2)
        sent = generator.results()
    time.sleep(5)
    after = percentile(generate(plan_of(options, protocol, answers, 3), folder), 50)
    good = traffic.answered()
    took = [Sent(one.sent, one.ended, ANSWERED) for one in good]
    sys.stdout.write(
        f"\n{protocol}, clients that give up after 75 ms at 3 x {capacity:.0f}/s for {seconds:g} s: {results(sent)}; four others beside them: "
        f"{len(good) / (seconds - 2):.1f} answers/s, p50 {percentile(took, 50):.0f} ms, longest {percentile(took, 100):.0f} ms, "
        f"failed {dict(traffic.failures())}; one client's p50 {alone:.1f} → {after:.1f} ms\n"
    )
    assert good and not traffic.failures() and not traffic.wrong
    assert "WRONG" not in results(sent)
    assert after <= NORMAL * alone
    assert identities(options) == before, restarts(options)


def long_texts(options: ServeOptions, answers: dict[str, Answer], folder: Path, megabytes: int, turns: int, seconds: float) -> None:
    """Four clients send texts of megabytes. The time of others at most doubles."""
    before = identities(options)
    text = "good film " * (megabytes * 100_000)
    times: dict[bool, list[Sent]] = {False: [], True: []}
    large: list[Sent] = []
    for _ in range(turns):
        for beside in (False, True):
            if not beside:
                times[beside] += generate(plan_of(options, "http", answers, seconds, clients=4), folder)
                continue
            plan = plan_of(options, "http", {}, seconds + 1, clients=4) 
            with Generator(LoadPlan(**{**vars(plan), "texts": [(text, ())]}), folder) as generator:
                time.sleep(1)
                times[beside] += generate(plan_of(options, "http", answers, seconds, clients=4), folder)
                large += generator.results()
    p99 = {beside: percentile(sent, 99) for beside, sent in times.items()}
    sys.stdout.write(
        f"\n{megabytes} MB from four clients, {len(large)} of them: {results(large)}, p50 {percentile(large, 50):.0f} ms; others' p50 "
        f"{percentile(times[False], 50):.0f} → {percentile(times[True], 50):.0f} ms, p99 {p99[False]:.0f} → {p99[True]:.0f} ms "
        f"({p99[True] / p99[False]:.2f} x); {results(times[True])}\n"
    )
    assert set(results(times[True])) == {ANSWERED}
    assert p99[True] <= 2 * p99[False]
    assert identities(options) == before, restarts(options)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_three_times_the_capacity(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path, protocol: str) -> None:
    overload(options, answers, tmp_path, protocol, 3, 10)


@pytest.mark.endurance
@pytest.mark.timeout(600)
@pytest.mark.parametrize("factor", [3, 5])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_minute_of_it(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path, protocol: str, factor: float) -> None:
    overload(options, answers, tmp_path, protocol, factor, 60)


@pytest.mark.endurance
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_clients_that_give_up(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path, protocol: str) -> None:
    abandon(options, answers, tmp_path, protocol, 30)


@pytest.mark.endurance
@pytest.mark.parametrize("megabytes", [1, 6, 64])
def test_texts_of_megabytes(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path, megabytes: int) -> None:
    long_texts(options, answers, tmp_path, megabytes, turns=4, seconds=10)


def test_texts_of_a_megabyte_for_a_moment(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path) -> None:
    long_texts(options, answers, tmp_path, 1, turns=2, seconds=4)
