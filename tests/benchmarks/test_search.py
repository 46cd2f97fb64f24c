"""The search space of tuning, and the choice of the winner: pure, on made-up figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from optuna.trial import FixedTrial

from benchmarks.tuning.choice import Measured, beats, choose, gain, pareto_front
from benchmarks.tuning.outcome import TuningOutcome
from benchmarks.tuning.space import Space
from benchmarks.tuning.summary import require_winner, summary, table, to_json
from serving import plan
from serving.bundle import Bundle, Variant
from serving.configuration import Configuration
from serving.errors import GateError, ServerError
from serving.manifests import LoadRecord, TrialRecord, VariantFigures
from serving.options import PRECISIONS, Precision
from tests.helpers.manifests import bundle_manifest, variant_figures

OFF = Configuration(precision="int8", device="cpu", batching="off", instances=2, threads=1, max_batch_size=64, queue_delay_us=0)
RAGGED = replace(OFF, precision="fp32", batching="ragged", instances=1, threads=2)
OTHER = replace(OFF, instances=3)
FOURTH = replace(OFF, instances=1)


def cpu(cores: int = 2, precisions: tuple[str, ...] = ("fp32", "fp16", "int8"), most_clients: int = 16) -> Space:
    return Space(device="cpu", cores=cores, precisions=precisions, most_clients=most_clients)


def gpu(most_clients: int = 16) -> Space:
    return Space(device="gpu", cores=8, precisions=("fp32", "fp16"), most_clients=most_clients)


@pytest.mark.parametrize("space", [cpu(1), cpu(2), cpu(6), cpu(64), cpu(precisions=("int8",)), gpu(), gpu(512)])
def test_the_space_holds_the_grid_and_nothing_that_must_not_be_served(space: Space) -> None:
    found = space.configurations()
    assert len(found) == len(set(found))
    assert set(space.grid()) <= set(found)
    for one in found:
        assert one.precision in space.precisions
        assert not (one.precision == "int8" and one.batching == "ragged"), "answers would depend on other requests"
        assert one.batching == "ragged" or (one.queue_delay_us, one.max_batch_size) == (0, 64)
        if space.device == "cpu":
            assert one.instances * one.threads <= space.cores or one.threads == 1
    if space.device == "gpu":
        assert {one.instances for one in found} == {1, 2, 4}
        assert {one.queue_delay_us for one in found} == {0, 500, 2000}


@pytest.mark.parametrize("space", [cpu(1), cpu(6), gpu(512)])
def test_what_a_configuration_is_to_optuna_gives_it_back(space: Space) -> None:
    for one in space.configurations():
        trial = FixedTrial(dict(space.parameters(one)))
        assert space.suggest(trial) == one
        assert trial.params == space.parameters(one)
    with pytest.raises(ValueError):
        space.parameters(replace(space.configurations()[0], instances=97))


@pytest.mark.parametrize("cores", [1, 2, 6, 64])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8_rowwise"])
def test_the_untuned_default_is_in_the_space(cores: int, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "cores", lambda: cores)
    for device, space in (("cpu", cpu(cores, PRECISIONS)), ("gpu", replace(gpu(), precisions=PRECISIONS, cores=cores))):
        for batching in ("off",) if precision == "int8" else ("off", "ragged"):
            figures = variant_figures(throughput={"1": 2.0, "16": 3.0 if batching == "ragged" else 1.0})
            bundle = made_up_bundle({precision: figures})
            default = plan.make_plan(
                bundle, precision=precision, device=device, batching="auto", instances=None, threads=None, max_batch_size=None
            )
            assert default.configuration in space.configurations()


def made_up_bundle(figures: dict[Precision, VariantFigures]) -> Bundle:
    variants: dict[str, Variant] = {name: Variant(precision=name, path=Path(name), figures=of) for name, of in figures.items()}
    manifest = bundle_manifest(precisions={})
    return Bundle(folder=Path("bundle"), task=cast(Any, None), max_length=8, padding={}, variants=variants, manifest=manifest)


def test_a_grid_on_two_cores() -> None:
    assert list(map(str, cpu().grid())) == [
        "fp32, 2 × 1 thread, no batching",
        "fp16, 2 × 1 thread, no batching",
        "int8, 2 × 1 thread, no batching",
        "fp32, 1 × 2 threads, no batching",
        "fp16, 1 × 2 threads, no batching",
        "int8, 1 × 2 threads, no batching",
        "fp32, 2 × 1 thread, no batching, fused",
        "fp16, 2 × 1 thread, no batching, fused",
        "int8, 2 × 1 thread, no batching, fused",
        "fp32, 1 × 2 threads, no batching, fused",
        "fp16, 1 × 2 threads, no batching, fused",
        "int8, 1 × 2 threads, no batching, fused",
        "fp32, 2 × 1 thread, batches to 64",
        "fp16, 2 × 1 thread, batches to 64",
        "fp32, 1 × 2 threads, batches to 64",
        "fp16, 1 × 2 threads, batches to 64",
    ]
    assert len(cpu().configurations()) == 48
    assert len(cpu(1).grid()) == 8, "on one core all arrangements are one"
    assert [str(one) for one in cpu(2, ("int8", "int8_rowwise")).grid()][-2:] == [
        "int8_rowwise, 2 × 1 thread, batches to 64",
        "int8_rowwise, 1 × 2 threads, batches to 64",
    ]
    assert [(one.instances, one.threads) for one in cpu(16, ("int8",)).grid()] == [(16, 1), (1, 16), (4, 4)] * 2
    assert [(one.instances, one.threads) for one in cpu(6, ("int8",)).grid()] == [(6, 1), (1, 6), (2, 2)] * 2


@pytest.mark.parametrize(("clients", "sizes"), [(1, (64,)), (16, (64,)), (32, (16, 64)), (64, (16, 64)), (65, (16, 64, 256))])
def test_batches_are_tried_that_the_load_can_fill(clients: int, sizes: tuple[int, ...]) -> None:
    assert gpu(clients).max_batch_sizes == sizes


def level(clients: int, throughput: float, p99_ms: float) -> LoadRecord:
    return LoadRecord(concurrency=clients, throughput=throughput, p50_ms=p99_ms / 2, p99_ms=p99_ms, executed_batch=1.0)


def trial(configuration: Configuration, *levels: LoadRecord, number: int = 0, **fields: Any) -> TrialRecord:
    return TrialRecord(configuration=configuration, round=number, seconds=20, levels=levels, **{"pss_mib": 300.0} | fields)


def measured(configuration: Configuration, *throughputs: float, p99_ms: float = 40, **fields: Any) -> Measured:
    trials = [trial(configuration, level(1, 10, 5), level(16, one, p99_ms), **fields) for one in throughputs]
    return Measured(trials=trials, latency_p99_ms=50)


def test_the_best_level_is_the_fastest_within_the_latency_allowed() -> None:
    one = measured(OFF, 100, p99_ms=60)
    assert one.best == level(1, 10, 5) and one.objective == 10
    assert replace(one, latency_p99_ms=None).best == level(16, 100, 60)
    slow = replace(one, latency_p99_ms=4)
    assert slow.best is None and slow.shown == level(1, 10, 5)
    assert slow.objective == -5 < one.objective
    assert slow.objective > replace(measured(OFF, 100), latency_p99_ms=1, trials=[trial(OFF, level(1, 999, 9))]).objective


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
    assert choose([fast, lean], OFF) == lean, "the default cannot be served"


def test_noise_makes_no_winner_of_what_is_slower_than_the_default() -> None:
    # as on a busy machine: noise hides that the leanest is slower than the fastest
    default, fast = measured(OFF, 1280, 1344, 1361), measured(OTHER, 1471, 1511, 1383)
    noisy = measured(FOURTH, 1223, 938, 1360, pss_mib=91.0)
    assert beats(fast, default) and not beats(fast, noisy)
    assert choose([default, fast, noisy], OFF) == fast
    assert choose([fast, noisy], OFF) == fast, "nor of what may well be slower than the fastest"


def test_who_keeps_within_the_latency_beats_who_does_not() -> None:
    default = Measured(trials=[trial(OFF, level(16, 500, 80))] * 3, latency_p99_ms=50)
    slower = measured(OTHER, 100, 100, 100)
    assert beats(slower, default) and not beats(default, slower)
    assert choose([default, slower], OFF) == slower
    assert choose([default], OFF) is None


def test_the_frontier_is_what_nothing_dominates() -> None:
    fast, lean = measured(OFF, 100), measured(OTHER, 90, pss_mib=100.0)
    worse = measured(FOURTH, 80, p99_ms=41)
    points = pareto_front([worse, lean, fast])
    assert [(point.measured.configuration, point.level.concurrency) for point in points] == [(OFF, 16), (OTHER, 16), (OTHER, 1)]


def outcome(*trials: TrialRecord, latency: float | None = 50) -> TuningOutcome:
    return TuningOutcome(trials=trials, default=OFF, latency_p99_ms=latency)


def rounds(configuration: Configuration, throughput: float, p99_ms: float = 40) -> list[TrialRecord]:
    return [trial(configuration, level(16, throughput, p99_ms), number=number) for number in range(4)]


def test_an_outcome_compares_the_winner_with_the_default() -> None:
    found = outcome(*rounds(OFF, 100), *rounds(OTHER, 150), trial(RAGGED, failure="out of memory"))
    assert found.winner is not None and found.winner.configuration == OTHER
    assert found.ratio == pytest.approx(1.5)
    lines = [*table(found), *summary(found)]
    assert lines[1].endswith("int8, 3 × 1 thread, no batching  ← best")
    assert lines[2].endswith("int8, 2 × 1 thread, no batching  ← untuned")
    assert f"could not be served: {RAGGED}: out of memory" in lines
    assert any(line.startswith("that is 1.50 times the untuned throughput") for line in lines)
    assert to_json(found)["winner"]["instances"] == 3 and to_json(found)["ratio"] == pytest.approx(1.5)
    assert require_winner(found) == found.winner


def test_the_default_stays_where_nothing_is_better() -> None:
    found = outcome(*rounds(OFF, 100), *rounds(OTHER, 101))
    assert found.winner is not None and found.winner.configuration == OFF and found.ratio == 1
    assert "that is the untuned default: nothing else is better beyond measurement noise" in list(summary(found))


def test_nothing_within_the_latency_is_told_with_the_nearest() -> None:
    found = outcome(*rounds(OFF, 100, 80), *rounds(OTHER, 60, 55))
    assert found.winner is None and found.ratio is None
    with pytest.raises(GateError, match=r"stays within 50 ms at p99; nearest is int8, 3 × 1 thread.*60 rows/s") as raised:
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
    assert any("the untuned default could not be served" in line for line in summary(without))


def test_a_trial_survives_its_record() -> None:
    one = trial(RAGGED, level(1, 10, 5), level(16, 90, 40), gpu_memory_mib=2000.0, load_seconds=3.5)
    assert TrialRecord.model_validate(one.model_dump(mode="json")) == one
    assert one.memory_mib == 300, "on a CPU; what others have on a GPU beside it is not its"
    assert one.model_copy(update={"configuration": replace(RAGGED, device="gpu")}).memory_mib == 2000
    with pytest.raises(ValueError, match="failed"):
        _ = trial(RAGGED, failure="x", pss_mib=None).memory_mib
