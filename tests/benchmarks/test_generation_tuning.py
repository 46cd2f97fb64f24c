"""What tuning searches of a model that generates, and what packaging does with the winner. Nothing is measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from benchmarks.token_speed import TokenTimes
from benchmarks.tuning.applied import recipe_values
from benchmarks.tuning.choice import Measured
from benchmarks.tuning.generation_space import GenerationSpace, slot_choices
from benchmarks.tuning.generation_testbed import GenerationTestbed
from benchmarks.tuning.outcome import TuningOutcome
from benchmarks.tuning.summary import table
from serving.configuration import Configuration
from serving.manifests import LoadRecord, TrialRecord

DEFAULT = Configuration(
    precision="int8",
    device="cpu",
    batching="ragged",
    instances=1,
    threads=4,
    max_batch_size=16,
    queue_delay_us=0,
    layout="generation",
    capacity=64,
)
SPACE = GenerationSpace(default=DEFAULT, precisions=("fp32", "int8"), threads=(1, 2, 4), slots=(4, 8, 16))


class Clock:
    """Clients whose answers take a second each. The first load is slow: the server is cold."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def generate(self, _prompts: list[str], in_flight: int, seconds: float) -> tuple[TokenTimes, float]:
        token = 1_000_000_000 if self.seconds else 9_000_000_000
        self.seconds.append(seconds)
        return np.array([[0, token, 2 * token, 3 * token]] * in_flight, dtype=np.int64), 0.1


def test_each_load_is_warmed_up_for_half_as_long_and_that_does_not_count() -> None:
    bundle: Any = SimpleNamespace(generation_task=SimpleNamespace(streams=True))
    testbed = GenerationTestbed(bundle=bundle, concurrencies=(1, 4), duration=4.0, texts=["a", "b"], new_tokens=3)
    clock: Any = Clock()
    record = testbed._level(clock, 4)
    assert clock.seconds == [2.0, 4.0]
    assert record.tokens_per_second == pytest.approx(4.0) and record.p99_ms == pytest.approx(3000)
    assert testbed.expected_seconds() >= 2 * (2.0 + 4.0)


def trial(configuration: Configuration, rate: float) -> TrialRecord:
    level = LoadRecord(concurrency=4, throughput=rate / 64, p50_ms=9, p99_ms=20, executed_batch=None, tokens_per_second=rate)
    return TrialRecord(configuration=configuration, round=1, seconds=9, levels=(level,), pss_mib=300, peak_rss_mib=400)


def test_what_a_configuration_is_to_optuna_gives_it_back() -> None:
    everything = SPACE.configurations()
    assert len(everything) == len(set(everything)) == 18
    for one in everything:
        assert SPACE.suggest(optuna.trial.FixedTrial(dict(SPACE.parameters(one)))) == one
    assert DEFAULT in SPACE.grid() and set(SPACE.grid()) <= set(everything)
    with pytest.raises(ValueError, match="not in tuple"):
        SPACE.parameters(replace(DEFAULT, threads=3))


def test_one_value_is_no_choice() -> None:
    space = replace(SPACE, precisions=("int8",))
    assert all("precision" not in space.parameters(one) for one in space.configurations())


@pytest.mark.parametrize(
    ("rows", "clients", "slots"),
    [(1, 16, [4, 8, 16]), (4, 16, [16, 32, 64]), (1, 1, [1, 16]), (4, 1, [4, 16]), (5, 4, [8, 16, 32])],
)
def test_slots_are_tried_that_the_clients_can_fill(rows: int, clients: int, slots: list[int]) -> None:
    assert slot_choices(rows, clients) == slots


def test_the_winner_as_options_of_packaging() -> None:
    assert recipe_values(DEFAULT) == {"precision": "int8", "threads": 4, "max-batch-size": 16}


def test_the_table_is_about_tokens() -> None:
    faster = replace(DEFAULT, threads=2)
    outcome = TuningOutcome(trials=[trial(DEFAULT, 100), trial(faster, 150)], default=DEFAULT, latency_p99_ms=None)
    head, first, *_ = table(outcome)
    assert head.split()[0] == "tokens/s" and first.split()[:5] == ["150", "20.0", "4", "300", "—"]
    assert "int8, 2 threads, 16 sequences of 64 tokens  ← best" in first
    assert str(replace(DEFAULT, threads=1)) == "int8, 1 thread, 16 sequences of 64 tokens"
    assert str(Measured(trials=[trial(DEFAULT, 100)], latency_p99_ms=None).shown) == "100 tokens/s, p99 20 ms at 4 clients"
    assert Measured(trials=[trial(DEFAULT, 90), trial(DEFAULT, 100)], latency_p99_ms=None).shown.tokens_per_second == 95


def test_a_record_survives_being_written() -> None:
    one = trial(DEFAULT, 100)
    assert TrialRecord.model_validate_json(one.model_dump_json()) == one, "int8 of a model that generates is batched"
