"""Samples have the distribution of transformers' warpers, and depend on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig, GenerationMixin

from serving.runtime.generation import sampling
from serving.runtime.generation.decoding import AllForbiddenError, Continuation, NotFiniteError
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.sampling import Sampling, candidates, draw, top_k, top_p
from serving.runtime.types import Floats

VOCABULARY = 3000
CASES = [
    {"top_k": 0},
    {"top_k": 50},
    {"top_k": 1},
    {"top_k": 2999},
    {"top_k": 10**9},
    {"top_k": 0, "temperature": 0.5},
    {"top_k": 0, "temperature": 3.0},
    {"top_k": 0, "top_p": 0.9},
    {"top_k": 0, "top_p": 0.0},
    {"top_k": 0, "top_p": 0.2, "temperature": 2.0},
    {"top_k": 0, "top_p": 0.999},
    {"top_k": 0, "min_p": 0.2},
    {"top_k": 0, "min_p": 1.0},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
]


def chosen(parameters: dict[str, object]) -> GenerationOptions:
    return GenerationOptions(do_sample=True).with_parameters(parameters, vocab_size=VOCABULARY)  # type: ignore[arg-type]


def expected_probabilities(parameters: dict[str, object], scores: Floats) -> np.ndarray:
    """What transformers draws from."""
    config = GenerationConfig(do_sample=True, **parameters)
    warpers = GenerationMixin()._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    return warpers(torch.zeros((1, 1), dtype=torch.long), torch.tensor(scores)[None])[0].double().softmax(-1).numpy()


@pytest.mark.parametrize("parameters", CASES, ids=str)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_distribution_is_that_of_transformers(parameters: dict[str, object], spread: float) -> None:
    scores = np.random.default_rng(5).normal(0, spread, VOCABULARY).astype(np.float32)
    scores[:100] = -np.inf
    tokens, probabilities = candidates(scores, chosen(parameters))
    found = np.zeros(VOCABULARY)
    found[tokens] = probabilities
    assert (np.diff(tokens) > 0).all()
    np.testing.assert_allclose(found, expected_probabilities(parameters, scores), atol=1e-7)


@pytest.mark.parametrize("parameters", CASES[:2] + CASES[-1:], ids=str)
def test_what_is_drawn_has_that_distribution(parameters: dict[str, object]) -> None:
    scores = np.random.default_rng(6).normal(0, 3, VOCABULARY).astype(np.float32)
    drawn = candidates(scores, chosen(parameters))
    generator = np.random.default_rng(7)
    count = 40_000
    counts = np.bincount([draw(*drawn, generator) for _ in range(count)], minlength=VOCABULARY)
    expected = expected_probabilities(parameters, scores) * count
    assert counts[expected == 0].sum() == 0
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    assert len(observed) > 4
    frequent = np.append(expected[~rare], expected[rare].sum())
    keep = frequent > 0
    assert chisquare(observed[keep], frequent[keep] * count / frequent.sum()).pvalue > 1e-3


@pytest.mark.parametrize("size", [5, 399, 400, 401, 3001])
@pytest.mark.parametrize("distinct", [3, 10**6])
def test_top_k_keeps_what_reaches_the_score_of_the_last(size: int, distinct: int) -> None:
    generator = np.random.default_rng(size)
    for count in (1, 2, 50, size - 1, size, size + 1):
        scores = generator.integers(0, distinct, size).astype(np.float32)
        scores[generator.integers(0, size, size // 3)] = -np.inf
        threshold = np.sort(scores)[-min(count, size)]
        assert top_k(scores, count).tolist() == np.flatnonzero(scores >= threshold).tolist()


def sorted_whole(logits: np.ndarray, probabilities: np.ndarray, removed: float) -> list[int]:
    """What TopPLogitsWarper keeps."""
    order = np.argsort(logits, kind="stable")
    kept = order[probabilities[order].cumsum() > removed]
    return sorted({*kept.tolist(), int(order[-1])})


@pytest.mark.parametrize("size", [1, 2, 50, 1024, 1025, 20_000])
@pytest.mark.parametrize("step", [0.0, 0.5], ids=["scores differ", "scores are equal"])
def test_top_p_keeps_what_is_kept_where_all_tokens_are_sorted(size: int, step: float) -> None:
    generator = np.random.default_rng(size)
    for spread in (1e-9, 0.1, 3, 30):
        logits = generator.normal(0, spread, size)
        logits = np.round(logits / step) * step if step else logits
        logits[generator.integers(0, size, size // 3)] = -np.inf
        logits[generator.integers(size)] = 1
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        sums = np.sort(probabilities).cumsum()
        limits = [1.0, 0.9, 0.5, 0.05, 1e-3, 1e-12, 2**-53, *sums[generator.integers(0, size, 4)].clip(0, 1)]
        for removed in limits:
            assert top_p(logits, probabilities, removed).tolist() == sorted_whole(logits, probabilities, removed)


@pytest.mark.parametrize("spread", [1e-6, 0.5, 3.0, 8.0])
def test_top_p_sorts_few_tokens_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """Sorting 151,936 tokens takes 20 ms for each row and token, in the thread of all requests."""
    lengths: list[int] = []

    def counting(values: np.ndarray, **options: object) -> np.ndarray:
        lengths.append(len(values))
        return argsort(values, **options)  # type: ignore[call-overload,no-any-return]

    argsort = np.argsort
    scores = np.random.default_rng(9).normal(0, spread, 151_936).astype(np.float32)
    monkeypatch.setattr(sampling.np, "argsort", counting)
    for limit in (0.0, 0.1, 0.5, 0.9, 0.999):
        candidates(scores, chosen({"top_k": 0, "top_p": limit}))
    assert 5 <= len(lengths) < 100 and max(lengths) <= sampling.SORTED


def test_a_seed_repeats_all_sequences_and_no_seed_does_not() -> None:
    logits = np.random.default_rng(8).normal(0, 1, (20, 1, VOCABULARY)).astype(np.float32)

    def sampled(**parameters: object) -> list[list[int]]:
        decoding = Sampling(chosen({"max_new_tokens": 20, **parameters}), np.array([1, 2]), max_length=22)
        rows = 1
        for step in logits:
            continuation = decoding.advance(np.repeat(step, rows, axis=0), None)
            rows = len(continuation.tokens) if continuation else 0
        assert rows == 0
        assert {sequence.finish_reason for sequence in decoding.sequences()} == {"length"}
        return [list(sequence.token_ids) for sequence in decoding.sequences()]

    two = sampled(seed=3, num_return_sequences=2)
    assert sampled(seed=3, num_return_sequences=2) == two and two[0] != two[1]
    assert sampled(seed=3) == two[:1], "the first sequence does not depend on how many there are"
    assert sampled(seed=4) != two[:1]
    assert sampled() != sampled()


def test_rows_end_at_end_tokens_at_what_the_listener_says_and_at_the_length() -> None:
    heard: list[tuple[int, int]] = []

    def listen(sequence: int, token: int) -> bool:
        heard.append((sequence, token))
        return token == 7

    options = GenerationOptions(do_sample=True, top_k=1, num_return_sequences=3, eos_token_id=(5, 6), repetition_penalty=1.1)
    decoding = Sampling(options, np.array([0]), max_length=4, on_token=listen)

    def step(*tokens: int) -> Continuation | None:
        logits = np.zeros((len(tokens), 10), dtype=np.float32)
        logits[np.arange(len(tokens)), tokens] = 9
        return decoding.advance(logits, None)

    first = step(1)
    assert first is not None and first.tokens.tolist() == [1, 1, 1] and first.sources.tolist() == [0, 0, 0]
    second = step(2, 6, 3)
    assert second is not None and second.tokens.tolist() == [2, 3] and second.sources.tolist() == [0, 2]
    assert step(4, 7) is None, "the first has its length"
    found = [(list(one.token_ids), one.finish_reason) for one in decoding.sequences()]
    assert found == [([1, 2, 4], "length"), ([1, 6], "stop"), ([1, 3, 7], "stop")]
    assert heard == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 6), (2, 3), (0, 4), (2, 7)]


def test_greedy_rows_need_only_the_argmax_and_notice_what_is_not_finite() -> None:
    greedy = Sampling(GenerationOptions(eos_token_id=(2,)), np.array([0]), max_length=9)
    assert greedy.takes_argmax
    logits = np.array([[0, 1, 0]], dtype=np.float32)
    continuation = greedy.advance(logits, logits.argmax(1))
    assert continuation is not None and continuation.tokens.tolist() == [1]
    for bad in (np.nan, np.inf):
        logits[0, 2] = bad
        with pytest.raises(NotFiniteError):
            greedy.advance(logits, logits.argmax(1))
    penalized = Sampling(GenerationOptions(repetition_penalty=1.5), np.array([1]), max_length=9)
    assert not penalized.takes_argmax
    with pytest.raises(NotFiniteError):
        penalized.advance(logits, None)
    scores = np.array([[0, 3, 2.5]], dtype=np.float32)
    continuation = penalized.advance(scores, None)
    assert continuation is not None and continuation.tokens.tolist() == [2]
    assert scores.tolist() == [[0, 3, 2.5]], "the engine's logits are not changed"


@pytest.mark.parametrize("do_sample", [True, False])
def test_options_that_forbid_all_tokens_are_refused(do_sample: bool) -> None:
    """Greedy search of transformers gives token 0 then, and its samples are an error."""
    forbidding = chosen({"suppress_tokens": [0, 1, 2], "do_sample": do_sample})
    with pytest.raises(AllForbiddenError, match="forbid all tokens"):
        Sampling(forbidding, np.array([0]), max_length=9).advance(np.zeros((1, 3), dtype=np.float32), None)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40])
def test_of_a_temperature_near_0_the_highest_score_is_left(temperature: float) -> None:
    scores = np.array([-3, 1e30, 5, -np.inf, 1e30], dtype=np.float32)
    tokens, probabilities = candidates(scores, chosen({"temperature": temperature, "top_k": 0}))
    assert probabilities[tokens.tolist().index(2)] == 0
    assert probabilities[[tokens.tolist().index(1), tokens.tolist().index(4)]].tolist() == [0.5, 0.5]
