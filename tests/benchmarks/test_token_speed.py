"""Speeds of tokens are computed from the times at which tokens came, and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.samples import to_answer_samples
from benchmarks.token_speed import GenerationSlice, TokenTimes, tokens_over_rounds
from serving.errors import SetupError

MS = 1_000_000


def times(*answers: list[float]) -> TokenTimes:
    return np.array([[round(ms * MS) for ms in answer] for answer in answers], dtype=np.int64)


TWO = GenerationSlice(times=times([0, 10, 12, 16], [5, 25, 29, 45]), cpu_seconds=0.060, client_cpu_seconds=0.003)
"""Two answers of three tokens within 45 ms: first tokens after 10 and 20 ms, pauses of 2, 4, 4 and 16 ms."""


def test_figures_of_a_slice() -> None:
    found = TWO.token_speed()
    assert found.tokens_per_second == pytest.approx(6 / 0.045)
    assert found.ttft_p50_ms == pytest.approx(15)
    assert found.ttft_p99_ms == pytest.approx(19.9)
    assert found.itl_mean_ms == pytest.approx((3 + 10) / 2)
    assert found.itl_p50_ms == pytest.approx(4)
    assert found.itl_p99_ms == pytest.approx(np.percentile([2, 4, 4, 16], 99))
    assert found.cpu_ms_per_token == pytest.approx(10)
    assert found.client_cpu_ms_per_token == pytest.approx(0.5)


def test_whole_answers_of_a_slice() -> None:
    found = TWO.timing()
    assert found.throughput == pytest.approx(2 / 0.045)
    assert found.latencies.tolist() == pytest.approx([16, 40])
    assert TWO.spans.tolist() == [[0, 16 * MS], [5 * MS, 45 * MS]]


def test_tokens_that_come_together_are_no_pause() -> None:
    found = GenerationSlice(times=times([0, 10, 10, 16])).token_speed()
    assert found.itl_p50_ms == found.itl_p99_ms == pytest.approx(6)
    assert found.itl_mean_ms == pytest.approx(3), "the whole answer took as long"


def test_all_tokens_at_once_have_no_pauses() -> None:
    found = GenerationSlice(times=times([0, 10, 10, 10])).token_speed()
    assert (found.itl_mean_ms, found.itl_p50_ms, found.itl_p99_ms) == (0, 0, 0)


def test_rounds_are_combined_to_their_median_rate_and_all_waits() -> None:
    slow = GenerationSlice(times=times([0, 40, 44, 60]), cpu_seconds=0.030, client_cpu_seconds=0.003)
    slowest = GenerationSlice(times=times([0, 50, 60, 90]), cpu_seconds=0.060, client_cpu_seconds=0.003)
    found = tokens_over_rounds([TWO, slow, slowest])
    assert found.tokens_per_second == pytest.approx(3 / 0.060)
    assert found.tokens_per_second_low == pytest.approx(3 / 0.090)
    assert found.tokens_per_second_high == pytest.approx(6 / 0.045)
    assert found.ttft_p50_ms == pytest.approx(np.median([10, 20, 40, 50]))
    assert found.cpu_ms_per_token == pytest.approx(150 / 12)
    assert found.tokens_per_cpu_second == pytest.approx(80)


def test_a_server_that_is_not_visible_has_no_processor_time() -> None:
    unknown = GenerationSlice(times=TWO.times, client_cpu_seconds=0.003)
    for found in (unknown.token_speed(), tokens_over_rounds([TWO, unknown])):
        assert found.cpu_ms_per_token is None
        assert found.client_cpu_ms_per_token is not None
    assert tokens_over_rounds([unknown]).tokens_per_cpu_second is None


@pytest.mark.parametrize("wrong", [np.zeros((0, 4)), np.zeros((2, 2)), np.zeros(0)], ids=["no answer", "one token", "nothing"])
def test_answers_that_have_no_speed_are_refused(wrong: TokenTimes) -> None:
    with pytest.raises(SetupError, match="no answers of two tokens"):
        GenerationSlice(times=wrong.astype(np.int64))


def test_answers_that_come_whole_have_a_rate_but_no_waits_between_tokens() -> None:
    whole = GenerationSlice(times=times([0, 16], [5, 45]), whole_tokens=3, cpu_seconds=0.060, client_cpu_seconds=0.003)
    found = whole.token_speed()
    assert found.tokens_per_second == pytest.approx(6 / 0.045) == TWO.token_speed().tokens_per_second
    assert found.cpu_ms_per_token == pytest.approx(10)
    assert {found.ttft_p50_ms, found.ttft_p99_ms, found.itl_mean_ms, found.itl_p50_ms, found.itl_p99_ms} == {None}
    assert whole.timing().latencies.tolist() == pytest.approx([16, 40])


def test_samples_of_answers_that_come_whole_have_no_times_of_tokens() -> None:
    found = to_answer_samples({"streamed": TWO.times, "whole": times([1, 16])})
    assert found["whole"] == {"start_us": [1000], "took_us": [15000]}
    assert len(found["streamed"]["token_us"]) == 2
