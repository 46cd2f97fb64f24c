"""Where tuning looks, and which configuration it takes: pure, on made-up figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.tuning.choice import Measured, beats, choose, frontier, gain
from benchmarks.tuning.outcome import Outcome
from benchmarks.tuning.search import Space
from benchmarks.tuning.summary import require_winner, summary, table, to_json
from benchmarks.tuning.trial import LevelSpeed, Trial
from serving.configuration import Configuration
from serving.errors import GateError, ServerError

OFF = Configuration(precision="int8", device="cpu", batching="off", instances=2, threads=1, max_batch_size=64, queue_delay_us=0)
RAGGED = replace(OFF, precision="fp32", batching="ragged", instances=1, threads=2)
OTHER = replace(OFF, instances=3)
FOURTH = replace(OFF, instances=1)


def cpu(cores: int = 2, precisions: tuple[str, ...] = ("fp32", "fp16", "int8"), most_clients: int = 16) -> Space:
    return Space(device="cpu", cores=cores, precisions=precisions, most_clients=most_clients)


def gpu(most_clients: int = 16) -> Space:
    return Space(device="gpu", cores=8, precisions=("fp32", "fp16"), most_clients=most_clients)


@pytest.mark.parametrize("space", [cpu(1), cpu(2), cpu(6), cpu(64), cpu(precisions=("int8",)), gpu(), gpu(512)])
def test_the_grid_and_all_that_can_be_reached_from_it_is_in_the_space(space: Space) -> None:
    reached, waiting = set(), space.grid()
    assert len(waiting) == len(set(waiting))
    while waiting:
        one = waiting.pop()
        if one not in reached:
            reached.add(one)
            assert one in space
            waiting += space.neighbours(one)
    for one in reached:
        assert one.precision in space.precisions
        assert not (one.precision == "int8" and one.batching == "ragged"), "answers would depend on who else is asking"
        assert one.batching == "ragged" or (one.queue_delay_us, one.max_batch_size) == (0, 64)
        if space.device == "cpu":
            assert one.instances * one.threads <= space.cores or one.threads == 1
    if space.device == "gpu":
        assert {one.instances for one in reached} == {1, 2, 4}
        assert {one.queue_delay_us for one in reached} == {0, 500, 2000}


def test_a_grid_on_two_cores() -> None:
    assert list(map(str, cpu().grid())) == [
        "fp32, 2 × 1 thread, no batching",
        "fp16, 2 × 1 thread, no batching",
        "int8, 2 × 1 thread, no batching",
        "fp32, 1 × 2 threads, no batching",
        "fp16, 1 × 2 threads, no batching",
        "int8, 1 × 2 threads, no batching",
        "fp32, 2 × 1 thread, batches to 64",
        "fp16, 2 × 1 thread, batches to 64",
        "fp32, 1 × 2 threads, batches to 64",
        "fp16, 1 × 2 threads, batches to 64",
    ]
    assert len(cpu(1).grid()) == 5, "on one core all arrangements are one"
    assert [(one.instances, one.threads) for one in cpu(16, ("int8",)).grid()] == [(16, 1), (1, 16), (4, 4)]
    assert [(one.instances, one.threads) for one in cpu(6, ("int8",)).grid()] == [(6, 1), (1, 6), (2, 2)]


def test_neighbours_differ_in_one_choice_by_one_step() -> None:
    assert list(map(str, cpu().neighbours(OFF))) == [
        "int8, 3 × 1 thread, no batching",
        "int8, 1 × 1 thread, no batching",
        "fp16, 2 × 1 thread, no batching",
    ]
    assert list(map(str, cpu().neighbours(RAGGED))) == [
        "fp32, 1 × 1 thread, batches to 64",
        "fp32, 1 × 2 threads, batches to 64, 500 µs delay",
        "fp32, 1 × 2 threads, no batching",
        "fp16, 1 × 2 threads, batches to 64",
    ]
    late = replace(RAGGED, queue_delay_us=500)
    assert replace(late, queue_delay_us=0, batching="off") in cpu().neighbours(late), "without batching nobody waits"
    assert {one.queue_delay_us for one in cpu().neighbours(late) if one.batching == "ragged"} == {0, 500, 2000}


@pytest.mark.parametrize(("clients", "sizes"), [(1, (64,)), (16, (64,)), (32, (16, 64)), (64, (16, 64)), (65, (16, 64, 256))])
def test_batches_are_tried_that_the_load_can_fill(clients: int, sizes: tuple[int, ...]) -> None:
    assert gpu(clients).max_batch_sizes == sizes


def level(clients: int, throughput: float, p99_ms: float) -> LevelSpeed:
    return LevelSpeed(concurrency=clients, throughput=throughput, p50_ms=p99_ms / 2, p99_ms=p99_ms, executed_batch=1.0)


def trial(configuration: Configuration, *levels: LevelSpeed, number: int = 0, **fields: Any) -> Trial:
    return Trial(configuration=configuration, round=number, seconds=20, levels=levels, **{"pss_mib": 300.0} | fields)


def measured(configuration: Configuration, *throughputs: float, p99_ms: float = 40, **fields: Any) -> Measured:
    trials = [trial(configuration, level(1, 10, 5), level(16, one, p99_ms), **fields) for one in throughputs]
    return Measured(configuration=configuration, trials=trials, latency_p99_ms=50)


def test_the_best_level_is_the_fastest_within_the_latency_allowed() -> None:
    one = measured(OFF, 100, p99_ms=60)
    assert one.best == level(1, 10, 5) and one.rank == (True, 10)
    assert replace(one, latency_p99_ms=None).best == level(16, 100, 60)
    slow = replace(one, latency_p99_ms=4)
    assert slow.best is None and slow.shown == level(1, 10, 5)
    assert slow.rank < one.rank
    assert slow.rank > replace(measured(OFF, 100), latency_p99_ms=1, trials=[trial(OFF, level(1, 999, 9))]).rank


def test_rounds_come_together_as_medians() -> None:
    assert measured(OFF, 90, 110, 100).best == level(16, 100, 40)


@pytest.mark.parametrize(
    ("challenger", "wins"),
    [
        ((110, 121, 132), True),  # 10 % in every round, whatever the machine did
        ((105, 132, 124), False),  # the rounds differ by as much as the gain is
        ((90, 130, 115), False),
        ((101, 111, 121), False),  # steady, but not worth it
    ],
)
def test_only_a_gain_that_is_more_than_noise_counts(challenger: tuple[float, ...], wins: bool) -> None:
    default = measured(OFF, 100, 110, 120)
    other = measured(OTHER, *challenger)
    assert beats(other, default) == wins
    chosen = choose([default, other], OFF)
    assert chosen is not None and chosen.configuration == (OTHER if wins else OFF)
    assert gain(other, default) == pytest.approx(sorted(c / d - 1 for c, d in zip(challenger, (100, 110, 120), strict=True))[1])


def test_among_equals_that_beat_the_default_the_leaner_one_is_taken() -> None:
    default, fast = measured(OFF, 100, 100, 100), measured(OTHER, 200, 202, 198)
    lean = measured(FOURTH, 199, 198, 201, pss_mib=200.0)
    same = measured(FOURTH, 199, 198, 201, pss_mib=299.0)
    assert choose([default, fast, lean], OFF) == lean
    assert choose([default, fast, same], OFF) == fast


def test_who_keeps_within_the_latency_beats_who_does_not() -> None:
    default = Measured(configuration=OFF, trials=[trial(OFF, level(16, 500, 80))] * 3, latency_p99_ms=50)
    slower = measured(OTHER, 100, 100, 100)
    assert beats(slower, default) and not beats(default, slower)
    assert choose([default, slower], OFF) == slower
    assert choose([default], OFF) is None


def test_the_frontier_is_what_nothing_dominates() -> None:
    fast, lean = measured(OFF, 100), measured(OTHER, 90, pss_mib=100.0)
    worse = measured(FOURTH, 80, p99_ms=41)
    points = frontier([worse, lean, fast])
    assert [(point.measured.configuration, point.level.concurrency) for point in points] == [(OFF, 16), (OTHER, 16), (OTHER, 1)]


def outcome(*trials: Trial, latency: float | None = 50) -> Outcome:
    return Outcome(trials=trials, default=OFF, latency_p99_ms=latency)


def rounds(configuration: Configuration, throughput: float, p99_ms: float = 40) -> list[Trial]:
    return [trial(configuration, level(16, throughput, p99_ms), number=number) for number in range(4)]


def test_an_outcome_compares_the_winner_with_the_default() -> None:
    found = outcome(*rounds(OFF, 100), *rounds(OTHER, 150), trial(RAGGED, failure="out of memory"))
    assert found.winner is not None and found.winner.configuration == OTHER
    assert found.ratio == pytest.approx(1.5)
    lines = [*table(found), *summary(found)]
    assert lines[1].endswith("int8, 3 × 1 thread, no batching  ← best")
    assert lines[2].endswith("int8, 2 × 1 thread, no batching  ← untuned")
    assert f"could not be served: {RAGGED}: out of memory" in lines
    assert any(line.startswith("that is 1.50 times what it gives untuned") for line in lines)
    assert to_json(found)["winner"]["instances"] == 3 and to_json(found)["ratio"] == pytest.approx(1.5)
    assert require_winner(found) == found.winner


def test_the_default_stays_where_nothing_is_better() -> None:
    found = outcome(*rounds(OFF, 100), *rounds(OTHER, 101))
    assert found.winner is not None and found.winner.configuration == OFF and found.ratio == 1
    assert "that is how it is served untuned: nothing else is better by more than the rounds differ" in list(summary(found))


def test_nothing_within_the_latency_is_told_with_the_nearest() -> None:
    found = outcome(*rounds(OFF, 100, 80), *rounds(OTHER, 60, 55))
    assert found.winner is None and found.ratio is None
    with pytest.raises(GateError, match=r"nothing stays within 50 ms at p99; nearest is int8, 3 × 1 thread.*60 rows/s") as raised:
        require_winner(found)
    assert "--latency-p99-ms" in raised.value.hint


def test_a_finalist_that_failed_once_is_none() -> None:
    spoilt = [*rounds(OTHER, 150)[:-1], trial(OTHER, number=3, failure="a Python backend process (7) died")]
    found = outcome(*rounds(OFF, 100), *spoilt)
    assert found.winner is not None and found.winner.configuration == OFF
    assert [one.configuration for one in found.measured] == [OFF]
    with pytest.raises(ServerError, match=r"every finalist failed in one of its rounds: a Python backend process \(7\) died"):
        require_winner(outcome(*spoilt))
    without = outcome(*spoilt[:1], *rounds(OTHER, 150)[1:], trial(OFF, failure="no memory"))
    assert any("untuned it cannot be served" in line for line in summary(without))


def test_a_trial_survives_its_record() -> None:
    one = trial(RAGGED, level(1, 10, 5), level(16, 90, 40), gpu_memory_mib=2000.0, load_seconds=3.5)
    assert Trial.from_json(one.to_json()) == one
    assert one.memory_mib == 300, "on a CPU; what others have on a GPU beside it is not its"
    assert replace(one, configuration=replace(RAGGED, device="gpu")).memory_mib == 2000
    with pytest.raises(ValueError, match="failed"):
        _ = replace(one, failure="x", pss_mib=None, gpu_memory_mib=None).memory_mib
