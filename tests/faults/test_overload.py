"""More requests than the server can answer, clients that go away, and texts of megabytes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from serving.options import ServeOptions
from tests.conftest import Once
from tests.helpers.good_traffic import Answer, GoodTraffic
from tests.helpers.load_generator import ANSWERED, Generator, LoadPlan, Sent, by_window, generate, percentile
from tests.helpers.served_processes import identities, resident_bytes, restarts
from tests.helpers.sized_model import make_sized_bundle

pytestmark = [pytest.mark.server, pytest.mark.endurance]
NAME = "sized"
WINDOW = 5.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is asked of a run. Short ones run beside other tests, whose work makes times vary: they ask that nothing collapses.

    Attributes:
        seconds: Length of the overload.
        goodput: Smallest part of the peak that is answered in every window.
        refused_ms: Longest time until a refusal, of 99 in 100.
        memory: Largest factor between the memory before and 5 s after.
        normal: Largest factor between the median time of one client before and after.
        slower: Largest factor between others' p99 beside long texts and without them.
    """

    seconds: float
    goodput: float = 0.9
    refused_ms: float = 100.0
    memory: float = 1.2
    normal: float = 1.5
    slower: float = 2.0


STRICT = Limits(seconds=60)
SHORT = Limits(seconds=10, goodput=0.4, refused_ms=1000, normal=5, slower=10)
NOWHERE = "/v2/nowhere"


@pytest.fixture(scope="module")
def ensembles(once: Once) -> dict[str, Path]:
    return {NAME: once("sized", make_sized_bundle)}


def url_of(options: ServeOptions, protocol: str) -> str:
    return options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")


def plan_of(options: ServeOptions, protocol: str, answers: dict[str, Answer], seconds: float, **more: object) -> LoadPlan:
    url = url_of(options, protocol)
    return LoadPlan(**({"protocol": protocol, "url": url, "name": NAME, "texts": list(answers.items()), "seconds": seconds} | more))


def rate_of(sent: Sequence[Sent], seconds: float) -> float:
    return sum(one.result == ANSWERED for one in sent) / seconds


def results(sent: Sequence[Sent]) -> dict[str, int]:
    return dict(Counter(one.result for one in sent))


def overload(options: ServeOptions, answers: dict[str, Answer], folder: Path, protocol: str, factor: float, limits: Limits) -> None:
    """Send a multiple of what the server can answer, at a fixed rate.

    The generator runs on the server's machine. The peak to compare with is measured beside a generator that sends the surplus to a
    path that the proxy refuses, so that both runs give the same processor time to clients.
    """
    before, seconds, calm = identities(options), limits.seconds, limits.seconds / 2
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
        f"\n{protocol}, {factor:g} x {capacity:.0f}/s for {seconds:g} s: peak beside the surplus {peak:.0f}/s, "
        f"goodput by {WINDOW:g} s {[round(one) for one in windows]}, least {min(windows) / peak:.2f} of the peak; "
        f"refused p50 {percentile(refused, 50):.0f} ms, p99 {percentile(refused, 99):.0f} ms; "
        f"answered p50 {percentile([one for one in sent if one.result == ANSWERED], 50):.0f} ms; "
        f"memory {memory >> 20} → {highest >> 20} → {late >> 20} MiB; one client's p50 {alone:.1f} → {after:.1f} ms; "
        f"{results(sent)}\n"
    )
    assert set(results(sent)) <= {ANSWERED, "503", "RESOURCE_EXHAUSTED"}
    assert min(windows) >= limits.goodput * peak
    assert percentile(refused, 99) <= limits.refused_ms
    assert late <= limits.memory * memory
    assert after <= limits.normal * alone
    assert identities(options) == before, restarts(options)


def abandon(options: ServeOptions, answers: dict[str, Answer], folder: Path, protocol: str, limits: Limits) -> None:
    """Clients send three times what the server can answer, and go away after 75 ms. Others are served beside them."""
    before, seconds = identities(options), limits.seconds
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
        f"\n{protocol}, clients that give up after 75 ms at 3 x {capacity:.0f}/s for {seconds:g} s: {results(sent)}; "
        f"four others beside them: {len(good) / (seconds - 2):.1f} answers/s, p50 {percentile(took, 50):.0f} ms, longest "
        f"{percentile(took, 100):.0f} ms, "
        f"failed {dict(traffic.failures())}; one client's p50 {alone:.1f} → {after:.1f} ms\n"
    )
    assert good and not traffic.failures() and not traffic.wrong
    assert "WRONG" not in results(sent)
    assert after <= limits.normal * alone
    assert identities(options) == before, restarts(options)


def long_texts(options: ServeOptions, answers: dict[str, Answer], folder: Path, megabytes: int, limits: Limits, turns: int) -> None:
    """Four clients send texts of megabytes. The time of others at most doubles.

    A text that is accepted is cut to what the model reads, so it is compared with four clients whose texts just fill the model:
    that much is the model's own work. A text that is refused is compared with no such clients.
    """
    before, seconds = identities(options), limits.seconds
    filling, long = "good film " * 60, "good film " * (megabytes * 100_000)
    beside: dict[str, str | None] = {"nobody": None, "filling": filling, "long": long}
    others: dict[str, list[Sent]] = {kind: [] for kind in beside}
    four: dict[str, list[Sent]] = {kind: [] for kind in beside}
    for _ in range(turns):
        for kind, text in beside.items():
            with contextlib.ExitStack() as stack:
                if text is not None:
                    plan = plan_of(options, "http", {text: ()}, seconds + 2, clients=4)
                    generator = stack.enter_context(Generator(plan, folder))
                    time.sleep(1.5)
                others[kind] += generate(plan_of(options, "http", answers, seconds, clients=4), folder)
                if text is not None:
                    four[kind] += generator.results()
    p99 = {kind: percentile(sent, 99) for kind, sent in others.items()}
    reference = "filling" if ANSWERED in results(four["long"]) else "nobody"
    ratio = p99["long"] / p99[reference]
    sys.stdout.write(
        f"\n{megabytes} MB from four clients: {results(four['long'])}, p50 {percentile(four['long'], 50):.0f} ms; "
        f"others beside nobody, beside four with texts that fill the model, beside these: "
        f"p50 {[round(percentile(one, 50)) for one in others.values()]}, p99 {[round(one) for one in p99.values()]} ms, "
        f"answers/s {[round(rate_of(one, turns * seconds)) for one in others.values()]}; p99 {ratio:.2f} x that beside "
        f"{reference}\n"
    )
    assert {result for sent in others.values() for result in results(sent)} == {ANSWERED}
    assert ratio <= limits.slower
    assert identities(options) == before, restarts(options)


def test_three_times_the_capacity_for_a_moment(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path) -> None:
    overload(options, answers, tmp_path, "http", 3, SHORT)


def test_texts_of_a_megabyte_for_a_moment(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path) -> None:
    long_texts(options, answers, tmp_path, 1, replace(SHORT, seconds=2), turns=1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("factor", [3, 5])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_overload(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path, protocol: str, factor: float) -> None:
    overload(options, answers, tmp_path, protocol, factor, STRICT)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_clients_that_give_up(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path, protocol: str) -> None:
    abandon(options, answers, tmp_path, protocol, replace(STRICT, seconds=30))


@pytest.mark.parametrize("megabytes", [1, 6, 64])
def test_texts_of_megabytes(options: ServeOptions, answers: dict[str, Answer], tmp_path: Path, megabytes: int) -> None:
    long_texts(options, answers, tmp_path, megabytes, replace(STRICT, seconds=8), turns=3)
